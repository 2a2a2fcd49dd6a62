"""What a user named is looked at before anything is opened, created or started."""

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from cvit.engine.terminal.preflight import check_address, check_tracking_uri
from cvit.parameters import ConfigError


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_addresses_that_may_be_used_pass(listening: str) -> None:
    for address in (None, "local", "auto", listening):
        check_address(address)


@pytest.mark.parametrize("address", ["nonsense", "Local", "", "127.0.0.1"])
def test_a_word_that_is_no_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is not valid: give host:port \(port 6379 by default\), auto, or local"):
        check_address(address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "127.0.0.1:99999", "[::1]:1"])
def test_an_address_where_nothing_listens_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot be reached"):
        check_address(address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "is a job server's, for ray job submit, not a cluster's: give host:port"),
        ("https://ray.example.org", "is a job server's, for ray job submit, not a cluster's: give host:port"),
        ("ray://127.0.0.1:10001", "Ray's client would move the sweep to the cluster; give host:port"),
    ],
)
def test_other_addresses_of_ray_are_told_from_a_clusters(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError) as refused:
        check_address(address)
    assert str(refused.value).startswith(f"Ray address {address!r} (from RAY_ADDRESS) is ")
    assert message in str(refused.value)
    monkeypatch.setenv("RAY_ADDRESS", "another:6379")
    with pytest.raises(ConfigError) as refused:
        check_address(address)
    assert str(refused.value).startswith(f"Ray address {address!r} is ")


def test_a_web_server_is_no_cluster() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(ConfigError, match="is a web server's, such as Ray's dashboard, not a cluster's"):
            check_address(f"127.0.0.1:{server.server_port}")
        thread.join()


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
