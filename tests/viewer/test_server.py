"""The viewer's server, and its page in a real browser where there is one."""

import dataclasses
import http.client
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scenes import TINY, make_scene, write_scene

from jaxrf.cameras.base import make_cameras
from jaxrf.cameras.poses import look_at
from jaxrf.cameras.transforms import unpack_transform
from jaxrf.cli import main as cli
from jaxrf.core.errors import InputError
from jaxrf.evaluation.interactive import InteractiveRenderer
from jaxrf.training import runs
from jaxrf.training.scene_metadata import SceneMetadata
from jaxrf.viewer.camera_path import encode_camera_path
from jaxrf.viewer.client import BrowserClient
from jaxrf.viewer.crop_panel import NO_CROP
from jaxrf.viewer.server import Viewer
from jaxrf.viewer.training_cameras import list_training_cameras

pytestmark = pytest.mark.as_used

ROOT = Path(__file__).resolve().parent.parent.parent
BACKGROUND = np.ones(3, np.float32)


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    split = make_scene().splits["train"]
    viewer = Viewer("ball", scene, tmp_path, "127.0.0.1", 8431, BACKGROUND, split, training=True)
    yield viewer
    viewer.close()


def wait_for(condition: Callable[[], Any], seconds: float = 240.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.05)
    return result


def test_show_takes_effect_once_the_renderer_is_compiled(
    viewer: Viewer, renderer: InteractiveRenderer
) -> None:
    assert re.fullmatch(r"http://localhost:\d+", viewer.address)
    assert viewer.server.get_host() == "127.0.0.1"
    viewer.show(renderer, "12 steps, done")
    state = wait_for(lambda: viewer._state)
    assert state.renderer is renderer and state.number == 0
    wait_for(lambda: viewer._status.content == "12 steps, done")
    # There is no training to pause.
    assert not viewer.is_paused() and not viewer._pause.visible


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost", None, 200),
        ("127.0.0.1", "http://localhost", 200),
        ("evil.example", None, 403),
        ("localhost", "http://evil.example", 403),
    ],
)
def test_web_pages_from_elsewhere_reach_neither_page_nor_pictures(
    viewer: Viewer, host: str, origin: str | None, status: int
) -> None:
    import viser
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    port = viewer.server.get_port()
    headers = {"Host": f"{host}:{port}"} | ({} if origin is None else {"Origin": origin})
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/", headers=headers)
    assert connection.getresponse().status == status
    connection.close()
    socket_address = f"ws://{host if status == 200 else '127.0.0.1'}:{port}"
    if origin is None and status == 403:
        return  # The client library writes its own Host.
    protocol = f"viser-v{viser.__version__}"
    options: dict[str, Any] = {"origin": origin, "subprotocols": [protocol]}
    if status == 200:
        with connect(socket_address, **options) as socket:
            assert socket.recv(timeout=60)
    else:
        with pytest.raises(InvalidStatus, match="403"):
            connect(socket_address, **options)


def test_others_reach_page_and_pictures_with_the_token_alone(tmp_path: Path) -> None:
    import viser
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    viewer = Viewer("ball", scene, tmp_path, "0.0.0.0", 8491, BACKGROUND)
    try:
        port, query = viewer.server.get_port(), viewer.address.partition("/?")[2]
        assert viewer.address.startswith(f"http://localhost:{port}/?jaxrf_token=")

        def ask(path: str) -> http.client.HTTPResponse:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", path)
            return connection.getresponse()

        assert ask("/").status == 403 and ask("/?jaxrf_token=guess").status == 403
        page = ask(f"/?{query}")
        assert page.status == 200
        cookie = str(page.headers["Set-Cookie"]).partition(";")[0]
        options: dict[str, Any] = {"subprotocols": [f"viser-v{viser.__version__}"]}
        with pytest.raises(InvalidStatus, match="403"):
            connect(f"ws://127.0.0.1:{port}", **options)
        options["additional_headers"] = {"Cookie": cookie}
        with connect(f"ws://127.0.0.1:{port}", **options) as socket:
            assert socket.recv(timeout=60)
    finally:
        viewer.close()


def test_settings_stay_within_their_limits_whatever_a_browser_sends(viewer: Viewer) -> None:
    viewer._max_size.value, viewer._frame_rate.value = 10**6, 0
    settings = viewer._get_settings()
    assert settings.max_size == 1920 and settings.moving_frame_seconds == 0.5
    viewer._max_size.value = -5
    assert viewer._get_settings().max_size == 128


class RestingClient:
    """A browser that renders nothing."""

    moved_at = -np.inf
    camera_moving = BrowserClient.camera_moving

    def close(self) -> None:
        pass


def test_follow_makes_no_renderer_without_a_client_or_too_soon(
    viewer: Viewer, renderer: InteractiveRenderer
) -> None:
    calls: list[int] = []

    def make_renderer() -> InteractiveRenderer:
        calls.append(1)
        return renderer

    viewer.follow(make_renderer, "Step 1")
    assert calls == [] and not viewer.has_clients() and not viewer.camera_moving()
    client = RestingClient()
    viewer._clients[0] = client  # type: ignore[assignment]
    viewer.follow(make_renderer, "Step 2")
    viewer.follow(make_renderer, "Step 3")  # too soon
    assert calls == [1] and viewer.has_clients() and not viewer.camera_moving()
    assert viewer._status.content == "Step 3"
    client.moved_at = time.monotonic()
    assert viewer.camera_moving()
    viewer._pause.value = True
    assert viewer.is_paused()
    viewer._clients.clear()


def test_crop_starts_as_the_occupied_box(viewer: Viewer, renderer: InteractiveRenderer) -> None:
    np.testing.assert_array_equal(viewer.crop, NO_CROP)
    viewer.show(renderer, "")
    state = wait_for(lambda: viewer._state)
    viewer._crop_panel.enabled.value = True
    # The limits of the sliders are rounded outwards.
    assert np.all(viewer.crop[0] <= state.aabb[0]) and np.all(viewer.crop[1] >= state.aabb[1])
    np.testing.assert_allclose(viewer.crop, state.aabb, atol=0.011)
    viewer._crop_panel.sliders[1].value = (-0.5, 0.25)
    assert tuple(viewer.crop[:, 1]) == (-0.5, 0.25)
    viewer._crop_panel.enabled.value = False
    np.testing.assert_array_equal(viewer.crop, NO_CROP)


def test_training_cameras_have_their_positions(viewer: Viewer) -> None:
    split = make_scene().splits["train"]
    assert len(viewer._frustums) == len(split)
    for handle, pose in zip(viewer._frustums, split.cameras.T_world_camera, strict=True):
        np.testing.assert_allclose(handle.position, pose[:3, 3], atol=1e-6)
        assert not handle.visible
    viewer._show_cameras.value = True
    assert all(handle.visible for handle in viewer._frustums)
    # Without images, there are only the poses.
    views, images = list_training_cameras(viewer._scene, viewer._initial_view, None, BACKGROUND)
    assert len(views) == len(split) and set(images) == {None}
    np.testing.assert_allclose(views[1].pose, split.cameras.T_world_camera[1], atol=1e-6)


def test_ndc_scene_has_no_crop_and_starts_at_the_origin(tmp_path: Path) -> None:
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    scene = dataclasses.replace(scene, ndc=(0.5, 0.5, 1.0))
    viewer = Viewer("ball", scene, tmp_path, "127.0.0.1", 8432, BACKGROUND)
    try:
        np.testing.assert_array_equal(viewer.crop, NO_CROP)
        np.testing.assert_allclose(viewer._initial_view.pose, np.eye(4))
    finally:
        viewer.close()


def test_view_refuses_invalid_ports(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["view", "nowhere", "--port", "70000"]) == 2
    assert "--port is 70000: give a number from 1 to 65535." in capsys.readouterr().err
    assert cli.main(["view", "nowhere"]) == 2
    assert "nowhere is not a run" in capsys.readouterr().err


def test_viewer_refuses_addresses_of_other_machines(tmp_path: Path) -> None:
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    with pytest.raises(InputError, match=r"cannot listen at 192\.0\.2\.1 .*with host"):
        Viewer("ball", scene, tmp_path, "192.0.2.1", 8433, BACKGROUND)


# ---------------------------------------------------------------------------------------------
# In a real browser
# ---------------------------------------------------------------------------------------------


def screenshot(page: Any) -> np.ndarray:
    """The area left of the panel and below notifications."""
    with Image.open(io.BytesIO(page.screenshot())) as image:
        return np.asarray(image.convert("RGB"), np.float32)[190:, :480]


def shows_scene(page: Any) -> bool:
    return float(screenshot(page).std()) > 10.0


def start(arguments: list[str], log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Starts jaxrf and waits for the address of its page."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxrf", *arguments], env=environment, stdout=file, stderr=file
        )

    def find_address() -> str | None:
        assert process.poll() is None, log.read_text()
        match = re.search(r"Open (http://\S+) in a browser", log.read_text())
        return match and match[1]

    return process, wait_for(find_address, 120.0)


@pytest.mark.slow
def test_browser_shows_a_run_and_rotates_it_with_the_mouse(page: Any, tmp_path: Path) -> None:
    data, run = write_scene(tmp_path / "ball"), tmp_path / "run"
    arguments = [*TINY, "--data", str(data), "--run-dir", str(run), "--video.frames", "0"]
    assert cli.run_command("train", arguments) == 0
    process, address = start(["view", str(run), "--port", "8441"], tmp_path / "log")
    try:
        page.goto(address)
        wait_for(lambda: shows_scene(page))
        time.sleep(2.0)
        before = screenshot(page)
        page.mouse.move(200, 350)
        page.mouse.down()
        page.mouse.move(330, 300, steps=10)
        page.mouse.up()
        wait_for(lambda: np.abs(screenshot(page) - before).mean() > 2.0)
        # A path of two keyframes becomes a file and a video.
        page.get_by_text("Camera path").click()
        page.get_by_text("Add", exact=True).click()
        page.mouse.move(200, 350)
        page.mouse.down()
        page.mouse.move(260, 330, steps=5)
        page.mouse.up()
        time.sleep(1.0)
        page.get_by_text("Add", exact=True).click()
        page.get_by_text("Save path").click()
        wait_for(lambda: (run / "views/camera-path-1.json").exists())
        page.get_by_text("Render video").click()
        wait_for(lambda: (run / "views/video-1.mp4").exists(), 400.0)
        options = ["--path", str(run / "views/camera-path-1.json"), "--formats", "gif"]
        assert (
            cli.run_command("render", [str(run), *options, "--size", "8", "--channels", "rgb"]) == 0
        )
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, (tmp_path / "log").read_text()


@pytest.mark.slow
def test_browser_changes_channels_crops_and_loads_a_path(page: Any, tmp_path: Path) -> None:
    data, run = write_scene(tmp_path / "ball"), tmp_path / "run"
    assert cli.run_command("train", [*TINY, "--data", str(data), "--run-dir", str(run)]) == 0
    process, address = start(["view", str(run), "--port", "8443"], tmp_path / "log")
    page.set_viewport_size({"width": 800, "height": 700})

    def wait_for_change(action: Callable[[], Any], threshold: float = 1.0) -> None:
        time.sleep(2.0)
        before = screenshot(page)
        action()
        wait_for(lambda: np.abs(screenshot(page) - before).mean() > threshold)

    def choose(name: str) -> None:
        page.locator("input[role=combobox]:visible").first.click()
        page.get_by_role("option", name=name).click()

    try:
        page.goto(address)
        wait_for(lambda: shows_scene(page))
        wait_for_change(lambda: choose("opacity"))
        wait_for_change(lambda: choose("depth"))
        wait_for_change(lambda: choose("rgb"))
        page.get_by_text("Crop", exact=True).first.click()
        crop = page.locator("input[type=checkbox]:visible").nth(1)
        wait_for_change(crop.click, 0.1)  # the edges of the box
        page.get_by_text("Crop", exact=True).first.click()
        # Loading a file moves the camera to its first keyframe.
        pose = look_at(np.array([3.0, 3.0, 2.0]), np.zeros(3))
        cameras = make_cameras(np.stack([pose, pose]), 16, 16, 0.7)
        frame = unpack_transform(runs.open_run(run).scene.frame)
        (tmp_path / "path.json").write_text(encode_camera_path(cameras, 10.0, frame))
        page.get_by_text("Camera path").click()
        with page.expect_file_chooser() as chooser:
            page.get_by_text("Load path", exact=True).click()
        wait_for_change(lambda: chooser.value.set_files(str(tmp_path / "path.json")))
        wait_for(lambda: page.get_by_text("2 keyframes.").count() == 1)
        wait_for_change(lambda: page.get_by_text("Clear", exact=True).click(), 0.01)
        page.get_by_text("Play", exact=True).click()
        wait_for(lambda: page.get_by_text("A path needs two keyframes").count() == 1)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, (tmp_path / "log").read_text()


@pytest.mark.slow
def test_browser_follows_a_training(page: Any, tmp_path: Path) -> None:
    data, run = write_scene(tmp_path / "ball"), tmp_path / "run"
    arguments = [*TINY, "--data", str(data), "--run-dir", str(run), "--num-steps", "100000"]
    arguments += ["--optimizer.grid-lr", "0.002", "--view", "--viewer.port", "8442"]
    process, address = start(["train", *arguments], tmp_path / "log")
    try:
        page.goto(address)
        wait_for(lambda: shows_scene(page))
        before = screenshot(page)
        # The image changes without input.
        wait_for(lambda: np.abs(screenshot(page) - before).mean() > 1.0)
        text = page.get_by_text(re.compile(r"Step \d+ of 100000")).first.inner_text()
        wait_for(lambda: text not in page.content())
        page.get_by_text("Pause training").click()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT, (tmp_path / "log").read_text()
    assert int(runs.open_run(run).state.step) > 0
