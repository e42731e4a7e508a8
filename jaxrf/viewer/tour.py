"""The panel that makes a camera path, saves it and renders its video."""

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxrf.cameras import paths
from jaxrf.cameras.base import Cameras, make_cameras
from jaxrf.cameras.transforms import SimilarityTransform, invert_transform, transform_poses
from jaxrf.core.errors import InputError
from jaxrf.evaluation import images
from jaxrf.training import runs
from jaxrf.viewer.poses import View, read_view, to_browser

# Of a loaded path so many cameras become stops.
MOST_STOPS = 16
LINE_COLOR = (230, 80, 40)
# Paints one frame of a path; None if one wishes to stop.
PaintFrame = Callable[[Cameras, Callable[[], bool]], UInt8[np.ndarray, "h w 3"] | None]


class RenderCancelled(Exception):
    """Somebody does not want the video any more."""


@dataclasses.dataclass(frozen=True)
class Tour:
    """Stops of a camera and how it goes through them.

    Attributes:
      stops: what is seen at each, in order.
      seconds: how long the way takes.
      fps: frames per second.
      loops: whether it goes back to where it began.
    """

    stops: tuple[View, ...] = ()
    seconds: float = 4.0
    fps: float = 24.0
    loops: bool = False

    @property
    def frames(self) -> int:
        """Number of frames of the way."""
        return max(round(self.seconds * self.fps), 1)


def plan_camera_path(tour: Tour, width: int, height: int) -> Cameras:
    """The cameras of all frames, with pictures of one size; needs two stops or more."""
    poses = paths.interpolate_path(
        tour.frames, np.stack([stop.pose for stop in tour.stops]), tour.loops
    )
    angles = np.array([stop.fov for stop in tour.stops])
    if tour.loops:
        angles = np.append(angles, angles[0])
    at = np.linspace(0.0, len(angles) - 1.0, tour.frames, endpoint=not tour.loops)
    fov = np.interp(at, np.arange(len(angles)), angles)
    cameras = make_cameras(poses, width, height, 1.0)
    focal = (0.5 * height / np.tan(0.5 * fov)).astype(np.float32)
    return dataclasses.replace(cameras, focal=np.stack([focal, focal], axis=-1))


def read_tour(path: Path, frame: SimilarityTransform) -> Tour:
    """The tour of a file of nerfstudio's viewer, through at most `MOST_STOPS` of its cameras.

    Args:
      path: the file.
      frame: out of the coordinates of the data set's files.

    Raises:
      InputError: the file is damaged.
    """
    content = paths.read_path(path)
    cameras = content.cameras
    poses = transform_poses(frame, np.asarray(cameras.T_world_camera, np.float64))
    chosen = np.unique(np.linspace(0, len(poses) - 1, min(MOST_STOPS, len(poses))).round())
    fov = 2.0 * np.arctan(0.5 * cameras.height / np.asarray(cameras.focal)[:, 1])
    stops = tuple(
        View(poses[i], float(fov[i]), cameras.width / cameras.height) for i in chosen.astype(int)
    )
    return Tour(stops, len(poses) / content.fps, content.fps)


def write_tour(cameras: Cameras, fps: float, frame: SimilarityTransform) -> str:
    """A file with all frames of a tour, in the coordinates of the data set's files."""
    poses = transform_poses(invert_transform(frame), np.asarray(cameras.T_world_camera, np.float64))
    return paths.write_path(dataclasses.replace(cameras, T_world_camera=poses), fps)


class CameraPathPanel:
    """Buttons to add stops, play, save, load and render; one tour for all who look."""

    def __init__(
        self,
        server: Any,
        folder: Path,
        frame: SimilarityTransform,
        paint: PaintFrame,
        size: tuple[int, int],
    ) -> None:
        self._server, self._folder, self._frame, self._paint = server, folder, frame, paint
        self._stops: list[View] = []
        self._drawn: list[Any] = []
        self._busy = threading.Lock()
        self._stop = threading.Event()
        self._working: threading.Thread | None = None
        gui = server.gui
        with gui.add_folder("Camera path", expand_by_default=False):
            self._count = gui.add_markdown("")
            edit = gui.add_button_group("Stops", ("Add", "Remove last", "Clear"))
            self._seconds = gui.add_slider(
                "Seconds", min=1.0, max=60.0, step=0.5, initial_value=4.0
            )
            self._fps = gui.add_slider("Frames/s", min=1, max=60, step=1, initial_value=24)
            self._loops = gui.add_checkbox("Back to the start", False)
            self._width = gui.add_number("Width", size[0], min=16, max=4096, step=2)
            self._height = gui.add_number("Height", size[1], min=16, max=4096, step=2)
            play = gui.add_button("Play")
            save = gui.add_button("Save path", hint="Into the run's folder, and as a download.")
            load = gui.add_upload_button("Load path", mime_type="application/json")
            self._render = gui.add_button("Render video", color="green")
            self._progress = gui.add_progress_bar(0.0, visible=False)
        edit.on_click(self._edit)
        self._loops.on_update(lambda _: self._draw())
        play.on_click(lambda event: self._in_background(self._play, event.client))
        save.on_click(lambda event: self._guard(self._save, event.client))
        load.on_upload(lambda event: self._guard(self._load, event.client, load.value))
        self._render.on_click(lambda event: self._render_or_stop(event.client))
        self._draw()

    @property
    def tour(self) -> Tour:
        """What the panel says now."""
        return Tour(tuple(self._stops), self._seconds.value, self._fps.value, self._loops.value)

    def close(self) -> None:
        """Gives up what is being rendered, and waits for its end."""
        self._stop.set()
        if self._working is not None:
            self._working.join()

    def _edit(self, event: Any) -> None:
        match event.target.value:
            case "Add":
                self._stops.append(read_view(event.client.camera))
            case "Remove last":
                self._stops = self._stops[:-1]
            case "Clear":
                self._stops = []
        self._draw()

    def _draw(self) -> None:
        """Shows the stops and the way in the scene."""
        for handle in self._drawn:
            handle.remove()
        self._drawn = []
        count = len(self._stops)
        self._count.content = f"{count} stop{'s' * (count != 1)}. " + (
            "" if count > 1 else "Move the camera and add two or more."
        )
        scene = self._server.scene
        for index, stop in enumerate(self._stops):
            wxyz, position = to_browser(stop.pose)
            handle = scene.add_camera_frustum(
                f"/tour/stop-{index}",
                fov=stop.fov,
                aspect=stop.aspect,
                scale=0.06,
                thickness=2.0,
                thickness_units="screen",
                color=LINE_COLOR,
                wxyz=wxyz,
                position=position,
            )
            handle.on_click(lambda event, stop=stop: go_to(event.client, stop))
            self._drawn.append(handle)
        if count > 1:
            way = plan_camera_path(dataclasses.replace(self.tour, seconds=4.0, fps=24.0), 16, 16)
            points = np.asarray(way.T_world_camera)[:, :3, 3]
            segments = np.stack([points[:-1], points[1:]], axis=1)
            self._drawn.append(
                scene.add_line_segments(
                    "/tour/way", segments, LINE_COLOR, thickness=2.0, thickness_units="screen"
                )
            )

    def _plan(self) -> Cameras:
        if len(self._stops) < 2:
            raise InputError("A path needs two stops: move the camera and press Add.")
        return plan_camera_path(self.tour, int(self._width.value), int(self._height.value))

    def _play(self, client: Any) -> None:
        cameras, fps = self._plan(), self.tour.fps
        started = time.monotonic()
        while (index := int((time.monotonic() - started) * fps)) < len(cameras):
            if self._stop.is_set():
                return
            fov = 2.0 * np.arctan(0.5 * cameras.height / float(cameras.focal[index, 1]))
            pose = np.asarray(cameras.T_world_camera[index], np.float64)
            go_to(client, View(pose, float(fov), 1.0))
            time.sleep(1.0 / fps)

    def _save(self, client: Any) -> None:
        text = write_tour(self._plan(), self.tour.fps, self._frame)
        path = self._find_free("camera-path", ".json")
        path.write_text(text, encoding="utf-8")
        client.send_file_download(path.name, text.encode())
        client.add_notification("Saved", f"{path}", auto_close_seconds=8.0)

    def _load(self, client: Any, file: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "path.json")
            path.write_bytes(file.content)
            try:
                tour = read_tour(path, self._frame)
            except InputError as error:
                raise InputError(str(error).replace(str(path), file.name)) from error
        self._stops = list(tour.stops)
        self._seconds.value = float(np.clip(tour.seconds, 1.0, 60.0))
        self._fps.value = int(np.clip(tour.fps, 1, 60))
        self._draw()
        go_to(client, self._stops[0])

    def _render_or_stop(self, client: Any) -> None:
        if self._busy.locked():
            self._stop.set()
        else:
            self._in_background(self._render_video, client)

    def _render_video(self, client: Any) -> None:
        cameras, fps = self._plan(), self.tour.fps
        path = self._find_free("video", ".mp4")
        self._render.label, self._progress.visible = "Stop rendering", True
        try:
            with runs.atomic_path(path) as temporary:
                images.write_mp4(temporary, self._paint_frames(cameras), fps)
            client.send_file_download(path.name, path.read_bytes())
            client.add_notification("Rendered", f"{path}", auto_close_seconds=8.0)
        except RenderCancelled:
            client.add_notification("Stopped", "Nothing was written.")
        finally:
            self._render.label, self._progress.visible = "Render video", False

    def _paint_frames(self, cameras: Cameras) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """All frames one after the other, as a long video does not fit into memory."""
        for index in range(len(cameras)):
            frame = self._paint(cameras[index], self._stop.is_set)
            if frame is None:
                raise RenderCancelled
            yield frame
            self._progress.value = 100.0 * (index + 1) / len(cameras)

    def _find_free(self, name: str, suffix: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while (path := self._folder / f"{name}-{number}{suffix}").exists():
            number += 1
        return path

    def _guard(self, action: Callable[..., None], client: Any, *rest: Any) -> None:
        """Says in the browser what one can mend."""
        try:
            action(client, *rest)
        except (InputError, OSError) as error:
            client.add_notification("Not possible", str(error), color="red")

    def _in_background(self, action: Callable[..., None], client: Any) -> None:
        def run() -> None:
            with self._busy:
                self._stop.clear()
                self._guard(action, client)

        if not self._busy.locked():
            self._working = threading.Thread(target=run, daemon=True)
            self._working.start()


def go_to(client: Any, view: View) -> None:
    """Moves a browser's camera; its shape stays that of its window."""
    wxyz, position = to_browser(view.pose)
    with client.atomic():
        client.camera.wxyz = wxyz
        client.camera.position = position
        client.camera.fov = view.fov
