"""What a user named is looked at before anything is opened, created or started."""

import socket
from collections.abc import Iterator

import pytest

from cvit.config import ConfigError
from sweeps.engine.terminal.preflight import check_address, check_tracking_uri


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_addresses_that_may_be_used_pass(listening: str) -> None:
    for address in (None, "local", "auto", listening, f"ray://{listening}"):
        check_address(address)


@pytest.mark.parametrize("address", ["nonsense", "Local", "", "127.0.0.1"])
def test_a_word_that_is_no_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is not valid: give host:port, ray://host:port, auto, or local"):
        check_address(address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port"])
def test_an_address_where_nothing_listens_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot be reached"):
        check_address(address)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite://mlflow.db", "sqlite+pysqlite://mlflow.db"])
def test_a_database_file_needs_three_slashes(uri: str) -> None:
    """SQLAlchemy takes what stands behind two for a host, and no sweep would ever be copied there."""
    with pytest.raises(ConfigError, match=r"is not valid: give sqlite:///FILE, with three slashes"):
        check_tracking_uri(uri)


@pytest.mark.parametrize("uri", ["none:", "none://host", "none:///none.db"])
def test_no_tracking_is_a_word_alone(uri: str) -> None:
    check_tracking_uri("none")
    with pytest.raises(ConfigError, match="is not valid: none stands alone"):
        check_tracking_uri(uri)
