"""Web pages of ternary runs: refused runs, contents, and a browser's images."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import first_state, make_scene, tiny_bitnerf, tiny_nerf, tiny_voxels

from jaxrf.cameras.base import Cameras
from jaxrf.cli import main as cli
from jaxrf.core.errors import InputError
from jaxrf.export.web import write_page
from jaxrf.models.packed import PackedModel
from jaxrf.sampling.density_tracking import track_density
from jaxrf.training import runs
from jaxrf.training.config import TrainConfig
from jaxrf.training.scene_metadata import SceneMetadata

MARCHING = {"model": PackedModel(occupancy_resolution=8, steps_per_diagonal=24)}


def make_run(config: TrainConfig, seed: int = 0) -> runs.Run:
    """A run with random parameters and, for a BitNeRF, holes in its occupancy grid."""
    stage, state = first_state(config)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.0, 0.4, x.shape), x.dtype), state.params
    )
    grid = state.grid
    if config.field.name == "bitnerf":
        occupied = rng.random(stage.grid_resolution) < 0.7
        occupied[:2] = False
        grid = dataclasses.replace(grid, occupied=jnp.asarray(occupied))
        grid = track_density(grid, stage.dilation_cells)
    state = dataclasses.replace(
        state, params=params, ema_params=None, grid=grid, step=jnp.asarray(7, jnp.int32)
    )
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    scene = dataclasses.replace(scene, name="ball </script>")
    return runs.Run(Path("runs/ball"), config, scene, stage, state, 2.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tiny_voxels(), "has the field voxels"),
        (tiny_nerf(), "has the field nerf"),
        (tiny_bitnerf(), "does not march"),
        (tiny_bitnerf(**MARCHING, encoding="integrated"), "encodes conical frusta"),
        (tiny_bitnerf(**MARCHING, coloring="per_ray"), "evaluates colors per ray"),
        (tiny_bitnerf(**MARCHING, project=True), "full-precision layers"),
    ],
)
def test_write_page_refuses_unsupported_runs(
    config: TrainConfig, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        write_page(make_run(config), tmp_path / "ball.html")
    assert not (tmp_path / "ball.html").exists()


def test_write_page_is_complete_and_self_contained(tmp_path: Path) -> None:
    run = make_run(tiny_bitnerf(**MARCHING))
    size = write_page(run, tmp_path / "ball.html")
    text = (tmp_path / "ball.html").read_text(encoding="utf-8")
    kernels = [layer["kernel"].size for layer in run.state.eval_params.field["params"].values()]
    assert size == -(-sum(kernels) // 5)
    # All placeholders are replaced, nothing is fetched, and a name does not end the script.
    assert not re.search(r"@[A-Z]+@", text)
    assert not re.search(r"(src|href)=", text)
    assert text.count("</script>") == 1
    meta = json.loads(re.search(r"^const META = (.*);$", text, re.M)[1])  # type: ignore[index]
    assert sum(i * o for i, o in meta["layers"]) == sum(kernels)


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
    run = make_run(tiny_bitnerf(**MARCHING | changes))
    write_page(run, tmp_path / "ball.html")
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


@pytest.mark.slow
@pytest.mark.as_used
def test_dragging_and_scrolling_moves_the_camera(page: Any, tmp_path: Path) -> None:
    write_page(make_run(tiny_bitnerf(**MARCHING)), tmp_path / "ball.html")
    # Few pixels, because there may be no GPU.
    page.set_viewport_size({"width": 160, "height": 100})
    page.goto((tmp_path / "ball.html").as_uri())
    page.wait_for_function("document.getElementById('caption').textContent.includes(' x ')")
    before, first = page.screenshot(), page.evaluate("cameraPose()")
    page.mouse.move(60, 50)
    page.mouse.down()
    page.mouse.move(90, 60, steps=4)
    page.mouse.up()
    page.mouse.wheel(0, 200)
    page.wait_for_function("!view.changed && size === 0 && job === null", timeout=60_000)
    after = page.evaluate("cameraPose()")
    distance = [np.linalg.norm(np.array(pose[12:15])) for pose in (first, after)]
    assert distance[1] == pytest.approx(distance[0] * np.exp(0.2), rel=1e-3)
    assert page.screenshot() != before


def test_export_web_reports_a_missing_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(tmp_path / "none"), "--format", "web"]) == 2
    assert "is not a run" in capsys.readouterr().err
