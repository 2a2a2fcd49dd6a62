"""Imports point one way: sweeps → engine → science, analysis → a few light modules, and through the engine's rooms."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIGHT_MODULES = (
    "cvit.vocabulary",
    "cvit.config",
    "cvit.parameters",
    "cvit.cost",
    "cvit.errors",
    "cvit.init.schemes",
    "cvit.leaving",
    "cvit.records",
    "cvit.stages",
    "cvit.redaction",
    "cvit.settings",
    "cvit.storage",
    "cvit.streams",
    "cvit.tasks",
    "cvit.theorem.counts",
    "cvit.training.schedule",
    "cvit.tracking",
    "cvit.tracking_schema",
)
ORCHESTRATION = ("ray", "mlflow")
FRONT_DOOR = ("cvit/__init__.py", "cvit/__main__.py", "cvit/api.py", "cvit/command.py", "cvit/completion.py")
"""The Python interface and the command `cvit`, which stand above all rooms."""
SCRIPTS = [path for path in sorted((ROOT / "sweeps").glob("*.py")) if path.name != "__init__.py"]

# The rooms of the engine, and the rooms and files of the engine that each of them may import. Nothing else is allowed.
LIGHT = {"environment", "exit_codes", "invocation", "own_process", "scripts", "signals", "wording"}
BASE = LIGHT | {"ahead", "declaration"}
ENGINE = {
    "ahead": set(),
    "declaration": {"scripts"},
    "environment": set(),
    "exit_codes": set(),
    "invocation": set(),
    "own_process": set(),
    "loading": BASE,
    "scripts": set(),
    "signals": set(),
    "wording": set(),
    "planning": BASE,
    "recording": BASE | {"planning"},
    "execution": BASE | {"planning", "recording"},
    "tracking": BASE | {"planning", "recording"},
    "terminal": BASE | {"planning", "recording", "execution", "tracking"},
    "session": BASE | {"planning", "recording", "execution", "tracking"},
    "book": BASE | {"planning", "recording", "execution", "tracking", "terminal", "session"},
    "run": BASE | {"planning", "recording", "execution", "tracking", "terminal", "session", "book"},
    "sync": BASE | {"planning", "recording", "execution", "tracking", "terminal"},
    "run_all": BASE | {"planning", "recording", "execution", "tracking", "terminal", "session", "run"},
    "demo": {"missing"},
    "missing": BASE | {"loading", "planning", "terminal"},
    "main": BASE | {"planning", "recording", "execution", "tracking", "terminal", "run_all"},
}


def imported_modules(path: Path, root: Path = ROOT) -> set[str]:
    """Absolute names of what a file imports anywhere, inside functions too; `from a import b` counts as `a.b`."""
    package = path.relative_to(root).parent.parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def within(name: str, *packages: str) -> bool:
    """Whether the name is one of the packages or lies below one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports_of(*packages: str) -> Iterator[tuple[str, str]]:
    """(file, imported name) of every Python file below the packages."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in sorted(imported_modules(path)):
                yield str(path.relative_to(ROOT)), name


def imports_of_science() -> Iterator[tuple[str, str]]:
    """(file, imported name) of the files of cvit/ beside the engine and the analysis."""
    above = ("cvit/engine/", "cvit/analysis/", *FRONT_DOOR)
    return (found for found in imports_of("cvit") if not found[0].startswith(above))


def is_room(path: Path) -> bool:
    """Whether a file or folder of the engine holds code."""
    if path.is_dir():
        return any(path.glob("*.py"))
    return path.suffix == ".py" and path.stem != "__init__"


def room_of(name: str) -> str:
    """The room that a name below `cvit.engine` lies in."""
    return name.split(".")[2] if name.count(".") >= 2 else name


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def circle_in(arrows: dict[str, set[str]]) -> list[str]:
    """A circle of arrows, if there is one."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(arrows[name]):
            if found := walk(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := walk(name, []))), [])


def test_circles_are_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "pack" / "inner").mkdir(parents=True)
    source = tmp_path / "pack" / "inner" / "module.py"
    source.write_text(
        "import a.b as c\nfrom d import e\ndef f():\n    from . import g\n    from ..h import i\n    import j\n"
    )
    assert imported_modules(source, tmp_path) == {"a.b", "d.e", "pack.inner.g", "pack.h.i", "j"}


def test_cvit_knows_neither_orchestration_nor_analysis() -> None:
    forbidden = ("sweeps", "cvit.engine", "cvit.analysis", *ORCHESTRATION)
    assert [found for found in imports_of_science() if within(found[1], *forbidden)] == []


def test_only_execution_imports_ray() -> None:
    users = {file for file, name in imports_of("cvit", "sweeps", "analysis") if within(name, "ray")}
    assert {file for file in users if not file.startswith("cvit/engine/execution/")} == set()


def test_only_tracking_and_the_store_of_the_analysis_import_mlflow() -> None:
    users = {file for file, name in imports_of("cvit", "sweeps", "analysis") if within(name, "mlflow")}
    others = {file for file in users if not file.startswith("cvit/engine/tracking/")}
    assert others == {"cvit/analysis/store/mlflow.py"}


@pytest.mark.parametrize("room", sorted(path.stem for path in (ROOT / "cvit/engine").iterdir() if is_room(path)))
def test_rooms_of_the_engine_import_downwards(room: str) -> None:
    """In words: planning knows no room above it, recording knows planning only, execution and tracking do not know each
    other, and so on."""
    place = ROOT / "cvit/engine" / room
    files = [place.with_suffix(".py")] if not place.is_dir() else sorted(place.rglob("*.py"))
    upwards = {
        (file.name, name)
        for file in files
        for name in imported_modules(file)
        if within(name, "cvit.engine") and room_of(name) not in ENGINE[room] | {room}
    }
    assert upwards == set()


@pytest.mark.parametrize("package", ["cvit", "sweeps"])
def test_no_file_imports_itself_by_a_detour(package: str) -> None:
    """Imports inside functions count: a circle is a circle whenever it closes. `cvit/__init__.py` is left out: every
    import imports it, and it imports nothing before a name is asked for."""
    arrows = {module_name(file): set[str]() for file, _ in imports_of(package)}
    for file, name in imports_of(package):
        targets = {target for target in (name, name.rpartition(".")[0]) if target in arrows}
        arrows[module_name(file)] |= targets - {module_name(file), "cvit"}
    assert circle_in(arrows) == []


def test_analysis_is_light() -> None:
    wrong = [
        (file, name)
        for file, name in imports_of("cvit/analysis")
        if within(name, "torch", "torchvision", "ray", "sweeps")
        or (within(name, "cvit") and not within(name, "cvit.analysis", *LIGHT_MODULES))
    ]
    assert wrong == []


def test_only_the_terminal_uses_the_analysis() -> None:
    """It prints the answer table; nothing that plans or trains depends on the analysis."""
    users = {file for file, name in imports_of("sweeps", "cvit/engine") if within(name, "cvit.analysis")}
    assert {file for file in users if not file.startswith("cvit/engine/terminal/")} == set()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_sweep_script_only_declares(script: Path) -> None:
    allowed = ("cvit.engine", "cvit", *sys.stdlib_module_names)
    assert [name for name in sorted(imported_modules(script)) if not within(name, *allowed)] == []


def test_the_package_is_light_at_its_top() -> None:
    """`import cvit` costs nothing, and its public names are all there."""
    code = (
        "import sys; before = set(sys.modules); import cvit; new = set(sys.modules) - before; "
        "print(sorted(name for name in new if name.partition('.')[0] not in sys.stdlib_module_names)); "
        "print([name for name in cvit.__all__ if getattr(cvit, name).__name__ != name or name not in dir(cvit)])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['cvit']", "[]"]


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_import_without_heavy_libraries(module: str) -> None:
    heavy = ["torch", *ORCHESTRATION]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_driver_of_a_sweep_with_ray_needs_no_torch() -> None:
    """It takes a second of the processor to import, while the workers import it too."""
    code = "import sys, cvit.engine.run, cvit.engine.execution.execute; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_functions_of_the_engine_take_at_most_six_parameters() -> None:
    """More are a sign that a type is missing, such as a session or a site."""
    crowded = []
    for path in sorted((ROOT / "cvit/engine").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len([name for name in names if name not in ("self", "cls")]) > 6:
                    crowded.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert crowded == []
