"""The protocol of a viewer of a training in progress, and how training waits for it."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from jaxrf.evaluation.interactive import InteractiveRenderer

# Seconds of a dispatch while a viewer is open, as its rendering waits for the device.
VIEWED_DISPATCH_SECONDS = 0.15
# Seconds that training waits at a time while the camera of a viewer moves.
CAMERA_PAUSE_SECONDS = 1.0


@runtime_checkable
class LiveViewer(Protocol):
    """A viewer of a training in progress; see `viewer.server.Viewer`."""

    def follow(self, make: Callable[[], InteractiveRenderer], text: str) -> None:
        """Offers the present state and a line about it; calls `make` at once or never."""
        ...

    def has_clients(self) -> bool:
        """Whether a browser is connected."""
        ...

    def camera_moving(self) -> bool:
        """Whether the camera of a browser moved just now."""
        ...

    def is_paused(self) -> bool:
        """Whether training was paused in the browser."""
        ...


def wait_for_viewer(viewer: LiveViewer, caught_signals: Sequence[int]) -> None:
    """Waits while the viewer is paused or, for a while, its camera moves; a signal ends it."""
    started = time.monotonic()
    while not caught_signals and (
        viewer.is_paused()
        or (viewer.camera_moving() and time.monotonic() - started < CAMERA_PAUSE_SECONDS)
    ):
        time.sleep(0.02)
