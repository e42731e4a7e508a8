"""The page that shows a field: its server, and itself in a real browser where there is one."""

import dataclasses
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
from scenes import TINY, first_state, make_scene, tiny_nerf, write_scene

from jaxrf.cameras.base import make_cameras
from jaxrf.cameras.poses import look_at
from jaxrf.cameras.transforms import unpack_transform
from jaxrf.cli import main as cli
from jaxrf.core.errors import InputError
from jaxrf.evaluation.interactive import InteractiveRenderer, make_interactive_renderer
from jaxrf.training import runs
from jaxrf.training.scene_metadata import SceneMetadata
from jaxrf.viewer.server import WHOLE, Viewer, list_edges, round_outwards
from jaxrf.viewer.tour import write_tour

pytestmark = pytest.mark.as_used

ROOT = Path(__file__).resolve().parent.parent.parent
BEHIND = np.ones(3, np.float32)


@pytest.fixture(scope="module")
def paint() -> InteractiveRenderer:
    config = tiny_nerf()
    stage, state = first_state(config)
    return make_interactive_renderer(config, stage, state.shown, state.grid, (2.0, 6.0), BEHIND)


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    split = make_scene().splits["train"]
    made = Viewer("ball", scene, tmp_path, "127.0.0.1", 8431, BEHIND, split, trains=True)
    yield made
    made.close()


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def test_a_field_is_shown_once_it_is_compiled(viewer: Viewer, paint: InteractiveRenderer) -> None:
    assert re.fullmatch(r"http://localhost:\d+", viewer.address)
    assert viewer.server.get_host() == "127.0.0.1"
    viewer.show(paint, "12 steps, done")
    shown = wait_for(lambda: viewer._shown)
    assert shown.painter is paint and shown.number == 0
    wait_for(lambda: viewer._text.content == "12 steps, done")
    # Nothing is left to be paused.
    assert not viewer.is_paused() and not viewer._pause.visible


def test_what_nobody_looks_at_is_not_made(viewer: Viewer, paint: InteractiveRenderer) -> None:
    made: list[int] = []

    def make() -> InteractiveRenderer:
        made.append(1)
        return paint

    viewer.follow(make, "Step 1")
    assert made == [] and not viewer.has_clients() and not viewer.camera_moving()
    viewer._clients[0] = type("Still", (), {"moved_at": -np.inf, "close": lambda _: None})()
    viewer.follow(make, "Step 2")
    viewer.follow(make, "Step 3")  # too soon
    assert made == [1] and viewer.has_clients() and not viewer.camera_moving()
    assert viewer._text.content == "Step 3"
    viewer._clients[0].moved_at = time.monotonic()
    assert viewer.camera_moving()
    viewer._pause.value = True
    assert viewer.is_paused()
    viewer._clients.clear()


def test_the_crop_begins_as_the_whole_box_and_leaves_out_what_is_outside(
    viewer: Viewer, paint: InteractiveRenderer
) -> None:
    np.testing.assert_array_equal(viewer.crop, WHOLE)
    viewer.show(paint, "")
    shown = wait_for(lambda: viewer._shown)
    viewer._crop_on.value = True
    # A little more, so that the ends of the sliders are round numbers.
    assert np.all(viewer.crop[0] <= shown.box[0]) and np.all(viewer.crop[1] >= shown.box[1])
    np.testing.assert_allclose(viewer.crop, shown.box, atol=0.011)
    viewer._crop[1].value = (-0.5, 0.25)
    assert tuple(viewer.crop[:, 1]) == (-0.5, 0.25)
    viewer._crop_on.value = False
    np.testing.assert_array_equal(viewer.crop, WHOLE)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.703125, 0.703125, (-0.71, 0.71, 0.01)),
        (-1.0, 1.5, (-1.0, 1.5, 0.01)),
        (-20.34, 12.1, (-20.4, 12.1, 0.1)),
        (3.0, 1203.2, (0.0, 1210.0, 10.0)),
        (0.0, 0.0234, (0.0, 0.0234, 0.0001)),
        (0.5, 0.5, (0.5, 0.5, 1e-8)),
    ],
)
def test_sliders_of_the_crop_end_at_round_numbers(
    low: float, high: float, expected: tuple[float, float, float]
) -> None:
    assert round_outwards(low, high) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_box_has_twelve_edges_along_the_axes() -> None:
    box = np.array([[0.0, 1.0, 2.0], [3.0, 5.0, 9.0]], np.float32)
    edges = list_edges(box)
    along = edges[:, 1] - edges[:, 0]
    assert [tuple(row) for row in along] == [(3, 0, 0)] * 4 + [(0, 4, 0)] * 4 + [(0, 0, 7)] * 4
    assert len({tuple(corner) for corner in edges.reshape(-1, 3)}) == 8
    assert len({tuple(edge.ravel()) for edge in edges}) == 12


def test_training_cameras_stand_where_they_were_with_their_pictures(viewer: Viewer) -> None:
    split = make_scene().splits["train"]
    assert len(viewer._camera_handles) == len(split)
    for handle, pose in zip(viewer._camera_handles, split.cameras.T_world_camera, strict=True):
        np.testing.assert_allclose(handle.position, pose[:3, 3], atol=1e-6)
        assert not handle.visible
    viewer._cameras_seen.value = True
    assert all(handle.visible for handle in viewer._camera_handles)
    # Without pictures their poses are known all the same.
    views, images = viewer._list_cameras(None, BEHIND)
    assert len(views) == len(split) and set(images) == {None}
    np.testing.assert_allclose(views[1].pose, split.cameras.T_world_camera[1], atol=1e-6)


def test_a_forward_facing_scene_stands_upright_and_is_not_cropped(tmp_path: Path) -> None:
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    scene = dataclasses.replace(scene, ndc=(0.5, 0.5, 1.0))
    made = Viewer("ball", scene, tmp_path, "127.0.0.1", 8432, BEHIND)
    try:
        np.testing.assert_array_equal(made.crop, WHOLE)
        np.testing.assert_allclose(made._home.pose, np.eye(4))
    finally:
        made.close()


def test_a_port_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["view", "nowhere", "--port", "70000"]) == 2
    assert "--port is 70000: give a number from 1 to 65535." in capsys.readouterr().err
    assert cli.main(["view", "nowhere"]) == 2
    assert "nowhere is not a run" in capsys.readouterr().err


def test_an_address_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    with pytest.raises(InputError, match=r"cannot listen at 192\.0\.2\.1 .*--host"):
        Viewer("ball", scene, tmp_path, "192.0.2.1", 8433, BEHIND)


# ---------------------------------------------------------------------------------------------
# In a real browser
# ---------------------------------------------------------------------------------------------


def look(page: Any) -> np.ndarray:
    """What is left of the panel and below notifications."""
    with Image.open(io.BytesIO(page.screenshot())) as image:
        return np.asarray(image.convert("RGB"), np.float32)[190:, :480]


def shows_something(page: Any) -> bool:
    return float(look(page).std()) > 10.0


def start(arguments: list[str], said: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Starts jaxrf and waits for the address of its page."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxrf", *arguments], env=environment, stdout=file, stderr=file
        )

    def find() -> str | None:
        assert process.poll() is None, said.read_text()
        found = re.search(r"Open (http://\S+) in a browser", said.read_text())
        return found and found[1]

    return process, wait_for(find, 120.0)


@pytest.mark.slow
def test_a_run_is_seen_in_a_browser_and_turns_with_the_mouse(page: Any, tmp_path: Path) -> None:
    data, run = write_scene(tmp_path / "ball"), tmp_path / "run"
    arguments = [*TINY, "--data", str(data), "--run-dir", str(run), "--video.frames", "0"]
    assert cli.run_command("train", arguments) == 0
    process, address = start(["view", str(run), "--port", "8441"], tmp_path / "said")
    try:
        page.goto(address)
        wait_for(lambda: shows_something(page))
        time.sleep(2.0)
        before = look(page)
        page.mouse.move(200, 350)
        page.mouse.down()
        page.mouse.move(330, 300, steps=10)
        page.mouse.up()
        wait_for(lambda: np.abs(look(page) - before).mean() > 2.0)
        # A path of two stops becomes a file and a video.
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
        wait_for(lambda: (run / "views/video-1.mp4").exists(), 120.0)
        options = ["--path", str(run / "views/camera-path-1.json"), "--formats", "gif"]
        options += ["--size", "8", "--channels", "rgb"]
        assert cli.run_command("render", [str(run), *options]) == 0
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, (tmp_path / "said").read_text()


@pytest.mark.slow
def test_what_is_shown_is_chosen_cropped_and_taken_along_a_path(page: Any, tmp_path: Path) -> None:
    data, run = write_scene(tmp_path / "ball"), tmp_path / "run"
    assert cli.run_command("train", [*TINY, "--data", str(data), "--run-dir", str(run)]) == 0
    process, address = start(["view", str(run), "--port", "8443"], tmp_path / "said")
    page.set_viewport_size({"width": 800, "height": 700})

    def wait_for_change(act: Callable[[], Any], least: float = 1.0) -> None:
        time.sleep(2.0)
        before = look(page)
        act()
        wait_for(lambda: np.abs(look(page) - before).mean() > least)

    def choose(name: str) -> None:
        page.locator("input[role=combobox]:visible").first.click()
        page.get_by_role("option", name=name).click()

    try:
        page.goto(address)
        wait_for(lambda: shows_something(page))
        wait_for_change(lambda: choose("opacity"))
        wait_for_change(lambda: choose("depth"))
        wait_for_change(lambda: choose("rgb"))
        page.get_by_text("Crop", exact=True).first.click()
        crop = page.locator("input[type=checkbox]:visible").nth(1)
        wait_for_change(crop.click, 0.1)  # the edges of the box
        page.get_by_text("Crop", exact=True).first.click()
        # A file of one camera far aside takes the camera there.
        pose = look_at(np.array([3.0, 3.0, 2.0]), np.zeros(3))
        cameras = make_cameras(np.stack([pose, pose]), 16, 16, 0.7)
        frame = unpack_transform(runs.open_run(run).scene.frame)
        (tmp_path / "path.json").write_text(write_tour(cameras, 10.0, frame))
        page.get_by_text("Camera path").click()
        with page.expect_file_chooser() as chooser:
            page.get_by_text("Load path", exact=True).click()
        wait_for_change(lambda: chooser.value.set_files(str(tmp_path / "path.json")))
        wait_for(lambda: page.get_by_text("2 stops.").count() == 1)
        wait_for_change(lambda: page.get_by_text("Clear", exact=True).click(), 0.01)
        page.get_by_text("Play", exact=True).click()
        wait_for(lambda: page.get_by_text("A path needs two stops").count() == 1)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, (tmp_path / "said").read_text()


@pytest.mark.slow
def test_a_training_is_seen_in_a_browser_as_it_goes_on(page: Any, tmp_path: Path) -> None:
    data, run = write_scene(tmp_path / "ball"), tmp_path / "run"
    arguments = [*TINY, "--data", str(data), "--run-dir", str(run), "--steps", "100000"]
    arguments += ["--optimizer.grid-lr", "0.002", "--view", "--viewer.port", "8442"]
    process, address = start(["train", *arguments], tmp_path / "said")
    try:
        page.goto(address)
        wait_for(lambda: shows_something(page))
        before = look(page)
        # Nobody touches it.
        wait_for(lambda: np.abs(look(page) - before).mean() > 1.0, 120.0)
        text = page.get_by_text(re.compile(r"Step \d+ of 100000")).first.inner_text()
        wait_for(lambda: text not in page.content())
        page.get_by_text("Pause training").click()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT, (tmp_path / "said").read_text()
    assert int(runs.open_run(run).state.step) > 0
