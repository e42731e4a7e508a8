"""The viewer's server: its page, its panels and the state of the field that browsers render."""

import contextlib
import dataclasses
import io
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.transforms import unpack_transform
from jaxrf.core.errors import InputError
from jaxrf.data.scene import Split
from jaxrf.evaluation.channels import Channel
from jaxrf.evaluation.interactive import InteractiveRenderer
from jaxrf.sampling.occupancy import visible_aabb
from jaxrf.training.runs import SceneMetadata
from jaxrf.viewer.camera_path_panel import CameraPathPanel
from jaxrf.viewer.client import (
    MOVING_FRAME_SECONDS,
    BrowserClient,
    RenderSettings,
    ViewerState,
    draw_image,
)
from jaxrf.viewer.crop_panel import NO_CROP, CropPanel
from jaxrf.viewer.origins import Gate, guard_websockets
from jaxrf.viewer.poses import View, clamp_value, fit_camera
from jaxrf.viewer.training_cameras import add_frustums, list_training_cameras

CHANNELS: tuple[Channel, ...] = ("rgb", "depth", "opacity")
# Minimum time between two states that are shown while training, in seconds.
STATE_INTERVAL_SECONDS = 1.5
# Minimum default width of videos, in pixels.
MIN_VIDEO_WIDTH = 400
# Pixels along the longer side of a sharp image, and frames per second while the camera moves.
IMAGE_SIZES, FRAME_RATES = (128, 1920), (2, 60)


def check_host(host: str) -> None:
    """Raises InputError if this machine cannot listen at an address."""
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as trial:
            trial.bind(address)
    except OSError as error:
        raise InputError(
            f"The viewer cannot listen at {host} ({error.strerror or error}): give an address of "
            "this machine with --host (--viewer.host while training)."
        ) from error


class Viewer:
    """Serves a page that renders a field to any number of browsers.

    `show` gives it a final state of the field, `follow` the states of a training.
    """

    def __init__(
        self,
        name: str,
        scene: SceneMetadata,
        folder: Path,
        host: str,
        port: int,
        background: Float[np.ndarray, "3"],
        split: Split | None = None,
        training: bool = False,
    ) -> None:
        """Starts the server.

        Args:
          name: of the run, the title of the page.
          scene: on which the run was trained.
          folder: where camera paths and videos are written.
          host, port: where to listen; the next free port if another program uses this one.
          background: (3,) color behind transparent pixels of the training images.
          split: the training images, None if they are missing.
          training: whether the field is being trained.

        Raises:
          InputError: the server cannot listen at this address.
        """
        import viser

        self._scene, self._training = scene, training
        self._state: ViewerState | None = None
        self._clients: dict[int, BrowserClient] = {}
        self._state_lock = threading.Lock()
        self._state_offered_at = -np.inf
        self._offered: tuple[InteractiveRenderer, str] | None = None
        self._offer_made, self._closed = threading.Event(), threading.Event()
        check_host(host)
        self._gate = Gate.of(host)
        # Hide the messages that viser prints.
        with contextlib.redirect_stdout(io.StringIO()), guard_websockets(self._gate):
            self.server = viser.ViserServer(host=host, port=port, label=name, verbose=False)
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        self.server.gui.main_panel.dock_right()
        self.server.scene.set_up_direction("+z" if scene.ndc is None else "+y")
        self._initial_view = self._set_initial_camera()
        self._build_panels(name, folder)
        cameras = list_training_cameras(scene, self._initial_view, split, background)
        self._frustums = add_frustums(self.server, scene, *cameras)
        self.server.on_client_connect(self._on_connect)
        self.server.on_client_disconnect(self._on_disconnect)
        self._compile_thread = threading.Thread(target=self._compile_offered_states, daemon=True)
        self._compile_thread.start()

    @property
    def address(self) -> str:
        """The address of the page on this machine, with a token if others reach it."""
        host = self.server.get_host()
        name = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::") else host
        return f"http://{name}:{self.server.get_port()}{self._gate.query}"

    # -- State --------------------------------------------------------------------------------

    def show(self, renderer: InteractiveRenderer, status: str) -> None:
        """Shows the final state of a field as soon as its program is compiled."""
        self._training = False
        if self._pause is not None:
            self._pause.visible = False
        self._offer(renderer, status)

    def follow(self, make_renderer: Callable[[], InteractiveRenderer], status: str) -> None:
        """Shows a state of a training if a browser is open and the last state is old enough.

        `make_renderer` is called before this returns or never, so it copies the current state.
        """
        self.set_status(status)
        is_due = time.monotonic() - self._state_offered_at > STATE_INTERVAL_SECONDS
        if self._clients and is_due:
            self._offer(make_renderer(), status)

    def has_clients(self) -> bool:
        """Whether a browser is open."""
        return bool(self._clients)

    def camera_moving(self) -> bool:
        """Whether a camera is being moved in any browser."""
        return any(client.camera_moving() for client in list(self._clients.values()))

    def is_paused(self) -> bool:
        """Whether training should wait."""
        return self._pause is not None and bool(self._pause.value)

    def set_status(self, status: str) -> None:
        """Shows a line at the top of the panel."""
        self._status.content = status

    def rerender(self) -> None:
        """Makes all browsers render again."""
        for client in list(self._clients.values()):
            client.changed.set()

    def close(self) -> None:
        """Ends the server."""
        self._closed.set()
        self._offer_made.set()
        self._camera_path_panel.close()
        # Wait for the threads: Python must not exit while they compute.
        for client in list(self._clients.values()):
            client.close()
        self._compile_thread.join()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def _offer(self, renderer: InteractiveRenderer, status: str) -> None:
        self._state_offered_at = time.monotonic()
        self._offered = renderer, status
        self._offer_made.set()

    def _compile_offered_states(self) -> None:
        """Compiles the next state while browsers still render the last one."""
        while True:
            self._offer_made.wait()
            self._offer_made.clear()
            if self._closed.is_set():
                return
            assert self._offered is not None
            renderer, status = self._offered
            view = self._initial_view._replace(aspect=1.0)
            renderer.render(fit_camera(view, 8, self._scene.ndc), NO_CROP, lambda: False)
            with self._state_lock:
                previous = self._state
                number = previous.number + 1 if previous else 0
                self._state = ViewerState(renderer, visible_aabb(renderer.grid), number)
                if previous is None and self._crop_panel is not None:
                    self._crop_panel.fit_to(self._state.aabb)
            self.set_status(status)
            self.rerender()

    # -- Page ---------------------------------------------------------------------------------

    def _set_initial_camera(self) -> View:
        """Starts browsers at the first training camera, in NDC at the origin."""
        scene = self._scene
        pose = np.eye(4)
        if scene.poses and scene.ndc is None:
            pose = scene.pose_matrices()[0]
        fov = float(2.0 * np.arctan(0.5 * scene.height / scene.focal))
        forward = -pose[:3, 2]
        distance = scene.radius if scene.ndc is None else 2.0 * scene.near
        camera = self.server.initial_camera
        camera.position = tuple(pose[:3, 3])
        camera.look_at = tuple(pose[:3, 3] + max(distance, 1e-3) * forward)
        camera.fov = fov
        return View(pose, fov, scene.width / scene.height)

    def _build_panels(self, name: str, folder: Path) -> None:
        gui = self.server.gui
        gui.set_panel_label(name)
        self._status = gui.add_markdown("Compiling the renderer ...")
        self._statistics = gui.add_markdown("")
        self._pause = gui.add_checkbox("Pause training", False) if self._training else None
        self._channel = gui.add_dropdown("Show", CHANNELS, initial_value="rgb")
        self._max_size = gui.add_slider(
            "Resolution", min=IMAGE_SIZES[0], max=IMAGE_SIZES[1], step=64, initial_value=768,
            hint="Pixels along the longer side once the camera is at rest.",
        )  # fmt: skip
        self._frame_rate = gui.add_slider(
            "Frames/s", min=FRAME_RATES[0], max=FRAME_RATES[1], step=1,
            initial_value=round(1.0 / MOVING_FRAME_SECONDS),
            hint="Target while the camera moves. Higher rates give coarser images.",
        )  # fmt: skip
        for handle in (self._channel, self._max_size):
            handle.on_update(lambda _: self.rerender())
        self._show_cameras = gui.add_checkbox("Training cameras", False)
        self._show_cameras.on_update(lambda _: self._update_frustums())
        in_ndc = self._scene.ndc is not None
        self._crop_panel = None if in_ndc else CropPanel(self.server, self.rerender)
        frame = unpack_transform(self._scene.frame)
        self._camera_path_panel = CameraPathPanel(
            self.server, folder, frame, self._render_path_frame, self._default_video_size()
        )

    def _default_video_size(self) -> tuple[int, int]:
        """A multiple of the size of training images that is wide enough, in even numbers."""
        size = (self._scene.width, self._scene.height)
        multiple = max(-(-MIN_VIDEO_WIDTH // size[0]), 1)
        width, height = (max(multiple * side - multiple * side % 2, 16) for side in size)
        return width, height

    @property
    def crop(self) -> Float[np.ndarray, "2 3"]:
        """The box outside of which nothing is rendered, `NO_CROP` for none."""
        return NO_CROP if self._crop_panel is None else self._crop_panel.aabb

    def _update_frustums(self) -> None:
        for handle in self._frustums:
            handle.visible = bool(self._show_cameras.value)

    # -- Browsers -----------------------------------------------------------------------------

    def _on_connect(self, client: Any) -> None:
        self._clients[client.client_id] = BrowserClient(
            client, lambda: self._state, self._get_settings, self._show_statistics
        )
        # Show the current state of a training to a new browser without delay.
        self._state_offered_at = -np.inf

    def _on_disconnect(self, client: Any) -> None:
        disconnected = self._clients.pop(client.client_id, None)
        if disconnected:
            # In a thread, so that the server does not wait for an image.
            threading.Thread(target=disconnected.close, daemon=True).start()

    def _get_settings(self) -> RenderSettings:
        # Browsers send what they like, also beyond the ends of a slider.
        channel = self._channel.value
        return RenderSettings(
            channel=channel if channel in CHANNELS else "rgb",
            max_size=int(clamp_value(self._max_size.value, *IMAGE_SIZES)),
            moving_frame_seconds=1.0 / clamp_value(self._frame_rate.value, *FRAME_RATES),
            crop=self.crop,
            ndc=self._scene.ndc,
            is_training=self._training,
        )

    def _show_statistics(self, text: str) -> None:
        self._statistics.content = text

    def _render_path_frame(
        self, camera: Cameras, stop: Callable[[], bool]
    ) -> UInt8[np.ndarray, "h w 3"] | None:
        """A sharp frame of a camera path; None if `stop` asked to cancel it."""
        state = self._state
        if state is None:
            raise InputError("There is nothing to render yet: wait for the first image.")
        camera = dataclasses.replace(camera, ndc=self._scene.ndc)
        renderer = state.renderer
        rendering = renderer.render(camera, self.crop, stop, renderer.supersample)
        if rendering is None:
            return None
        return draw_image(rendering, camera, state, self._channel.value)
