"""The options of sweeps, generated from their declarations and from the configuration classes."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from cyclopts import App, Group, Parameter, Token, convert

from cvit.engine.declaration import Preset, Search, Sweep
from cvit.engine.planning.scheme_settings import SCHEME
from cvit.engine.terminal import sources
from cvit.parameters import AUTO, as_text
from cvit.parameters import Parameter as ConfigParameter
from cvit.provenance import code_version
from cvit.tasks import task_named
from cvit.vocabulary import DEFAULT_TRACKING_URI, TRACKING_URI_VARIABLE

DATA_DIR_VARIABLE = sources.variable_of("data_dir")

ALL_PARTS = "all"

_SET_BY_THE_DATA = {"dataset", "data_fingerprint", "image_size", "in_channels", "num_classes", "dimensions"}
_CHOSEN_BY_THE_DATA = {"augmentation": "the data set's own", "patch_size": "image size / 8, at least 2; length / 64"}
_GROUPS = {
    "run": Group("Run", sort_key=0),
    "grid": Group("Grid (several values each)", sort_key=1),
    "data": Group("Data", sort_key=2),
    "model": Group("Model", sort_key=3),
    "init": Group("Initialisation", sort_key=4),
    "training": Group("Training", sort_key=5),
    "fit": Group("Fit of attention to a convolution", sort_key=6),
}
_SHORT_HELP = {"run", "grid", "data"}
"""The groups that `--help` shows; `--help-all` shows the rest too."""
HELP, HELP_ALL = "--help", "--help-all"


def options_of(beside: Sequence[tuple[Sweep, str]], presets: Sequence[str], parts: Sequence[str]) -> dict[str, Any]:
    """The options of sweeps that run together, each with the name of its preset; those of the first one count."""
    options: dict[str, Any] = {}
    for sweep, name in beside:
        preset = sweep.presets[name]
        options_of_sweep = _run_options(preset, name, presets, parts) | _task_options(sweep)
        options_of_sweep |= _grid_options(sweep, preset) | _parameter_options(sweep, preset)
        options = options_of_sweep | options
    return options


def about_text(sweeps: Sequence[Sweep], parts: Sequence[str]) -> str:
    """The text above the options: the questions, and the presets where one script has them."""
    about = [sweep.question for sweep in sweeps]
    if len(sweeps) == 1 or parts:
        about += [f"preset {name}: {preset.description}" for name, preset in sweeps[0].presets.items()]
    about += ["Running the same command again resumes the sweep: finished stages are not trained again."]
    return "\n\n".join(about)


def app_of(options: Mapping[str, Any], about: str, name: str, shows_all: bool, names: Sequence[str] = ()) -> App:
    """An application with these options, which returns those that are given."""

    def given_options(*names: str, **given: Any) -> dict[str, Any]:
        return given

    shown = options if shows_all else {option: _in_short_help(kind) for option, kind in options.items()}
    words: dict[str, Any] = {"names": Literal[tuple(names)]} if names else {}
    kinds = inspect.Parameter
    given_options.__annotations__ = {**words, **shown}
    given_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(kinds(name, kinds.VAR_POSITIONAL, annotation=kind) for name, kind in words.items()),
            *(kinds(name, kinds.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in shown.items()),
        ]
    )
    num_hidden = sum(shown[option] is not kind for option, kind in options.items())
    more = [f"{HELP_ALL} shows the other {num_hidden} options: model, initialisation, training."] if num_hidden else []
    more += [f"Options also stand in a file (--config) or in variables: {sources.PREFIX}SEEDS for --seeds."]
    app = App(
        name=name, help=about, help_epilogue="\n\n".join(more), version=code_version, result_action="return_value"
    )
    for flag in ("--help", "--version"):
        app[flag].group = _GROUPS["run"]
    app.default(given_options)
    return app


def _in_short_help(kind: Any) -> Any:
    """An option as `--help` shows it: not at all if it belongs to the rest of the groups."""
    of_type, parameter = get_args(kind)
    if parameter.group[0] in (_GROUPS[name] for name in _SHORT_HELP):
        return kind
    return Annotated[of_type, parameter, Parameter(show=False)]


def _run_options(preset: Preset, preset_name: str, presets: Sequence[str], parts: Sequence[str]) -> dict[str, Any]:
    run, grid = _GROUPS["run"], _GROUPS["grid"]
    part = _option(Literal[ALL_PARTS, *parts], "Which of the script's sweeps to run.", ALL_PARTS, run)
    return (
        ({"part": part} if parts else {})
        | {
            "preset": _option(
                Literal[tuple(presets)],
                "Scale of the sweep; other options override its values.",
                preset_name,
                run,
            ),
            "storage": _option(str, "Folder or URL (s3://, gs://) that holds the sweep's state.", "storage", run),
            "tracking_uri": _option(
                str, f"MLflow store or server, or none (or set {TRACKING_URI_VARIABLE}).", DEFAULT_TRACKING_URI, run
            ),
            "address": _option(
                str,
                "Ray cluster to run on (or set RAY_ADDRESS); local: this machine, no Ray. Default: Ray starts here.",
                None,
                run,
            ),
            "device": _option(Literal["auto", "cpu", "cuda"], "Device to train on.", "auto", run),
            "workers": _option(
                int, "Number of workers that train at a time; without it, as many as there is room for.", None, run
            ),
            "cpus_per_worker": _option(
                float, "CPUs of each worker, which has so many threads; 0.5: two workers share one.", "1", run
            ),
            "gpus_per_worker": _option(float, "Share of a GPU of each worker: 0.5, or 1, say.", "0.5", run),
            "max_pack": _option(
                int,
                "Largest number of stages trained together; without it, measured on the device.",
                None,
                run,
            ),
            "upgrade_store": _option(
                bool, "Change a store of an older MLflow, which then cannot open it any more.", None, run
            ),
            "log_models": _option(bool, "Add each study's best model to the tracking store.", None, run),
            "dry_run": _option(bool, "Print the plan and stop.", None, run),
            "json": _option(bool, "With --dry-run, print the plan as JSON.", None, run),
            "config": _option(
                str, f"File with options, TOML or YAML; {sources.PREFIX}… variables and options override it.", None, run
            ),
            "help_all": _option(bool, "Display every option and exit.", None, run),
            "seeds": _option(int, "Number of seeds, counted from 0.", preset.seeds, grid),
        }
        | (_search_options(preset.search) if preset.search else {})
    )


def _search_options(search: Search) -> dict[str, Any]:
    text = "Trials of the search for each init scheme's best settings."
    optuna = "Copy the search to this Optuna storage, for optuna-dashboard: sqlite:///FILE, or a journal's path."
    asha = "Stop early the trials of the search that fall behind others of their scheme (ASHA)."
    return {
        "search_trials": _option(int, text, search.trials, _GROUPS["grid"]),
        "asha": _option(bool, asha, None, _GROUPS["run"]),
        "optuna_storage": _option(str, optuna, None, _GROUPS["run"]),
    }


def _task_options(sweep: Sweep) -> dict[str, Any]:
    parameters = task_named(sweep.task).parameters
    return (_scheme_options() if SCHEME in parameters else {}) | _data_options(sweep)


def _scheme_options() -> dict[str, Any]:
    text = (
        "File with settings of init schemes, such as results/tuned.json of sweeps/tuned.py; other options override it."
    )
    return {"settings_from": _option(str, text, None, _GROUPS["init"])}


def _data_options(sweep: Sweep) -> dict[str, Any]:
    data = _GROUPS["data"]
    if not task_named(sweep.task).needs_data:
        return {}
    return {
        "dataset": _option(
            str,
            "digits, digit_rows, cifar10, cifar100, fashion_mnist, svhn, a name in the data folder, or the path of a "
            "Parquet file, a folder of them or an image folder, of an .npz or .ts file of sequences, or of a folder of "
            "WAV recordings.",
            sweep.dataset,
            data,
        ),
        "data_dir": _option(str, f"Folder of the data sets (or set {DATA_DIR_VARIABLE}).", "data", data),
        "no_download": _option(bool, "Never download a data set.", None, data),
        "image_size": _option(
            int,
            "Resize images to this side, pixels; needed where sizes differ. Cut or pad sequences to this length.",
            None,
            data,
        ),
        "label_pattern": _option(
            str,
            "Regular expression that finds the class in the path of a WAV recording, as its first group or as a whole.",
            None,
            data,
        ),
        "test_pattern": _option(
            str, "Regular expression that finds the test recordings among WAV recordings.", None, data
        ),
    }


def _grid_options(sweep: Sweep, preset: Preset) -> dict[str, Any]:
    parameters = task_named(sweep.task).parameters
    one_value = {axis: (preset.settings.get(axis, parameters[axis].default),) for axis in sweep.further_axes}
    return {axis: _axis_option(parameters[axis], values) for axis, values in {**preset.grid, **one_value}.items()}


def _axis_option(parameter: ConfigParameter, values: tuple[Any, ...]) -> Any:
    """An option of several values, also of a bool, whose option takes none elsewhere."""
    kind, converter = (Literal["False", "True"], _split_bools) if parameter.type is bool else (_type(parameter), _split)
    return _option(tuple[kind, ...], parameter.help, values, _GROUPS["grid"], converter)


def _parameter_options(sweep: Sweep, preset: Preset) -> dict[str, Any]:
    options = {}
    for name, parameter in task_named(sweep.task).parameters.items():
        is_axis = name in preset.grid or name in sweep.further_axes
        if name in not_options(sweep.task) or is_axis or (preset.search and name in preset.search.space):
            continue
        default = preset.settings.get(name, parameter.default)
        of_schemes = [f"{s}: {settings[name]}" for s, settings in preset.scheme_settings.items() if name in settings]
        default_text = ", ".join([as_text(default), *of_schemes])
        if name not in preset.settings:
            default_text = _CHOSEN_BY_THE_DATA.get(name, default_text)
        group = _GROUPS.get(parameter.part) or Group(parameter.part.replace("_", " ").capitalize())
        options[name] = _option(_type(parameter), parameter.help, default_text, group)
    return options


def not_options(task: str) -> set[str]:
    """The parameters of a task that are no options: the data set sets them, if there is one, or another option."""
    return {"seed"} | (_SET_BY_THE_DATA if task_named(task).needs_data else set())


def _type(parameter: ConfigParameter) -> Any:
    takes_auto = parameter.default is None or parameter.by_machine
    return parameter.type | Literal[AUTO] if takes_auto else parameter.type


def _option(kind: Any, help_text: str, default: Any, group: Group, converter: Any = None) -> Any:
    default_text = " ".join(map(as_text, default)) if isinstance(default, tuple) else as_text(default)
    return Annotated[
        kind | None,
        Parameter(
            help=help_text,
            group=group,
            negative="",
            consume_multiple=True,
            converter=converter,
            show_default=False if default is None else lambda _: default_text,
        ),
    ]


def _split(kind: Any, tokens: Sequence[Token]) -> Any:
    """The values of an axis, which commas may separate as well as spaces."""
    values = [token.evolve(value=text) for token in tokens for text in token.value.split(",") if text.strip()]
    return convert(kind, values) if values else ()


def _split_bools(kind: Any, tokens: Sequence[Token]) -> Any:
    """The values of an axis that is on or off; `true` is as good as `True`."""
    return _split(kind, [token.evolve(value=re.sub("true|false", _titled, token.value)) for token in tokens])


def _titled(match: re.Match[str]) -> str:
    return match[0].title()


def dashed(name: str) -> str:
    """The name of an option as it is typed, without its dashes in front."""
    return name.replace("_", "-")
