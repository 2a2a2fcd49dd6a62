"""The compiled library of the fused operators: a file in the user's cache, made by whoever needs it first.

Its name has a hash of the sources, the version of torch, and the instructions of the processor, so that a home folder
may be shared by different machines. The file appears complete or not at all: it is compiled in a temporary folder,
checked there (`cvit.native.compilation`), and renamed. A lock, which the system frees when its process ends, lets one
process compile while others wait.

Importing this module needs no torch.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

SWITCH = "CVIT_NATIVE"
"""The environment variable that, at 0, makes torch compute everything."""
NAME = "cvit_native"
FLAGS = ("-O3", "-march=native", "-std=c++20", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
"""The compiler's flags beside torch's own. None of them lets it compute otherwise than written, but for a product and a
sum rounded once: a training that diverges has to see its NaN."""

_FOLDER = Path(__file__).parent
_NEEDED = ("avx2", "fma")
_TIMEOUT_S = 1800.0
_RETRY_S = 3600.0
"""The time for which a failure is remembered, so that a sweep's workers do not all repeat it."""
_KEY_DIGITS = 16
_LONGEST_REASON = 300


class Unavailable(Exception):
    """The reason why there is no library, as a phrase."""

    @property
    def notice(self) -> str:
        """The line that tells a user."""
        return f"Without the fused operators for CPUs, training takes about twice as long: {self}."


def sources() -> list[Path]:
    """The files that are compiled."""
    return sorted(_FOLDER.glob("*.cpp"))


def library_file(anew: bool = False) -> Path:
    """The path of the library, which is compiled first if it is not there.

    Args:
        anew: compiles even if the library is there, or if it could not be made a short time ago.

    Raises:
        Unavailable: this machine cannot have it.
    """
    _check_machine()
    place = _place()
    if place.exists() and not anew:
        return place
    compiler = _compiler()
    with _locked(place):
        if place.exists() and not anew:  # another process has made it meanwhile
            return place
        _raise_remembered(place, compiler, anew)
        _compile(place, compiler)
    return place


def is_compiled() -> bool:
    """True if the library is there, or this machine cannot have it: `library_file` answers at once."""
    try:
        _check_machine()
    except Unavailable:
        return True
    return _place().exists()


def is_there() -> bool:
    """True if the library is compiled and not switched off: training on this machine's CPUs uses it."""
    try:
        _check_machine()
    except Unavailable:
        return False
    return _place().exists()


def multiplies_halves() -> bool:
    """True if training on this machine multiplies bfloat16 by the operators, as far as can be told without loading or
    compiling them."""
    try:
        _check_machine()
        return "avx512_bf16" in processor_flags() and (_place().exists() or bool(_compiler()))
    except Unavailable:
        return False


def is_switched_off() -> bool:
    """True if the user wants torch to compute everything."""
    return os.environ.get(SWITCH, "").strip() == "0"


def cache_folder() -> Path:
    """The user's folder of compiled libraries."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "cvit" / "native"


@cache
def processor_flags() -> frozenset[str]:
    """The extensions of this machine's processor, by their names in Linux; none on other systems."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def _place() -> Path:
    return cache_folder() / f"{NAME}-{_key()}.so"


def _check_machine() -> None:
    if is_switched_off():
        raise Unavailable(f"{SWITCH} is 0")
    if platform.machine() not in ("x86_64", "AMD64") or not processor_flags():
        raise Unavailable("they are for Linux on x86-64")
    if missing := [flag for flag in _NEEDED if flag not in processor_flags()]:
        raise Unavailable(f"the processor has no {' and no '.join(missing).upper()}")


def _key() -> str:
    total = hashlib.sha256()
    for path in sorted([*sources(), *_FOLDER.glob("*.h")]):
        total.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    facts = (metadata.version("torch"), *FLAGS, *sorted(processor_flags()))
    total.update("\n".join(facts).encode())
    return total.hexdigest()[:_KEY_DIGITS]


def _compiler() -> str:
    """The path of the compiler that torch's extensions use."""
    name = os.environ.get("CXX") or "c++"
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"there is no C++ compiler {name!r}")
    return path


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Only one process is within the context. Where a file system has no locks, several may be: each compiles."""
    import fcntl  # Linux has it

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = open(place.with_suffix(".lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise Unavailable(f"{place.parent} cannot be written: {error.strerror}") from error
    with lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _raise_remembered(place: Path, compiler: str, anew: bool) -> None:
    """Raises the reason why the same compiler failed a short time ago."""
    failure = place.with_suffix(".failed")
    with contextlib.suppress(OSError, ValueError):
        by, reason, _ = failure.read_text().split("\n", 2)
        if not anew and by == compiler and time.time() - failure.stat().st_mtime < _RETRY_S:
            raise Unavailable(reason)


def _compile(place: Path, compiler: str) -> None:
    """Compiles and checks the library in a process of its own, which may crash, and moves it to its place."""
    failure = place.with_suffix(".failed")
    prefix = f"compiling-{place.stem}-"
    for left in place.parent.glob(f"{prefix}*"):  # of processes that were killed while they held the same lock
        shutil.rmtree(left, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=place.parent, ignore_cleanup_errors=True) as folder:
            output = _compile_in(folder)
            if output is None:
                os.replace(Path(folder) / f"{NAME}.so", place)
                failure.unlink(missing_ok=True)
                return
            reason = f"they cannot be compiled: {_error_in(output)} (see {failure})"
            failure.write_text(f"{compiler}\n{reason}\n{output}")
    except OSError as error:
        raise Unavailable(f"{place.parent} cannot be written: {error.strerror}") from error
    raise Unavailable(reason)


def _compile_in(folder: str) -> str | None:
    """None, or the output of a compilation that failed."""
    command = [sys.executable, "-m", "cvit.native.compilation", folder]
    path = os.pathsep.join([str(_FOLDER.parents[1]), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output, _ = process.communicate(timeout=_TIMEOUT_S)
        except BaseException as error:
            _end(process.pid)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return f"it took longer than {_TIMEOUT_S:g} s"
    if process.returncode == 0:
        return None
    return output if process.returncode > 0 else f"{output}\nit ended by signal {-process.returncode}"


def _end(pid: int) -> None:
    """Ends a process and everything that it has started: ninja gives its compilers process groups of their own."""
    started = psutil.Process(pid)
    for each in [started, *started.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


def _error_in(output: str) -> str:
    """The line of an output that says most: the first error of a compiler, or else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if " error: " in line]
    return [*errors, *lines[-1:], "no output"][0][:_LONGEST_REASON]
