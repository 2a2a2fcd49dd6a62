"""The words by which a command is started, so that the commands that it prints can be typed in the same way."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TOOLS_OF_SCRIPTS = {"tables": ("python", "analysis/make_tables.py"), "sync": ("python", "-m", "cvit.engine.sync")}


@dataclass(frozen=True)
class Invocation:
    """The way a sweep was started: as a script, or by the command `cvit`.

    Attributes:
        words: the words before the options, such as `python sweeps/low_data.py` or `cvit run low-data no-warmup`.
        program: the first of them if they are the command `cvit`: `cvit`, or `python -m cvit`; empty for a script.
        is_one_script: False if the sweeps of several scripts run together, of which no `--part` can be chosen.
    """

    words: tuple[str, ...]
    program: tuple[str, ...] = ()
    is_one_script: bool = True

    @property
    def name(self) -> str:
        """The name in errors and in the help: of a script its file, else the words."""
        return " ".join(self.words) if self.program else Path(self.words[-1]).name

    def command(self, options: Sequence[str], variables: Mapping[str, str]) -> str:
        """The command line with its options and the environment variables that count, to be pasted into a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        return " ".join([*settings, shlex.join([*self.words, *options])])

    def tool(self, name: str) -> str:
        """The words that start another command of this package: `tables` or `sync`."""
        return shlex.join([*self.program, name] if self.program else _TOOLS_OF_SCRIPTS[name])


def of_script() -> Invocation:
    """The invocation of the script that this process runs."""
    return Invocation(("python", os.path.relpath(sys.argv[0])))


def of_program(words: Sequence[str], is_one_script: bool = True) -> Invocation:
    """The invocation of a command of `cvit` that this process runs.

    Args:
        words: the command's own words, such as `run low-data no-warmup`.
    """
    program = ("python", "-m", "cvit") if Path(sys.argv[0]).name == "__main__.py" else (Path(sys.argv[0]).name,)
    return Invocation((*program, *words), program, is_one_script)


SCRIPT = Invocation(("python",))
"""The invocation of sweeps that a program starts without saying how."""
