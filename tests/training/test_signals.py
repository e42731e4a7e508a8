"""Signals that are collected instead of ending the process."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from jaxrf.training.signals import catch_signals


@pytest.fixture(autouse=True)
def restore_handlers() -> Iterator[None]:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_catch_signals_collects_a_signal_and_nothing_else_happens(number: signal.Signals) -> None:
    with catch_signals() as caught:
        assert caught == []
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert caught == [number]


def test_catch_signals_lets_a_second_signal_act_as_usual() -> None:
    received = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    # A shell ignores SIGINT for its background jobs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with catch_signals() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert (caught, received) == ([signal.SIGTERM], [])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert (caught, received) == ([signal.SIGTERM], [signal.SIGTERM])
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)


def test_catch_signals_restores_handlers_after_an_error() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), catch_signals():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise ZeroDivisionError
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
