"""The camera path panel with a simulated browser."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from simulated_browser import SimulatedClient

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.poses import look_at
from jaxrf.cameras.transforms import SimilarityTransform
from jaxrf.viewer.camera_path_panel import CameraPathPanel
from jaxrf.viewer.poses import View, from_browser

VIEWS = [View(look_at(np.array([4.0, y, 1.0]), np.zeros(3)), 0.8, 1.5) for y in (-1.0, 1.0)]


def render_gray(camera: Cameras, stop: Callable[[], bool]) -> np.ndarray | None:
    return None if stop() else np.full((camera.height, camera.width, 3), 128, np.uint8)


@pytest.fixture
def panel(tmp_path: Path) -> Iterator[CameraPathPanel]:
    import viser

    server = viser.ViserServer(host="127.0.0.1", port=8451, verbose=False)
    frame = SimilarityTransform(0.5, np.eye(3), np.array([0.1, 0.2, 0.3]))
    panel = CameraPathPanel(server, tmp_path / "views", frame, render_gray, (32, 16))
    yield panel
    panel.close()
    server.stop()


def click(panel: CameraPathPanel, button: str, view: View = VIEWS[0]) -> None:
    target = SimpleNamespace(value=button)
    panel._edit(SimpleNamespace(target=target, client=SimulatedClient(view)))


def run_in_foreground(panel: CameraPathPanel, action: Any, client: SimulatedClient) -> None:
    panel._run_in_background(action, client)
    assert panel._worker is not None
    panel._worker.join()


def test_a_path_stays_within_its_limits_whatever_a_browser_sends(panel: CameraPathPanel) -> None:
    click(panel, "Add", VIEWS[0])
    click(panel, "Add", VIEWS[1])
    panel._seconds.value, panel._fps.value = 1e9, 1e9
    panel._width.value, panel._height.value = 10**7, -4
    cameras = panel._make_cameras()
    assert len(cameras) == 60 * 60 and (cameras.width, cameras.height) == (4096, 16)
    client = SimulatedClient(VIEWS[0])
    upload = SimpleNamespace(name="path.json", content=b" " * (17 << 20))
    panel._report_errors(panel._load, client, upload)
    assert "too large for a camera path" in client.notifications[-1][1]


def test_buttons_edit_the_keyframes(panel: CameraPathPanel) -> None:
    assert panel._summary.content.startswith("0 keyframes. Move the camera")
    click(panel, "Add", VIEWS[0])
    assert panel._summary.content.startswith("1 keyframe. Move the camera")
    click(panel, "Add", VIEWS[1])
    assert panel._summary.content == "2 keyframes. "
    for keyframe, view in zip(panel.camera_path.keyframes, VIEWS, strict=True):
        np.testing.assert_allclose(keyframe.pose, view.pose, atol=1e-12)
    click(panel, "Remove last")
    assert len(panel.camera_path.keyframes) == 1
    click(panel, "Clear")
    assert panel.camera_path.keyframes == ()


def test_a_path_of_one_keyframe_is_reported(panel: CameraPathPanel) -> None:
    click(panel, "Add")
    client = SimulatedClient(VIEWS[0])
    panel._report_errors(panel._save, client)
    ((title, text),) = client.notifications
    assert title == "Not possible" and "needs two keyframes" in text


def test_saved_paths_are_loaded_again(panel: CameraPathPanel, tmp_path: Path) -> None:
    for view in VIEWS:
        click(panel, "Add", view)
    client = SimulatedClient(VIEWS[1])
    panel._save(client)
    panel._save(client)
    names = ["camera-path-1.json", "camera-path-2.json"]
    assert sorted(p.name for p in (tmp_path / "views").iterdir()) == names == list(client.downloads)
    click(panel, "Clear")
    content = client.downloads[names[0]]
    panel._load(client, SimpleNamespace(name="path.json", content=content))
    keyframes = panel.camera_path.keyframes
    np.testing.assert_allclose(keyframes[0].pose, VIEWS[0].pose, atol=1e-5)
    np.testing.assert_allclose(keyframes[-1].pose, VIEWS[1].pose, atol=1e-5)
    moved = from_browser(client.camera.wxyz, client.camera.position)
    np.testing.assert_allclose(moved, VIEWS[0].pose, atol=1e-5)
    panel._report_errors(panel._load, client, SimpleNamespace(name="broken.json", content=b"{"))
    assert client.notifications[-1][0] == "Not possible"
    assert "broken.json" in client.notifications[-1][1]


def test_render_video_writes_a_file_unless_stopped(panel: CameraPathPanel, tmp_path: Path) -> None:
    for view in VIEWS:
        click(panel, "Add", view)
    panel._seconds.value = 0.25
    client = SimulatedClient(VIEWS[0])
    run_in_foreground(panel, panel._render_video, client)
    assert client.downloads["video-1.mp4"] == (tmp_path / "views/video-1.mp4").read_bytes()
    assert panel._progress.value == 100.0
    panel._render_frame = lambda camera, stop: None
    run_in_foreground(panel, panel._render_video, client)
    assert client.notifications[-1] == ("Stopped", "No video was written.")
    assert [p.name for p in (tmp_path / "views").iterdir()] == ["video-1.mp4"]
