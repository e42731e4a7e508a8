"""The server behind a browser's window: paints what its camera sees, coarse at once, then sharp."""

import contextlib
import dataclasses
import io
import math
import socket
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf.cameras.base import Cameras, near_far_for_box
from jaxrf.cameras.transforms import unpack_frame
from jaxrf.core.errors import InputError
from jaxrf.data.scene import Split, composite
from jaxrf.evaluation import images as pictures
from jaxrf.evaluation.channels import Channel
from jaxrf.evaluation.interactive import InteractiveRenderer, Pace, render_progressively
from jaxrf.rendering.volume import Picture
from jaxrf.sampling.occupancy import visible_aabb
from jaxrf.training.runs import SceneMetadata
from jaxrf.viewer.poses import View, along_axis, fit_camera, list_views, read_view, to_browser
from jaxrf.viewer.tour import CameraPathPanel, go_to

MODES: tuple[Channel, ...] = ("rgb", "depth", "opacity")
# A picture in this time follows a hand.
FLUID_SECONDS = 1.0 / 15.0
# A camera that has not moved for so long stands still.
STILL_SECONDS = 0.4
# While training a new state is shown no more often than this, in a picture that takes so long.
SHOW_SECONDS, STATE_SECONDS = 1.5, 0.4
# Training pictures that are shown where their cameras stand, and their width there.
MOST_CAMERAS, CAMERA_WIDTH = 60, 96
# Videos are at least so wide, unless one asks for less.
VIDEO_WIDTH = 400
CAMERA_COLOR = (90, 110, 160)
BOX_COLOR = (40, 150, 90)
# Beyond the farthest that the browser can be told.
NOTHING = 160.0
WHOLE = np.array([[-np.inf] * 3, [np.inf] * 3], np.float32)


class Shown(NamedTuple):
    """What is to be seen now.

    painter: of the field.
    box: (2, 3) what may be occupied, in scene units.
    number: counts what was shown before.
    """

    painter: InteractiveRenderer
    box: Float[np.ndarray, "2 3"]
    number: int


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
    """A page that shows a field, to any number of browsers.

    `show` gives it another state of the field; `follow` does while training, if somebody looks.
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
        trains: bool = False,
    ) -> None:
        """Starts the server.

        Args:
          name: of the run, as the page is called.
          scene: what was trained on.
          folder: where paths and videos are written.
          host, port: to listen at; the next port if another program listens there.
          background: behind transparent pixels of the training pictures.
          split: the training pictures, if they are there.
          trains: whether the field is being trained.

        Raises:
          InputError: if it cannot listen there.
        """
        import viser

        self._scene, self._trains = scene, trains
        self._shown: Shown | None = None
        self._clients: dict[int, _Client] = {}
        self._changes = threading.Lock()
        self._shown_at = -np.inf
        self._next: tuple[InteractiveRenderer, str] | None = None
        self._asked, self._closed = threading.Event(), threading.Event()
        check_host(host)
        # Its own words would stand between ours.
        with contextlib.redirect_stdout(io.StringIO()):
            self.server = viser.ViserServer(host=host, port=port, label=name, verbose=False)
        self.server.gui.configure_theme(show_logo=False, show_share_button=False)
        self.server.gui.main_panel.dock_right()
        self.server.scene.set_up_direction("+z" if scene.ndc is None else "+y")
        self._place_first_camera()
        self._build_panels(name, folder)
        self._add_cameras(split, background)
        self.server.on_client_connect(self._welcome)
        self.server.on_client_disconnect(self._part)
        self._preparing = threading.Thread(target=self._prepare, daemon=True)
        self._preparing.start()

    @property
    def address(self) -> str:
        """What a browser on this machine is pointed at."""
        host = self.server.get_host()
        shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::") else host
        return f"http://{shown}:{self.server.get_port()}"

    # -- what is shown ------------------------------------------------------------------------

    def show(self, painter: InteractiveRenderer, text: str) -> None:
        """Shows a field for good, as soon as its program is compiled."""
        self._trains = False
        if self._pause is not None:
            self._pause.visible = False
        self._offer(painter, text)

    def follow(self, make: Callable[[], InteractiveRenderer], text: str) -> None:
        """Shows the state of a training if somebody looks and the last one is some time ago.

        `make` is called at once or never, so that what it copies is of this moment.
        """
        self.say(text)
        if self._clients and time.monotonic() - self._shown_at > SHOW_SECONDS:
            self._offer(make(), text)

    def has_clients(self) -> bool:
        """Whether anybody looks."""
        return bool(self._clients)

    def camera_moving(self) -> bool:
        """Whether somebody moves a camera right now."""
        now = time.monotonic()
        return any(now - client.moved_at < STILL_SECONDS for client in list(self._clients.values()))

    def is_paused(self) -> bool:
        """Whether training is to wait."""
        return self._pause is not None and bool(self._pause.value)

    def say(self, text: str) -> None:
        """A line at the top of the panel."""
        self._text.content = text

    def close(self) -> None:
        """Ends the server."""
        self._closed.set()
        self._asked.set()
        self._tour.close()
        # Python must not end beneath threads that compute.
        for client in list(self._clients.values()):
            client.close()
        self._preparing.join()
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()

    def _offer(self, painter: InteractiveRenderer, text: str) -> None:
        self._shown_at = time.monotonic()
        self._next = painter, text
        self._asked.set()

    def _prepare(self) -> None:
        """Compiles what is to be shown next while the last is still shown."""
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._closed.is_set():
                return
            assert self._next is not None
            painter, text = self._next
            tiny = fit_camera(View(self._home.pose, self._home.fov, 1.0), 8, self._scene.ndc)
            painter.paint(tiny, WHOLE, lambda: False)
            with self._changes:
                before = self._shown
                self._shown = Shown(
                    painter, visible_aabb(painter.grid), before.number + 1 if before else 0
                )
                if before is None:
                    self._fit_crop(self._shown.box)
            self.say(text)
            self.repaint()

    def repaint(self) -> None:
        """Paints anew for everybody."""
        for client in list(self._clients.values()):
            client.changed.set()

    # -- panels -------------------------------------------------------------------------------

    def _place_first_camera(self) -> None:
        scene = self._scene
        poses = np.array(scene.poses, np.float64).reshape(-1, 3, 4)
        pose = np.eye(4)
        if len(poses) and scene.ndc is None:
            pose[:3] = poses[0]
        fov = 2.0 * np.arctan(0.5 * scene.height / scene.focal)
        self._home = View(pose, float(fov), scene.width / scene.height)
        ahead = -pose[:3, 2]
        distance = scene.radius if scene.ndc is None else 2.0 * scene.near
        start = self.server.initial_camera
        start.position = tuple(pose[:3, 3])
        start.look_at = tuple(pose[:3, 3] + max(distance, 1e-3) * ahead)
        start.fov = float(fov)

    def _build_panels(self, name: str, folder: Path) -> None:
        gui = self.server.gui
        gui.set_panel_label(name)
        self._text = gui.add_markdown("Compiling the first picture ...")
        self._figures = gui.add_markdown("")
        self._pause = gui.add_checkbox("Pause training", False) if self._trains else None
        self._mode = gui.add_dropdown("Show", MODES, initial_value="rgb")
        self._most = gui.add_slider(
            "Sharpest", min=128, max=1920, step=64, initial_value=768,
            hint="Pixels along the longer side, once the camera stands still.",
        )  # fmt: skip
        self._fluid = gui.add_slider(
            "Frames/s", min=2, max=60, step=1, initial_value=round(1.0 / FLUID_SECONDS),
            hint="While the camera moves; more of them are coarser.",
        )  # fmt: skip
        self._cameras_seen = gui.add_checkbox("Training cameras", False)
        self._cameras_seen.on_update(lambda _: self._show_cameras())
        self._camera_handles: list[Any] = []
        self._crop: list[Any] = []
        self._crop_on: Any = None
        if self._scene.ndc is None:
            with gui.add_folder("Crop", expand_by_default=False):
                self._crop_on = gui.add_checkbox("Crop", False)
                self._crop = [
                    gui.add_multi_slider(
                        axis, min=-1.0, max=1.0, step=0.01, initial_value=(-1.0, 1.0)
                    )
                    for axis in "xyz"
                ]
            for handle in (self._crop_on, *self._crop):
                handle.on_update(lambda _: self._change_crop())
        frame = unpack_frame(self._scene.frame)
        size = (self._scene.width, self._scene.height)
        # Small training pictures would make a stamp of a video.
        times = max(-(-VIDEO_WIDTH // size[0]), 1)
        even = tuple(max(times * side - times * side % 2, 16) for side in size)
        self._tour = CameraPathPanel(
            self.server, folder, frame, self._paint_frame, (even[0], even[1])
        )
        for handle in (self._mode, self._most):
            handle.on_update(lambda _: self.repaint())

    def _fit_crop(self, box: Float[np.ndarray, "2 3"]) -> None:
        """Lets the sliders span the box."""
        for slider, (low, high) in zip(self._crop, box.T, strict=True):
            slider.min, slider.max, slider.step = round_outwards(float(low), float(high))
            slider.value = (slider.min, slider.max)

    @property
    def crop(self) -> Float[np.ndarray, "2 3"]:
        """The box that is shown, which may be the whole of space."""
        if self._crop_on is None or not self._crop_on.value:
            return WHOLE
        return np.array([slider.value for slider in self._crop], np.float32).T

    def _change_crop(self) -> None:
        if self._crop_on.value:
            self.server.scene.add_line_segments(
                "/crop", list_edges(self.crop), BOX_COLOR, thickness=2.0, thickness_units="screen"
            )
        else:
            self.server.scene.remove_by_name("/crop")
        self.repaint()

    def _add_cameras(self, split: Split | None, background: Float[np.ndarray, "3"]) -> None:
        """Training cameras where they stand, with their pictures if these are there."""
        views, images = self._list_cameras(split, background)
        size = 0.05 * (self._scene.radius if self._scene.ndc is None else self._scene.near)
        for index, (view, image) in enumerate(zip(views, images, strict=True)):
            wxyz, position = to_browser(view.pose)
            handle = self.server.scene.add_camera_frustum(
                f"/cameras/{index}",
                fov=view.fov,
                aspect=view.aspect,
                scale=size,
                thickness=1.5,
                thickness_units="screen",
                color=CAMERA_COLOR,
                image=image,
                wxyz=wxyz,
                position=position,
                visible=False,
            )
            handle.on_click(partial(_go_to_clicked, view))
            self._camera_handles.append(handle)

    def _list_cameras(
        self, split: Split | None, background: Float[np.ndarray, "3"]
    ) -> tuple[list[View], list[UInt8[np.ndarray, "h w 3"] | None]]:
        if split is None:
            poses = np.array(self._scene.poses, np.float64).reshape(-1, 3, 4)
            every = -(-len(poses) // MOST_CAMERAS)
            full = [np.vstack([pose, [0.0, 0.0, 0.0, 1.0]]) for pose in poses[:: every or 1]]
            views = [View(pose, self._home.fov, self._home.aspect) for pose in full]
            return views, [None] * len(views)
        every = max(-(-len(split) // MOST_CAMERAS), 1)
        indices = range(0, len(split), every)
        small = max(split.cameras.width // CAMERA_WIDTH, 1)
        images: list[UInt8[np.ndarray, "h w 3"] | None] = [
            pictures.to_uint8(composite(split.images[i, ::small, ::small], background))
            for i in indices
        ]
        return list_views(split.cameras, indices), images

    def _show_cameras(self) -> None:
        for handle in self._camera_handles:
            handle.visible = bool(self._cameras_seen.value)

    # -- browsers -----------------------------------------------------------------------------

    def _welcome(self, client: Any) -> None:
        self._clients[client.client_id] = _Client(self, client)
        # Whoever comes while training is to see the newest state.
        self._shown_at = -np.inf

    def _part(self, client: Any) -> None:
        gone = self._clients.pop(client.client_id, None)
        if gone:
            # The server's own thread is not to wait for a picture.
            threading.Thread(target=gone.close, daemon=True).start()

    def _paint_frame(
        self, camera: Cameras, stop: Callable[[], bool]
    ) -> UInt8[np.ndarray, "h w 3"] | None:
        """One sharp frame of a path."""
        shown = self._shown
        if shown is None:
            raise InputError("There is nothing to render yet: wait for the first picture.")
        camera = dataclasses.replace(camera, ndc=self._scene.ndc)
        picture = shown.painter.paint(camera, self.crop, stop, shown.painter.supersample)
        return None if picture is None else self._draw(picture, camera, shown)

    def _draw(self, picture: Picture, camera: Cameras, shown: Shown) -> UInt8[np.ndarray, "h w 3"]:
        span = near_far_for_box(camera, shown.box)
        return pictures.draw_channel(picture, self._mode.value, span)


def round_outwards(low: float, high: float) -> tuple[float, float, float]:
    """The limits and the step of a slider over an interval: 100 to 1000 steps of 1, 0.1, ..."""
    digits = 2 - math.floor(math.log10(max(high - low, 1e-6)))
    step = 10.0**-digits
    return (
        round(math.floor(low / step) * step, digits),
        round(math.ceil(high / step) * step, digits),
        round(step, max(digits, 0)),
    )


def list_edges(box: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "12 2 3"]:
    """The edges of a box, from corner to corner."""
    edges = []
    for axis in range(3):
        for corner in np.ndindex(2, 2):
            ends = np.stack([np.insert(corner, axis, end) for end in (0, 1)])
            edges.append(np.take_along_axis(box, ends, axis=0))
    return np.stack(edges)


def _go_to_clicked(view: View, event: Any) -> None:
    go_to(event.client, view)


class _Client:
    """One browser: a thread that paints for it whenever something has changed."""

    def __init__(self, viewer: Viewer, client: Any) -> None:
        self._viewer, self._client = viewer, client
        self.changed, self._closed = threading.Event(), threading.Event()
        self.moved_at = -np.inf
        self._pace = Pace(FLUID_SECONDS)
        self._frames: list[float] = []
        self._number = -1
        self._seen: View | None = None
        client.camera.on_update(self._move)
        self.changed.set()
        self._painting = threading.Thread(target=self._run, daemon=True)
        self._painting.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self.changed.set()
        self._painting.join()

    def _move(self, camera: Any) -> None:
        del camera
        self.moved_at = time.monotonic()
        self.changed.set()

    def _run(self) -> None:
        while True:
            self.changed.wait()
            if self._closed.is_set():
                return
            self.changed.clear()
            shown = self._viewer._shown
            if shown is None:
                # What is shown at first wakes all.
                continue
            try:
                self._paint(shown)
            except Exception as error:
                if self._closed.is_set():
                    return
                # The next picture may do, as when memory was short.
                self._client.add_notification("Cannot be painted", str(error)[:300], color="red")
                traceback.print_exception(error)

    def _paint(self, shown: Shown) -> None:
        viewer, begun = self._viewer, time.monotonic()
        view = read_view(self._client.camera)
        again = view_equals(view, self._seen) and shown.number != self._number
        self._seen, self._number = view, shown.number
        camera = fit_camera(view, int(viewer._most.value), viewer._scene.ndc)
        self._pace.seconds = 1.0 / float(viewer._fluid.value)
        if again:
            # Nobody waits for it, so it may be larger at once.
            self._pace.seconds = STATE_SECONDS
        for picture in render_progressively(
            shown.painter, camera, viewer.crop, self._pace, self.changed.is_set
        ):
            self._send(picture, camera, shown)
            self._describe(picture, time.monotonic() - begun)
            if again and viewer._trains:
                # The rest of the time is for training.
                return

    def _send(self, picture: Picture, camera: Cameras, shown: Shown) -> None:
        depth = None
        if camera.ndc is None:
            # Where nothing is hit, what else is in the scene is before it.
            depth = np.where(picture.opacity > 0.5, picture.median_depth, NOTHING)
            depth = along_axis(np.minimum(depth, NOTHING), camera).astype(np.float32)
        image = self._viewer._draw(picture, camera, shown)
        self._client.scene.set_background_image(image, "jpeg", jpeg_quality=90, depth=depth)
        self._client.flush()

    def _describe(self, picture: Picture, seconds: float) -> None:
        now = time.monotonic()
        self._frames = [t for t in self._frames if now - t < 1.0] + [now]
        height, width = picture.opacity.shape
        moving = now - self.moved_at < STILL_SECONDS
        rate = f"{len(self._frames)} frames/s" if moving else f"after {seconds:.2f} s"
        self._viewer._figures.content = f"{width} x {height}, {rate}"


def view_equals(a: View, b: View | None) -> bool:
    """Whether two views are of the same place."""
    return (
        b is not None and a.fov == b.fov and a.aspect == b.aspect and np.array_equal(a.pose, b.pose)
    )
