"""Shell completion of the command `cvit`, as cyclopts generates it: bash, zsh and fish."""

import sys
from collections.abc import Mapping, Sequence

from cyclopts import App, CycloptsError

from cvit.engine import exit_codes
from cvit.engine.loading import load_sweeps
from cvit.engine.scripts import sweep_scripts
from cvit.engine.terminal.cli import application
from cvit.errors import one_line

NAME = "cvit"


def install_completion(arguments: Sequence[str], questions: Mapping[str, str], tools: Mapping[str, str]) -> None:
    """Writes the completion script of a shell, and says where.

    Args:
        arguments: `--install-completion` with `--shell` and `--output`.
        questions: a line about each sweep script, by its name.
        tools: a line about each of the other commands.
    """
    app = with_commands(questions, tools)
    app.register_install_completion_command()
    try:
        app(list(arguments), exit_on_error=False, print_error=False)
    except (CycloptsError, OSError) as error:
        print(f"{NAME}: error: {one_line(error)}", file=sys.stderr)
        sys.exit(exit_codes.BAD_INPUT)
    except SystemExit as end:  # after cyclopts has said that it cannot find out the shell
        sys.exit(exit_codes.BAD_INPUT if end.code else exit_codes.FINISHED)


def with_commands(questions: Mapping[str, str], tools: Mapping[str, str]) -> App:
    """The command with all its commands and their options."""
    from cvit.analysis.make_tables import make_tables
    from cvit.engine.sync import sync

    app = App(name=NAME, version_flags=["--version"], result_action="return_value")
    sweeps = {name: load_sweeps(path) for name, path in sweep_scripts().items()}
    for name, text in questions.items():
        app.command(application(sweeps[name], name, text))
    every_sweep = [sweep for of_script in sweeps.values() for sweep in of_script]
    app.command(application(every_sweep, "run", tools["run"], list(sweeps)))
    app.command(make_tables, name="tables")
    app.command(sync, name="sync")
    return app
