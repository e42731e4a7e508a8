"""Ternary runs as pages: what is refused, and that a browser shows what the renderer does."""

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
from jaxrf.sampling import occupancy
from jaxrf.training import runs
from jaxrf.training.config import TrainConfig
from jaxrf.training.scene_metadata import SceneMetadata

MARCHING = {"sampler": "occupancy", "occupancy_resolution": 8, "max_steps": 24}


def make_run(config: TrainConfig, seed: int = 0) -> runs.Run:
    """An untrained run whose every number matters, with holes in its occupancy grid."""
    stage, state = first_state(config)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.0, 0.4, x.shape), x.dtype), state.params
    )
    grid = state.grid
    if config.field.kind == "bitnerf":
        occupied = rng.random(stage.cells) < 0.7
        occupied[:2] = False
        grid = dataclasses.replace(grid, occupied=jnp.asarray(occupied))
        grid = occupancy.init_density_ema(grid, stage.reach)
    state = dataclasses.replace(
        state, params=params, average=None, grid=grid, step=jnp.asarray(7, jnp.int32)
    )
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    scene = dataclasses.replace(scene, name="ball </script>")
    return runs.Run(Path("runs/ball"), config, scene, stage, state, 2.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tiny_voxels(), "is of the field voxels"),
        (tiny_nerf(), "is of the field nerf"),
        (tiny_bitnerf(), "does not march"),
        (tiny_bitnerf(**MARCHING, encoding="integrated"), "encodes parts of cones"),
        (tiny_bitnerf(**MARCHING, shading="per_ray"), "is coloured by rays"),
        (tiny_bitnerf(**MARCHING, project=True), "full weights"),
    ],
)
def test_what_a_page_cannot_show_is_refused(
    config: TrainConfig, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        write_page(make_run(config), tmp_path / "ball.html")
    assert not (tmp_path / "ball.html").exists()


def test_a_page_is_whole_and_small(tmp_path: Path) -> None:
    run = make_run(tiny_bitnerf(**MARCHING))
    size = write_page(run, tmp_path / "ball.html")
    text = (tmp_path / "ball.html").read_text(encoding="utf-8")
    kernels = [layer["kernel"].size for layer in run.state.shown["fine"]["params"].values()]
    assert size == -(-sum(kernels) // 5)
    # Nothing is left to be filled in, nothing is fetched, and a name does not end the script.
    assert not re.search(r"@[A-Z]+@", text)
    assert not re.search(r"(src|href)=", text)
    assert text.count("</script>") == 1
    meta = json.loads(re.search(r"^const META = (.*);$", text, re.M)[1])  # type: ignore[index]
    assert sum(i * o for i, o in meta["layers"]) == sum(kernels)


def pose_of(cameras: Cameras, index: int) -> list[float]:
    """As WebGL takes it, column by column."""
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
def test_a_browser_shows_what_the_renderer_does(
    changes: dict[str, Any], page: Any, tmp_path: Path
) -> None:
    run = make_run(tiny_bitnerf(**MARCHING | changes))
    write_page(run, tmp_path / "ball.html")
    cameras = make_scene().splits["test"].cameras
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "ball.html").as_uri())
    page.evaluate("ready")
    for index, times in ((0, 1.0), (1, 0.5), (1, 2.0)):
        pose = np.array(cameras.T_world_camera)
        pose[:, :3, 3] *= times
        seen = dataclasses.replace(cameras, T_world_camera=pose)
        wanted = runs.make_render_fn(run, supersample=1)(seen, index).rgb
        slope = 0.5 * cameras.height / float(cameras.focal[index, 1])
        size = f"{cameras.width}, {cameras.height}"
        call = f"Array.from(render({pose_of(seen, index)}, {slope}, {size}))"
        found = np.array(page.evaluate(call)).reshape(cameras.height, cameras.width, 4)
        assert np.std(wanted) > 0.01
        apart = np.abs(found[..., :3] / 255.0 - np.clip(wanted, 0.0, 1.0))
        # Where rounding an activation otherwise tips, a pixel differs by more.
        assert np.mean(apart) < 0.004 and np.mean(apart > 0.02) < 0.02
    assert said == []


@pytest.mark.slow
@pytest.mark.as_used
def test_a_page_is_turned_by_hand(page: Any, tmp_path: Path) -> None:
    write_page(make_run(tiny_bitnerf(**MARCHING)), tmp_path / "ball.html")
    # Few pixels, as there is no graphics card.
    page.set_viewport_size({"width": 160, "height": 100})
    page.goto((tmp_path / "ball.html").as_uri())
    page.wait_for_function("document.getElementById('said').textContent.includes(' x ')")
    before, first = page.screenshot(), page.evaluate("place()")
    page.mouse.move(60, 50)
    page.mouse.down()
    page.mouse.move(90, 60, steps=4)
    page.mouse.up()
    page.mouse.wheel(0, 200)
    page.wait_for_function("!view.changed && size === 0 && job === null", timeout=60_000)
    after = page.evaluate("place()")
    away = [np.linalg.norm(np.array(pose[12:15])) for pose in (first, after)]
    assert away[1] == pytest.approx(away[0] * np.exp(0.2), rel=1e-3)
    assert page.screenshot() != before


def test_only_a_bitnerf_becomes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(tmp_path / "none"), "--format", "web"]) == 2
    assert "is not a run" in capsys.readouterr().err
