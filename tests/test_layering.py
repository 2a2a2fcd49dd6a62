"""Imports point one way: sweeps → cvit, analysis → a few light modules of cvit; Ray and MLflow stay in the engine."""

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
    "cvit.errors",
    "cvit.init.schemes",
    "cvit.records",
    "cvit.redaction",
    "cvit.storage",
    "cvit.tasks",
    "cvit.theorem.counts",
)
ORCHESTRATION = ("ray", "mlflow")
SCRIPT_LINES = 90
SCRIPTS = [path for path in sorted((ROOT / "sweeps").glob("*.py")) if path.name != "__init__.py"]


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


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "pack" / "inner").mkdir(parents=True)
    source = tmp_path / "pack" / "inner" / "module.py"
    source.write_text(
        "import a.b as c\nfrom d import e\ndef f():\n    from . import g\n    from ..h import i\n    import j\n"
    )
    assert imported_modules(source, tmp_path) == {"a.b", "d.e", "pack.inner.g", "pack.h.i", "j"}


def test_cvit_knows_neither_orchestration_nor_analysis() -> None:
    forbidden = ("sweeps", "analysis", *ORCHESTRATION)
    assert [found for found in imports_of("cvit") if within(found[1], *forbidden)] == []


def test_only_the_engine_knows_ray_and_mlflow() -> None:
    users = {file for file, name in imports_of("cvit", "sweeps", "analysis") if within(name, *ORCHESTRATION)}
    assert {file for file in users if not file.startswith("sweeps/engine/")} <= {"analysis/store/load.py"}


def test_analysis_is_light() -> None:
    wrong = [
        (file, name)
        for file, name in imports_of("analysis")
        if within(name, "torch", "torchvision", "ray", "sweeps")
        or (within(name, "cvit") and not within(name, *LIGHT_MODULES))
    ]
    assert wrong == []


def test_only_the_closing_report_of_a_sweep_uses_the_analysis() -> None:
    """It prints the answer table; nothing that plans or trains depends on the analysis."""
    assert {file for file, name in imports_of("sweeps") if within(name, "analysis")} == {
        "sweeps/engine/terminal/report.py"
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_sweep_script_only_declares(script: Path) -> None:
    allowed = ("sweeps.engine", "cvit", *sys.stdlib_module_names)
    assert [name for name in sorted(imported_modules(script)) if not within(name, *allowed)] == []
    assert len(script.read_text().splitlines()) < SCRIPT_LINES


def test_the_package_is_empty_at_its_top() -> None:
    assert (ROOT / "cvit" / "__init__.py").read_text() == ""


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_import_without_heavy_libraries(module: str) -> None:
    heavy = ["torch", *ORCHESTRATION]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
