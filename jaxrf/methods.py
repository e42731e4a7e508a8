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
from jaxtyping import Array, Bool, Float, Int

from jaxrf import losses, progress, samplers
from jaxrf import occupancy as occ
from jaxrf.config import (
    BitNeRFConfig,
    CustomConfig,
    FieldConfig,
    HashGridConfig,
    NeRFConfig,
    PyNeRFConfig,
    SampledConfig,
    TensoRFConfig,
    TrainConfig,
    VoxelsConfig,
)
from jaxrf.data.base import Scene
from jaxrf.fields import base, nerf, ngp, pynerf, tensorf, voxels
from jaxrf.fields.base import Field, Params
from jaxrf.occupancy import OccupancyGrid, ProbedGrid, WatchedGrid
from jaxrf.rays import Rays, clip_to_aabb, normalise_distances
from jaxrf.render import (
    RadianceFns,
    Rendering,
    render_blocks,
    render_packed_samples,
    render_samples,
    sample_points,
)

# Steps of a block that is marched over as a whole where nothing is near.
BLOCK_STEPS = 8
# Rows of a packed grid beyond those in use that are not worth a compilation.
ROOM_TO_SPARE = 300_000
# Samples whose activations, in layers of 256, stay in the cache of a CPU.
CACHED_SAMPLES = 2048
# Fewer rays a step are not worth training with.
FEWEST_RAYS = 64


@dataclasses.dataclass(frozen=True)
class Stage:
    """The static shapes of training between two growths; kept with every checkpoint.

    Attributes:
      resolution: grid points along x, y, z; of no meaning to fields without a grid.
      cells: of the occupancy grid.
      rays: per step, the sub-rays of its pixels.
      subrays: per pixel, along each axis.
      passes: in which the gradient of a step's rays is computed, one after the other.
      blocks: of steps along a ray at most; they reach across the box.
      block_budget: blocks looked into per training step at most.
      sample_budget: samples evaluated per training step at most.
      color_budget: of those, how many get features; 0 if all do.
      reach: half a block of steps, in cells, of a grid that is made coarse while training.
      pruned: whether empty cells have been dropped yet.
      table_rows, table_cells: room of a packed grid.
    """

    resolution: tuple[int, int, int]
    cells: tuple[int, int, int]
    rays: int
    subrays: int
    passes: int = 1
    blocks: int = 0
    block_budget: int = 0
    sample_budget: int = 0
    color_budget: int = 0
    reach: float = 0.0
    pruned: bool = False
    table_rows: int = 0
    table_cells: int = 0


class Prediction(NamedTuple):
    """What a training step needs of rendered rays.

    rgb: one (r, 3) per network that is to match the truth, the last being the result.
    opacity: (r,) of the last.
    dropped: (r,) rays that overflowed the sample budget.
    samples: how many samples the field was evaluated at.
    distortion: (r,) of the last, distances being 0 at near and 1 at far.
    grid: the occupancy grid with what the rays taught it.
    """

    rgb: tuple[Float[Array, "r 3"], ...]
    opacity: Float[Array, "r"]
    dropped: Bool[Array, "r"]
    samples: Int[Array, ""]
    distortion: Float[Array, "r"]
    grid: OccupancyGrid


def marches(config: FieldConfig) -> bool:
    """Whether rays march through an occupancy grid, such that samples are packed."""
    return not isinstance(config, SampledConfig) or config.sampler == "occupancy"


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
                density_components=config.density_components,
                feature_components=config.feature_components,
                feature_dim=config.feature_dim,
                width=config.width,
                layers=config.layers,
                feature_octaves=config.feature_octaves,
                direction_octaves=config.direction_octaves,
                density_shift=config.density_shift,
                density_scale=config.density_scale,
                init_scale=config.init_scale,
                factors=config.factors,
                color_by=config.color,
            )
        case NeRFConfig() | BitNeRFConfig():
            return nerf.NeRF(
                encoding=config.encoding,
                use_directions=config.use_directions,
                activation=config.activation,
                density_noise=config.density_noise,
                ternary=isinstance(config, BitNeRFConfig),
                layers=config.layers,
                width=config.width,
                skip=config.skip,
                color_width=config.color_width,
                position_octaves=config.position_octaves,
                direction_octaves=config.direction_octaves,
            )
        case HashGridConfig():
            return ngp.HashGrid(
                levels=config.levels,
                channels=config.channels,
                coarsest=config.coarsest,
                finest=config.finest,
                log2_rows=config.log2_rows,
                width=config.width,
                density_layers=config.density_layers,
                color_layers=config.color_layers,
                feature_dim=config.feature_dim,
                direction_bands=config.direction_bands,
                density_shift=config.density_shift,
                density_scale=config.density_scale,
            )
        case PyNeRFConfig():
            return pynerf.PyNeRF(
                heads=config.heads,
                factor=config.factor,
                levels=config.levels,
                channels=config.channels,
                coarsest=config.coarsest,
                finest=config.finest,
                log2_rows=config.log2_rows,
                tables=config.tables,
                blend=config.blend,
                width=config.width,
                feature_dim=config.feature_dim,
                color_width=config.color_width,
                color_layers=config.color_layers,
                direction_bands=config.direction_bands,
                density_shift=config.density_shift,
            )
        case CustomConfig():
            return base.load_field(config.source)
    assert_never(config)


def init_params(config: FieldConfig, stage: Stage, key: jax.Array) -> Params:
    """Fresh parameters of everything that the method trains."""
    field = make_field(config, stage)
    if not isinstance(config, SampledConfig):
        return field.init(key)
    if marches(config):
        return {"fine": field.init(key)}
    key_coarse, key_fine = jax.random.split(key)
    params = {"coarse": field.init(key_coarse)}
    return params | ({"fine": field.init(key_fine)} if config.fine_samples else {})


def label_params(params: Params) -> Params:
    """The optimiser group of every parameter: "grid" for planes, lines and tables, or "network"."""

    def label(path: tuple[Any, ...], _: Array) -> str:
        names = {getattr(part, "key", None) for part in path}
        return "grid" if names & {"planes", "lines", "table"} else "network"

    return jax.tree_util.tree_map_with_path(label, params)


def bind(
    field: Field,
    params: Params,
    grid: OccupancyGrid | None = None,
    key: jax.Array | None = None,
) -> RadianceFns:
    """A field with its parameters as callables for the renderer.

    Fields that fill the box of an occupancy grid, or pack their rows by it, need that too; those
    that are noisy while training then get a key.
    """
    if key is not None and getattr(field, "density_noise", None):
        # The same key serves to place samples.
        params = params | {"noise": jax.random.fold_in(key, 1)}
    if isinstance(field, voxels.Voxels):
        params = params | {"grid": grid}
    elif getattr(field, "in_box", False):
        assert grid is not None
        params = params | {"aabb": grid.aabb}
    return RadianceFns(
        density=lambda positions, radii: field.density(params, positions, radii),
        features=lambda latent: field.features(params, latent),
        color=lambda features, directions: field.color(params, features, directions),
    )


def step_length(
    config: FieldConfig, stage: Stage, aabb: Float[Array | np.ndarray, "2 3"]
) -> Float[Array, ""]:
    """Length of a step along a marching ray, in scene units.

    `step_ratio` mean voxels, or `march_steps` of them across the box.
    """
    if isinstance(config, SampledConfig):
        return jnp.linalg.norm(jnp.asarray(aabb[1] - aabb[0])) / config.march_steps
    points = 0 if isinstance(config, VoxelsConfig) else 1
    intervals = np.array(stage.resolution, np.float32) - points
    return config.step_ratio * jnp.mean((aabb[1] - aabb[0]) / intervals)


def _count_blocks(aabb: Float[np.ndarray, "2 3"], step: Float[Array, ""]) -> int:
    """Blocks of steps that reach across the whole box."""
    diagonal = float(np.linalg.norm(aabb[1] - aabb[0]))
    return math.ceil(diagonal / float(step) / BLOCK_STEPS) + 1


def _block_reach(config: FieldConfig, stage: Stage, aabb: Float[np.ndarray, "2 3"]) -> float:
    """Half a block of steps, in cells of the occupancy grid."""
    cell = float(np.min((aabb[1] - aabb[0]) / np.array(stage.cells)))
    return 0.5 * BLOCK_STEPS * float(step_length(config, stage, aabb)) / cell


def _learn(grid: OccupancyGrid, positions: Array, weights: Array) -> OccupancyGrid:
    """The occupancy grid after some samples were given weight."""
    match grid:
        case voxels.VoxelGrid():
            slots, _ = voxels.find_cells(grid, positions)
        case WatchedGrid():
            slots, _, _ = occ.find_slots(grid, positions)
        case _:
            return grid
    return occ.note_weights(grid, slots, jax.lax.stop_gradient(weights))


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
    if isinstance(config, SampledConfig) and not marches(config):
        levels = _coarse_to_fine(config, stage, params, grid, key, rays, background)
        last = levels[-1]
        return Prediction(
            rgb=tuple(level.rendering.rgb for level in levels),
            opacity=last.rendering.opacity,
            dropped=jnp.zeros(rays.near.shape, bool),
            samples=jnp.asarray(rays.near.size * samples_per_ray(config), jnp.int32),
            distortion=losses.distortion(last.weights, normalise_distances(rays, last.tdist)),
            grid=grid,
        )
    assert isinstance(grid, WatchedGrid | ProbedGrid)
    budgets = (stage.blocks, BLOCK_STEPS, stage.block_budget, stage.sample_budget)
    samples, marched = occ.march_to_samples(
        grid,
        grid.coarse,
        clip_to_aabb(rays, grid.aabb),
        jax.random.uniform(key, rays.near.shape),
        step_length(config, stage, grid.aabb),
        occ.Marching(*budgets),
    )
    rendering = render_packed_samples(
        _bind_fine(config, stage, params, grid, key),
        rays,
        samples,
        background,
        per_ray=config.shading == "per_ray",
        color_budget=stage.color_budget or None,
        color_threshold=_color_threshold(config),
    )
    positions, _ = sample_points(rays, samples)
    grid = _learn(grid, positions, rendering.weights)
    fitting = jnp.minimum(marched, rendering.fitting)
    index = samples.ray_indices
    edges = jnp.stack([samples.t_starts, samples.t_ends], axis=-1)
    near_to_far = jax.tree.map(lambda x: x[index], rays)
    starts, ends = jnp.moveaxis(normalise_distances(near_to_far, edges), -1, 0)
    return Prediction(
        rgb=(rendering.rgb,),
        opacity=rendering.opacity,
        dropped=jnp.arange(rays.near.size) >= fitting,
        samples=jnp.sum(samples.mask),
        distortion=losses.packed_distortion(rendering.weights, starts, ends, index, rays.near.size),
        grid=grid,
    )


def _bind_fine(
    config: FieldConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    key: jax.Array | None = None,
) -> RadianceFns:
    """The network that marching rays see."""
    inner = params["fine"] if isinstance(config, SampledConfig) else params
    return bind(make_field(config, stage), inner, grid, key)


def refresh(
    config: FieldConfig, stage: Stage, params: Params, grid: OccupancyGrid, key: jax.Array
) -> OccupancyGrid:
    """The occupancy grid after a training step: now and then its cells are probed."""
    if not isinstance(grid, ProbedGrid):
        return grid
    assert isinstance(config, SampledConfig)
    fns = _bind_fine(config, stage, params, grid)

    def probe(grid: ProbedGrid) -> ProbedGrid:
        return occ.probe_cells(
            grid,
            key,
            lambda positions: fns.density(positions, jnp.zeros(positions.shape[:1]))[0],
            step_length(config, stage, grid.aabb),
            grid.clock // config.occupancy_every,
            decay=config.occupancy_decay,
            threshold=config.occupancy_threshold,
            reach=stage.reach,
        )

    due = grid.clock % config.occupancy_every == 0
    probed: ProbedGrid = jax.lax.cond(due, probe, lambda grid: grid, grid)
    return dataclasses.replace(probed, clock=probed.clock + 1)


def samples_per_ray(config: SampledConfig) -> int:
    """Samples of a ray at which one of the two networks is evaluated."""
    fine = config.coarse_samples + config.fine_samples if config.fine_samples else 0
    return config.coarse_samples + fine


class _Level(NamedTuple):
    """What a network saw: its rendering, where its intervals lie, and their weights."""

    rendering: Rendering
    tdist: Float[Array, "r n_plus_1"]
    weights: Float[Array, "r n"]


def _coarse_to_fine(
    config: FieldConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    key: jax.Array | None,
    rays: Rays,
    background: Float[Array, "r 3"],
) -> list[_Level]:
    assert isinstance(config, SampledConfig)
    field = make_field(config, stage)
    key_coarse, key_fine = (None, None) if key is None else jax.random.split(key)
    clipped = clip_to_aabb(rays, grid.aabb)
    tdist = samplers.stratified(key_coarse, clipped, config.coarse_samples, config.spacing)
    per_ray = config.shading == "per_ray"

    def render(name: str, tdist: Array, key: jax.Array | None) -> _Level:
        fns = bind(field, params[name], grid, key)
        rendering, weights = render_samples(fns, rays, tdist, background, per_ray=per_ray)
        return _Level(rendering, tdist, weights)

    coarse = render("coarse", tdist, key_coarse)
    if not config.fine_samples:
        return [coarse]
    tdist = samplers.importance(key_fine, tdist, coarse.weights, config.fine_samples)
    return [coarse, render("fine", tdist, key_fine)]


def render_rays(
    config: FieldConfig,
    stage: Stage,
    samples: int,
    params: Params,
    grid: OccupancyGrid,
    rays: Rays,
    background: Float[Array, "3"],
    aabb: Float[Array, "2 3"] | None = None,
) -> Rendering:
    """Renders rays of batch shape (r,) without jitter, in blocks of at most `samples` samples.

    Only what lies in the box `aabb`, by default the grid's, is rendered; `stage.blocks` have to
    reach across it.
    """
    behind = jnp.broadcast_to(background, (*rays.near.shape, 3))
    if isinstance(config, SampledConfig) and not marches(config):
        return _coarse_to_fine(config, stage, params, grid, None, rays, behind)[-1].rendering
    assert isinstance(grid, WatchedGrid | ProbedGrid)
    clipped = clip_to_aabb(rays, grid.aabb if aabb is None else aabb)
    step = step_length(config, stage, grid.aabb)
    blocks = occ.find_blocks(grid.coarse, clipped, BLOCK_STEPS * step, stage.blocks)
    at_once = max(3 * samples // 8, BLOCK_STEPS)
    return render_blocks(
        _bind_fine(config, stage, params, grid),
        clipped,
        blocks,
        step,
        lambda positions: occ.lookup(grid, positions),
        behind,
        rays.far,
        steps=BLOCK_STEPS,
        at_once=max(samples // 8, 1),
        samples=at_once,
        per_ray=config.shading == "per_ray",
        color_budget=max(at_once // 3, 1) if stage.color_budget else None,
        color_threshold=_color_threshold(config),
    )


def fit_to_render(
    config: FieldConfig, stage: Stage, grid: OccupancyGrid, tight: bool
) -> tuple[Stage, Float[np.ndarray, "2 3"]]:
    """What of a stage matters to rendering, and the box to render.

    `tight` makes it the box of what is occupied and takes as few blocks as reach across it. Rays
    march through less so; but each pruning makes it another program.
    """
    box = np.asarray(grid.aabb)
    bare = Stage(
        resolution=stage.resolution,
        cells=stage.cells,
        rays=0,
        subrays=1,
        blocks=stage.blocks,
        color_budget=min(stage.color_budget, 1),
        table_rows=stage.table_rows,
    )
    if tight and marches(config):
        step = step_length(config, stage, grid.aabb)
        box = occ.occupied_aabb(grid).astype(np.float32)
        bare = dataclasses.replace(bare, blocks=_count_blocks(box, step))
    return bare, box


def _color_threshold(config: FieldConfig) -> float:
    return 0.0 if isinstance(config, VoxelsConfig) else config.color_threshold


def rays_at_once(config: TrainConfig) -> int:
    """Rays rendered at a time, such that `render_samples` samples of them fit into memory."""
    if not isinstance(config.field, SampledConfig) or marches(config.field):
        return config.render_samples
    return max(64, config.render_samples // samples_per_ray(config.field))


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
                (config.orthogonality_weight, tensorf.nonorthogonality),
            ]
            return sum((weight * term(params) for weight, term in terms if weight), zero)
        case PyNeRFConfig() if config.consistency_weight:
            field = make_field(config, stage)
            assert isinstance(field, pynerf.PyNeRF)
            unit = jax.random.uniform(key, (config.consistency_points, 3))
            inner = params["fine" if "fine" in params else "coarse"]
            return config.consistency_weight * pynerf.inconsistency(field, inner, unit)
        case SampledConfig():
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

    def when(fraction: float, settle_steps: int = 0) -> int:
        return max(progress.step_at(config, fraction), settle_steps)

    match config.field:
        case VoxelsConfig() as field:
            counts = [field.initial_resolution**3 * 8**i for i in range(_divisions(field) + 1)]
        case TensoRFConfig() as field:
            counts = [
                round(count)
                for count in np.geomspace(
                    field.initial_voxels, field.final_voxels, len(field.upsample_at) + 1
                )
            ]
        case SampledConfig():
            counts = []
        case _:
            assert_never(config.field)
    if not isinstance(config.field, SampledConfig):
        settle = config.field.settle_steps
        # A grid of another shape can be compiled ahead only once the first pruning has placed it.
        apart = settle if isinstance(config.field, TensoRFConfig) else 0
        for index, (at, count) in enumerate(
            zip(sorted(config.field.upsample_at), counts[1:], strict=False)
        ):
            # Two upsamplings never fall together.
            upsample[when(at, settle + apart * (2 * index + 1) + index)] = count
        prune = {when(at, settle) for at in config.field.prune_at}
    split = _subrays_from(config)
    subrays = config.subrays or 1
    steps = upsample.keys() | prune | ({split} if subrays > 1 else set())
    return [
        Growth(s, s in prune, upsample.get(s), subrays if s >= split else 1)
        for s in sorted(steps)
        if 0 < s < config.steps
    ]


def restarts(config: FieldConfig, growth: Growth) -> bool:
    """Whether rates and moments begin anew at a growth."""
    return getattr(config, "reset_rates", False) and growth.voxels is not None


def find_restart(config: TrainConfig, grown: int) -> float:
    """Progress at the last restart of the rates once all growths before step `grown` are done."""
    steps = [
        growth.step
        for growth in (plan_growth(config) if grown else [])
        if growth.step < grown and restarts(config.field, growth)
    ]
    return progress.progress_at(config, steps[-1]) if steps else 0.0


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
        case TensoRFConfig() as field:
            voxel = float(np.cbrt(np.prod(scene.aabb[1] - scene.aabb[0]) / field.final_voxels))
            subrays = 2 if voxel <= 1.25 * pixel else 1
        case SampledConfig():
            pass
        case _:
            assert_never(config.field)
    pass_samples = config.pass_samples
    if pass_samples is None and jax.default_backend() == "cpu":
        pass_samples = CACHED_SAMPLES
    return dataclasses.replace(config, subrays=config.subrays or subrays, pass_samples=pass_samples)


def _divisions(config: VoxelsConfig) -> int:
    """How often voxels are divided."""
    most = len(config.upsample_at)
    return most if config.divisions is None else min(config.divisions, most)


def _subrays_from(config: TrainConfig) -> int:
    return progress.step_at(config, config.subrays_from)


def first_stage(config: TrainConfig, aabb: Float[np.ndarray, "2 3"]) -> Stage:
    """The stage that training starts with."""
    subrays = (config.subrays or 1) if _subrays_from(config) <= 0 else 1
    resolution = cells = (1, 1, 1)
    table = (0, 0)
    box = aabb
    match config.field:
        case VoxelsConfig() as field:
            side = field.initial_resolution * 2 ** _divisions(field)
            resolution = cells = (side, side, side)
            shape = _count_cells(field.initial_resolution, aabb)
            table = (math.prod(n + 1 for n in shape) + 1, math.prod(shape) + 1)
            box = _cube(field, side, aabb)
        case TensoRFConfig() as field:
            resolution, cells = _fit_cells(field, field.initial_voxels, aabb)
        case SampledConfig() as field:
            if marches(field):
                cells = _count_cells(field.occupancy_cells, aabb)
        case _:
            assert_never(config.field)
    stage = Stage(resolution, cells, config.batch_rays, subrays)
    stage = dataclasses.replace(stage, table_rows=table[0], table_cells=table[1])
    return fit_batch(config, stage, box)


def describe_grid(config: FieldConfig, stage: Stage, grid: OccupancyGrid) -> str:
    """How fine the grid of a stage is, in words; nothing for fields without one."""
    match config:
        case VoxelsConfig():
            size = float(grid.aabb[1, 0] - grid.aabb[0, 0]) / grid.occupied.shape[0]
            return f"{int(jnp.sum(grid.occupied))} voxels of {size:.3g}"
        case TensoRFConfig():
            share = float(jnp.mean(grid.occupied * 1.0))
            return f"grid {'x'.join(str(n) for n in stage.resolution)}, {share:.1%} occupied"
        case SampledConfig():
            share = float(jnp.mean(grid.occupied * 1.0))
            return f"{share:.1%} of the box occupied" if marches(config) else ""
    assert_never(config)


def _count_cells(most: int, aabb: Float[np.ndarray, "2 3"]) -> tuple[int, int, int]:
    """Cubic cells along each side of a box, so many along the longest."""
    size = aabb[1] - aabb[0]
    voxel = size.max() / most
    x, y, z = (math.ceil(s / voxel - 1e-6) for s in size)
    return x, y, z


def _cube(
    config: VoxelsConfig, side: int, aabb: Float[np.ndarray, "2 3"]
) -> Float[np.ndarray, "2 3"]:
    """The box of side^3 cells of the first size from the low corner on."""
    length = (aabb[1] - aabb[0]).max() / config.initial_resolution * side
    return np.stack([aabb[0], aabb[0] + length])


def _fit_cells(
    config: TensoRFConfig, count: int, aabb: Float[np.ndarray, "2 3"]
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Resolution of so many voxels and of their occupancy grid."""
    cells = min(count, config.occupancy_voxels)
    return tensorf.fit_resolution(count, aabb), tensorf.fit_resolution(cells, aabb)


def init_grid(config: FieldConfig, stage: Stage, aabb: Float[np.ndarray, "2 3"]) -> OccupancyGrid:
    """The occupancy grid before the first step: everything in the box may be occupied."""
    match config:
        case VoxelsConfig():
            occupied = np.zeros(stage.cells, bool)
            x, y, z = _count_cells(config.initial_resolution, aabb)
            occupied[:x, :y, :z] = True
            cube = _cube(config, stage.cells[0], aabb)
            grid = voxels.number_cells(occupied, cube, _block_reach(config, stage, cube))
            return voxels.resize_grid(grid, stage.table_cells)
        case TensoRFConfig():
            full = occ.make_full_grid(stage.cells, jnp.asarray(aabb))
            return _watch(full, _block_reach(config, stage, aabb))
        case SampledConfig():
            full = occ.make_full_grid(stage.cells, jnp.asarray(aabb))
            return _begin_probing(full, stage.reach) if marches(config) else full
    assert_never(config)


_watch = jax.jit(occ.watch, static_argnums=1)
_begin_probing = jax.jit(occ.begin_probing, static_argnums=1)


def fit_batch(config: TrainConfig, stage: Stage, aabb: Float[np.ndarray, "2 3"]) -> Stage:
    """The stage with its budgets, for a grid on this box.

    Rays that do not fit into a budget are dropped, so their number follows it by itself.
    """
    stage = dataclasses.replace(stage, rays=_whole_pixels(config.batch_rays, stage))
    field = config.field
    if isinstance(field, SampledConfig) and not marches(field):
        samples = stage.rays * samples_per_ray(field)
        passes = math.ceil(samples / (config.pass_samples or samples))
        return dataclasses.replace(
            stage, passes=_divide_passes(stage.rays // stage.subrays**2, passes)
        )
    share = getattr(field, "color_share", 1.0)
    # A probed grid is coarser beside its steps, so that blocks hold less.
    blocks_per_sample = 6 if isinstance(field, SampledConfig) else 3
    return dataclasses.replace(
        stage,
        blocks=_count_blocks(aabb, step_length(field, stage, aabb)),
        block_budget=max(blocks_per_sample * config.batch_samples // BLOCK_STEPS, 1),
        sample_budget=config.batch_samples,
        color_budget=math.ceil(share * config.batch_samples) if share < 1.0 else 0,
        reach=_block_reach(field, stage, aabb) if isinstance(field, SampledConfig) else 0.0,
    )


def _divide_passes(pixels: int, wanted: int) -> int:
    """The fewest passes of equally many pixels, not fewer than wanted; one pixel each at most."""
    return next(n for n in range(min(wanted, pixels), pixels + 1) if pixels % n == 0)


def ask_less_memory(config: TrainConfig, stage: Stage) -> TrainConfig:
    """A configuration whose steps need about half the memory; the same if there is none.

    Where rays have a fixed number of samples, twice as many passes do; else there are half as many
    rays and samples in a step.
    """
    if isinstance(config.field, SampledConfig) and not marches(config.field):
        together = stage.rays // stage.passes * samples_per_ray(config.field)
        if _divide_passes(stage.rays // stage.subrays**2, 2 * stage.passes) == stage.passes:
            return config
        return dataclasses.replace(config, pass_samples=together // 2)
    if min(config.batch_rays, config.batch_samples // BLOCK_STEPS) < 2 * FEWEST_RAYS:
        return config
    rays, samples = config.batch_rays // 2, config.batch_samples // 2
    return dataclasses.replace(config, batch_rays=rays, batch_samples=samples)


def foresee_stage(
    config: TrainConfig, stage: Stage, growth: Growth, grid: OccupancyGrid
) -> Stage | None:
    """The stage that a growth leads to, if that can be told beforehand.

    It may turn out otherwise; it serves to compile ahead of time.
    """
    stage = dataclasses.replace(stage, subrays=growth.subrays)
    match config.field:
        case VoxelsConfig() | SampledConfig():
            return fit_batch(config, stage, np.asarray(grid.aabb))
        case TensoRFConfig() as field:
            if growth.voxels is not None and not stage.pruned:
                return None
            stage, aabb = _place_tensorf(field, stage, growth, grid)
            return fit_batch(config, stage, aabb)
    assert_never(config.field)


def shapes_stay(stage: Stage, ahead: Stage) -> bool:
    """Whether parameters and occupancy grid have the same shapes in both stages."""

    def shapes(stage: Stage) -> tuple[Any, ...]:
        return stage.resolution, stage.cells, stage.table_rows, stage.table_cells

    return shapes(stage) == shapes(ahead)


def _whole_pixels(rays: int, stage: Stage) -> int:
    """At most so many rays, but all those of at least one pixel."""
    parts = stage.subrays**2
    return max(rays // parts, 1) * parts


def grow(
    config: TrainConfig, stage: Stage, growth: Growth, params: Params, grid: OccupancyGrid
) -> tuple[Stage, OccupancyGrid, Callable[[Params], Params]]:
    """The stage and occupancy after a growth, and what carries parameters over to it."""
    stage = dataclasses.replace(stage, subrays=growth.subrays)
    carry_over: Callable[[Params], Params] = lambda tree: tree  # noqa: E731
    match config.field:
        case VoxelsConfig() as field:
            assert isinstance(grid, voxels.VoxelGrid)
            stage, grid, carry_over = _refine(field, stage, growth, grid)
        case TensoRFConfig() as field:
            assert isinstance(grid, WatchedGrid)
            stage, grid, carry_over = _grow_tensorf(field, stage, growth, params, grid)
        case SampledConfig():
            pass
        case _:
            assert_never(config.field)
    return fit_batch(config, stage, np.asarray(grid.aabb)), grid, carry_over


def _place_tensorf(
    config: TensoRFConfig, stage: Stage, growth: Growth, grid: OccupancyGrid
) -> tuple[Stage, Float[np.ndarray, "2 3"]]:
    """Stage and box after a growth: upsampling shrinks the box to what is occupied before it."""
    stage = dataclasses.replace(stage, pruned=stage.pruned or growth.prune)
    if growth.voxels is None:
        return stage, np.asarray(grid.aabb)
    box = occ.occupied_aabb(grid).astype(np.float32)
    resolution, cells = _fit_cells(config, growth.voxels, box)
    return dataclasses.replace(stage, resolution=resolution, cells=cells), box


def _grow_tensorf(
    config: TensoRFConfig, stage: Stage, growth: Growth, params: Params, grid: WatchedGrid
) -> tuple[Stage, OccupancyGrid, Callable[[Params], Params]]:
    if not growth.prune and growth.voxels is None:
        return stage, grid, lambda tree: tree
    pruned: OccupancyGrid = grid
    if growth.prune:
        pruned = _prune_tensorf(config, stage, params, grid)
    # After the first pruning the box is that of the one before, which is known beforehand.
    new_stage, box = _place_tensorf(config, stage, growth, grid if stage.pruned else pruned)
    if growth.voxels is not None:
        pruned = jax.jit(occ.resample_grid, static_argnums=1)(pruned, new_stage.cells, box)
    reach = _block_reach(config, new_stage, box)
    if growth.voxels is None:
        return new_stage, _watch(pruned, reach), lambda tree: tree

    def carry_over(tree: Params) -> Params:
        return _resample(tree, new_stage.resolution, grid.aabb, jnp.asarray(box))

    return new_stage, _watch(pruned, reach), carry_over


_resample = jax.jit(tensorf.resample, static_argnums=1)


def _prune_tensorf(
    config: TensoRFConfig, stage: Stage, params: Params, grid: WatchedGrid
) -> OccupancyGrid:
    if config.prune_by == "weight":
        seen = occ.recall_weights(grid).reshape(stage.cells) > config.prune_threshold
        kept = jax.jit(occ.dilate)(seen & grid.occupied) & grid.occupied
        return dataclasses.replace(grid, occupied=kept) if bool(kept.any()) else grid
    fns = bind(make_field(config, stage), params, grid)

    def density(positions: Array) -> Array:
        return fns.density(positions, jnp.zeros(positions.shape[:-1]))[0]

    step = step_length(config, stage, grid.aabb)
    return occ.update_from_density(grid, jax.jit(density), step, config.prune_threshold)


def _refine(
    config: VoxelsConfig, stage: Stage, growth: Growth, grid: voxels.VoxelGrid
) -> tuple[Stage, OccupancyGrid, Callable[[Params], Params]]:
    """Cells dropped and divided; the room is made larger only where it does not suffice."""
    if not growth.prune and growth.voxels is None:
        return stage, grid, lambda tree: tree
    keep = np.asarray(grid.occupied)
    if growth.prune:
        seen = np.asarray(occ.recall_weights(grid)) > config.prune_threshold
        seen = seen[np.asarray(grid.number)].reshape(keep.shape)
        matters = jax.jit(occ.dilate)(jnp.asarray(seen & keep))
        matters = np.asarray(matters) & keep
        keep = matters if matters.any() else keep
    divide = 1 if growth.voxels is None else 2
    reach = _block_reach(config, stage, np.asarray(grid.aabb))
    new, sources, weights = voxels.refine(grid, keep, divide, reach)
    rows = len(sources)
    stage = dataclasses.replace(
        stage,
        table_rows=_room(rows, stage.table_rows),
        table_cells=_room(int(new.count), stage.table_cells),
    )
    unused = ((0, stage.table_rows - rows), (0, 0))
    source, weight = jnp.asarray(np.pad(sources, unused)), jnp.asarray(np.pad(weights, unused))

    def carry_over(tree: Params) -> Params:
        return tree | {"table": _mix_rows(tree["table"], source, weight)}

    return stage, voxels.resize_grid(new, stage.table_cells), carry_over


@jax.jit
def _mix_rows(
    table: Float[Array, "old c"], source: Int[Array, "rows 8"], weight: Float[Array, "rows 8"]
) -> Float[Array, "rows c"]:
    return jnp.einsum("rk,rkc->rc", weight, table[source])


def _room(needed: int, present: int) -> int:
    """Room for so many: the present one unless it is too small or costs much for nothing.

    Another shape has to be compiled, and the optimiser updates every row, in use or not.
    """
    fitting = -(-needed * 5 // 4 // 4096) * 4096
    return present if needed <= present < fitting + ROOM_TO_SPARE else fitting
