"""SIGINT and SIGTERM as requests to save and stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of ending the process.

    After the first signal the previous handlers are restored, so that a second one acts as usual.
    """
    caught: list[int] = []
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        caught.append(number)
        restore()

    for number in previous:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        restore()
