"""How training goes in stages: their shapes and budgets, and how grids grow between them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrf.cameras import contraction
from jaxrf.data.scene import Scene, find_background
from jaxrf.fields import tensorf, voxels
from jaxrf.fields.base import Params
from jaxrf.models.methods import (
    STEPS_PER_BLOCK,
    Stage,
    make_field,
    marches,
    max_blocks_per_ray,
    samples_per_ray,
    step_length,
)
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import OccupancyGrid, WeightTrackedGrid
from jaxrf.training import schedule as progress
from jaxrf.training.config import (
    FieldConfig,
    SampledConfig,
    TensoRFConfig,
    TrainConfig,
    VoxelsConfig,
)

# Rows of a packed grid beyond those in use that are not worth a compilation.
CAPACITY_SLACK = 300_000
# Samples whose activations, in layers of 256, stay in the cache of a CPU.
CACHED_SAMPLES = 2048
# Fewer rays a step are not worth training with.
MIN_RAYS = 64
# By how many rays a voxel is to be met before it may be dropped for not having mattered.
MIN_RAYS_PER_VOXEL = 16


def _block_reach(config: FieldConfig, stage: Stage, aabb: Float[np.ndarray, "2 3"]) -> float:
    """Half a block of steps, in cells of the occupancy grid."""
    cell = float(np.min((aabb[1] - aabb[0]) / np.array(stage.cells)))
    cell = cell / contraction.MAX_MARCH_SPEED if config.contract else cell
    return 0.5 * STEPS_PER_BLOCK * float(step_length(config, stage, aabb)) / cell


class StageTransition(NamedTuple):
    """A change of the field between two stages.

    step: before which it happens.
    prune: whether empty cells are dropped and the box is shrunk.
    voxels: number of voxels from then on; None leaves them.
    supersample: per pixel along each axis, from then on.
    """

    step: int
    prune: bool
    voxels: int | None
    supersample: int


def _place_grid(config: FieldConfig, aabb: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 3"]:
    """The box that grids fill at the start: the scene's, or that of contracted space."""
    return contraction.contracted_aabb(aabb) if config.contract else aabb


def plan_transitions(config: TrainConfig) -> list[StageTransition]:
    """All growths of a run, in order, at most one before each step."""
    upsample: dict[int, int] = {}
    prune: set[int] = set()

    def when(fraction: float, min_steps_before_refine: int = 0) -> int:
        return max(progress.step_at(config, fraction), min_steps_before_refine)

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
        settle = config.field.min_steps_before_refine
        # A grid of another shape can be compiled ahead only once the first pruning has placed it.
        apart = settle if isinstance(config.field, TensoRFConfig) else 0
        for index, (at, count) in enumerate(
            zip(sorted(config.field.upsample_at), counts[1:], strict=False)
        ):
            # Two upsamplings never fall together.
            upsample[when(at, settle + apart * (2 * index + 1) + index)] = count
        prune = {when(at, settle) for at in config.field.prune_at}
    split = _subrays_from(config)
    supersample = config.supersample or 1
    steps = upsample.keys() | prune | ({split} if supersample > 1 else set())
    growths = [
        StageTransition(s, s in prune, upsample.get(s), supersample if s >= split else 1)
        for s in sorted(steps)
    ]
    if isinstance(config.field, VoxelsConfig):
        growths = _delay_pruning(growths, config.field.min_steps_before_prune)
    return [growth for growth in growths if 0 < growth.step < config.steps]


def _delay_pruning(
    growths: Sequence[StageTransition], min_steps_before_prune: Sequence[int]
) -> list[StageTransition]:
    """Growths late enough that voxels were looked at for so many steps before any are dropped.

    `min_steps_before_prune` is that with voxels of each size.
    """
    waiting: list[StageTransition] = []
    last = size = 0
    for growth in growths:
        wait = (
            min_steps_before_prune[min(size, len(min_steps_before_prune) - 1)]
            if growth.prune and min_steps_before_prune
            else 0
        )
        # What would now be due at once goes into one, but for num_subdivisions: there is one at a time.
        wait = max(wait, int(growth.voxels is not None))
        last = max(growth.step, last + wait)
        size += growth.voxels is not None
        growth = growth._replace(step=last)
        if waiting and waiting[-1].step == last:
            before = waiting.pop()
            growth = StageTransition(
                last,
                before.prune or growth.prune,
                before.voxels,
                max(before.supersample, growth.supersample),
            )
        waiting.append(growth)
    return waiting


def _min_steps_before_prune(
    num_subdivisions: int, voxel: float, pixel: float, rays: float
) -> tuple[int, ...]:
    """Steps until a voxel that pictures show was met by some rays, for each size of voxels.

    Args:
      num_subdivisions: how often voxels are divided.
      voxel: side of the largest, in scene units.
      pixel: size of a pixel where the scene is.
      rays: of a step, as a share of a picture's pixels.
    """
    sides = [voxel / 2**division / pixel for division in range(num_subdivisions + 1)]
    # A voxel covers so many pixels of each picture that shows it.
    return tuple(math.ceil(MIN_RAYS_PER_VOXEL / (rays * side**2)) for side in sides)


def resets_lr(config: FieldConfig, growth: StageTransition) -> bool:
    """Whether rates and moments begin anew at a growth."""
    return getattr(config, "reset_lr", False) and growth.voxels is not None


def last_lr_reset(config: TrainConfig, grown: int) -> float:
    """Progress at the last restart of the rates once all growths before step `grown` are done."""
    steps = [
        growth.step
        for growth in (plan_transitions(config) if grown else [])
        if growth.step < grown and resets_lr(config.field, growth)
    ]
    return progress.progress_at(config, steps[-1]) if steps else 0.0


def resolve_config(config: TrainConfig, scene: Scene) -> TrainConfig:
    """The configuration with what it leaves open settled for a scene.

    Random backgrounds are for pictures that are transparent there: before a plain colour that all
    pictures show, that colour is what is behind.
    """
    cameras = scene.splits["train"].cameras
    if config.background == "random" and not scene.unbounded and cameras.ndc is None:
        plain = find_background(scene.splits["train"].images)
        config = dataclasses.replace(config, background=plain or "random")
    centre = np.mean(scene.aabb, axis=0)
    distance = np.linalg.norm(np.asarray(cameras.T_world_camera)[:, :3, 3] - centre, axis=-1)
    pixel = float(np.mean(distance) / np.mean(np.asarray(cameras.focal)))
    if cameras.ndc is not None:
        # There a picture is two wide, wherever its camera stands.
        pixel = 2.0 / math.sqrt(cameras.width * cameras.height)
    supersample = 1
    settled: Any = config.field
    if settled.contract is None:
        settled = dataclasses.replace(settled, contract=scene.unbounded)
    if settled.appearance_dim:
        pictures = len(scene.splits["train"])
        settled = dataclasses.replace(settled, num_appearances=pictures)
    config = dataclasses.replace(config, field=settled)
    box = _place_grid(config.field, scene.aabb)
    schedule = tuple(
        (at if at < 1.0 else at / config.steps, factor)
        for at, factor in config.train_scale_schedule
    )
    config = dataclasses.replace(config, train_scale_schedule=schedule)
    match config.field:
        case VoxelsConfig() as field:
            voxel = float(np.max(np.diff(box, axis=0))) / field.initial_resolution
            num_subdivisions = field.num_subdivisions
            if num_subdivisions is None:
                wanted = round(math.log2(max(voxel / pixel, 1.0)))
                # In NDC, surfaces fill the whole box.
                most = len(field.upsample_at) if cameras.ndc is None else 1
                num_subdivisions = min(wanted, most, len(field.upsample_at))
            threshold = field.prune_threshold
            if threshold is None:
                threshold = 0.05 if cameras.ndc is None else 0.01
            rays = config.batch_rays / (cameras.width * cameras.height)
            field = dataclasses.replace(
                field,
                num_subdivisions=num_subdivisions,
                prune_threshold=threshold,
                min_steps_before_prune=field.min_steps_before_prune
                or _min_steps_before_prune(num_subdivisions, voxel, pixel, rays),
            )
            config = dataclasses.replace(config, field=field)
            supersample = 2 if voxel / 2**num_subdivisions <= 1.25 * pixel else 1
        case TensoRFConfig() as field:
            voxel = float(np.cbrt(np.prod(box[1] - box[0]) / field.final_voxels))
            supersample = 2 if voxel <= 1.25 * pixel else 1
        case SampledConfig():
            pass
        case _:
            assert_never(config.field)
    microbatch_samples = config.microbatch_samples
    if microbatch_samples is None and jax.default_backend() == "cpu":
        microbatch_samples = CACHED_SAMPLES
    return dataclasses.replace(
        config, supersample=config.supersample or supersample, microbatch_samples=microbatch_samples
    )


def _divisions(config: VoxelsConfig) -> int:
    """How often voxels are divided."""
    most = len(config.upsample_at)
    return most if config.num_subdivisions is None else min(config.num_subdivisions, most)


def _subrays_from(config: TrainConfig) -> int:
    return progress.step_at(config, config.supersample_from)


def first_stage(config: TrainConfig, aabb: Float[np.ndarray, "2 3"], devices: int = 1) -> Stage:
    """The stage that training on so many devices starts with, in a scene of this box."""
    bounds = aabb if config.field.contract else None
    aabb = _place_grid(config.field, aabb)
    supersample = (config.supersample or 1) if _subrays_from(config) <= 0 else 1
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
                cells = _count_cells(field.occupancy_resolution, aabb)
        case _:
            assert_never(config.field)
    shards = config.shards or devices
    stage = Stage(resolution, cells, config.batch_rays, supersample, shards)
    stage = dataclasses.replace(stage, table_rows=table[0], table_cells=table[1])
    return set_budgets(config, stage, box, bounds)


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
    """The occupancy grid before the first step: everything in the scene's box may be occupied."""
    bounds = jnp.asarray(aabb, jnp.float32) if config.contract else None
    aabb = _place_grid(config, aabb)
    match config:
        case VoxelsConfig():
            occupied = np.zeros(stage.cells, bool)
            x, y, z = _count_cells(config.initial_resolution, aabb)
            occupied[:x, :y, :z] = True
            cube = _cube(config, stage.cells[0], aabb)
            grid = voxels.index_cells(occupied, cube, _block_reach(config, stage, cube), bounds)
            return voxels.pad_grid(grid, stage.table_cells)
        case TensoRFConfig():
            full = occupancy.make_full_grid(stage.cells, jnp.asarray(aabb), bounds)
            return _watch(full, _block_reach(config, stage, aabb))
        case SampledConfig():
            full = occupancy.make_full_grid(stage.cells, jnp.asarray(aabb), bounds)
            return _init_density_ema(full, stage.reach) if marches(config) else full
    assert_never(config)


def watch_grid(config: FieldConfig, stage: Stage, grid: OccupancyGrid) -> WeightTrackedGrid:
    """A grid of known cells to march through with a stage's steps."""
    return _watch(grid, _block_reach(config, stage, np.asarray(grid.aabb)))


_watch = jax.jit(occupancy.watch, static_argnums=1)
_init_density_ema = jax.jit(occupancy.init_density_ema, static_argnums=1)


def set_budgets(
    config: TrainConfig,
    stage: Stage,
    aabb: Float[np.ndarray, "2 3"],
    bounds: Float[np.ndarray | Array, "2 3"] | None = None,
) -> Stage:
    """The stage with its budgets, for a grid on this box with these bounds.

    Rays that do not fit into a budget are dropped, so their number follows it by itself.
    """
    stage = dataclasses.replace(stage, rays=_whole_pixels(config.batch_rays, stage))
    field = config.field
    if isinstance(field, SampledConfig) and not marches(field):
        samples = stage.rays // stage.shards * samples_per_ray(field)
        passes = math.ceil(samples / (config.microbatch_samples or samples))
        return dataclasses.replace(stage, passes=_divide_passes(_count_pixels(stage), passes))
    share = getattr(field, "max_shaded_fraction", 1.0)
    # A probed grid is coarser beside its steps, so that blocks hold less.
    blocks_per_sample = 6 if isinstance(field, SampledConfig) else 3
    return dataclasses.replace(
        stage,
        blocks=max_blocks_per_ray(aabb, step_length(field, stage, aabb), bounds),
        block_budget=max(blocks_per_sample * config.batch_samples // STEPS_PER_BLOCK, 1),
        sample_budget=config.batch_samples,
        color_budget=math.ceil(share * config.batch_samples) if share < 1.0 else 0,
        reach=_block_reach(field, stage, aabb) if isinstance(field, SampledConfig) else 0.0,
    )


def share_among(config: TrainConfig, stage: Stage, grid: OccupancyGrid, devices: int) -> Stage:
    """The stage with its rays shared among so many devices."""
    shards = config.shards or devices
    if shards == stage.shards:
        return stage
    stage = dataclasses.replace(stage, shards=shards)
    return set_budgets(config, stage, np.asarray(grid.aabb), grid.bounds)


def divide(stage: Stage) -> Stage:
    """The stage as one pass of one shard sees it, with its share of rays and budgets."""
    budgets = ("block_budget", "sample_budget", "color_budget")
    shares = {name: math.ceil(getattr(stage, name) / stage.shards) for name in budgets}
    return dataclasses.replace(stage, rays=stage.rays // (stage.shards * stage.passes), **shares)


def _count_pixels(stage: Stage) -> int:
    """Pixels of a shard."""
    return stage.rays // stage.supersample**2 // stage.shards


def _divide_passes(pixels: int, wanted: int) -> int:
    """The fewest passes of equally many pixels, not fewer than wanted; one pixel each at most."""
    return next(n for n in range(min(wanted, pixels), pixels + 1) if pixels % n == 0)


def halve_batch(config: TrainConfig, stage: Stage) -> TrainConfig:
    """A configuration whose steps need about half the memory; the same if there is none.

    Where rays have a fixed number of samples, twice as many passes do; else there are half as many
    rays and samples in a step.
    """
    if isinstance(config.field, SampledConfig) and not marches(config.field):
        together = divide(stage).rays * samples_per_ray(config.field)
        if _divide_passes(_count_pixels(stage), 2 * stage.passes) == stage.passes:
            return config
        return dataclasses.replace(config, microbatch_samples=together // 2)
    if min(config.batch_rays, config.batch_samples // STEPS_PER_BLOCK) < 2 * MIN_RAYS:
        return config
    rays, samples = config.batch_rays // 2, config.batch_samples // 2
    return dataclasses.replace(config, batch_rays=rays, batch_samples=samples)


def predict_next_stage(
    config: TrainConfig, stage: Stage, growth: StageTransition, grid: OccupancyGrid
) -> Stage | None:
    """The stage that a growth leads to, if that can be told beforehand.

    It may turn out otherwise; it serves to compile ahead of time.
    """
    stage = dataclasses.replace(stage, supersample=growth.supersample)
    match config.field:
        case VoxelsConfig() | SampledConfig():
            return set_budgets(config, stage, np.asarray(grid.aabb), grid.bounds)
        case TensoRFConfig() as field:
            if growth.voxels is not None and not stage.pruned:
                return None
            stage, aabb = _place_tensorf(field, stage, growth, grid)
            return set_budgets(config, stage, aabb, grid.bounds)
    assert_never(config.field)


def canonical_stage(config: FieldConfig, stage: Stage) -> Stage:
    """The stage as its steps see it: whether cells were pruned matters to one penalty alone."""
    if isinstance(config, TensoRFConfig) and config.l1_weight != config.l1_weight_pruned:
        return stage
    return dataclasses.replace(stage, pruned=False)


def predict_next_stages(
    config: TrainConfig, stage: Stage, growths: Sequence[StageTransition], grid: OccupancyGrid
) -> list[Stage]:
    """The stages that growths lead to, as far as that can be told beforehand, in order.

    Stages may be short, and to compile the next one takes longer than to train some of them.
    """
    found: list[Stage] = []
    ahead, pruned = stage, False
    for growth in growths:
        # A grid is reshaped by what the prunings before leave of it.
        following = None
        if growth.voxels is None or not pruned:
            following = predict_next_stage(config, ahead, growth, grid)
        if following is None:
            break
        found.append(following)
        if not same_shapes(ahead, following):
            break
        ahead, pruned = following, pruned or growth.prune
    return found


def same_shapes(stage: Stage, ahead: Stage) -> bool:
    """Whether parameters and occupancy grid have the same shapes in both stages."""

    def shapes(stage: Stage) -> tuple[Any, ...]:
        return stage.resolution, stage.cells, stage.table_rows, stage.table_cells

    return shapes(stage) == shapes(ahead)


def _whole_pixels(rays: int, stage: Stage) -> int:
    """At most so many rays, but all those of at least one pixel in each shard."""
    parts = stage.supersample**2 * stage.shards
    return max(rays // parts, 1) * parts


def grow(
    config: TrainConfig, stage: Stage, growth: StageTransition, params: Params, grid: OccupancyGrid
) -> tuple[Stage, OccupancyGrid, Callable[[Params], Params]]:
    """The stage and occupancy after a growth, and what carries parameters over to it."""
    stage = dataclasses.replace(stage, supersample=growth.supersample)
    carry_over: Callable[[Params], Params] = lambda tree: tree  # noqa: E731
    match config.field:
        case VoxelsConfig() as field:
            assert isinstance(grid, voxels.VoxelGrid)
            stage, grid, carry_over = _refine(field, stage, growth, grid)
        case TensoRFConfig() as field:
            assert isinstance(grid, WeightTrackedGrid)
            stage, grid, carry_over = _grow_tensorf(field, stage, growth, params, grid)
        case SampledConfig():
            pass
        case _:
            assert_never(config.field)
    return set_budgets(config, stage, np.asarray(grid.aabb), grid.bounds), grid, carry_over


def _place_tensorf(
    config: TensoRFConfig, stage: Stage, growth: StageTransition, grid: OccupancyGrid
) -> tuple[Stage, Float[np.ndarray, "2 3"]]:
    """Stage and box after a growth: upsampling shrinks the box to what is occupied before it."""
    stage = dataclasses.replace(stage, pruned=stage.pruned or growth.prune)
    if growth.voxels is None:
        return stage, np.asarray(grid.aabb)
    # All of contracted space is one box, which does not shrink.
    box = np.asarray(grid.aabb)
    if grid.bounds is None:
        box = occupancy.occupied_aabb(grid).astype(np.float32)
    resolution, cells = _fit_cells(config, growth.voxels, box)
    return dataclasses.replace(stage, resolution=resolution, cells=cells), box


def _grow_tensorf(
    config: TensoRFConfig,
    stage: Stage,
    growth: StageTransition,
    params: Params,
    grid: WeightTrackedGrid,
) -> tuple[Stage, OccupancyGrid, Callable[[Params], Params]]:
    if not growth.prune and growth.voxels is None:
        return stage, grid, lambda tree: tree
    pruned: OccupancyGrid = grid
    if growth.prune:
        pruned = _prune_tensorf(config, stage, params, grid)
    # After the first pruning the box is that of the one before, which is known beforehand.
    new_stage, box = _place_tensorf(config, stage, growth, grid if stage.pruned else pruned)
    if growth.voxels is not None:
        pruned = jax.jit(occupancy.resample_grid, static_argnums=1)(pruned, new_stage.cells, box)
    reach = _block_reach(config, new_stage, box)
    if growth.voxels is None:
        return new_stage, _watch(pruned, reach), lambda tree: tree

    def carry_over(tree: Params) -> Params:
        return _resample(tree, new_stage.resolution, grid.aabb, jnp.asarray(box))

    return new_stage, _watch(pruned, reach), carry_over


_resample = jax.jit(tensorf.resample, static_argnums=1)


def _prune_tensorf(
    config: TensoRFConfig, stage: Stage, params: Params, grid: WeightTrackedGrid
) -> OccupancyGrid:
    if config.prune_by == "weight":
        seen = occupancy.decayed_max_weights(grid).reshape(stage.cells) > config.prune_threshold
        kept = jax.jit(occupancy.dilate)(seen & grid.occupied) & grid.occupied
        return dataclasses.replace(grid, occupied=kept) if bool(kept.any()) else grid
    # The published threshold is for the density before its factor.
    bare = make_field(dataclasses.replace(config, density_scale=1.0), stage)
    inner = params | {"aabb": grid.aabb}

    def density(positions: Array) -> Array:
        return bare.density(inner, positions, jnp.zeros(positions.shape[:-1]))[0]

    step = step_length(config, stage, grid.aabb)
    return occupancy.update_from_density(grid, jax.jit(density), step, config.prune_threshold)


def _refine(
    config: VoxelsConfig, stage: Stage, growth: StageTransition, grid: voxels.VoxelGrid
) -> tuple[Stage, OccupancyGrid, Callable[[Params], Params]]:
    """Cells dropped and divided; the room is made larger only where it does not suffice."""
    if not growth.prune and growth.voxels is None:
        return stage, grid, lambda tree: tree
    keep = np.asarray(grid.occupied)
    if growth.prune:
        assert config.prune_threshold is not None
        seen = np.asarray(occupancy.decayed_max_weights(grid)) > config.prune_threshold
        seen = seen[np.asarray(grid.number)].reshape(keep.shape)
        matters = jax.jit(occupancy.dilate)(jnp.asarray(seen & keep))
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

    return stage, voxels.pad_grid(new, stage.table_cells), carry_over


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
    return present if needed <= present < fitting + CAPACITY_SLACK else fitting
