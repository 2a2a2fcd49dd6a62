"""The command line of a sweep, generated from its declaration and from the configuration classes."""

import inspect
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter

from cvit.config import AUTO, ConfigError, as_text
from cvit.config import Parameter as ConfigParameter
from cvit.engine.declaration import Preset, Search, Sweep
from cvit.engine.planning.request import IN_PROCESS, Request, Resources
from cvit.engine.planning.scheme_settings import SCHEME
from cvit.engine.terminal.usage import explained
from cvit.tasks import task_named
from cvit.tracking import chosen_uri
from cvit.vocabulary import DEFAULT_TRACKING_URI, TRACKING_URI_VARIABLE

DATA_DIR_VARIABLE = "CVIT_DATA_DIR"

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


def parts_asked_for(sweeps: Sequence[Sweep], argv: Sequence[str]) -> list[Sweep]:
    """The sweeps of a script that `--part` chooses: one of them, or all.

    Raises:
        ConfigError: there is no such part.
    """
    name = _value_of("part", argv) if len(sweeps) > 1 else None
    if name is None or name == ALL_PARTS:
        return list(sweeps)
    _require_one_of("part", name, [sweep.name for sweep in sweeps])
    return [sweep for sweep in sweeps if sweep.name == name]


def parse(sweep: Sweep, argv: Sequence[str], script: Sequence[Sweep] = ()) -> Request | None:
    """The request that the arguments state; None where they asked for help, which is then printed.

    Args:
        script: all sweeps of a script that has several; options of the others are accepted and ignored.

    Raises:
        ConfigError: an unknown option or an invalid value, in one line.
    """
    # The help shows the defaults of the chosen preset, so the preset is read first.
    preset_name = _value_of("preset", argv)
    preset_name = sweep.default_preset if preset_name is None else preset_name
    _require_one_of("preset", preset_name, sweep.presets)
    beside = parts_asked_for(script, argv)
    try:
        app = _app(sweep, preset_name, beside, [other.name for other in script])
        given = app(list(argv), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        axes = dict.fromkeys(f"--{_dashed(a)}" for part in (sweep, *beside) for a in part.presets[preset_name].grid)
        place = f" (in {sweep.name}; --part chooses one of {', '.join(p.name for p in script)})" if script else ""
        raise ConfigError(explained(error, argv, list(axes)) + place) from error
    if given is None:
        return None
    return _request(sweep, preset_name, given, argv)


def _value_of(option: str, argv: Sequence[str]) -> str | None:
    """The last value of an option, read before the arguments are parsed; empty if the value is missing."""
    value = None
    for argument, following in zip(argv, [*argv, ""][1:], strict=True):
        if argument == f"--{option}":
            value = following
        elif argument.startswith(f"--{option}="):
            value = argument.removeprefix(f"--{option}=")
    return value


def _require_one_of(option: str, value: str, valid: Iterable[str]) -> None:
    if value not in (names := list(valid)):
        raise ConfigError(f"{option} {value!r} is not valid: one of {', '.join(names)}")


def _request(sweep: Sweep, preset_name: str, given: dict[str, Any], argv: Sequence[str]) -> Request:
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
    return Request(
        preset=preset_name,
        grid=grid,
        seeds=seeds,
        search_trials=search_trials,
        asha=given.get("asha", False),
        given={name: value for name, value in given.items() if name in parameters.keys() - _NOT_OPTIONS},
        dataset=given.get("dataset", sweep.dataset),
        data_dir=given.get("data_dir") or os.environ.get(DATA_DIR_VARIABLE) or "data",
        download=not given.get("no_download", False),
        image_size=given.get("image_size"),
        storage=given.get("storage", "storage"),
        tracking_uri=chosen_uri(given.get("tracking_uri")),
        address=given.get("address") or _address_in_environment(),
        device=given.get("device", "auto"),
        max_pack=max_pack,
        resources=resources,
        dry_run=given.get("dry_run", False),
        upgrade_store=given.get("upgrade_store", False),
        settings_from=given.get("settings_from"),
        command=shlex.join(["python", os.path.relpath(sys.argv[0]), *argv]),
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


def _app(sweep: Sweep, preset_name: str, beside: Sequence[Sweep], parts: Sequence[str]) -> App:
    """An application with the options of the sweep and of the sweeps beside it; it returns the options given."""
    options: dict[str, Any] = {}
    for part in (sweep, *beside):
        preset = part.presets[preset_name]
        options_of_part = _run_options(part, preset, preset_name, parts) | _data_options(part)
        options_of_part |= _grid_options(part, preset) | _parameter_options(part, preset)
        options = options_of_part | options

    def given_options(**given: Any) -> dict[str, Any]:
        return given

    keyword = inspect.Parameter.KEYWORD_ONLY
    given_options.__annotations__ = options
    given_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in options.items()]
    )
    about = [part.question for part in (beside or [sweep])]
    about += [f"preset {name}: {p.description}" for name, p in sweep.presets.items()]
    about += ["Running the same command again resumes the sweep: finished stages are not trained again."]
    text = "\n\n".join(about)
    app = App(name=Path(sys.argv[0]).name, help=text, version_flags=[], result_action="return_value")
    app["--help"].group = _GROUPS["run"]
    app.default(given_options)
    return app


def _run_options(sweep: Sweep, preset: Preset, preset_name: str, parts: Sequence[str]) -> dict[str, Any]:
    run, grid = _GROUPS["run"], _GROUPS["grid"]
    part = _option(Literal[ALL_PARTS, *parts], "Which of the script's sweeps to run.", ALL_PARTS, run)
    return (
        ({"part": part} if parts else {})
        | {
            "preset": _option(
                Literal[tuple(sweep.presets)],
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
            "dry_run": _option(bool, "Print the plan and stop.", None, run),
            "seeds": _option(int, "Number of seeds, counted from 0.", preset.seeds, grid),
        }
        | (_search_options(preset.search) if preset.search else {})
        | (_scheme_options() if SCHEME in task_named(sweep.task).parameters else {})
    )


def _search_options(search: Search) -> dict[str, Any]:
    text = "Trials of the search for each init scheme's best settings."
    asha = "Stop early the trials of the search that fall behind others of their scheme (ASHA)."
    return {
        "search_trials": _option(int, text, search.trials, _GROUPS["grid"]),
        "asha": _option(bool, asha, None, _GROUPS["run"]),
    }


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
        axis: _option(tuple[_type(parameters[axis]), ...], parameters[axis].help, values, _GROUPS["grid"])
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


def _option(kind: Any, help_text: str, default: Any, group: Group) -> Any:
    default_text = " ".join(map(as_text, default)) if isinstance(default, tuple) else as_text(default)
    return Annotated[
        kind | None,
        Parameter(
            help=help_text,
            group=group,
            negative="",
            consume_multiple=True,
            show_default=False if default is None else lambda _: default_text,
        ),
    ]


def _dashed(name: str) -> str:
    return name.replace("_", "-")
