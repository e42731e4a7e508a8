"""What a configuration trains: its field, how its rays are sampled and rendered, how it grows.

The one place where the union of field configurations is taken apart.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrf import occupancy as occ
from jaxrf import samplers
from jaxrf.config import FieldConfig, NeRFConfig, TensoRFConfig, TrainConfig, VoxelsConfig
from jaxrf.data.base import Scene
from jaxrf.fields import nerf, tensorf, voxels
from jaxrf.fields.base import Field, Params
from jaxrf.occupancy import OccupancyGrid
from jaxrf.rays import Rays, clip_to_aabb, points_along
from jaxrf.render import (
    Budget,
    RadianceFns,
    Rendering,
    compute_weights,
    masked_density,
    render_blocks,
    render_masked_samples,
    render_packed_samples,
    render_samples,
)
from jaxrf.stepfun import midpoints

_COUNTED_AT_ONCE = 1 << 16
# Steps of a block that is marched over as a whole where nothing is near.
BLOCK_STEPS = 8
# Rows of a packed grid beyond those in use that are not worth a compilation.
ROOM_TO_SPARE = 300_000

Aabb = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """The static shapes of training between two growths; kept with every checkpoint.

    Attributes:
      aabb: box of the field, in scene units.
      resolution: grid points along x, y, z; of no meaning to fields without a grid.
      cells: of the occupancy grid.
      rays: per step, the sub-rays of its pixels.
      subrays: per pixel, along each axis.
      density_budget, color_budget: samples evaluated per step at most.
      block_budget: blocks of steps looked into per step at most.
      table_rows, table_cells: room of a packed grid.
      pruned: whether empty cells have been dropped yet.
    """

    aabb: Aabb
    resolution: tuple[int, int, int]
    cells: tuple[int, int, int]
    rays: int
    subrays: int
    density_budget: int
    color_budget: int
    pruned: bool
    block_budget: int = 0
    table_rows: int = 0
    table_cells: int = 0


class Prediction(NamedTuple):
    """What a training step needs of rendered rays.

    rgb: one (r, 3) per network that is to match the truth, the last being the result.
    opacity: (r,) of the last.
    dropped: (r,) rays that overflowed the sample budget.
    grid: the occupancy grid with what the rays taught it.
    """

    rgb: tuple[Float[Array, "r 3"], ...]
    opacity: Float[Array, "r"]
    dropped: Bool[Array, "r"]
    grid: OccupancyGrid


def make_field(config: FieldConfig, stage: Stage) -> Field:
    """The field's spec at a stage."""
    match config:
        case VoxelsConfig():
            return voxels.Voxels(
                table_rows=stage.table_rows,
                feature_dim=config.feature_dim,
                width=config.width,
                layers=config.layers,
                direction_octaves=config.direction_octaves,
                density_shift=config.density_shift,
                density_scale=config.density_scale,
                density_gain=config.density_gain,
            )
        case TensoRFConfig():
            return tensorf.TensoRF(
                resolution=stage.resolution,
                aabb=stage.aabb,
                density_components=config.density_components,
                feature_components=config.feature_components,
                feature_dim=config.feature_dim,
                width=config.width,
                layers=config.layers,
                feature_octaves=config.feature_octaves,
                direction_octaves=config.direction_octaves,
                density_shift=config.density_shift,
                density_scale=config.density_scale,
            )
        case NeRFConfig():
            return nerf.NeRF(
                layers=config.layers,
                width=config.width,
                skip=config.skip,
                color_width=config.color_width,
                position_octaves=config.position_octaves,
                direction_octaves=config.direction_octaves,
            )
    assert_never(config)


def init_params(config: FieldConfig, stage: Stage, key: jax.Array) -> Params:
    """Fresh parameters of everything that the method trains."""
    field = make_field(config, stage)
    match config:
        case VoxelsConfig() | TensoRFConfig():
            return field.init(key)
        case NeRFConfig():
            key_coarse, key_fine = jax.random.split(key)
            params = {"coarse": field.init(key_coarse)}
            return params | ({"fine": field.init(key_fine)} if config.fine_samples else {})
    assert_never(config)


def label_params(config: FieldConfig, params: Params) -> Params:
    """The optimiser group of every parameter: "grid" or "network"."""

    def label(path: tuple[Any, ...], _: Array) -> str:
        return (
            "grid"
            if getattr(path[0], "key", None) in ("density", "features", "table")
            else "network"
        )

    match config:
        case VoxelsConfig() | TensoRFConfig():
            return jax.tree_util.tree_map_with_path(label, params)
        case NeRFConfig():
            return jax.tree.map(lambda _: "network", params)
    assert_never(config)


def bind(field: Field, params: Params, grid: OccupancyGrid | None = None) -> RadianceFns:
    """A field with its parameters as callables for the renderer.

    A field whose rows are packed by an occupancy grid needs that too.
    """
    if isinstance(grid, voxels.VoxelGrid):
        params = params | {"grid": grid}
    return RadianceFns(
        density=lambda positions, radii: field.density(params, positions, radii),
        features=lambda latent: field.features(params, latent),
        color=lambda features, directions: field.color(params, features, directions),
    )


def step_length(config: TensoRFConfig, stage: Stage) -> float:
    """Length of a step along a ray: `step_ratio` mean voxels, in scene units."""
    low, high = np.asarray(stage.aabb)
    return float(config.step_ratio * np.mean((high - low) / (np.array(stage.resolution) - 1)))


def _march(
    config: TensoRFConfig, stage: Stage, key: jax.Array | None, grid: OccupancyGrid, rays: Rays
) -> tuple[Float[Array, "r n_plus_1"], Bool[Array, "r n"]]:
    """The edges of steps through the box, and which steps may hit something."""
    step = step_length(config, stage)
    low, high = np.asarray(stage.aabb)
    count = math.ceil(np.linalg.norm(high - low) / step) + 1
    tdist = samplers.march(key, clip_to_aabb(rays, jnp.asarray(stage.aabb)), step, count)
    distances = midpoints(tdist)
    mask = (jnp.diff(tdist, axis=-1) > 0) & occ.lookup(grid, points_along(rays, distances))
    return tdist, mask


def _voxel_step(config: VoxelsConfig, grid: OccupancyGrid) -> Float[Array, ""]:
    return config.step_ratio * (grid.aabb[1, 0] - grid.aabb[0, 0]) / grid.occupied.shape[0]


def _voxel_blocks(config: VoxelsConfig, stage: Stage) -> int:
    """Blocks of steps that reach across the whole grid."""
    return math.ceil(math.sqrt(3.0) * stage.cells[0] / config.step_ratio / BLOCK_STEPS) + 1


def predict(
    config: FieldConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    key: jax.Array,
    rays: Rays,
    background: Float[Array, "r 3"],
) -> Prediction:
    """Renders a training batch with jittered samples; differentiable in the parameters."""
    field = make_field(config, stage)
    match config:
        case VoxelsConfig():
            assert isinstance(grid, voxels.VoxelGrid)
            samples, fitting = occ.march_to_samples(
                grid,
                grid.coarse,
                clip_to_aabb(rays, grid.aabb),
                jax.random.uniform(key, rays.near.shape),
                _voxel_step(config, grid),
                occ.Marching(
                    _voxel_blocks(config, stage),
                    BLOCK_STEPS,
                    stage.block_budget,
                    stage.density_budget,
                ),
            )
            rgb, opacity, weights = render_packed_samples(
                bind(field, params, grid),
                rays,
                samples,
                background,
                per_ray=config.shading == "per_ray",
            )
            ray = samples.ray_indices
            middle = 0.5 * (samples.t_starts + samples.t_ends)
            positions = rays.origins[ray] + middle[:, None] * rays.directions[ray]
            grid = voxels.note_weights(grid, positions, jax.lax.stop_gradient(weights))
            dropped = jnp.arange(rays.near.size) >= fitting
            return Prediction((rgb,), opacity, dropped, grid)
        case TensoRFConfig():
            tdist, mask = _march(config, stage, key, grid, rays)
            rendering, dropped = render_masked_samples(
                bind(field, params),
                rays,
                tdist,
                background,
                mask,
                Budget(stage.density_budget, stage.color_budget, drop=True),
                per_ray=config.shading == "per_ray",
                color_threshold=config.color_threshold,
            )
            return Prediction((rendering.rgb,), rendering.opacity, dropped, grid)
        case NeRFConfig():
            passes = _coarse_to_fine(config, stage, params, key, rays, background)
            none_dropped = jnp.zeros(rays.near.shape, bool)
            return Prediction(tuple(p.rgb for p in passes), passes[-1].opacity, none_dropped, grid)
    assert_never(config)


def _coarse_to_fine(
    config: NeRFConfig,
    stage: Stage,
    params: Params,
    key: jax.Array | None,
    rays: Rays,
    background: Float[Array, "r 3"],
) -> list[Rendering]:
    field = make_field(config, stage)
    key_coarse, key_fine = (None, None) if key is None else jax.random.split(key)
    clipped = clip_to_aabb(rays, jnp.asarray(stage.aabb))
    tdist = samplers.stratified(key_coarse, clipped, config.coarse_samples)
    coarse, weights = render_samples(bind(field, params["coarse"]), rays, tdist, background)
    if not config.fine_samples:
        return [coarse]
    tdist = samplers.importance(key_fine, tdist, weights, config.fine_samples)
    fine, _ = render_samples(bind(field, params["fine"]), rays, tdist, background)
    return [coarse, fine]


def render_rays(
    config: FieldConfig,
    stage: Stage,
    samples: int,
    params: Params,
    grid: OccupancyGrid,
    rays: Rays,
    background: Float[Array, "3"],
) -> Rendering:
    """Renders rays of batch shape (r,) without jitter, in blocks of at most `samples` samples."""
    behind = jnp.broadcast_to(background, (*rays.near.shape, 3))
    match config:
        case VoxelsConfig():
            assert isinstance(grid, voxels.VoxelGrid)
            clipped = clip_to_aabb(rays, grid.aabb)
            step = _voxel_step(config, grid)
            blocks = occ.find_blocks(
                grid.coarse, clipped, BLOCK_STEPS * step, _voxel_blocks(config, stage)
            )
            return render_blocks(
                bind(make_field(config, stage), params, grid),
                clipped,
                blocks,
                step,
                lambda positions: occ.lookup(grid, positions),
                behind,
                rays.far,
                steps=BLOCK_STEPS,
                at_once=max(samples // 8, 1),
                samples=max(3 * samples // 8, BLOCK_STEPS),
                per_ray=config.shading == "per_ray",
            )
        case TensoRFConfig():
            tdist, mask = _march(config, stage, None, grid, rays)
            rendering, _ = render_masked_samples(
                bind(make_field(config, stage), params),
                rays,
                tdist,
                behind,
                mask,
                Budget(samples, max(samples // 4, 1), drop=False),
                per_ray=config.shading == "per_ray",
                color_threshold=config.color_threshold,
            )
            return rendering
        case NeRFConfig():
            return _coarse_to_fine(config, stage, params, None, rays, behind)[-1]
    assert_never(config)


def rays_at_once(config: TrainConfig, stage: Stage) -> int:
    """Rays rendered at a time, such that `render_samples` samples of each suffice."""
    match config.field:
        case VoxelsConfig():
            return config.render_samples
        case TensoRFConfig():
            # Most steps are masked out; per step only a few numbers are kept.
            per_ray = math.ceil(
                np.linalg.norm(np.diff(stage.aabb, axis=0)) / step_length(config.field, stage)
            )
            return max(256, min(8192, 8 * config.render_samples // per_ray))
        case NeRFConfig():
            per_ray = config.field.coarse_samples + config.field.fine_samples
            return max(64, config.render_samples // per_ray)
    assert_never(config.field)


def regularise(
    config: FieldConfig, stage: Stage, params: Params, grid: OccupancyGrid, key: jax.Array
) -> Float[Array, ""]:
    """The penalty on the parameters that is added to the loss."""
    zero = jnp.zeros(())
    match config:
        case VoxelsConfig():
            if not (config.density_tv_weight or config.feature_tv_weight):
                return zero
            assert isinstance(grid, voxels.VoxelGrid)
            cells = jax.random.randint(key, (config.tv_cells,), 1, grid.count)
            density, features = voxels.total_variation(params["table"], grid.rows[cells])
            return config.density_tv_weight * density + config.feature_tv_weight * features
        case TensoRFConfig():
            l1_weight = config.l1_weight_pruned if stage.pruned else config.l1_weight
            terms = [
                (l1_weight, tensorf.l1_norm),
                (config.density_tv_weight, lambda p: tensorf.total_variation(p["density"])),
                (config.feature_tv_weight, lambda p: tensorf.total_variation(p["features"])),
            ]
            return sum((weight * term(params) for weight, term in terms if weight), zero)
        case NeRFConfig():
            return zero
    assert_never(config)


class Growth(NamedTuple):
    """A change of the field between two stages.

    step: before which it happens.
    prune: whether empty cells are dropped and the box is shrunk.
    voxels: number of voxels from then on; None leaves them.
    subrays: per pixel along each axis, from then on.
    """

    step: int
    prune: bool
    voxels: int | None
    subrays: int


def plan_growth(config: TrainConfig) -> list[Growth]:
    """All growths of a run, in order, at most one before each step."""
    upsample: dict[int, int] = {}
    prune: set[int] = set()
    match config.field:
        case VoxelsConfig() as field:
            first = field.settle_steps
            # Two divisions never fall together.
            divide = [
                max(round(at * config.steps), first + i) for i, at in enumerate(_divisions(field))
            ]
            upsample = {s: field.initial_resolution**3 * 8 ** (i + 1) for i, s in enumerate(divide)}
            prune = {max(round(at * config.steps), first) for at in field.prune_at}
        case TensoRFConfig() as field:
            counts = np.geomspace(
                field.initial_voxels, field.final_voxels, len(field.upsample_at) + 1
            )
            upsample = {
                round(at * config.steps): round(count)
                for at, count in zip(field.upsample_at, counts[1:], strict=True)
            }
            prune = {round(at * config.steps) for at in field.prune_at}
        case NeRFConfig():
            pass
        case _:
            assert_never(config.field)
    split = _subrays_from(config)
    subrays = config.subrays or 1
    steps = upsample.keys() | prune | ({split} if subrays > 1 else set())
    return [
        Growth(s, s in prune, upsample.get(s), subrays if s >= split else 1)
        for s in sorted(steps)
        if 0 < s < config.steps
    ]


def fit_config(config: TrainConfig, scene: Scene) -> TrainConfig:
    """The configuration with what it leaves open settled for a scene."""
    cameras = scene.splits["train"].cameras
    centre = np.mean(scene.aabb, axis=0)
    distance = np.linalg.norm(np.asarray(cameras.T_world_camera)[:, :3, 3] - centre, axis=-1)
    pixel = float(np.mean(distance) / np.mean(np.asarray(cameras.focal)))
    subrays = 1
    match config.field:
        case VoxelsConfig() as field:
            voxel = float(np.max(np.diff(scene.aabb, axis=0))) / field.initial_resolution
            divisions = field.divisions
            if divisions is None:
                wanted = round(math.log2(max(voxel / pixel, 1.0)))
                divisions = min(wanted, len(field.upsample_at))
            field = dataclasses.replace(field, divisions=divisions)
            config = dataclasses.replace(config, field=field)
            subrays = 2 if voxel / 2**divisions <= 1.25 * pixel else 1
        case TensoRFConfig() | NeRFConfig():
            pass
        case _:
            assert_never(config.field)
    return dataclasses.replace(config, subrays=config.subrays or subrays)


def _divisions(config: VoxelsConfig) -> tuple[float, ...]:
    """When voxels are divided, in order."""
    return tuple(sorted(config.upsample_at))[: config.divisions]


def estimate_growth(
    config: FieldConfig, stage: Stage, growths: list[Growth], compilation: float
) -> tuple[float, float]:
    """Seconds that all growths will take, and by how much steps slow down in their course.

    Rough figures of a CPU, from the seconds that the first compilation took.
    """
    rebuilding = 1.2 + 2e-7 * math.prod(stage.cells)
    match config:
        case VoxelsConfig():
            # The table changes its shape only when divided for the second time.
            divided = max(sum(growth.voxels is not None for growth in growths) - 1, 0)
            split = len({growth.subrays for growth in growths} - {stage.subrays})
            seconds = len(growths) * rebuilding + (split + 2 * divided) * compilation
            return seconds, 1.35**divided
        case TensoRFConfig() | NeRFConfig():
            return len(growths) * (rebuilding + compilation), 1.0
    assert_never(config)


def _subrays_from(config: TrainConfig) -> int:
    return round(config.subrays_from * config.steps)


def first_stage(config: TrainConfig, aabb: Float[np.ndarray, "2 3"]) -> Stage:
    """The stage that training starts with; its batch is yet to be fitted."""
    low, high = (tuple(float(x) for x in corner) for corner in aabb)
    box: Aabb = ((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    table = (0, 0)
    match config.field:
        case VoxelsConfig() as field:
            side = field.initial_resolution * 2 ** len(_divisions(field))
            resolution = cells = (side, side, side)
            shape = _initial_cells(field, box)
            table = (math.prod(n + 1 for n in shape) + 1, math.prod(shape) + 1)
        case TensoRFConfig():
            resolution = tensorf.fit_resolution(config.field.initial_voxels, box)
            cells = tensorf.fit_resolution(config.field.occupancy_voxels, box)
        case NeRFConfig():
            resolution = cells = (1, 1, 1)
        case _:
            assert_never(config.field)
    subrays = (config.subrays or 1) if _subrays_from(config) <= 0 else 1
    return Stage(box, resolution, cells, config.batch_rays, subrays, 0, 0, False, 0, *table)


def describe_grid(config: FieldConfig, stage: Stage, grid: OccupancyGrid) -> str:
    """How fine the grid of a stage is, in words; nothing for fields without one."""
    match config:
        case VoxelsConfig():
            size = float(grid.aabb[1, 0] - grid.aabb[0, 0]) / grid.occupied.shape[0]
            return f"{int(jnp.sum(grid.occupied))} voxels of {size:.3g}"
        case TensoRFConfig():
            return "grid " + "x".join(str(n) for n in stage.resolution)
        case NeRFConfig():
            return ""
    assert_never(config)


def _initial_cells(config: VoxelsConfig, box: Aabb) -> tuple[int, int, int]:
    size = np.subtract(box[1], box[0])
    voxel = size.max() / config.initial_resolution
    x, y, z = (math.ceil(s / voxel - 1e-6) for s in size)
    return x, y, z


def init_grid(config: FieldConfig, stage: Stage) -> OccupancyGrid:
    """The occupancy grid before the first step: everything may be occupied."""
    match config:
        case VoxelsConfig():
            side = stage.cells[0]
            occupied = np.zeros(stage.cells, bool)
            x, y, z = _initial_cells(config, stage.aabb)
            occupied[:x, :y, :z] = True
            low, high = np.asarray(stage.aabb)
            length = (high - low).max() / config.initial_resolution * side
            aabb = np.stack([low, low + length])
            grid = voxels.number_cells(occupied, aabb, _block_reach(config))
            return voxels.resize_grid(grid, stage.table_cells)
        case TensoRFConfig() | NeRFConfig():
            return occ.make_full_grid(stage.cells, jnp.asarray(stage.aabb))
    assert_never(config)


def _block_reach(config: VoxelsConfig) -> float:
    return 0.5 * BLOCK_STEPS * config.step_ratio


def fit_batch(
    config: TrainConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    key: jax.Array,
    draw_rays: Callable[[], Rays],
) -> Stage:
    """The stage with as many rays per step as `batch_samples` allows, judged from drawn rays."""
    match config.field:
        case VoxelsConfig():
            return _fit_voxel_batch(config, stage)
        case TensoRFConfig():
            field = config.field
            density, color = _count_samples(field, stage, params, grid, key, draw_rays())
            margin = 1.1
            most = config.batch_samples / max(margin * density, 1.0)
            count = int(min(config.batch_rays, max(most // 128, 1) * 128))
            count = _whole_pixels(count, stage)
            budget = min(config.batch_samples, math.ceil(margin * density * count))
            # Before the first pruning the field is fog, in which every sample gets some weight.
            colored = math.ceil(1.5 * color * count) if stage.pruned else budget
            return dataclasses.replace(
                stage,
                rays=count,
                density_budget=max(budget, 128),
                color_budget=max(min(colored, budget), 128),
            )
        case NeRFConfig():
            return dataclasses.replace(stage, rays=_whole_pixels(config.batch_rays, stage))
    assert_never(config.field)


def foresee_stage(config: TrainConfig, stage: Stage, growth: Growth | None = None) -> Stage | None:
    """The stage that a growth (None: the beginning) leads to, if that can be told beforehand.

    It may turn out otherwise; it serves to compile ahead of time.
    """
    stage = dataclasses.replace(stage, subrays=growth.subrays) if growth else stage
    match config.field:
        case VoxelsConfig():
            return _fit_voxel_batch(config, stage)
        case TensoRFConfig():
            return None
        case NeRFConfig():
            return dataclasses.replace(stage, rays=_whole_pixels(config.batch_rays, stage))
    assert_never(config.field)


def _fit_voxel_batch(config: TrainConfig, stage: Stage) -> Stage:
    # Rays that do not fit are dropped, so their number follows the budget by itself.
    return dataclasses.replace(
        stage,
        rays=_whole_pixels(config.batch_rays, stage),
        density_budget=config.batch_samples,
        block_budget=3 * config.batch_samples // BLOCK_STEPS,
    )


def _whole_pixels(rays: int, stage: Stage) -> int:
    """At most so many rays, but all those of at least one pixel."""
    parts = stage.subrays**2
    return max(rays // parts, 1) * parts


def _count_samples(
    config: TensoRFConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    key: jax.Array,
    rays: Rays,
) -> tuple[float, float]:
    """Mean samples per ray that may hit something, and of those how many get a colour."""

    budget = Budget(_COUNTED_AT_ONCE, _COUNTED_AT_ONCE, drop=False)

    @jax.jit
    def count(
        params: Params, grid: OccupancyGrid, key: jax.Array, rays: Rays
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        tdist, mask = _march(config, stage, key, grid, rays)
        fns = bind(make_field(config, stage), params)
        density, _ = masked_density(fns, rays, tdist, mask, budget)
        weights, _ = compute_weights(density, tdist)
        colored = mask & (weights > config.color_threshold)
        return jnp.mean(jnp.sum(mask, axis=-1) * 1.0), jnp.mean(jnp.sum(colored, axis=-1) * 1.0)

    density, color = count(params, grid, key, rays)
    return float(density), float(color)


def grow(
    config: FieldConfig, stage: Stage, growth: Growth, params: Params, grid: OccupancyGrid
) -> tuple[Stage, OccupancyGrid, Callable[[Params], Params]]:
    """The stage and occupancy after a growth, and what carries parameters over to it."""
    stage = dataclasses.replace(stage, subrays=growth.subrays)
    match config:
        case VoxelsConfig():
            assert isinstance(grid, voxels.VoxelGrid)
            return _refine(config, stage, growth, grid)
        case TensoRFConfig():
            old = make_field(config, stage)
            if growth.prune:
                density = jax.jit(lambda p, x: old.density(p, x, jnp.zeros(x.shape[:-1]))[0])
                step = step_length(config, stage)
                grid = occ.update_from_density(
                    grid, lambda x: density(params, x), step, config.prune_threshold
                )
                stage = _shrink(config, stage, grid)
            if growth.voxels is not None:
                resolution = tensorf.fit_resolution(growth.voxels, stage.aabb)
                stage = dataclasses.replace(stage, resolution=resolution)
            new = make_field(config, stage)
            assert isinstance(old, tensorf.TensoRF) and isinstance(new, tensorf.TensoRF)
            return stage, grid, lambda tree: tensorf.resample(tree, old, new)
        case NeRFConfig():
            return stage, grid, lambda tree: tree
    assert_never(config)


def _refine(
    config: VoxelsConfig, stage: Stage, growth: Growth, grid: voxels.VoxelGrid
) -> tuple[Stage, OccupancyGrid, Callable[[Params], Params]]:
    """Cells dropped and divided; the room is made larger only where it does not suffice."""
    if not growth.prune and growth.voxels is None:
        return stage, grid, lambda tree: tree
    keep = np.asarray(grid.occupied)
    if growth.prune:
        seen = np.asarray(grid.seen > config.prune_threshold)[np.asarray(grid.number)]
        matters = jax.jit(occ.dilate)(jnp.asarray(seen.reshape(keep.shape) & keep))
        matters = np.asarray(matters) & keep
        keep = matters if matters.any() else keep
    divide = 1 if growth.voxels is None else 2
    new, sources, weights = voxels.refine(grid, keep, divide, _block_reach(config))
    rows = len(sources)
    stage = dataclasses.replace(
        stage,
        table_rows=_room(rows, stage.table_rows),
        table_cells=_room(int(new.count), stage.table_cells),
    )
    unused = ((0, stage.table_rows - rows), (0, 0))
    source, weight = jnp.asarray(np.pad(sources, unused)), jnp.asarray(np.pad(weights, unused))

    def carry_over(tree: Params) -> Params:
        return tree | {"table": jnp.einsum("rk,rkc->rc", weight, tree["table"][source])}

    return stage, voxels.resize_grid(new, stage.table_cells), carry_over


def _room(needed: int, present: int) -> int:
    """Room for so many: the present one unless it is too small or costs much for nothing.

    Another shape has to be compiled, and the optimiser updates every row, in use or not.
    """
    fitting = -(-needed * 5 // 4 // 4096) * 4096
    return present if needed <= present < fitting + ROOM_TO_SPARE else fitting


def _shrink(config: TensoRFConfig, stage: Stage, grid: OccupancyGrid) -> Stage:
    """The stage with its box shrunk to what is occupied, voxels keeping their size."""
    box = occ.occupied_aabb(grid)
    low = np.maximum(box[0], stage.aabb[0])
    high = np.minimum(box[1], stage.aabb[1])
    voxel = (np.asarray(stage.aabb[1]) - stage.aabb[0]) / (np.array(stage.resolution) - 1)
    x, y, z = (max(2, math.ceil(s) + 1) for s in (high - low) / voxel - 1e-6)
    corners = [tuple(float(f"{v:.9g}") for v in corner) for corner in (low, high)]
    aabb: Any = tuple(corners)
    return dataclasses.replace(stage, aabb=aabb, resolution=(x, y, z), pruned=True)
