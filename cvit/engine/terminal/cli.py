"""The command line of a sweep: from arguments, variables and a file to the request."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cyclopts import App, CycloptsError, UnknownOptionError

from cvit.engine.declaration import Preset, Search, Sweep
from cvit.engine.invocation import Invocation, of_script
from cvit.engine.planning.request import LOCAL, Request, Resources
from cvit.engine.terminal import sources
from cvit.engine.terminal.options import ALL_PARTS, HELP, HELP_ALL, about_text, app_of, dashed, not_options, options_of
from cvit.engine.terminal.precision import PRECISION, slow_precision, with_precision
from cvit.engine.terminal.usage import explained
from cvit.parameters import ConfigError, as_text
from cvit.parameters import Parameter as ConfigParameter
from cvit.tasks import TASK_NAMES, task_named
from cvit.tracking import chosen_uri

LEAST_SHARE = 0.01
"""The least share of a CPU or GPU that a worker can be given."""


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
    options = options_of(list(with_presets.values()), common, parts)
    file = sources.config_file(argv)
    if file is not None:
        sources.check_file(file, options)
    shows_all = HELP_ALL in argv
    app = app_of(options, about_text(beside, parts), started.name, shows_all)
    app.config = [sources.Variables(sources.PREFIX, command=False, show=False), *([] if file is None else [file])]
    try:
        given = app([HELP] if shows_all else list(argv), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        axes = dict.fromkeys(
            f"--{dashed(axis)}"
            for part, name in with_presets.values()
            for axis in (*part.presets[name].grid, *part.further_axes)
        )
        raise ConfigError(explained(error, argv, list(axes)) + _place(error, sweep, script, parts)) from error
    if given is None:
        return None
    for option, value in given.items():
        if value is None or (isinstance(value, (list, tuple)) and None in value):  # cyclopts reads none and null so
            raise ConfigError(f"--{dashed(option)} does not take none; without the option, its default is used")
    variables = sources.used_variables(options, argv)
    return _request(sweep, with_presets[sweep.name][1], given, started, started.command(argv, variables))


def unknown_variables() -> list[str]:
    """The variables `CVIT_…` that are no option of any sweep.

    Raises:
        ConfigError: one of them is a misspelt option.
    """
    preset = Preset(description="", grid={}, seeds=1, settings={}, search=Search(space={}, trials=1, round_size=1))
    sweep = Sweep(name="", question="", presets={"": preset})
    parameters = {name for task in TASK_NAMES for name in task_named(task).parameters.keys() - not_options(task)}
    return sources.unknown_variables({*options_of([(sweep, "")], [""], [""]), *parameters})


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
    options = options_of([(sweep, sweep.default_preset) for sweep in sweeps], common, parts)
    return app_of(options, about, name, shows_all=True, names=names)


def _require_one_of(option: str, value: str, valid: Iterable[str]) -> None:
    if value not in (names := list(valid)):
        raise ConfigError(f"{option} {value!r} is not valid: one of {', '.join(names)}")


def _request(sweep: Sweep, preset_name: str, given: dict[str, Any], started: Invocation, command: str) -> Request:
    preset = sweep.presets[preset_name]
    parameters = task_named(sweep.task).parameters
    for name, value in given.items():
        if isinstance(value, str) and not value.strip():
            raise ConfigError(f"--{dashed(name)} is empty: give a value, or leave the option out")
    given = {name: _value(parameters[name], value) if name in parameters else value for name, value in given.items()}
    grid, typed_axes = {}, preset.grid.keys() & given.keys()
    for axis in (*preset.grid, *(axis for axis in sweep.further_axes if axis in given)):
        values = list(dict.fromkeys(given.pop(axis, preset.grid.get(axis, ()))))
        if not values and parameters[axis].type is bool:
            values = [True]
        if not values:
            raise ConfigError(f"--{dashed(axis)} needs at least one value")
        if axis in preset.grid or len(values) > 1:
            grid[axis] = tuple(values)
        else:
            given[axis] = values[0]
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
    device, address = given.get("device", "auto"), given.get("address") or _address_in_environment()
    given, grid, notes = with_precision(given, grid, device, resources)
    if address in (None, LOCAL):
        precisions = grid.get(PRECISION) or (given.get(PRECISION, preset.settings.get(PRECISION)),)
        notes += slow_precision(precisions, device, resources)
    if given.get("json", False) and not given.get("dry_run", False):
        raise ConfigError("--json prints the plan of --dry-run: give both")
    return Request(
        preset=preset_name,
        grid=grid,
        seeds=seeds,
        search_trials=search_trials,
        asha=given.get("asha", False),
        given={name: value for name, value in given.items() if name in parameters.keys() - not_options(sweep.task)},
        dataset=given.get("dataset", sweep.dataset),
        data_dir=given.get("data_dir", "data"),
        download=not given.get("no_download", False),
        image_size=given.get("image_size"),
        label_pattern=given.get("label_pattern"),
        test_pattern=given.get("test_pattern"),
        storage=given.get("storage", "storage"),
        tracking_uri=chosen_uri(given.get("tracking_uri")),
        address=address,
        device=device,
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
        typed_axes=frozenset(typed_axes),
        notes=notes,
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
    return address if address not in ("", LOCAL) else None


def _value(parameter: ConfigParameter, given: Any) -> Any:
    """A parameter's value, or an axis's values, with None for `auto` and for the number that stood for it."""
    if isinstance(given, tuple | list):
        return tuple(_value(parameter, value) for value in given)
    return parameter.parse(as_text(given))
