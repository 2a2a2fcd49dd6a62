"""Stops by SIGINT and SIGTERM that come at a bad moment."""

import signal

import pytest

from cvit.engine.signals import no_stop_lost, stopping_on_sigterm, stops_wait

STOPS = [signal.SIGINT, signal.SIGTERM]


class Callback:
    """An object at whose end a signal comes: an exception that is raised there is only printed."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", STOPS)
def test_a_stop_in_a_callback_of_the_interpreter_is_not_lost(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    reached = []

    def goes_on() -> None:
        Callback(number)
        reached.append(number)  # the exception has not stopped this

    with stopping_on_sigterm(), pytest.raises(KeyboardInterrupt), no_stop_lost():
        goes_on()
    assert reached and capfd.readouterr() == ("", "")


def test_without_a_stop_nothing_happens() -> None:
    with stopping_on_sigterm(), no_stop_lost():
        signal.raise_signal(signal.SIGWINCH)
    assert signal.set_wakeup_fd(-1) == -1  # as before


@pytest.mark.parametrize("number", STOPS)
def test_a_stop_waits_for_what_must_not_be_left_halfway(number: signal.Signals) -> None:
    done = []

    def whole() -> None:
        signal.raise_signal(number)
        done.append(number)

    with stopping_on_sigterm(), pytest.raises(KeyboardInterrupt), stops_wait():
        whole()
    assert done
