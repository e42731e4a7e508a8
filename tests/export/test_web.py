"""Web pages: what they can draw, contents, a browser's images, hands and keys."""

import base64
import dataclasses
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import make_scene, tiny_bitnerf, tiny_nerf, tiny_voxels
from web_runs import MARCHING, make_web_run

from jaxrf.cameras.base import Cameras
from jaxrf.cli import main as cli
from jaxrf.export import web
from jaxrf.training import runs
from jaxrf.training.config import TrainConfig


@pytest.mark.parametrize(
    ("config", "shows"),
    [
        (tiny_voxels(), True),
        (tiny_voxels(coloring="per_sample"), False),
        (tiny_nerf(), False),
        (tiny_bitnerf(**MARCHING), True),
        (tiny_bitnerf(), False),
        (tiny_bitnerf(**MARCHING, encoding="integrated"), False),
        (tiny_bitnerf(**MARCHING, coloring="per_ray"), False),
        (tiny_bitnerf(**MARCHING, project=True), False),
    ],
)
def test_a_page_draws_voxels_and_ternary_networks_themselves(
    config: TrainConfig, shows: bool
) -> None:
    assert web.shows_itself(make_web_run(config)) == shows


@pytest.mark.parametrize("in_one_file", [True, False])
def test_a_page_is_complete_and_self_contained(in_one_file: bool, tmp_path: Path) -> None:
    run = make_web_run(tiny_bitnerf(**MARCHING))
    path = tmp_path / ("ball.html" if in_one_file else "ball")
    page = web.make_page(run, in_one_file)
    web.write_page(page, path)
    text = (path if in_one_file else path / "index.html").read_text(encoding="utf-8")
    kernels = [layer["kernel"].size for layer in run.state.eval_params.field["params"].values()]
    # All placeholders are replaced, nothing is fetched from elsewhere, and a name does not end the
    # script.
    assert not re.search(r"@[A-Z]+@", text)
    assert not re.search(r"(src|href)=\"(?!data:)(?!\$)", text)
    assert text.count("</script>") == 1
    meta = json.loads(re.search(r"^const META = (.*);$", text, re.M)[1])  # type: ignore[index]
    assert sum(i * o for i, o in meta["layers"]) == sum(kernels)
    assert dict(meta["buffers"])["weights"] == -(-sum(kernels) // 5)
    if in_one_file:
        data = base64.b64decode(re.search(r'^const DATA = "(.*)";$', text, re.M)[1])  # type: ignore[index]
        assert page.size == path.stat().st_size and "file" not in meta
    else:
        data = (path / meta["file"]).read_bytes()
        assert page.size == sum(file.stat().st_size for file in path.iterdir())
        assert meta["packed_size"] == len(data)
    assert len(gzip.decompress(data)) == sum(size for _, size in meta["buffers"])


def pose_of(cameras: Cameras, index: int) -> list[float]:
    """A pose in WebGL's order, column by column."""
    return np.asarray(cameras.T_world_camera[index], np.float64).T.ravel().tolist()


@pytest.mark.slow
@pytest.mark.as_used
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_directions": False, "activation": "relu", "width": 10, "encode_input": False},
        {"layers": 3, "skip": 1, "color_width": 7, "frequency": float(np.pi)},
    ],
)
def test_a_browser_renders_the_same_images(
    changes: dict[str, Any], page: Any, tmp_path: Path
) -> None:
    run = make_web_run(tiny_bitnerf(**MARCHING | changes))
    web.write_page(web.make_page(run), tmp_path / "ball.html")
    cameras = make_scene().splits["test"].cameras
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "ball.html").as_uri())
    page.evaluate("ready")
    for index, distance_factor in ((0, 1.0), (1, 0.5), (1, 2.0)):
        pose = np.array(cameras.T_world_camera)
        pose[:, :3, 3] *= distance_factor
        moved = dataclasses.replace(cameras, T_world_camera=pose)
        expected = runs.make_render_fn(run, supersample=1)(moved, index).rgb
        slope = 0.5 * cameras.height / float(cameras.focal[index, 1])
        size = f"{cameras.width}, {cameras.height}"
        call = f"Array.from(render({pose_of(moved, index)}, {slope}, {size}))"
        actual = np.array(page.evaluate(call)).reshape(cameras.height, cameras.width, 4)
        assert np.std(expected) > 0.01
        error = np.abs(actual[..., :3] / 255.0 - np.clip(expected, 0.0, 1.0))
        # Some pixels differ by more, where an activation rounds to another integer.
        assert np.mean(error) < 0.004 and np.mean(error > 0.02) < 0.02
    assert errors == []


@pytest.fixture
def shown(page: Any, tmp_path: Path) -> Any:
    """A browser with a page of voxels in a small window, because there may be no graphics card."""
    path = tmp_path / "ball.html"
    web.write_page(web.make_page(make_web_run(tiny_voxels())), path)
    page.set_viewport_size({"width": 400, "height": 200})
    page.goto(path.as_uri() + "#camera=1")
    wait_until_still(page)
    return page


def wait_until_still(page: Any) -> None:
    page.evaluate("ready")
    page.wait_for_function("!view.lost && !view.changed && size === 0 && job === null")


def picture_of(page: Any) -> bytes:
    """A screenshot without words and buttons."""
    page.evaluate("caption.hidden = button('tools').hidden = true")
    picture = page.screenshot()
    page.evaluate("caption.hidden = button('tools').hidden = false")
    return bytes(picture)


@pytest.mark.slow
@pytest.mark.as_used
def test_hands_move_the_camera(shown: Any) -> None:
    before, first = shown.screenshot(), shown.evaluate("cameraPose()")
    shown.mouse.move(60, 50)
    shown.mouse.down()
    shown.mouse.move(90, 60, steps=4)
    shown.mouse.up()
    turned, distance = shown.evaluate("cameraPose()"), shown.evaluate("view.distance")
    assert not np.allclose(turned, first, atol=0.05)
    np.testing.assert_allclose(np.linalg.norm(np.reshape(turned, (4, 4))[:3], axis=1), 1.0)
    shown.mouse.wheel(0, 200)
    wait_until_still(shown)
    assert shown.evaluate("view.distance") == pytest.approx(distance * np.exp(0.2), rel=1e-6)
    assert shown.screenshot() != before
    target = shown.evaluate("view.target")
    shown.keyboard.down("Shift")
    shown.mouse.move(60, 50)
    shown.mouse.down()
    shown.mouse.move(70, 50)
    shown.mouse.up()
    shown.keyboard.up("Shift")
    assert not np.allclose(shown.evaluate("view.target"), target)


@pytest.mark.slow
@pytest.mark.as_used
def test_two_fingers_come_closer_and_one_turns(shown: Any) -> None:
    touch = shown.context.new_cdp_session(shown)

    def send(kind: str, *points: tuple[float, float]) -> None:
        at = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    send("touchStart", (60, 50))
    send("touchMove", (80, 50))
    send("touchEnd")
    azimuth, distance = shown.evaluate("[view.azimuth, view.distance]")
    send("touchStart", (60, 50), (80, 50))
    send("touchMove", (50, 50), (90, 50))
    send("touchEnd")
    assert shown.evaluate("view.azimuth") == azimuth
    assert shown.evaluate("view.distance") == pytest.approx(0.5 * distance, rel=0.05)


@pytest.mark.slow
@pytest.mark.as_used
def test_keys_and_buttons_do_the_same(shown: Any) -> None:
    shown.keyboard.press("n")
    assert shown.evaluate("view.camera") == 1
    shown.click("#previous")
    assert shown.evaluate("view.camera") == 0
    before = shown.screenshot()
    shown.keyboard.press("d")
    wait_until_still(shown)
    assert shown.screenshot() != before
    assert shown.get_attribute("#depth", "aria-pressed") == "true"
    shown.click("#depth")
    wait_until_still(shown)
    assert shown.get_attribute("#depth", "aria-pressed") == "false"
    shown.focus("#view")
    distance = shown.evaluate("orbitFrom(view.fixed), view.distance")
    shown.keyboard.press("+")
    assert shown.evaluate("view.distance") == pytest.approx(0.9 * distance)
    azimuth = shown.evaluate("view.azimuth")
    shown.keyboard.press("ArrowRight")
    assert shown.evaluate("view.azimuth") == pytest.approx(azimuth + 0.08)
    shown.keyboard.press(" ")
    assert shown.evaluate("view.turning")
    shown.wait_for_function(f"Math.abs(view.azimuth - {azimuth}) > 0.1")
    shown.keyboard.press("r")
    assert not shown.evaluate("view.turning") and shown.evaluate("view.camera") == 0


@pytest.mark.slow
@pytest.mark.as_used
def test_a_double_click_turns_around_what_is_there(shown: Any) -> None:
    position = shown.evaluate("cameraPose().slice(12, 15)")
    # The middle of the ball is hit, and stays in the middle.
    shown.mouse.dblclick(200, 100)
    target, distance = np.array(shown.evaluate("view.target")), shown.evaluate("view.distance")
    np.testing.assert_allclose(np.linalg.norm(target - position), distance, rtol=1e-3)
    scene = make_scene()
    assert scene.near < distance < scene.far
    np.testing.assert_allclose(shown.evaluate("cameraPose().slice(12, 15)"), position, atol=1e-3)


@pytest.mark.slow
@pytest.mark.as_used
def test_a_link_brings_the_same_view_again(shown: Any) -> None:
    shown.keyboard.press("ArrowUp")
    shown.keyboard.press("-")
    wait_until_still(shown)
    address, pose = shown.url, shown.evaluate("cameraPose()")
    assert "#view=" in address
    shown.reload()
    wait_until_still(shown)
    np.testing.assert_allclose(shown.evaluate("cameraPose()"), pose, atol=1e-3)
    assert address.split("#")[0] in shown.evaluate("embedCode()")
    # What is no view is ignored.
    for damaged in ("#view=1,2", "#view=a,b,c,d,e,f", "#view=0,0,-1,0,0,0", "#other=1"):
        shown.evaluate(f"location.hash = '{damaged}'")
        assert not shown.evaluate("readHash()")


@pytest.mark.slow
@pytest.mark.as_used
def test_a_page_survives_resizing_and_a_lost_graphics_card(shown: Any) -> None:
    picture = picture_of(shown)
    shown.set_viewport_size({"width": 100, "height": 120})
    shown.wait_for_function("canvas.width === 100 && canvas.height === 120")
    wait_until_still(shown)
    shown.set_viewport_size({"width": 400, "height": 200})
    shown.wait_for_function("canvas.width === 400")
    wait_until_still(shown)
    assert picture_of(shown) == picture
    shown.evaluate("window.loses = gl.getExtension('WEBGL_lose_context'); loses.loseContext()")
    shown.wait_for_function("view.lost")
    shown.evaluate("loses.restoreContext()")
    shown.wait_for_function("!view.lost")
    wait_until_still(shown)
    assert picture_of(shown) == picture


@pytest.mark.slow
@pytest.mark.as_used
def test_without_webgl_the_poster_stays_and_a_sentence_says_why(page: Any, tmp_path: Path) -> None:
    web.write_page(web.make_page(make_web_run(tiny_voxels())), tmp_path / "ball.html")
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null;")
    page.goto((tmp_path / "ball.html").as_uri())
    page.wait_for_function("caption.textContent.includes('WebGL')")
    assert page.text_content("#caption") == ("Cannot show the scene: this browser has no WebGL 2.")
    assert page.evaluate("document.getElementById('poster').naturalWidth") > 0
    assert page.evaluate("getComputedStyle(document.getElementById('poster')).opacity") == "1"
    assert page.is_hidden("#tools")


def test_export_web_reports_a_missing_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(tmp_path / "none"), "--format", "web"]) == 2
    assert "is not a run" in capsys.readouterr().err
