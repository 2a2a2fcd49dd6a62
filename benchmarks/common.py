"""Helpers that all benchmarks share: interleaved repeats, medians with their spread, the machine, tables, JSON."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

from cvit.config import Precision
from cvit.data.images import DataError
from cvit.errors import one_line
from cvit.native.library import processor_flags
from cvit.parameters import ConfigError

ROOT = Path(__file__).resolve().parents[1]
EXIT_BAD_INPUT = 2
MIN_WIDTH = 120
PACKAGES = ("cvit", "torch", "torchvision", "ray", "mlflow", "numpy")

if TYPE_CHECKING:
    import torch  # where it is not needed it would cost seconds and half a gigabyte

T = TypeVar("T")

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}

Json = Annotated[Path | None, Parameter(name="--json", help="File for the machine-readable figures.")]
Repeats = Annotated[int, Parameter(help="Rounds; in each of them every arm has one turn.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], Parameter(help="Device to run on; auto: a GPU where there is one.")]


def interleaved(arms: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Runs every arm `repeats` times in turn, every other round backwards, so that a drift of the machine (its clock,
    its neighbours) affects all arms alike."""
    results: dict[str, list[T]] = {name: [] for name in arms}
    for number in range(repeats):
        for name in list(arms)[:: 1 if number % 2 == 0 else -1]:
            results[name].append(arms[name]())
    return results


def figure(values: Sequence[float]) -> dict[str, Any]:
    """Returns the median of repeated measurements, their spread (largest less smallest), number and values."""
    spread = max(values) - min(values)
    return {"median": statistics.median(values), "spread": spread, "n": len(values), "values": list(values)}


def machine() -> dict[str, Any]:
    """The `hardware` and `versions` of a measurement. A load average near 0 means that the machine was idle before."""
    import torch

    has_gpu = torch.cuda.is_available()
    hardware = {
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if has_gpu else [],
        "load_average_1min": os.getloadavg()[0],
    }
    versions = {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}
    return {"hardware": hardware, "versions": versions}


def _version(package: str) -> str | None:
    """None if it is not installed: a machine with a GPU may have torch and a checkout alone."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def available_cores() -> int:
    """Returns the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def chosen_device(name: str) -> "torch.device":
    """Returns the device that `--device` names.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' is not valid here: this machine has no GPU; use cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def matrix_rate(precision: str, device: "torch.device", threads: int = 1, products: int = 10) -> float:
    """Measures the FLOP/s of one large matrix product, the best of several.

    Args:
        precision: float32 or bfloat16.
        threads: the threads that compute it on a CPU.
    """
    import torch

    side, dtype = MATRIX_SIDE[device.type], getattr(torch, precision)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    clock = clock_for(device) if threads == 1 else time.perf_counter
    times, threads_before = [], torch.get_num_threads()
    torch.set_num_threads(threads)
    for _ in range(products):
        wait_for(device)
        started = clock()
        torch.mm(a, b)
        wait_for(device)
        times.append(clock() - started)
    torch.set_num_threads(threads_before)
    return 2 * side**3 / min(times)


def clock_for(device: "torch.device") -> Callable[[], float]:
    """Returns the clock that neighbours disturb least: on a CPU, where one thread works, that of the processor."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def wait_for(device: "torch.device") -> None:
    """Waits until the device has done what it was asked for."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def limits(flops: float, rates: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Returns, for matrix rates by precision, the seconds that these operations take at them: no training is shorter.
    On a CPU the rates are those of all cores together."""
    return {name: {"matrix_flops_per_second": rate, "seconds": flops / rate} for name, rate in rates.items()}


def matrix_rates(device: "torch.device") -> dict[str, float]:
    """Measures the FLOP/s of this machine in every precision that it has, on a CPU of all cores together."""
    return {precision: matrix_rate(precision, device, available_cores()) for precision in precisions(device)}


def precisions(device: "torch.device") -> tuple[Precision, ...]:
    """Returns the precisions for which the device has instructions. A CPU without those for bfloat16 takes
    hundreds of times as long for a large product as in float32."""
    has_both = device.type == "cuda" or "avx512_bf16" in processor_flags()
    return ("float32", "bfloat16") if has_both else ("float32",)


def limit_line(limits: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the limits of the same operations in several precisions as a line of text."""
    rates = (
        f"{one['seconds']:.1f} s in {precision} ({one['matrix_flops_per_second'] / 1e9:,.0f} GFLOP/s)"
        for precision, one in limits.items()
    )
    return f"the limit, operations at the measured matrix rate: {', '.join(rates)}"


def check(json_path: Path | None, **counts: int) -> None:
    """Checks the options before anything is measured.

    Raises:
        ConfigError: the file cannot be written, or a count is below 1.
    """
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name} {value} must be at least 1")
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise ConfigError(f"json {str(json_path)!r}: there is no folder {str(json_path.absolute().parent)!r}")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Prints a table, its first column left-aligned, and lines below it."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=max(Console().width, MIN_WIDTH), soft_wrap=True, highlight=False, markup=False)
    console.print(table, width=console.width)
    for note in notes:
        console.print(note)


def with_spread(measured: Mapping[str, Any], scale: float = 1.0, digits: int = 1) -> str:
    """Returns a figure as text: median, and half the spread where it was measured more than once."""
    text = f"{measured['median'] * scale:,.{digits}f}"
    return text if measured["n"] == 1 else f"{text} ± {measured['spread'] * scale / 2:,.{digits}f}"


def write_json(path: Path | None, benchmark: str, before: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Writes the figures, with what `machine()` said before the measurement; nothing without a path."""
    if path is not None:
        content = {"benchmark": benchmark, "command": " ".join(sys.argv), **before, **figures}
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"wrote {path}")


def run_app(app: App) -> None:
    """Runs a benchmark's command line; bad input ends it with one line and exit code 2."""
    try:
        app(exit_on_error=False, print_error=False)
    except (CycloptsError, ConfigError, DataError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def new_app() -> App:
    """Returns the command line of a benchmark; `@app.default` registers its function, whose docstring is the help."""
    return App(name=Path(sys.argv[0]).name, version_flags=[], result_action="return_value")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
