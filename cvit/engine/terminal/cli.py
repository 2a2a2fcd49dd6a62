"""The command line of a sweep, generated from its declaration and from the configuration classes."""

import inspect
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from cyclopts import App, CycloptsError, Group, Parameter, Token, UnknownOptionError, convert

from cvit.config import AUTO, ConfigError, as_text
from cvit.config import Parameter as ConfigParameter
from cvit.engine.declaration import Preset, Search, Sweep
from cvit.engine.invocation import Invocation, of_script
from cvit.engine.planning.request import IN_PROCESS, Request, Resources
from cvit.engine.planning.scheme_settings import SCHEME
from cvit.engine.terminal import sources
from cvit.engine.terminal.usage import explained
from cvit.provenance import code_version
from cvit.tasks import TASK_NAMES, task_named
from cvit.tracking import chosen_uri
from cvit.vocabulary import DEFAULT_TRACKING_URI, TRACKING_URI_VARIABLE

DATA_DIR_VARIABLE = sources.variable_of("data_dir")

ALL_PARTS = "all"
LEAST_SHARE = 0.01
"""The least share of a CPU or GPU that a worker can be given."""

# These are set by the data set or by another option.
_NOT_OPTIONS = {"dataset", "data_fingerprint", "image_size", "in_channels", "num_classes", "seed"}
_CHOSEN_BY_THE_DATA = {"augmentation": "the data set's own", "patch_size": "image size / 8, at least 2"}
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


def parts_asked_for(sweeps: Sequence[Sweep], argv: Sequence[str], started: Invocation | None = None) -> list[Sweep]:
    """The sweeps of a script that `--part` chooses: one of them, or all.

    Raises:
        ConfigError: there is no such part.
    """
    has_parts = len(sweeps) > 1 and (started is None or started.is_one_script)
    name = sources.value_of("part", argv) if has_parts else None
    if name is None or name == ALL_PARTS:
        return list(sweeps)
    _require_one_of("part", name, [sweep.name for sweep in sweeps])
    return [sweep for sweep in sweeps if sweep.name == name]


def parse(
    sweep: Sweep, argv: Sequence[str], script: Sequence[Sweep] = (), started: Invocation | None = None
) -> Request | None:
    """The request that the arguments state; None where they asked for help or the version, which is then printed.

    Args:
        script: all sweeps that run together if there are several; options of the others are accepted and ignored.
        started: the way the sweep was started; by default, as the script that this process runs.

    Raises:
        ConfigError: an unknown option or an invalid value, in one line.
    """
    started = of_script() if started is None else started
    parts = [other.name for other in script] if started.is_one_script else []
    beside = [sweep, *(part for part in parts_asked_for(script, argv, started) if part is not sweep)]
    # The help shows the defaults of the chosen preset, so the preset is read first.
    chosen = sources.value_of("preset", argv)
    common = [name for name in sweep.presets if all(name in part.presets for part in beside)]
    if chosen is not None:
        _require_one_of("preset", chosen, common)
    with_presets = {part.name: (part, chosen or part.default_preset) for part in beside}
    options = _options(list(with_presets.values()), common, parts)
    file = sources.config_file(argv)
    if file is not None:
        sources.check_file(file, options)
    shows_all = HELP_ALL in argv
    app = _app(options, _about(beside, parts), started.name, shows_all)
    app.config = [sources.Variables(sources.PREFIX, command=False, show=False), *([] if file is None else [file])]
    try:
        given = app([HELP] if shows_all else list(argv), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        axes = dict.fromkeys(
            f"--{_dashed(axis)}" for part, name in with_presets.values() for axis in part.presets[name].grid
        )
        raise ConfigError(explained(error, argv, list(axes)) + _place(error, sweep, script, parts)) from error
    if given is None:
        return None
    variables = sources.used_variables(options, argv)
    return _request(sweep, with_presets[sweep.name][1], given, started, started.command(argv, variables))


def unknown_variables() -> list[str]:
    """The variables `CVIT_…` that are no option of any sweep.

    Raises:
        ConfigError: one of them is a misspelt option.
    """
    preset = Preset(description="", grid={}, seeds=1, settings={}, search=Search(space={}, trials=1, round_size=1))
    sweep = Sweep(name="", question="", presets={"": preset})
    parameters = {name for task in TASK_NAMES for name in task_named(task).parameters}
    return sources.unknown_variables({*_options([(sweep, "")], [""], [""]), *(parameters - _NOT_OPTIONS)})


def _place(error: CycloptsError, sweep: Sweep, script: Sequence[Sweep], parts: Sequence[str]) -> str:
    """A phrase that names the sweep, one of several, to which an error belongs."""
    if parts:
        return f" (in {sweep.name}; --part chooses one of {', '.join(parts)})"
    return f" (in {sweep.name})" if script and not isinstance(error, UnknownOptionError) else ""


def application(sweeps: Sequence[Sweep], name: str, about: str, names: Sequence[str] = ()) -> App:
    """The application of sweeps that run together, with all their options, as completion in shells needs it.

    Args:
        names: the names that stand before its options.
    """
    parts = [sweep.name for sweep in sweeps] if len(sweeps) > 1 and not names else []
    common = [preset for preset in sweeps[0].presets if all(preset in sweep.presets for sweep in sweeps)]
    options = _options([(sweep, sweep.default_preset) for sweep in sweeps], common, parts)
    return _app(options, about, name, shows_all=True, names=names)


def _require_one_of(option: str, value: str, valid: Iterable[str]) -> None:
    if value not in (names := list(valid)):
        raise ConfigError(f"{option} {value!r} is not valid: one of {', '.join(names)}")


def _request(sweep: Sweep, preset_name: str, given: dict[str, Any], started: Invocation, command: str) -> Request:
    preset = sweep.presets[preset_name]
    parameters = task_named(sweep.task).parameters
    for name, value in given.items():
        if isinstance(value, str) and not value.strip():
            raise ConfigError(f"--{_dashed(name)} is empty: give a value, or leave the option out")
    given = {name: _value(parameters[name], value) if name in parameters else value for name, value in given.items()}
    grid = {}
    for axis, default in preset.grid.items():
        values = tuple(dict.fromkeys(given.pop(axis, default)))
        if not values:
            raise ConfigError(f"--{_dashed(axis)} needs at least one value")
        grid[axis] = values
    seeds = given.pop("seeds", preset.seeds)
    if seeds < 1:
        raise ConfigError(f"seeds {seeds} must be at least 1: it is the number of seeds, which are counted from 0")
    search_trials = given.pop("search_trials", None)
    if search_trials is not None and search_trials < 1:
        raise ConfigError(f"search_trials {search_trials} must be at least 1")
    max_pack = given.pop("max_pack", None)
    if max_pack is not None and max_pack < 1:
        raise ConfigError(f"max_pack {max_pack} must be at least 1")
    resources = _resources(given)
    if given.get("json", False) and not given.get("dry_run", False):
        raise ConfigError("--json prints the plan of --dry-run: give both")
    return Request(
        preset=preset_name,
        grid=grid,
        seeds=seeds,
        search_trials=search_trials,
        asha=given.get("asha", False),
        given={name: value for name, value in given.items() if name in parameters.keys() - _NOT_OPTIONS},
        dataset=given.get("dataset", sweep.dataset),
        data_dir=given.get("data_dir", "data"),
        download=not given.get("no_download", False),
        image_size=given.get("image_size"),
        storage=given.get("storage", "storage"),
        tracking_uri=chosen_uri(given.get("tracking_uri")),
        address=given.get("address") or _address_in_environment(),
        device=given.get("device", "auto"),
        max_pack=max_pack,
        resources=resources,
        optuna_storage=given.get("optuna_storage"),
        dry_run=given.get("dry_run", False),
        upgrade_store=given.get("upgrade_store", False),
        settings_from=given.get("settings_from"),
        log_models=given.get("log_models", False),
        as_json=given.get("json", False),
        command=command,
        started=started,
    )


def _resources(given: Mapping[str, Any]) -> Resources:
    """The number of workers and what each gets, as typed."""
    workers, cpus, gpus = (given.get(name) for name in ("workers", "cpus_per_worker", "gpus_per_worker"))
    if workers is not None and workers < 1:
        raise ConfigError(f"workers {workers} must be at least 1")
    if cpus is not None and not LEAST_SHARE <= cpus < math.inf:
        raise ConfigError(f"cpus_per_worker {cpus:g} must be at least {LEAST_SHARE}: CPUs, or a share of one")
    if gpus is not None and not LEAST_SHARE <= gpus <= 1:
        raise ConfigError(f"gpus_per_worker {gpus:g} must lie from {LEAST_SHARE} to 1: a share of one GPU")
    return Resources(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)


def _address_in_environment() -> str | None:
    """The cluster that RAY_ADDRESS names. There, `local` is Ray's own word for starting Ray on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    return address if address not in ("", IN_PROCESS) else None


def _value(parameter: ConfigParameter, given: Any) -> Any:
    """A parameter's value, or an axis's values, with None for `auto` and for the number that stood for it."""
    if isinstance(given, tuple | list):
        return tuple(_value(parameter, value) for value in given)
    return parameter.parse(as_text(given))


def _options(beside: Sequence[tuple[Sweep, str]], presets: Sequence[str], parts: Sequence[str]) -> dict[str, Any]:
    """The options of sweeps that run together, each with the name of its preset; those of the first one count."""
    options: dict[str, Any] = {}
    for sweep, name in beside:
        preset = sweep.presets[name]
        options_of_sweep = _run_options(preset, name, presets, parts) | _task_options(sweep)
        options_of_sweep |= _grid_options(sweep, preset) | _parameter_options(sweep, preset)
        options = options_of_sweep | options
    return options


def _about(sweeps: Sequence[Sweep], parts: Sequence[str]) -> str:
    """The text above the options: the questions, and the presets where one script has them."""
    about = [sweep.question for sweep in sweeps]
    if len(sweeps) == 1 or parts:
        about += [f"preset {name}: {preset.description}" for name, preset in sweeps[0].presets.items()]
    about += ["Running the same command again resumes the sweep: finished stages are not trained again."]
    return "\n\n".join(about)


def _app(options: Mapping[str, Any], about: str, name: str, shows_all: bool, names: Sequence[str] = ()) -> App:
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
                "Ray cluster to run on (or set RAY_ADDRESS); local: in this process, no Ray. Default: Ray starts here.",
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
            "digits, cifar10, cifar100, fashion_mnist, svhn, a name in the data folder, or the path of a Parquet file, "
            "a folder of them or an image folder.",
            sweep.dataset,
            data,
        ),
        "data_dir": _option(str, f"Folder of the data sets (or set {DATA_DIR_VARIABLE}).", "data", data),
        "no_download": _option(bool, "Never download a data set.", None, data),
        "image_size": _option(int, "Resize images to this side, pixels; needed where sizes differ.", None, data),
    }


def _grid_options(sweep: Sweep, preset: Preset) -> dict[str, Any]:
    parameters = task_named(sweep.task).parameters
    return {
        axis: _option(tuple[_type(parameters[axis]), ...], parameters[axis].help, values, _GROUPS["grid"], _split)
        for axis, values in preset.grid.items()
    }


def _parameter_options(sweep: Sweep, preset: Preset) -> dict[str, Any]:
    options = {}
    for name, parameter in task_named(sweep.task).parameters.items():
        if name in _NOT_OPTIONS or name in preset.grid or (preset.search and name in preset.search.space):
            continue
        default = preset.settings.get(name, parameter.default)
        of_schemes = [f"{s}: {settings[name]}" for s, settings in preset.scheme_settings.items() if name in settings]
        default_text = ", ".join([as_text(default), *of_schemes])
        if name not in preset.settings:
            default_text = _CHOSEN_BY_THE_DATA.get(name, default_text)
        group = _GROUPS.get(parameter.part) or Group(parameter.part.replace("_", " ").capitalize())
        options[name] = _option(_type(parameter), parameter.help, default_text, group)
    return options


def _type(parameter: ConfigParameter) -> Any:
    return parameter.type | Literal[AUTO] if parameter.default is None else parameter.type


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


def _dashed(name: str) -> str:
    return name.replace("_", "-")
