import pytest

from tests.chaos.ledger import LEDGER


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "chaos" in item.path.parts:
            item.add_marker(pytest.mark.chaos)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LEDGER.sweeps:
        terminalreporter.section("chaos")
        for line in LEDGER.lines():
            terminalreporter.write_line(line)
