"""What comes out of training, measured against the exact geometry of the built-in scene."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import Recorder, make_surroundings

from benchmarks.geometry import compare, trace_truth
from jaxrf.cli import main as cli
from jaxrf.data import sources
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.data.scene import Scene
from jaxrf.evaluation import scoring
from jaxrf.export.mesh import extract_mesh
from jaxrf.fields.voxels import VoxelGrid
from jaxrf.models import methods
from jaxrf.training import config, runs, train, transitions
from jaxrf.training.config import TensoRFConfig
from jaxrf.training.state import background_color

# What is trained for several tests is trained once.
pytestmark = [pytest.mark.as_used, pytest.mark.xdist_group("quality")]


def render_bricks(cache: Path, bricks: SyntheticSceneConfig) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return sources.ensure_bricks(bricks)


@pytest.fixture(scope="module")
def train_on_bricks(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[runs.Run, Path]]:
    """Trains a preset on bricks, once for all tests that ask for it."""

    @functools.cache
    def train_preset(preset: str) -> tuple[runs.Run, Path]:
        folder = tmp_path_factory.mktemp("quality")
        data = render_bricks(folder, SyntheticSceneConfig())
        options = f"--preset {preset} --data {data} --run-dir {folder / 'run'}"
        assert cli.run_command("train", [*options.split(), "--video.frames", "0"]) == 0
        return runs.open_run(folder / "run"), data

    return train_preset


@pytest.fixture(params=["voxels-small", "tensorf-small"])
def run_on_bricks(
    request: pytest.FixtureRequest, train_on_bricks: Callable[[str], tuple[runs.Run, Path]]
) -> tuple[runs.Run, Path]:
    return train_on_bricks(request.param)


@pytest.mark.slow
def test_bricks_are_learnt(run_on_bricks: tuple[runs.Run, Path]) -> None:
    run, data = run_on_bricks
    split = sources.load_scene(data, ["test"]).splits["test"]
    background = background_color(run.config)
    render = runs.make_render_fn(run)
    scored = list(scoring.score_split(render, split, background, list(range(len(split)))))
    assert scoring.summarize(scored)["psnr"] > 28.0


def voxel_length(run: runs.Run) -> float:
    """Length of a voxel of a run, in scene units."""
    if isinstance(run.config.field, TensoRFConfig):
        # `step_ratio` voxels make a step.
        step = methods.step_length(run.config.field, run.stage, run.state.grid.aabb)
        return float(step) / run.config.field.step_ratio
    assert isinstance(run.state.grid, VoxelGrid)
    return float(run.state.grid.aabb[1, 0] - run.state.grid.aabb[0, 0]) / run.stage.resolution[0]


@pytest.mark.slow
def test_depth_of_bricks_is_right_to_a_voxel(run_on_bricks: tuple[runs.Run, Path]) -> None:
    run, data = run_on_bricks
    split = sources.load_scene(data, ["test"]).splits["test"]
    assert split.depth is not None
    render = runs.make_render_fn(run)
    errors, missed = [], []
    for index in range(len(split)):
        picture = render(split.cameras, index)
        exact = split.depth[index]
        solid = np.isfinite(exact)
        errors.append(np.abs(picture.median_depth - exact)[solid & (picture.opacity > 0.5)])
        missed.append((picture.opacity < 0.5)[solid])
    assert np.median(np.concatenate(errors)) < voxel_length(run)
    assert np.mean(np.concatenate(missed)) < 0.05


@pytest.mark.slow
def test_the_mesh_of_bricks_is_right_to_a_voxel(run_on_bricks: tuple[runs.Run, Path]) -> None:
    run, _ = run_on_bricks
    mesh = extract_mesh(run, 128, 0.3, 0.001, 50)
    # Of the distance 0.003 is that of the points by which the truth is known.
    found = compare(mesh, trace_truth(), 100_000)
    assert found["chamfer"] < 0.75 * voxel_length(run)
    assert abs(found["signed"]) < 0.25 * voxel_length(run)


@pytest.mark.slow
def test_nerf_learns_bricks(tmp_path: Path) -> None:
    data = render_bricks(tmp_path, SyntheticSceneConfig(size=100, train_views=60, test_views=8))
    options = f"--preset nerf-small --data {data} --downscale 4 --run-dir {tmp_path / 'run'}"
    arguments = [*options.split(), "--steps", "300", "--video.frames", "0"]
    assert cli.run_command("train", arguments) == 0
    run = runs.open_run(tmp_path / "run")
    small = config.nerf_small()
    small = dataclasses.replace(
        small,
        field=dataclasses.replace(small.field, contract=False),
        video=run.config.video,
        supersample=1,
        steps=300,
        downscale=4,
        microbatch_samples=transitions.CACHED_SAMPLES,
    )
    assert dataclasses.replace(run.config, data=None, run_dir=None) == small
    split = sources.load_scene(data, ["test"], 4).splits["test"]
    background = background_color(run.config)
    render = runs.make_render_fn(run)
    scored = list(scoring.score_split(render, split, background, list(range(len(split)))))
    assert scoring.summarize(scored)["psnr"] > 17.0


def render_learnt(
    settings: config.TrainConfig, scene: Scene, split: str = "test"
) -> tuple[float, list[scoring.ViewMetrics]]:
    """Trains, and renders the views of a split: their PSNR and themselves."""
    settings = transitions.resolve_config(settings, scene)
    stage, state = train.fit(settings, scene, Recorder())
    background = background_color(settings)
    spread = scene.near, scene.far
    render = scoring.make_render_fn(
        settings, stage, state.eval_params, state.grid, spread, background
    )
    views = scene.splits[split]
    scored = list(scoring.score_split(render, views, background, list(range(len(views)))))
    return scoring.summarize(scored)["psnr"], scored


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "changes", "steps", "least", "most"),
    [
        ("voxels-small", {"density_shift": -8.0}, 300, 22.0, 40.0),
        ("tensorf-small", {}, 300, 25.0, 40.0),
        ("hashgrid-small", {}, 300, 22.0, 40.0),
        ("hashgrid-small", {"contract": False}, 300, 0.0, 19.0),
        ("hashgrid-small", {"sampler": "proposal"}, 150, 22.0, 40.0),
    ],
)
def test_a_wall_far_outside_of_the_box_is_learnt_where_space_is_contracted(
    preset: str, changes: dict[str, Any], steps: int, least: float, most: float
) -> None:
    settings = config.make_preset(preset)
    field: Any = settings.field
    field = dataclasses.replace(field, **{"contract": True} | changes)
    settings = dataclasses.replace(settings, field=field, background="white", steps=steps)
    psnr, scored = render_learnt(settings, make_surroundings())
    assert least < psnr < most
    # The wall is 24 to 26 away; the box ends after 4 at most.
    depth = np.median([one.rendering.median_depth[0, 0] for one in scored])
    assert (depth > 7.0) == field.contract
