"""Docstrings begin with a plain sentence: its subject or its verb, not a relative clause without one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cvit", "sweeps", "analysis", "benchmarks")
DIALECT = re.compile(
    r"(?:What|Of|Those|Who|Whoever|Whatever|Whether|How|As far as|As many|(?:One|The ones?|That) (?:that|who|which|of)"
    r"|That of)\b|(?:When|Where)\b[^,]*$",
    re.IGNORECASE,
)
"""Beginnings without a subject. Name the thing instead: "True if …", "The number of …". A question is fine. So is
a clause with When or Where that a main clause follows."""


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring: of the module, its classes and public functions, and below its constants."""
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef):
            for statement in node.body:
                value = statement.value if isinstance(statement, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.lineno, value.value
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            yield node.lineno, text


def has_subject(text: str) -> bool:
    """False if the first sentence is a clause that names no subject."""
    first = re.split(r"(?<=[.?!:;])\s", " ".join(text.split()), maxsplit=1)[0]
    return first.endswith("?") or DIALECT.match(first) is None


def offenders(path: Path) -> list[str]:
    """Docstrings of a file that begin without a subject, as `line: first words`."""
    return [f"{line}: {text.strip()[:60]}" for line, text in docstrings(path) if not has_subject(text)]


@pytest.mark.parametrize(
    "text",
    [
        *("What it costs.", "Of a stage.", "Those that run.", "Whether it ends.", "One that ends.", "That of a stage."),
        *("How many there are.", "Where a run is shown.", "When it ends: at the last step, always."),
    ],
)
def test_a_clause_without_a_subject_is_noticed(tmp_path: Path, text: str) -> None:
    (tmp_path / "module.py").write_text(f'"""{text}"""\nA = 1\n"""{text}"""\n\ndef f():\n    """{text}"""\n')
    assert [line.split(":")[0] for line in offenders(tmp_path / "module.py")] == ["1", "3", "5"]


@pytest.mark.parametrize("text", ["The cost.", "One stage.", "How many heads?", "Where two are alike, the first wins."])
def test_a_sentence_with_a_subject_passes(text: str) -> None:
    assert has_subject(text)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_docstring_begins_with_its_subject(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{offender}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for offender in offenders(path)
    ]
    assert found == [], f"{len(found)} docstrings:\n" + "\n".join(found)
