"""Pages of voxels: a browser's images against the renderer's, in every kind of space."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import first_state, make_scene, tiny_voxels

from jaxrf.cameras.base import Cameras, pinhole_cameras
from jaxrf.core.errors import InputError
from jaxrf.export import web
from jaxrf.export.web_voxels import pack_voxels
from jaxrf.training import runs
from jaxrf.training.config import TrainConfig
from jaxrf.training.scene_metadata import SceneMetadata


def make_voxels_run(config: TrainConfig, ndc: tuple[float, float, float] | None = None) -> runs.Run:
    """A run of random voxels with holes, dense enough to hide what is behind them."""
    stage, state = first_state(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.0, 0.5, x.shape), x.dtype), state.params
    )
    state = dataclasses.replace(
        state, params=params, ema_params=None, step=jnp.asarray(7, jnp.int32)
    )
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    return runs.Run(
        Path("runs/ball"), config, dataclasses.replace(scene, ndc=ndc), stage, state, 2.5
    )


def compare_images(run: runs.Run, cameras: Cameras, page: Any, folder: Path, rays: int = 1) -> None:
    """Asserts that a browser shows what the renderer does."""
    web.write_page(web.make_page(run), folder / "ball.html")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((folder / "ball.html").as_uri() + "#camera=1")
    page.evaluate("ready")
    render_fn = runs.make_render_fn(run, supersample=rays)
    for index in range(len(cameras)):
        expected = np.clip(render_fn(cameras, index).rgb, 0.0, 1.0)
        pose = np.asarray(cameras.T_world_camera[index], np.float64).T.ravel().tolist()
        slope = 0.5 * cameras.height / float(cameras.focal[index, 1])
        size = f"{cameras.width}, {cameras.height}"
        call = f"Array.from(render({pose}, {slope}, {size}, {rays}))"
        actual = np.array(page.evaluate(call)).reshape(cameras.height, cameras.width, 4)
        assert np.std(expected) > 0.01
        error = np.abs(actual[..., :3] / 255.0 - expected)
        # Interpolation has fewer digits on a graphics card, and numbers have 8 bits.
        assert np.mean(error) < 0.006 and np.mean(error > 0.04) < 0.02
    assert errors == []


@pytest.mark.slow
@pytest.mark.as_used
@pytest.mark.parametrize(
    ("changes", "rays"),
    [
        ({}, 1),
        ({"layers": 2, "feature_dim": 9, "width": 70}, 2),
        ({"feature_dim": 3, "num_direction_frequencies": 0, "appearance_dim": 2}, 1),
        ({"contract": True}, 1),
        ({"contract": True, "contraction_norm": "euclidean"}, 1),
    ],
    ids=["box", "wide network", "appearance", "contracted", "contracted in a ball"],
)
def test_a_browser_renders_the_same_images(
    changes: dict[str, Any], rays: int, page: Any, tmp_path: Path
) -> None:
    if "appearance_dim" in changes:
        changes = {**changes, "num_appearances": 6}
    run = make_voxels_run(tiny_voxels(**changes))
    cameras = make_scene().splits["test"].cameras
    # Also from inside of the box, and from far away.
    poses = np.array(cameras.T_world_camera)[[0, 1, 1]]
    poses[:, :3, 3] *= np.array([1.0, 0.3, 3.0])[:, None]
    focal = float(cameras.focal[0, 0])
    compare_images(run, pinhole_cameras(poses, 40, 30, focal), page, tmp_path, rays)


@pytest.mark.slow
@pytest.mark.as_used
def test_a_browser_renders_normalized_device_coordinates(page: Any, tmp_path: Path) -> None:
    slopes = (20 / 30, 15 / 30, 1.0)
    run = make_voxels_run(tiny_voxels(), slopes)
    # Cameras look along -z.
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3, 3] = [[0.0, 0.0, 0.0], [0.2, -0.1, 0.1], [-0.1, 0.1, -0.2]]
    cameras = dataclasses.replace(pinhole_cameras(poses, 40, 30, 30.0), ndc=slopes)
    compare_images(run, cameras, page, tmp_path)


def test_a_run_with_nothing_in_it_is_named() -> None:
    run = make_voxels_run(tiny_voxels())
    grid = run.state.grid
    empty = dataclasses.replace(grid, occupied=jnp.zeros_like(grid.occupied))
    run = dataclasses.replace(run, state=dataclasses.replace(run.state, grid=empty))
    with pytest.raises(InputError, match="so there is nothing to show: train the run longer"):
        pack_voxels(run)


def test_the_table_of_a_page_has_one_row_for_every_corner_in_use() -> None:
    run = make_voxels_run(tiny_voxels())
    buffers, meta = pack_voxels(run)
    cells = np.unpackbits(np.frombuffer(buffers["cell_bits"], np.uint8)).sum()
    corners = np.unpackbits(np.frombuffer(buffers["corner_bits"], np.uint8)).sum()
    assert cells == np.asarray(run.state.grid.occupied).sum()
    assert len(buffers["table"]) == corners * meta["channels"]
    weights = sum(i * o + o for i, o in meta["layers"])
    assert len(buffers["network"]) == 4 * weights
    assert len(buffers["cell_blocks"]) * 2 == len(buffers["cell_bits"])
