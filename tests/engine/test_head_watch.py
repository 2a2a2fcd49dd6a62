"""The loss of a cluster's head is noticed, and nothing else is taken for it."""

import socket
import threading
import time

from cvit.engine.execution.head_watch import watching

INTERVAL_S = 0.02


def test_a_head_that_is_gone_is_told_once() -> None:
    told: list[bool] = []
    lost = threading.Event()

    def tell() -> None:
        told.append(True)
        lost.set()

    with socket.create_server(("127.0.0.1", 0)) as head:
        host, port = head.getsockname()
        with watching(f"{host}:{port}", tell, INTERVAL_S):
            # many looks long, but for a head that listens
            assert not lost.wait(20 * INTERVAL_S)
            head.close()
            assert lost.wait(10)
            time.sleep(10 * INTERVAL_S)
    assert told == [True]


def test_a_head_that_comes_back_in_time_is_not_lost() -> None:
    lost = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as head:
        host, port = head.getsockname()
    with watching(f"{host}:{port}", lost.set, interval_s=1.0):
        time.sleep(1.5)  # one look finds nobody
        with socket.create_server((host, port)):
            assert not lost.wait(4.5)


def test_a_connection_that_fails_in_another_way_does_not_end_the_watch() -> None:
    lost = threading.Event()
    with watching("a..b:1", lost.set, INTERVAL_S):  # Python raises a UnicodeError for such a name
        assert lost.wait(10)
