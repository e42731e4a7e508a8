"""The render loop of one browser: a coarse image at once, then finer ones until it is sharp."""

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.poses import near_far_for_box
from jaxrf.core.errors import InputError
from jaxrf.evaluation import images
from jaxrf.evaluation.channels import Channel
from jaxrf.evaluation.interactive import FrameTimer, InteractiveRenderer, render_progressively
from jaxrf.rendering.image import HostRendering
from jaxrf.viewer.poses import View, fit_camera, ray_distance_to_z_depth, read_view, view_equals

# Frame-time target while the camera moves, in seconds.
MOVING_FRAME_SECONDS = 1.0 / 20.0
# Frame-time target of an image that shows a new state to a camera at rest, in seconds.
NEW_STATE_FRAME_SECONDS = 0.4
# A camera that has not moved for this many seconds is at rest.
STILL_SECONDS = 0.4
# The largest depth that can be sent to the browser, in scene units.
FAR_CLIP = 160.0


class ViewerState(NamedTuple):
    """A state of the field that is ready to be rendered.

    renderer: of the field.
    aabb: (2, 3) bounds of the occupied space, in scene units.
    number: counts the states, from 0.
    """

    renderer: InteractiveRenderer
    aabb: Float[np.ndarray, "2 3"]
    number: int


class RenderSettings(NamedTuple):
    """The settings of the panel.

    channel: rgb, depth or opacity.
    max_size: pixels along the longer side of a sharp image.
    moving_frame_seconds: frame-time target while the camera moves.
    crop: (2, 3) box outside of which nothing is rendered, in scene units.
    ndc: as in `Cameras`.
    is_training: whether rendering competes with training.
    """

    channel: Channel
    max_size: int
    moving_frame_seconds: float
    crop: Float[np.ndarray, "2 3"]
    ndc: tuple[float, float, float] | None
    is_training: bool


class BrowserClient:
    """Renders for one browser, in a thread, whenever `changed` is set."""

    def __init__(
        self,
        client: Any,
        get_state: Callable[[], ViewerState | None],
        get_settings: Callable[[], RenderSettings],
        show_statistics: Callable[[str], None],
    ) -> None:
        """Starts the thread.

        Args:
          client: a `viser.ClientHandle`.
          get_state: gives the current state; None before the first one is compiled.
          get_settings: gives the current settings.
          show_statistics: shows size and speed of an image.
        """
        self._client, self._get_state, self._get_settings = client, get_state, get_settings
        self._show_statistics = show_statistics
        self.changed, self._closed = threading.Event(), threading.Event()
        self.moved_at = -np.inf
        self._timer = FrameTimer(MOVING_FRAME_SECONDS)
        self._frame_times: list[float] = []
        self._last_number = -1
        self._last_view: View | None = None
        client.camera.on_update(self._on_camera_update)
        self.changed.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self.changed.set()
        self._thread.join()

    def camera_moving(self) -> bool:
        """Whether the camera has moved recently."""
        return time.monotonic() - self.moved_at < STILL_SECONDS

    def _on_camera_update(self, camera: Any) -> None:
        del camera
        self.moved_at = time.monotonic()
        self.changed.set()

    def _run(self) -> None:
        while True:
            self.changed.wait()
            if self._closed.is_set():
                return
            self.changed.clear()
            state = self._get_state()
            if state is None:
                # The first state sets `changed` again.
                continue
            try:
                self._render(state)
            except InputError as error:
                self._client.add_notification("Cannot render", str(error)[:300], color="red")
            except Exception as error:
                if self._closed.is_set():
                    return
                # Go on: the error may be temporary, such as a lack of memory.
                self._client.add_notification("Cannot render", str(error)[:300], color="red")
                traceback.print_exception(error)

    def _render(self, state: ViewerState) -> None:
        settings, started = self._get_settings(), time.monotonic()
        view = read_view(self._client.camera)
        only_state_changed = view_equals(view, self._last_view) and (
            state.number != self._last_number
        )
        self._last_view, self._last_number = view, state.number
        camera = fit_camera(view, settings.max_size, settings.ndc)
        self._timer.target_seconds = settings.moving_frame_seconds
        if only_state_changed:
            # Nobody drags the camera, so the first image may take longer and be sharper.
            self._timer.target_seconds = NEW_STATE_FRAME_SECONDS
        for rendering in render_progressively(
            state.renderer, camera, settings.crop, self._timer, self.changed.is_set
        ):
            self._send(rendering, camera, state, settings.channel)
            self._report(rendering, time.monotonic() - started)
            if only_state_changed and settings.is_training:
                # Leave the machine to training.
                return

    def _send(
        self, rendering: HostRendering, camera: Cameras, state: ViewerState, channel: Channel
    ) -> None:
        depth = None
        if camera.ndc is None:
            # Where no surface is hit, the other objects of the scene are in front.
            distance = np.where(rendering.opacity > 0.5, rendering.median_depth, FAR_CLIP)
            distance = np.minimum(distance, FAR_CLIP)
            depth = ray_distance_to_z_depth(distance, camera).astype(np.float32)
        image = draw_image(rendering, camera, state, channel)
        self._client.scene.set_background_image(image, "jpeg", jpeg_quality=90, depth=depth)
        self._client.flush()

    def _report(self, rendering: HostRendering, seconds: float) -> None:
        now = time.monotonic()
        self._frame_times = [t for t in self._frame_times if now - t < 1.0] + [now]
        height, width = rendering.opacity.shape
        frame_rate = f"{len(self._frame_times)} frames/s"
        speed = frame_rate if self.camera_moving() else f"after {seconds:.2f} s"
        self._show_statistics(f"{width} x {height}, {speed}")


def draw_image(
    rendering: HostRendering, camera: Cameras, state: ViewerState, channel: Channel
) -> UInt8[np.ndarray, "h w 3"]:
    """An image of a channel; the colors of depth span the occupied box."""
    return images.draw_channel(rendering, channel, near_far_for_box(camera, state.aabb))
