"""A tiny scene for the tests of training: a ball colored by its normals, in seconds' reach."""

import dataclasses
import functools
import io
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxrf.cameras.base import image_rays, make_cameras
from jaxrf.cameras.poses import look_at
from jaxrf.data.scene import Scene, Split
from jaxrf.fields.base import Params
from jaxrf.fields.bitnerf import BitNeRF
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.fields.nerf import NeRF
from jaxrf.fields.pynerf import PyNeRF
from jaxrf.fields.tensorf import TensoRF
from jaxrf.fields.voxels import Voxels
from jaxrf.models.base import StageSpec
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.models.packed import PackedModel
from jaxrf.models.proposal import ProposalModel
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training import schedule, transitions
from jaxrf.training.callbacks import NullCallback
from jaxrf.training.config import OptimizerConfig, TrainConfig, VideoConfig
from jaxrf.training.state import Metrics, TrainState, init_state

SIZE = 16
VIEWS = {"train": 6, "val": 2, "test": 2}
ANGLE = 0.7
RADIUS = 0.9
DISTANCE = 4.0
BOX = np.array([[-1.5] * 3, [1.5] * 3], np.float32)
# No two sides are alike.
LONG = np.array([[-1.5, -1.0, -0.5], [1.5, 1.2, 1.0]], np.float32)

# As `tiny_tensorf`, for the command line, but pruned by weight.
TINY = shlex.split("""
    --preset tensorf-small --num-steps 24 --batch-rays 128 --batch-samples 4096
    --render-samples 8192 --steps-per-dispatch 4
    --video.frames 3 --video.size 17 --validation-views 2
    --field.density-components 2 --field.feature-components 2 --field.feature-dim 4
    --field.width 8 --field.initial-voxels 512 --field.final-voxels 1728
    --field.occupancy-voxels 1728 --field.prune-at 0.25 0.5 --field.upsample-at 0.5
    --field.min-steps-before-refine 0 --field.prune-threshold 0.01 --field.density-shift -2.0
""")


def assert_looks(pose: np.ndarray, position: np.ndarray, target: np.ndarray) -> None:
    R = pose[:3, :3]
    np.testing.assert_allclose(R.T @ R, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(R), 1.0)
    np.testing.assert_allclose(pose[:3, 3], position)
    np.testing.assert_array_equal(pose[3], [0.0, 0.0, 0.0, 1.0])
    ahead = (target - position) / np.linalg.norm(target - position)
    np.testing.assert_allclose(-R[:, 2], ahead, atol=1e-12)


def view_ball(T_world_camera: np.ndarray, size: int = SIZE) -> np.ndarray:
    """(size, size, 4) straight RGBA of the ball, 4 x 4 rays to a pixel."""
    cameras = make_cameras(T_world_camera[None], 4 * size, 4 * size, ANGLE)
    rays = image_rays(cameras, 0, 2.0, 6.0)
    origins, directions = np.asarray(rays.origins), np.asarray(rays.directions)
    along = -np.sum(origins * directions, axis=-1)
    inside = RADIUS**2 - np.sum(origins**2, axis=-1) + along**2
    hit = inside > 0
    normals = origins + (along - np.sqrt(np.maximum(inside, 0)))[..., None] * directions
    colors = np.where(hit[..., None], 0.5 + 0.5 * normals / RADIUS, 0.0)
    blocks = np.concatenate([colors, hit[..., None]], axis=-1).reshape(size, 4, size, 4, 4)
    total = blocks.sum(axis=(1, 3))
    straight = total[..., :3] / np.maximum(total[..., 3:], 1.0)
    return np.rint(255 * np.concatenate([straight, total[..., 3:] / 16], axis=-1)).astype(np.uint8)


def ball_poses(split: str, count: int) -> np.ndarray:
    first = {"train": 0.0, "val": 0.3, "test": 0.6}[split]
    poses = []
    for index in range(count):
        azimuth, height = first + 2 * math.pi * index / count, 0.2 + 0.5 * (index % 2)
        across = math.sqrt(1 - height**2)
        back = np.array([across * math.cos(azimuth), across * math.sin(azimuth), height])
        poses.append(look_at(DISTANCE * back, np.zeros(3)))
    return np.stack(poses)


@functools.cache
def make_scene(size: int = SIZE) -> Scene:
    splits = {}
    for split, count in VIEWS.items():
        poses = ball_poses(split, count)
        splits[split] = Split(
            name=split,
            names=tuple(f"r_{index}" for index in range(count)),
            images=np.stack([view_ball(pose, size) for pose in poses]),
            cameras=make_cameras(poses, size, size, ANGLE),
        )
    aabb = np.array([[-1.5] * 3, [1.5] * 3], np.float32)
    return Scene("ball", splits, aabb, 2.0, 6.0)


def _meet_sphere(
    origins: np.ndarray, directions: np.ndarray, radius: float, side: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which lines meet a sphere around the origin, and the unit normals there."""
    along = np.sum(origins * directions, axis=-1)
    room = along**2 - np.sum(origins**2, axis=-1) + radius**2
    distance = -along + side * np.sqrt(np.maximum(room, 0.0))
    return room > 0, (origins + distance[..., None] * directions) / radius


@functools.cache
def make_surroundings(size: int = 24, wall: float = 25.0) -> Scene:
    """A ball in the middle of a room with a striped round wall, far outside of the scene's box.

    The cameras stand in the box. Stripes and parallax give away how far the wall is.
    """
    splits = {}
    for split, count in {"train": 60, "val": 4, "test": 4}.items():
        rng = np.random.default_rng(len(split))
        poses, images = [], []
        for _ in range(count):
            outwards = rng.normal(size=3)
            place = 1.3 * outwards / np.linalg.norm(outwards)
            poses.append(look_at(place, rng.normal(size=3) * 0.4))
            rays = image_rays(make_cameras(poses[-1][None], size, size, 1.2), 0, 0.3, 6.0)
            lines = np.asarray(rays.origins, np.float64), np.asarray(rays.directions, np.float64)
            ball, normals = _meet_sphere(*lines, 0.5, -1.0)
            _, far = _meet_sphere(*lines, wall, 1.0)
            stripes = 0.5 + 0.45 * np.sin(5.0 * far)
            rgb = np.where(ball[..., None], 0.5 + 0.5 * normals, stripes)
            images.append(np.concatenate([rgb, np.ones((size, size, 1))], axis=-1))
        splits[split] = Split(
            name=split,
            names=tuple(f"r_{index}" for index in range(count)),
            images=np.rint(255 * np.stack(images)).astype(np.uint8),
            cameras=make_cameras(np.stack(poses), size, size, 1.2),
        )
    return Scene("surroundings", splits, BOX, 0.3, 6.0)


def write_scene(folder: Path, size: int = SIZE) -> Path:
    """The scene as a folder in the Blender format."""
    for name, split in make_scene(size).splits.items():
        (folder / name).mkdir(parents=True)
        frames = []
        for index, image in enumerate(split.images):
            Image.fromarray(image).save(folder / name / f"r_{index}.png")
            pose = np.asarray(split.cameras.T_world_camera[index], np.float64).tolist()
            frames.append({"file_path": f"./{name}/r_{index}", "transform_matrix": pose})
        transforms = {"camera_angle_x": ANGLE, "frames": frames}
        (folder / f"transforms_{name}.json").write_text(json.dumps(transforms))
    return folder


def tiny_tensorf(**changes: Any) -> TrainConfig:
    """8^3 to 12^3 voxels in 24 steps: pruned after 6, pruned and upsampled after 12."""
    config = TrainConfig(
        field=TensoRF(
            density_components=2,
            feature_components=2,
            feature_dim=4,
            width=8,
            layers=1,
            density_shift=-2.0,
            initial_voxels=8**3,
            final_voxels=12**3,
            upsample_at=(0.5,),
            prune_at=(0.25, 0.5),
            occupancy_voxels=12**3,
            prune_threshold=1e-2,
            step_ratio=1.0,
            l1_weight=1e-4,
        ),
        model=PackedModel(coloring="per_ray", color_threshold=1e-3, max_colored_fraction=0.5),
        num_steps=24,
        batch_samples=1 << 12,
        batch_rays=128,
        render_samples=1 << 13,
        steps_per_dispatch=4,
        optimizer=OptimizerConfig(grid_lr=0.03, mlp_lr=4e-3),
        video=VideoConfig(frames=0),
    )
    return change(config, **changes)


def tiny_voxels(**changes: Any) -> TrainConfig:
    """8^3 voxels, divided once in 24 steps."""
    config = TrainConfig(
        field=Voxels(
            feature_dim=7,
            width=8,
            density_shift=-2.0,
            initial_resolution=8,
            num_subdivisions=1,
            upsample_at=(0.5,),
            prune_at=(0.25, 0.5),
            min_steps_before_refine=0,
            prune_threshold=0.01,
            density_tv_weight=1e-5,
            feature_tv_weight=1e-5,
            tv_cells=64,
        ),
        num_steps=24,
        batch_samples=1 << 12,
        batch_rays=256,
        render_samples=1 << 11,
        steps_per_dispatch=4,
        supersample=2,
        supersample_from=0.75,
        optimizer=OptimizerConfig(grid_lr=0.05, mlp_lr=4e-3),
        video=VideoConfig(frames=0),
    )
    return change(config, **changes)


NERF = NeRF(
    layers=2,
    width=24,
    skip=1,
    color_width=16,
    num_position_frequencies=4,
    num_direction_frequencies=1,
)


def tiny_nerf(**changes: Any) -> TrainConfig:
    """A NeRF with 12 coarse and 8 fine samples."""
    config = TrainConfig(
        field=NERF,
        model=HierarchicalModel(num_coarse_samples=12, num_fine_samples=8),
        num_steps=12,
        batch_rays=64,
        render_samples=1 << 13,
        steps_per_dispatch=4,
        optimizer=OptimizerConfig(mlp_lr=5e-3, beta2=0.999),
        video=VideoConfig(frames=0),
    )
    return change(config, **changes)


def tiny_hashgrid(**changes: Any) -> TrainConfig:
    """A hash grid on an occupancy grid of 8^3 cells, which is updated every fourth step."""
    config = TrainConfig(
        field=HashGrid(
            num_levels=3,
            features_per_level=2,
            base_resolution=4,
            max_resolution=12,
            log2_hashmap_size=8,
            width=8,
            density_layers=1,
            color_layers=1,
        ),
        model=PackedModel(
            occupancy_resolution=8,
            steps_per_diagonal=32,
            occupancy_update_interval=4,
            occupancy_warmup_steps=0,
        ),
        num_steps=24,
        batch_samples=1 << 12,
        batch_rays=128,
        render_samples=1 << 13,
        steps_per_dispatch=4,
        optimizer=OptimizerConfig(grid_lr=0.02, mlp_lr=0.01, epsilon=1e-15),
        video=VideoConfig(frames=0),
    )
    return change(config, **changes)


def marching_nerf(**changes: Any) -> TrainConfig:
    """`tiny_nerf` with one network and an occupancy grid."""
    model = PackedModel(
        occupancy_resolution=6,
        occupancy_update_interval=3,
        steps_per_diagonal=32,
        occupancy_warmup_steps=0,
    )
    return change(tiny_nerf(model=model, batch_samples=1 << 11), **changes)


def proposing_hashgrid(**changes: Any) -> TrainConfig:
    """`tiny_hashgrid` with samples where a proposal places them."""
    model = ProposalModel(
        num_proposal_samples=(16,), proposal_resolutions=(16,), num_nerf_samples=10
    )
    return change(tiny_hashgrid(model=model, batch_rays=64), **changes)


def tiny_pynerf(**changes: Any) -> TrainConfig:
    """Three pyramid levels held consistent on one hash grid, and two sizes of the images."""
    field = PyNeRF(
        num_pyramid_levels=3,
        num_levels=3,
        features_per_level=2,
        base_resolution=4,
        max_resolution=12,
        log2_hashmap_size=8,
        width=8,
        color_width=8,
        color_layers=1,
        feature_dim=4,
        consistency_weight=1e-3,
        consistency_points=16,
    )
    return change(tiny_hashgrid(field=field, num_train_scales=2), **changes)


def tiny_bitnerf(**changes: Any) -> TrainConfig:
    """`tiny_nerf` with ternary weights."""
    numbers = {f.name: getattr(NERF, f.name) for f in dataclasses.fields(NERF)}
    return change(tiny_nerf(field=BitNeRF(**numbers)), **changes)


def change(config: TrainConfig, **changes: Any) -> TrainConfig:
    """A configuration with other numbers of its own, of its field or of its model, by their names.

    A field or a model among the changes is replaced before its numbers are.
    """
    own = {f.name for f in dataclasses.fields(config)}
    config = dataclasses.replace(config, **{k: v for k, v in changes.items() if k in own})
    parts: dict[str, Any] = {"field": {}, "model": {}}
    for name, value in changes.items():
        if name in own:
            continue
        part = next(
            key for key in parts
            if name in {f.name for f in dataclasses.fields(getattr(config, key))}
        )  # fmt: skip
        parts[part][name] = value
    replaced = {
        key: dataclasses.replace(getattr(config, key), **numbers) for key, numbers in parts.items()
    }
    return dataclasses.replace(config, **replaced)


def ball_config(side: int = 12, **changes: Any) -> TrainConfig:
    """A TensoRF that is thin but for the density that `ball_params` puts into it."""
    thin = tiny_tensorf(density_shift=-10.0, density_scale=5.0, initial_voxels=side**3)
    return change(thin, **changes)


def positions_in(grid: OccupancyGrid, count: int = 400, seed: int = 0) -> jax.Array:
    """Random positions in the occupied cells of a grid, not quite at their faces."""
    rng = np.random.default_rng(seed)
    cells = np.argwhere(np.asarray(grid.occupied))
    low, high = np.asarray(grid.aabb, np.float64)
    places = cells[rng.integers(0, len(cells), count)] + rng.uniform(0.01, 0.99, (count, 3))
    return jnp.asarray(low + places * (high - low) / grid.occupied.shape, jnp.float32)


def linear_factors(params: Params, seed: int = 0) -> Params:
    """Parameters whose planes and lines are linear in the position, which no resampling changes."""
    rng = np.random.default_rng(seed)

    def ramp(values: jax.Array) -> jax.Array:
        axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in values.shape[:-1]), indexing="ij")
        slopes = rng.normal(size=(len(axes) + 1, values.shape[-1]))
        ramps = slopes[-1] + sum(a[..., None] * s for a, s in zip(axes, slopes[:-1], strict=True))
        return jnp.asarray(ramps, jnp.float32)

    return {**params, **{k: jax.tree.map(ramp, params[k]) for k in ("density", "features")}}


def cp_config(**changes: Any) -> TrainConfig:
    """Three lines to a component, color by harmonics of four coefficients."""
    return tiny_tensorf(**{"factors": "cp", "color_head": "harmonics", "feature_dim": 12} | changes)


_init_state = jax.jit(init_state, static_argnums=(0, 1))


def first_state(
    config: TrainConfig, aabb: np.ndarray | None = None
) -> tuple[StageSpec, TrainState]:
    """StageSpec and state before the first step, in the scene's box unless another one is given."""
    aabb = make_scene().aabb if aabb is None else aabb
    stage = transitions.first_stage(config, aabb)
    return stage, _init_state(config, stage, transitions.init_grid(config, stage, aabb))


def slow(*values: Any) -> Any:
    """A case that takes long to compile, beside others like it that are quick."""
    return pytest.param(*values, marks=pytest.mark.slow)


def mostly_slow(cases: Sequence[Any], quick: int) -> list[Any]:
    """Cases of which so many, evenly spread, are tried each time, and the others with the slow."""
    every = max(len(cases) // quick, 1)
    return [case if i % every == 0 else slow(case) for i, case in enumerate(cases)]


class Recorder(NullCallback):
    """A callback of `loop.fit` that records its calls and stops after a given step.

    At the steps in `plans` it asks for another number of steps.
    """

    def __init__(self, stop_at: int | None = None, plans: dict[int, int] | None = None) -> None:
        self.stop_at = stop_at
        self.plans = plans or {}
        self.growing: list[tuple[int, bool]] = []
        self.config: TrainConfig | None = None
        self.changes: list[tuple[TrainConfig, str]] = []
        self.stages: list[tuple[int, StageSpec, int]] = []
        self.metrics: list[Metrics] = []
        self.steps: list[int] = []
        self.step = 0

    def on_stage(self, stage: StageSpec, state: TrainState, pixels: int, seconds: float) -> None:
        self.stages.append((self.step, stage, pixels))

    def on_dispatch(
        self, state: TrainState, stage: StageSpec, metrics: Metrics, steps: int
    ) -> bool:
        self.step = int(state.step)
        self.steps.append(steps)
        self.metrics.append(metrics)
        return self.stop_at is not None and self.step >= self.stop_at

    def on_config_change(self, config: TrainConfig, step: int, reason: str) -> None:
        assert step == self.step
        self.changes.append((config, reason))

    def replan(self, config: TrainConfig, step: int, growing: bool) -> TrainConfig:
        assert step == self.step
        self.growing.append((step, growing))
        steps = self.plans.get(step)
        self.config = config if steps is None else schedule.rescale_schedule(config, step, steps)
        return self.config


def differing_leaves(found: Any, wanted: Any) -> Sequence[str]:
    """Paths of the leaves that are not the same bit for bit; both trees must be alike."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    return [
        jax.tree_util.keystr(path)
        for (path, a), b in pairs
        if a.dtype != b.dtype or not np.array_equal(np.asarray(a), np.asarray(b))
    ]


def read_mp4(path: Path) -> np.ndarray:
    """(n, h, w, 3) frames by imageio, in a process of its own: it forks, which JAX forbids."""
    code = (
        "import sys, imageio.v3, numpy; "
        "numpy.save(sys.stdout.buffer, imageio.v3.imread(sys.argv[1], plugin='FFMPEG'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True)
    return np.load(io.BytesIO(done.stdout))
