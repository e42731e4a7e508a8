"""A browser's client without a browser, as far as the viewer uses it."""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxrf.viewer.poses import View, to_browser


class SimulatedClient:
    """Records what the viewer sends to it."""

    def __init__(self, view: View) -> None:
        wxyz, position = to_browser(view.pose)
        self.camera = SimpleNamespace(
            wxyz=wxyz, position=position, fov=view.fov, aspect=view.aspect, on_update=self._listen
        )
        self.scene = SimpleNamespace(set_background_image=self._receive)
        self.images: list[np.ndarray] = []
        self.depths: list[np.ndarray | None] = []
        self.downloads: dict[str, bytes] = {}
        self.notifications: list[tuple[str, str]] = []
        self.move: Callable[[Any], None] = lambda camera: None

    def _listen(self, callback: Callable[[Any], None]) -> None:
        self.move = callback

    def _receive(self, image: np.ndarray, format: str, **options: Any) -> None:
        self.images.append(image)
        self.depths.append(options["depth"])

    @contextlib.contextmanager
    def atomic(self) -> Iterator[None]:
        yield

    def flush(self) -> None:
        pass

    def send_file_download(self, name: str, content: bytes) -> None:
        self.downloads[name] = content

    def add_notification(self, title: str, text: str, **options: Any) -> None:
        self.notifications.append((title, text))
