"""The panel that edits a camera path, saves and loads it, and renders its video."""

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.transforms import SimilarityTransform
from jaxrf.core.errors import InputError
from jaxrf.evaluation import images
from jaxrf.training import runs
from jaxrf.viewer.camera_path import (
    CameraPath,
    encode_camera_path,
    interpolate_keyframes,
    read_camera_path,
)
from jaxrf.viewer.poses import View, clamp_value, read_view, set_camera, to_browser

LINE_COLOR = (230, 80, 40)
# Limits of a path, its video and the file that it is read from.
SECONDS, FRAME_RATES, VIDEO_SIZES = (1.0, 60.0), (1, 60), (16, 4096)
MAX_KEYFRAMES, MAX_PATH_BYTES = 1000, 16 << 20
# Renders one frame of a path, or returns None as soon as its second argument asks to stop.
RenderFrame = Callable[[Cameras, Callable[[], bool]], UInt8[np.ndarray, "h w 3"] | None]


class RenderCancelledError(Exception):
    """The user stopped the rendering of a video."""


class CameraPathPanel:
    """Controls to add keyframes, play, save, load and render; all browsers share one path."""

    def __init__(
        self,
        server: Any,
        folder: Path,
        frame: SimilarityTransform,
        render_frame: RenderFrame,
        size: tuple[int, int],
    ) -> None:
        """Adds the panel to a server.

        Args:
          server: a `viser.ViserServer`.
          folder: where paths and videos are written.
          frame: from the coordinates of the data set's files to those of training.
          render_frame: renders one frame.
          size: initial width and height of videos, in pixels.
        """
        self._server, self._folder, self._frame = server, folder, frame
        self._render_frame = render_frame
        self._keyframes: list[View] = []
        self._scene_handles: list[Any] = []
        self._busy = threading.Lock()
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None
        gui = server.gui
        with gui.add_folder("Camera path", expand_by_default=False):
            self._summary = gui.add_markdown("")
            edit = gui.add_button_group("Keyframes", ("Add", "Remove last", "Clear"))
            self._seconds = gui.add_slider(
                "Seconds", min=SECONDS[0], max=SECONDS[1], step=0.5, initial_value=4.0
            )
            self._fps = gui.add_slider(
                "Frames/s", min=FRAME_RATES[0], max=FRAME_RATES[1], step=1, initial_value=24
            )
            self._loops = gui.add_checkbox("Loop", False)
            low, high = VIDEO_SIZES
            self._width = gui.add_number("Width", size[0], min=low, max=high, step=2)
            self._height = gui.add_number("Height", size[1], min=low, max=high, step=2)
            play = gui.add_button("Play")
            save = gui.add_button("Save path", hint="Into the run's folder, and as a download.")
            load = gui.add_upload_button("Load path", mime_type="application/json")
            self._render_button = gui.add_button("Render video", color="green")
            self._progress = gui.add_progress_bar(0.0, visible=False)
        edit.on_click(self._edit)
        self._loops.on_update(lambda _: self._draw_path())
        play.on_click(lambda event: self._run_in_background(self._play, event.client))
        save.on_click(lambda event: self._report_errors(self._save, event.client))
        load.on_upload(lambda event: self._report_errors(self._load, event.client, load.value))
        self._render_button.on_click(lambda event: self._start_or_stop_render(event.client))
        self._draw_path()

    @property
    def camera_path(self) -> CameraPath:
        """The path as edited so far."""
        return CameraPath(
            tuple(self._keyframes),
            clamp_value(self._seconds.value, *SECONDS),
            clamp_value(self._fps.value, *FRAME_RATES),
            bool(self._loops.value),
        )

    def close(self) -> None:
        """Cancels a running playback or rendering and waits for its end."""
        self._stop.set()
        if self._worker is not None:
            self._worker.join()

    def _edit(self, event: Any) -> None:
        match event.target.value:
            case "Add":
                self._report_errors(self._add, event.client)
            case "Remove last":
                self._keyframes = self._keyframes[:-1]
            case "Clear":
                self._keyframes = []
        self._draw_path()

    def _add(self, client: Any) -> None:
        if len(self._keyframes) >= MAX_KEYFRAMES:
            raise InputError(f"A path has {MAX_KEYFRAMES} keyframes at most: remove some.")
        self._keyframes.append(read_view(client.camera))

    def _draw_path(self) -> None:
        """Draws the keyframes and the path between them into the scene."""
        for handle in self._scene_handles:
            handle.remove()
        self._scene_handles = [
            self._add_keyframe(index, keyframe) for index, keyframe in enumerate(self._keyframes)
        ]
        count = len(self._keyframes)
        self._summary.content = f"{count} keyframe{'s' * (count != 1)}. " + (
            "" if count > 1 else "Move the camera and add two or more."
        )
        if count > 1:
            preview = dataclasses.replace(self.camera_path, seconds=4.0, fps=24.0)
            cameras = interpolate_keyframes(preview, 16, 16)
            points = np.asarray(cameras.T_world_camera)[:, :3, 3]
            segments = np.stack([points[:-1], points[1:]], axis=1)
            self._scene_handles.append(
                self._server.scene.add_line_segments(
                    "/camera_path/line",
                    segments,
                    LINE_COLOR,
                    thickness=2.0,
                    thickness_units="screen",
                )
            )

    def _add_keyframe(self, index: int, keyframe: View) -> Any:
        wxyz, position = to_browser(keyframe.pose)
        handle = self._server.scene.add_camera_frustum(
            f"/camera_path/keyframe-{index}",
            fov=keyframe.fov,
            aspect=keyframe.aspect,
            scale=0.06,
            thickness=2.0,
            thickness_units="screen",
            color=LINE_COLOR,
            wxyz=wxyz,
            position=position,
        )
        handle.on_click(lambda event: set_camera(event.client, keyframe))
        return handle

    def _make_cameras(self) -> Cameras:
        """The cameras of all frames; InputError if there are too few keyframes."""
        if len(self._keyframes) < 2:
            raise InputError("A path needs two keyframes: move the camera and press Add.")
        width, height = (
            int(clamp_value(side.value, *VIDEO_SIZES)) for side in (self._width, self._height)
        )
        return interpolate_keyframes(self.camera_path, width, height)

    def _play(self, client: Any) -> None:
        cameras, fps = self._make_cameras(), self.camera_path.fps
        started = time.monotonic()
        while (index := int((time.monotonic() - started) * fps)) < len(cameras):
            if self._stop.is_set():
                return
            fov = 2.0 * np.arctan(0.5 * cameras.height / float(cameras.focal[index, 1]))
            pose = np.asarray(cameras.T_world_camera[index], np.float64)
            set_camera(client, View(pose, float(fov), 1.0))
            time.sleep(1.0 / fps)

    def _save(self, client: Any) -> None:
        text = encode_camera_path(self._make_cameras(), self.camera_path.fps, self._frame)
        file = self._find_unused_file("camera-path", ".json")
        file.write_text(text, encoding="utf-8")
        client.send_file_download(file.name, text.encode())
        client.add_notification("Saved", f"{file}", auto_close_seconds=8.0)

    def _load(self, client: Any, upload: Any) -> None:
        if len(upload.content) > MAX_PATH_BYTES:
            raise InputError(f"{upload.name} is too large for a camera path: give another file.")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "path.json")
            file.write_bytes(upload.content)
            try:
                path = read_camera_path(file, self._frame)
            except InputError as error:
                sentence = error.for_command_line.replace(str(file), upload.name)
                raise InputError(sentence) from error
        self._keyframes = list(path.keyframes)
        self._seconds.value = clamp_value(path.seconds, *SECONDS)
        self._fps.value = int(clamp_value(path.fps, *FRAME_RATES))
        self._draw_path()
        set_camera(client, self._keyframes[0])

    def _start_or_stop_render(self, client: Any) -> None:
        if self._busy.locked():
            self._stop.set()
        else:
            self._run_in_background(self._render_video, client)

    def _render_video(self, client: Any) -> None:
        cameras, fps = self._make_cameras(), self.camera_path.fps
        file = self._find_unused_file("video", ".mp4")
        self._render_button.label, self._progress.visible = "Stop rendering", True
        try:
            with runs.atomic_path(file) as temporary:
                images.write_mp4(temporary, self._render_frames(cameras), fps)
            client.send_file_download(file.name, file.read_bytes())
            client.add_notification("Rendered", f"{file}", auto_close_seconds=8.0)
        except RenderCancelledError:
            client.add_notification("Stopped", "No video was written.")
        finally:
            self._render_button.label, self._progress.visible = "Render video", False

    def _render_frames(self, cameras: Cameras) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Yields frames as they are rendered, because a long video may not fit into memory."""
        for index in range(len(cameras)):
            camera = cameras[np.array([index])]
            frame = self._render_frame(camera, self._stop.is_set)
            if frame is None:
                raise RenderCancelledError
            yield frame
            self._progress.value = 100.0 * (index + 1) / len(cameras)

    def _find_unused_file(self, name: str, suffix: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while (file := self._folder / f"{name}-{number}{suffix}").exists():
            number += 1
        return file

    def _report_errors(self, action: Callable[..., None], client: Any, *arguments: Any) -> None:
        """Runs an action and shows errors that the user can fix in the browser."""
        try:
            action(client, *arguments)
        except (InputError, OSError) as error:
            client.add_notification("Not possible", str(error), color="red")

    def _run_in_background(self, action: Callable[..., None], client: Any) -> None:
        """Runs an action in a thread, unless another one is running."""

        def run() -> None:
            with self._busy:
                self._stop.clear()
                self._report_errors(action, client)

        if not self._busy.locked():
            self._worker = threading.Thread(target=run, daemon=True)
            self._worker.start()
