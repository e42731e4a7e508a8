"""Trained fields, measured against the exact geometry of the built-in scene."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import Recorder, change, make_surroundings

from benchmarks.geometry import compare, trace_truth
from jaxrf import presets
from jaxrf.cli import main as cli
from jaxrf.data import sources
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.data.options import LoadOptions
from jaxrf.data.scene import Scene
from jaxrf.evaluation import scoring
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.export.mesh import extract_mesh
from jaxrf.fields.tensorf import TensoRF
from jaxrf.fields.voxel_grid import VoxelGrid
from jaxrf.models.proposal import ProposalModel
from jaxrf.training import loop, runs, transitions
from jaxrf.training.config import TrainConfig
from jaxrf.training.state import background_color

pytestmark = pytest.mark.as_used


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


@pytest.fixture(params=["voxels-small", pytest.param("tensorf-small", marks=pytest.mark.long)])
def run_on_bricks(
    request: pytest.FixtureRequest, train_on_bricks: Callable[[str], tuple[runs.Run, Path]]
) -> tuple[runs.Run, Path]:
    return train_on_bricks(request.param)


@pytest.mark.slow
def test_presets_learn_bricks(run_on_bricks: tuple[runs.Run, Path]) -> None:
    run, data = run_on_bricks
    split = sources.load_scene(data, ["test"]).splits["test"]
    background = background_color(run.config)
    render = runs.make_render_fn(run)
    scored = list(scoring.score_split(render, split, background, list(range(len(split)))))
    assert scoring.summarize(scored)["psnr"] > 28.0


def voxel_length(run: runs.Run) -> float:
    """Length of a voxel of a run, in scene units."""
    field = run.stage.field
    if isinstance(field, TensoRF):
        # `step_ratio` voxels make a step.
        return float(field.step_size(run.state.grid.aabb)) / field.step_ratio
    assert isinstance(run.state.grid, VoxelGrid)
    side = float(run.state.grid.aabb[1, 0] - run.state.grid.aabb[0, 0])
    return side / run.stage.grid_resolution[0]


@pytest.mark.slow
def test_median_depth_of_bricks_is_exact_to_a_voxel(run_on_bricks: tuple[runs.Run, Path]) -> None:
    run, data = run_on_bricks
    split = sources.load_scene(data, ["test"]).splits["test"]
    assert split.depth is not None
    render = runs.make_render_fn(run)
    errors, missed = [], []
    for index in range(len(split)):
        rendering = render(split.cameras, index)
        exact = split.depth[index]
        solid = np.isfinite(exact)
        errors.append(np.abs(rendering.median_depth - exact)[solid & (rendering.opacity > 0.5)])
        missed.append((rendering.opacity < 0.5)[solid])
    assert np.median(np.concatenate(errors)) < voxel_length(run)
    assert np.mean(np.concatenate(missed)) < 0.05


@pytest.mark.slow
def test_mesh_of_bricks_is_exact_to_a_voxel(run_on_bricks: tuple[runs.Run, Path]) -> None:
    run, _ = run_on_bricks
    mesh = extract_mesh(run, 128, 0.3, 0.001, 50)
    # 0.003 of the distance comes from the points that sample the exact surface.
    distances = compare(mesh, trace_truth(), 100_000)
    assert distances["chamfer"] < 0.75 * voxel_length(run)
    assert abs(distances["signed"]) < 0.25 * voxel_length(run)


@pytest.mark.slow
@pytest.mark.long
def test_nerf_learns_bricks(tmp_path: Path) -> None:
    data = render_bricks(tmp_path, SyntheticSceneConfig(size=100, train_views=60, test_views=8))
    options = f"--preset nerf-small --data {data} --downscale 4 --run-dir {tmp_path / 'run'}"
    arguments = [*options.split(), "--num-steps", "300", "--video.frames", "0"]
    assert cli.run_command("train", arguments) == 0
    run = runs.open_run(tmp_path / "run")
    small = change(
        presets.nerf_small(),
        contract=False,
        video=run.config.video,
        supersample=1,
        num_steps=300,
        downscale=4,
        microbatch_samples=transitions.CACHED_SAMPLES,
    )
    assert dataclasses.replace(run.config, data=None, run_dir=None) == small
    split = sources.load_scene(data, ["test"], LoadOptions(downscale=4)).splits["test"]
    background = background_color(run.config)
    render = runs.make_render_fn(run)
    scored = list(scoring.score_split(render, split, background, list(range(len(split)))))
    assert scoring.summarize(scored)["psnr"] > 17.0


def train_and_score(
    config: TrainConfig, scene: Scene, split: str = "test"
) -> tuple[float, list[scoring.ViewMetrics]]:
    """PSNR and scored views of a split after training."""
    config = transitions.resolve_config(config, scene)
    stage, state = loop.fit(config, scene, Recorder())
    background = background_color(config)
    near_far = scene.near, scene.far
    render = scoring.make_render_fn(
        TrainedField(config, stage, state.eval_params, state.grid, near_far, background)
    )
    views = scene.splits[split]
    scored = list(scoring.score_split(render, views, background, list(range(len(views)))))
    return scoring.summarize(scored)["psnr"], scored


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("preset", "changes", "steps", "lower", "upper"),
    [
        ("voxels-small", {"density_shift": -8.0}, 300, 22.0, 40.0),
        ("tensorf-small", {}, 300, 25.0, 40.0),
        ("hashgrid-small", {}, 300, 22.0, 40.0),
        ("hashgrid-small", {"contract": False}, 300, 0.0, 19.0),
        ("hashgrid-small", {"model": ProposalModel(coloring="per_ray")}, 150, 22.0, 40.0),
    ],
)
def test_contracted_space_learns_a_wall_far_outside_of_the_box(
    preset: str, changes: dict[str, Any], steps: int, lower: float, upper: float
) -> None:
    config = change(presets.make_preset(preset), background="white", num_steps=steps)
    config = change(config, **{"contract": True} | changes)
    psnr, scored = train_and_score(config, make_surroundings())
    assert lower < psnr < upper
    # The wall is 24 to 26 away; the box ends after 4 at most.
    depth = np.median([one.rendering.median_depth[0, 0] for one in scored])
    assert (depth > 7.0) == config.model.contract
