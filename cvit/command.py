"""The command `cvit`: every question by its name, several together, their tables, and the copy of journals by hand.

    cvit low-data --preset smoke              # as python sweeps/low_data.py --preset smoke
    cvit run low-data no-warmup --seeds 3     # several questions on one Ray
    cvit tables --storage storage
    cvit sync --storage storage --tracking-uri http://127.0.0.1:5000

A module of a command is imported when it is called: the help answers before torch, pandas, Ray or MLflow could load.
"""

import ast
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from cvit.engine import exit_codes
from cvit.engine.invocation import of_program
from cvit.engine.scripts import sweep_scripts

_HELP = ("--help", "-h")
_VERSION = "--version"
_COMPLETION = "--install-completion"
_RUN, _TABLES, _SYNC = "run", "tables", "sync"
_TOOLS = {
    _RUN: "Several questions one after another, on one Ray: cvit run low-data no-warmup --seeds 3",
    _TABLES: "Tables, figures and verdicts of all sweeps in a storage or a tracking store, and a report.",
    _SYNC: "Copies journals to a tracking store by hand, after an outage that outlived the sweep.",
}


def main() -> None:
    """Runs the command line of this process and ends it with the exit code: 2 after one line for bad input."""
    name, *arguments = sys.argv[1:] or _HELP[:1]
    name = name if name.startswith("-") else name.replace("_", "-")
    if name in _HELP:
        _print_help()
    elif name == _VERSION:
        from cvit.provenance import code_version

        print(code_version())
    elif name == _COMPLETION:
        from cvit.completion import install_completion

        install_completion([name, *arguments], _summaries(), _TOOLS)
    elif name == _TABLES:
        from cvit.analysis.make_tables import run

        run(arguments, of_program([name]).name)
    elif name == _SYNC:
        from cvit.engine import sync

        sync.main(arguments, of_program([name]).name)
    elif name == _RUN:
        _run_several(arguments)
    else:
        _run([name], arguments, [name])


def _run_several(arguments: Sequence[str]) -> None:
    """Runs the questions whose names stand before the first option."""
    num_names = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    names = list(dict.fromkeys(name.replace("_", "-") for name in arguments[:num_names]))
    if not names and {*arguments} & {*_HELP, "--help-all"}:
        _run(list(sweep_scripts()), arguments, [_RUN, "QUESTION..."])
    if not names:
        _end_with_error(f"give the names of questions before any option: {_listed(sweep_scripts())}", _RUN)
    _run(names, arguments[num_names:], [_RUN, *names])


def _run(names: Sequence[str], options: Sequence[str], words: Sequence[str]) -> NoReturn:
    from cvit.engine.loading import load_sweeps
    from cvit.engine.main import run_command

    scripts = sweep_scripts()
    for name in names:
        if name not in scripts:
            _end_with_error(_unknown(name, scripts))
    started = of_program(words, is_one_script=len(names) == 1)
    run_command(lambda: [sweep for name in names for sweep in load_sweeps(scripts[name])], started, options)


def _unknown(name: str, scripts: Iterable[str]) -> str:
    names = [*scripts, *_TOOLS]
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"one of {_listed(names)}"
    return f"{name!r} is not valid: {hint}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _end_with_error(message: str, *words: str) -> NoReturn:
    print(f"{of_program(words).name}: error: {message}", file=sys.stderr)
    sys.exit(exit_codes.BAD_INPUT)


def _summaries() -> dict[str, str]:
    """The first line of each sweep script by its name, read without running the script."""
    texts = {name: ast.get_docstring(ast.parse(path.read_text("utf-8"))) for name, path in sweep_scripts().items()}
    return {name: (text or "").partition("\n")[0] for name, text in texts.items()}


def _print_help() -> None:
    from cyclopts import App, Group

    questions, others = Group("Questions", sort_key=0), Group("Other commands", sort_key=1)
    name = of_program([]).name
    app = App(
        name=name,
        help='Experiments on "Can Vision Transformers Perform Convolution?" (arXiv 2111.01353).',
        help_epilogue=f"{name} low-data --help shows the options of a question; docs/COMMAND.md says more.",
        version_flags=[],
        usage=f"Usage: {name} COMMAND [OPTIONS]",
    )
    app["--help"].group = others
    for command, text in _summaries().items():
        app.command(App(name=command, help=text, group=questions))
    for command, text in {
        **_TOOLS,
        _COMPLETION: "Completes commands and options by Tab, in bash, zsh or fish (--shell names another than this).",
        _VERSION: "The version and, in a checkout, the commit.",
    }.items():
        app.command(App(name=command, help=text, group=others))
    app.help_print([])
