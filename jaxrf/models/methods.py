"""What a configuration trains: its field, and how its rays are sampled and rendered.

Here and in `stages` the union of field configurations is taken apart.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrf.cameras import contraction
from jaxrf.core import rngs
from jaxrf.core.errors import InputError
from jaxrf.core.rays import ConicalFrusta, Rays, clip_to_aabb, normalise_distances
from jaxrf.fields import base, hashgrid, nerf, pynerf, tensorf, voxels
from jaxrf.fields.base import Field, Params
from jaxrf.rendering.volume import (
    LegacyRenderOptions,
    RadianceFns,
    Rendering,
    compute_proposal_weights,
    march_and_render,
    render_packed,
    render_samples,
    sample_points,
)
from jaxrf.sampling import intervals as samplers
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import DensityEmaGrid, OccupancyGrid, PackedSamples, WeightTrackedGrid
from jaxrf.training import losses
from jaxrf.training.config import (
    BitNeRFConfig,
    CustomConfig,
    FieldConfig,
    HashGridConfig,
    NeRFConfig,
    PyNeRFConfig,
    RayConvention,
    SampledConfig,
    TensoRFConfig,
    TrainConfig,
    VoxelsConfig,
)

# Share of a box's size within which what lies on its border is in it, whatever rounding says.
AABB_EPS = 3e-6
# Steps of a block that is marched over as a whole where nothing is near.
STEPS_PER_BLOCK = 8


@dataclasses.dataclass(frozen=True)
class Stage:
    """The static shapes of training between two growths; kept with every checkpoint.

    Attributes:
      resolution: grid points along x, y, z; of no meaning to fields without a grid.
      cells: of the occupancy grid.
      rays: per step, the sub-rays of its pixels.
      supersample: per pixel, along each axis.
      shards: into which a step's rays are cut, to be computed on as many devices.
      passes: in which the gradient of a shard's rays is computed, one after the other.
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
    supersample: int
    shards: int = 1
    passes: int = 1
    blocks: int = 0
    block_budget: int = 0
    sample_budget: int = 0
    color_budget: int = 0
    reach: float = 0.0
    pruned: bool = False
    table_rows: int = 0
    table_cells: int = 0


# What is added to features seen from cameras.
Looks = Callable[[Int[Array, "m"]], Float[Array, "_ k"]]


class Prediction(NamedTuple):
    """What a training step needs of rendered rays.

    rgb: one (r, 3) per network that is to match the truth, the last being the result.
    opacity: (r,) of the last.
    dropped: (r,) rays that overflowed the sample budget.
    samples: how many samples the field was evaluated at.
    distortion: (r,) of the last, distances being 0 at near and 1 at far.
    missed: (r,) what proposals missed, if there are any.
    grid: the occupancy grid with what the rays taught it.
    """

    rgb: tuple[Float[Array, "r 3"], ...]
    opacity: Float[Array, "r"]
    dropped: Bool[Array, "r"]
    samples: Int[Array, ""]
    distortion: Float[Array, "r"]
    missed: Float[Array, "r"]
    grid: OccupancyGrid


def marches(config: FieldConfig) -> bool:
    """Whether rays march through an occupancy grid, such that samples are packed."""
    return not isinstance(config, SampledConfig) or config.sampler == "occupancy"


def make_field(config: FieldConfig, stage: Stage) -> Field:
    """The field's spec at a stage."""
    match config:
        case VoxelsConfig():
            return _make_spec(voxels.Voxels, config, table_rows=stage.table_rows)
        case TensoRFConfig():
            own = {"resolution": stage.resolution, "color_by": config.color}
            return _make_spec(tensorf.TensoRF, config, **own)
        case NeRFConfig() | BitNeRFConfig():
            return _make_spec(nerf.NeRF, config, ternary=isinstance(config, BitNeRFConfig))
        case HashGridConfig():
            return _make_spec(hashgrid.HashGrid, config)
        case PyNeRFConfig():
            return _make_spec(pynerf.PyNeRF, config)
        case CustomConfig():
            return base.load_field(config.source)
    assert_never(config)


def _make_spec(spec: type[Any], config: FieldConfig, **own: Any) -> Any:
    """A spec whose numbers are those of the same name in the configuration, and its own ones."""
    names = (field.name for field in dataclasses.fields(spec))
    shared = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return spec(**shared | own)


def make_proposals(config: SampledConfig) -> list[hashgrid.HashGrid]:
    """The small fields of which only the density is used, to say where samples are wanted."""
    return [
        hashgrid.HashGrid(
            levels=5,
            coarsest=16,
            finest=max(cells, 16),
            log2_hashmap_size=17,
            width=16,
            feature_dim=1,
            color_layers=0,
        )
        for cells in config.proposal_resolutions[: len(config.num_proposal_samples)]
    ]


def init_params(config: FieldConfig, stage: Stage, key: jax.Array) -> Params:
    """Fresh parameters of everything that the method trains."""
    params = _init_fields(config, stage, key)
    if not config.appearance_dim:
        return params
    # Fields split the key itself.
    key_matrix = jax.random.fold_in(key, 0)
    channels = appearance_channels(make_field(config, stage))
    matrix = jax.random.normal(key_matrix, (config.appearance_dim, channels))
    return params | {
        "appearance": {
            # Pictures look alike at first.
            "codes": jnp.zeros((config.num_appearances or 1, config.appearance_dim)),
            "matrix": matrix / math.sqrt(config.appearance_dim),
        }
    }


def appearance_channels(field: Field) -> int:
    """Of a field's features, the first so many to which a picture's appearance is added."""
    match field:
        case nerf.NeRF():
            return field.width
        case pynerf.PyNeRF():
            return field.feature_dim * (field.heads if field.blend == "results" else 1)
        case _ if isinstance(channels := getattr(field, "feature_dim", None), int):
            return channels
    raise InputError(
        f"The field {type(field).__name__} has no feature_dim, the number of its features: give it "
        "one, or leave --field.appearance-dim at 0."
    )


def _init_fields(config: FieldConfig, stage: Stage, key: jax.Array) -> Params:
    field = make_field(config, stage)
    if not isinstance(config, SampledConfig):
        return field.init(key)
    if marches(config):
        return {"fine": field.init(key)}
    if config.sampler == "proposal":
        key_fine, *others = jax.random.split(key, 1 + len(config.num_proposal_samples))
        proposals = zip(make_proposals(config), others, strict=True)
        return {"fine": field.init(key_fine), "proposals": tuple(p.init(k) for p, k in proposals)}
    key_coarse, key_fine = jax.random.split(key)
    params = {"coarse": field.init(key_coarse)}
    return params | ({"fine": field.init(key_fine)} if config.num_fine_samples else {})


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
    noise: Float[Array, "m"] | None = None,
    looks: Looks | None = None,
    parts: int = 1,
) -> RadianceFns:
    """A field with its parameters as callables for the renderer.

    Fields that fill the box of an occupancy grid, or pack their rows by it, need that too. With a
    grid of contracted space any field is one of that space, though its density stays one per length
    in the scene. `noise` are standard normal numbers for the samples that densities are asked for
    at, where that is noisy; `looks` are what is added to features, by the camera they are seen
    from. In several `parts` the samples are computed one part after the other, see `checkpoint_in_chunks`.
    """
    if isinstance(field, voxels.Voxels):
        params = params | {"grid": grid}
    elif getattr(field, "needs_aabb", False):
        assert grid is not None
        params = params | {"aabb": grid.aabb}

    whole = getattr(field, "uses_gaussians", False)

    def density(positions: Array, frusta: ConicalFrusta, noise: Array | None) -> tuple[Array, Any]:
        inner = params if noise is None else params | {"noise": noise}
        if grid is None or grid.bounds is None:
            return field.density(inner, positions, frusta if whole else frusta.radii)
        # Bent cones have no simple form: there a sample is as long as it is wide.
        radii = contraction.contract_radii(frusta.radii, positions, grid.bounds)
        positions = contraction.contract(positions, grid.bounds)
        return field.density(inner, positions, radii)

    def color(features: Array, directions: Array, camera_index: Array) -> Array:
        if looks is not None:
            offset = looks(camera_index)
            features = features.astype(offset.dtype).at[:, : offset.shape[-1]].add(offset)
        return field.color(params, features, directions)

    def features(latent: Any) -> Array:
        return field.features(params, latent)

    density_in_parts = checkpoint_in_chunks(density, parts)
    return RadianceFns(
        lambda positions, frusta: density_in_parts(positions, frusta, noise),
        checkpoint_in_chunks(features, parts),
        checkpoint_in_chunks(color, parts),
    )


def crop(fns: RadianceFns, box: Float[Array, "2 3"] | None) -> RadianceFns:
    """A field without all that is outside of a box (2, 3) in the scene; None leaves it whole."""
    if box is None:
        return fns

    def density(positions: Array, frusta: ConicalFrusta) -> tuple[Array, Any]:
        found, latent = fns.density(positions, frusta)
        return jnp.where(in_aabb(positions, box), found, 0.0), latent

    return fns._replace(density=density)


def clamp_to_aabb(
    positions: Float[Array, "*batch 3"], aabb: Float[Array, "2 3"], depth: float = 0.0
) -> Float[Array, "*batch 3"]:
    """Positions of which those that rounding may have put just outside of a box are in it.

    They are put on its border, or inside by a share `depth` of the box's size.
    """
    low, high = (side.reshape((1,) * (positions.ndim - 1) + (3,)) for side in aabb)
    spare = AABB_EPS * (high - low)
    close = jnp.all((positions >= low - spare) & (positions <= high + spare), axis=-1)
    inwards = depth * (high - low)
    inside = jnp.clip(positions, low + inwards, high - inwards)
    return jnp.where(close[..., None], inside, positions)


def in_aabb(positions: Float[Array, "*batch 3"], box: Float[Array, "2 3"]) -> Bool[Array, "*batch"]:
    """Which positions are in a box, its border included."""
    low, high = (side.reshape((1,) * (positions.ndim - 1) + (3,)) for side in box)
    return jnp.all((positions >= low) & (positions <= high), axis=-1)


def checkpoint_in_chunks(fn: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """A function of arrays that begin with samples, computed part by part, twice for a gradient.

    What is between arguments and results is not remembered until the gradient asks for it, but
    computed again, a part at a time (Chen et al. 2016, "Training deep nets with sublinear memory
    cost"). In one part it is the function itself.
    """
    if parts == 1:
        return fn

    def apply(*arguments: Any) -> Any:
        count = jax.tree.leaves(arguments)[0].shape[0]
        size = -(-count // parts)

        def cut(x: Array) -> Array:
            rest = ((0, parts * size - count), *((0, 0),) * (x.ndim - 1))
            return jnp.pad(x, rest, mode="edge").reshape(parts, size, *x.shape[1:])

        again = jax.checkpoint(lambda part: fn(*part))
        found = jax.lax.map(again, jax.tree.map(cut, arguments))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)

    return apply


def make_appearance_fn(config: FieldConfig, params: Params, mean: bool) -> Looks | None:
    """What pictures add to features: each its own, or the mean of all; None if nothing.

    A linear map of a code for each picture (Martin-Brualla et al. 2021, section 4.1, whose network
    takes the code itself).
    """
    if not config.appearance_dim:
        return None
    codes, matrix = (params["appearance"][name] for name in ("codes", "matrix"))
    if mean:
        average = jnp.mean(codes, axis=0, keepdims=True) @ matrix
        return lambda camera_index: average
    return lambda camera_index: codes[camera_index] @ matrix


def step_length(
    config: FieldConfig, stage: Stage, aabb: Float[Array | np.ndarray, "2 3"]
) -> Float[Array, ""]:
    """Length of a step along a marching ray, in scene units.

    `step_ratio` mean voxels, or `max_steps` of them across the box.
    """
    if isinstance(config, SampledConfig):
        return jnp.linalg.norm(jnp.asarray(aabb[1] - aabb[0])) / config.max_steps
    points = 0 if isinstance(config, VoxelsConfig) else 1
    intervals = np.array(stage.resolution, np.float32) - points
    return config.step_ratio * jnp.mean((aabb[1] - aabb[0]) / intervals)


def max_blocks_per_ray(
    aabb: Float[np.ndarray, "2 3"],
    step: Float[Array, ""],
    bounds: Float[np.ndarray | Array, "2 3"] | None = None,
) -> int:
    """Blocks of steps that reach across the whole box, or to the end of contracted space."""
    far = contraction.MAX_MARCH_DIAGONALS if bounds is not None else 1.0
    box = aabb if bounds is None else bounds
    diagonal = float(np.linalg.norm(np.asarray(box[1] - box[0])))
    return math.ceil(far * diagonal / float(step) / STEPS_PER_BLOCK) + 1


def _learn(grid: OccupancyGrid, positions: Array, weights: Array) -> OccupancyGrid:
    """The occupancy grid after some samples were given weight."""
    positions = occupancy.contract_positions(grid, positions)
    match grid:
        case voxels.VoxelGrid():
            slots, _ = voxels.find_cells(grid, positions)
        case WeightTrackedGrid():
            slots, _, _ = occupancy.cell_index(grid, positions)
        case _:
            return grid
    return occupancy.record_weights(grid, slots, jax.lax.stop_gradient(weights))


def predict(
    config: FieldConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    key: jax.Array,
    rays: Rays,
    background: Float[Array, "r 3"],
) -> Prediction:
    """Renders a training batch with jittered samples; differentiable in the parameters.

    The key is one for all rays or one for each.
    """
    if isinstance(config, SampledConfig) and not marches(config):
        levels, proposed = _sample(config, stage, params, grid, key, rays, background)
        last = levels[-1]
        missed = (
            losses.interlevel(last.tdist, last.weights, tdist, weights)
            for tdist, weights in proposed
        )
        return Prediction(
            rgb=tuple(level.rendering.rgb for level in levels),
            missed=sum(missed, jnp.zeros(rays.near.shape)),
            opacity=last.rendering.opacity,
            dropped=jnp.zeros(rays.near.shape, bool),
            samples=jnp.asarray(rays.near.size * samples_per_ray(config), jnp.int32),
            distortion=losses.distortion(
                last.weights,
                normalise_distances(
                    rays if grid.bounds is None else occupancy.to_marched_rays(grid, rays),
                    last.tdist,
                ),
            ),
            grid=grid,
        )
    assert isinstance(grid, WeightTrackedGrid | DensityEmaGrid)
    budgets = (stage.blocks, STEPS_PER_BLOCK, stage.block_budget, stage.sample_budget)
    samples, marched = occupancy.march_to_samples(
        grid,
        grid.coarse,
        occupancy.to_marched_rays(grid, rays),
        rngs.uniform(key, rays.near.shape),
        step_length(config, stage, grid.aabb),
        occupancy.Marching(*budgets),
    )
    noise = None
    if getattr(make_field(config, stage), "density_noise", None):
        noise = draw_packed_noise(key, samples)
    rendering = render_packed(
        bind_model(config, stage, params, grid, noise, trains=True),
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
    if grid.bounds is not None:
        edges = contraction.march(edges, near_to_far.origins, grid.bounds)
        near_to_far = occupancy.to_marched_rays(grid, near_to_far)
    starts, ends = jnp.moveaxis(normalise_distances(near_to_far, edges), -1, 0)
    return Prediction(
        rgb=(rendering.rgb,),
        opacity=rendering.opacity,
        dropped=jnp.arange(rays.near.size) >= fitting,
        samples=jnp.sum(samples.mask),
        missed=jnp.zeros(rays.near.shape),
        distortion=losses.packed_distortion(rendering.weights, starts, ends, index, rays.near.size),
        grid=grid,
    )


def bind_model(
    config: FieldConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    noise: Float[Array, "m"] | None = None,
    trains: bool = False,
    box: Float[Array, "2 3"] | None = None,
) -> RadianceFns:
    """The network that marching rays see; unless it trains, as pictures look on average.

    What is outside of `box` is left out.
    """
    inner = params["fine"] if isinstance(config, SampledConfig) else params
    looks = make_appearance_fn(config, params, mean=not trains)
    parts = config.checkpoint_in_chunks if trains else 1
    return crop(bind(make_field(config, stage), inner, grid, noise, looks, parts), box)


def _draw_noise(
    field: Field, key: jax.Array | None, rays: int, samples: int
) -> Float[Array, "m"] | None:
    """Standard normal numbers for the samples of rays, if the field wants any."""
    if key is None or not getattr(field, "density_noise", None):
        return None
    # The same key serves to place samples.
    return rngs.normal(rngs.fold_in(key, 1), (rays, samples)).ravel()


def draw_packed_noise(key: jax.Array, samples: PackedSamples) -> Float[Array, "m"]:
    """Standard normal numbers for packed samples; with a key for each ray, by place in the ray."""
    key, count = rngs.fold_in(key, 1), samples.mask.size
    if key.ndim == 0:
        return jax.random.normal(key, (count,))
    number = jnp.arange(count, dtype=jnp.int32)
    first = jnp.searchsorted(samples.ray_indices, samples.ray_indices)
    own = jax.vmap(jax.random.fold_in)(key[samples.ray_indices], number - first)
    return rngs.normal(own, (count,))


def make_density(
    config: FieldConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    radius: Float[Array, ""] | float,
) -> Callable[[Float[Array, "m 3"]], Float[Array, "m"]]:
    """The density per scene unit at positions in the scene, of the network that pictures show.

    A position stands for the part of a cone that has this radius and is about as long as wide.
    Where nothing is occupied the density is 0.
    """
    inner = params
    if isinstance(config, SampledConfig):
        inner = params["fine" if "fine" in params else "coarse"]
    fns = bind(make_field(config, stage), inner, grid)

    def density(positions: Array) -> Array:
        one = jnp.ones_like(positions[:, 0])
        upwards = jnp.broadcast_to(jnp.array([[0.0, 0.0, 1.0]], positions.dtype), positions.shape)
        frusta = ConicalFrusta(upwards, radius * one, one - radius, one + radius)
        found, _ = fns.density(positions, frusta)
        return jnp.where(
            occupancy.lookup(grid, occupancy.contract_positions(grid, positions)), found, 0.0
        )

    return density


def refresh(
    config: FieldConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    key: jax.Array,
    factors: tuple[int, ...] = (1,),
) -> OccupancyGrid:
    """The occupancy grid after a training step: now and then its cells are probed.

    `factors` is how many times smaller pictures are in each size that is trained on.
    """
    if not isinstance(grid, DensityEmaGrid):
        return grid
    assert isinstance(config, SampledConfig)
    # Cells are probed where they are in the grid.
    field, inner = make_field(config, stage), {**params["fine"], "aabb": grid.aabb}

    def probe(turn: Array, grid: DensityEmaGrid) -> DensityEmaGrid:
        return occupancy.update_occupancy(
            grid,
            jax.random.fold_in(key, turn),
            lambda positions, radii: field.density(inner, positions, radii)[0],
            step_length(config, stage, grid.aabb),
            turn,
            decay=config.occupancy_decay,
            threshold=config.occupancy_threshold,
            reach=stage.reach,
            factors=factors,
        )

    first, since = jnp.divmod(grid.clock, config.occupancy_update_interval)
    turns = jnp.where(grid.clock < config.occupancy_warmup_steps, occupancy.UPDATE_PHASES, 1)
    last = first + jnp.where(since == 0, turns, 0)
    probed: DensityEmaGrid = jax.lax.fori_loop(first, last, probe, grid)
    return dataclasses.replace(probed, clock=probed.clock + 1)


def samples_per_ray(config: SampledConfig) -> int:
    """Samples of a ray at which one of the networks is evaluated."""
    if config.sampler == "proposal":
        return sum(config.num_proposal_samples) + config.num_nerf_samples
    fine = config.num_coarse_samples + config.num_fine_samples if config.num_fine_samples else 0
    return config.num_coarse_samples + fine


class Level(NamedTuple):
    """What a network saw: its rendering, where its intervals lie in marching, their weights."""

    rendering: Rendering
    tdist: Float[Array, "r n_plus_1"]
    weights: Float[Array, "r n"]


def _sample(
    config: FieldConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    key: jax.Array | None,
    rays: Rays,
    background: Float[Array, "r 3"],
    box: Float[Array, "2 3"] | None = None,
) -> tuple[list[Level], list[tuple[Array, Array]]]:
    """Rays rendered from a fixed number of samples; edges and weights of proposals."""
    assert isinstance(config, SampledConfig)
    if config.sampler == "hierarchical":
        return render_hierarchical(config, stage, params, grid, key, rays, background, box), []
    count = len(config.num_proposal_samples)
    own = [None if key is None else rngs.fold_in(key, 2 + index) for index in range(1 + count)]
    marched = occupancy.to_marched_rays(grid, rays)
    tdist = samplers.stratified(own[0], marched, config.num_proposal_samples[0], config.spacing)
    proposed = []
    wanted = (*config.num_proposal_samples[1:], config.num_nerf_samples)
    for proposal, inner, samples, key_draw in zip(
        make_proposals(config), params["proposals"], wanted, own[1:], strict=True
    ):
        edges = occupancy.to_ray_distances(grid, tdist, rays.origins)
        weights = compute_proposal_weights(crop(bind(proposal, inner, grid), box), rays, edges)
        proposed.append((tdist, weights))
        tdist = samplers.resample(key_draw, tdist, weights, samples)
    noise = _draw_noise(make_field(config, stage), own[-1], *tdist[:, 1:].shape)
    fns = bind_model(config, stage, params, grid, noise, key is not None, box)
    per_ray = config.shading == "per_ray"
    edges = occupancy.to_ray_distances(grid, tdist, rays.origins)
    rendering, weights = render_samples(fns, rays, edges, background, per_ray=per_ray)
    return [Level(rendering, tdist, weights)], proposed


def to_legacy_options(convention: RayConvention, rays: Rays) -> LegacyRenderOptions | None:
    """What a convention has otherwise when light is added up; None if nothing."""
    inclusive = convention.transmittance == "inclusive"
    axis = "axis" in (convention.lengths_along, convention.view_directions)
    if not (inclusive or axis):
        return None
    one = jnp.ones_like(rays.near)
    stretch = one if rays.stretch is None else rays.stretch
    return LegacyRenderOptions(
        length_unit=stretch if convention.lengths_along == "axis" else one,
        direction_length=stretch if convention.view_directions == "axis" else one,
        inclusive=inclusive,
    )


def render_hierarchical(
    config: FieldConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    key: jax.Array | None,
    rays: Rays,
    background: Float[Array, "r 3"],
    box: Float[Array, "2 3"] | None = None,
) -> list[Level]:
    """Rays rendered from samples that the coarse network is seen at, and the fine one where that
    found something.

    Without a key nothing is left to chance. What is outside of `box` is left out.
    """
    assert isinstance(config, SampledConfig)
    field = make_field(config, stage)
    key_coarse, key_fine = (None if key is None else rngs.fold_in(key, n) for n in (2, 3))
    points = config.quadrature == "points"
    # The original code looks along the whole ray.
    marched = rays if points and grid.bounds is None else occupancy.to_marched_rays(grid, rays)
    per_ray = config.shading == "per_ray"

    def end(points: Array) -> Array:
        return jnp.concatenate([points, jnp.maximum(marched.far[:, None], points[:, -1:])], axis=-1)

    def render(name: str, tdist: Array, key: jax.Array | None) -> Level:
        looks = make_appearance_fn(config, params, mean=key is None)
        noise = _draw_noise(field, key, *tdist[:, 1:].shape)
        parts = config.checkpoint_in_chunks if key is not None else 1
        fns = crop(bind(field, params[name], grid, noise, looks, parts), box)
        edges = occupancy.to_ray_distances(grid, tdist, rays.origins)
        rendering, weights = render_samples(
            fns,
            rays,
            edges,
            background,
            per_ray=per_ray,
            at_starts=points,
            legacy_options=to_legacy_options(config.convention, rays),
        )
        return Level(rendering, tdist, weights)

    first = (key_coarse, marched, config.num_coarse_samples, config.spacing)
    tdist = end(samplers.stratified_legacy(*first)) if points else samplers.stratified(*first)
    coarse = render("coarse", tdist, key_coarse)
    if not config.num_fine_samples:
        return [coarse]
    wanted = (coarse.weights, config.num_fine_samples)
    if points:
        tdist = end(samplers.hierarchical_legacy(key_fine, tdist[:, :-1], *wanted))
    else:
        tdist = samplers.importance(key_fine, tdist, *wanted)
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
    box: Float[Array, "2 3"] | None = None,
) -> Rendering:
    """Renders rays of batch shape (r,) without jitter, in blocks of at most `samples` samples.

    Only what lies in the box `aabb`, by default the grid's, is rendered, unless space is
    contracted; `stage.blocks` have to reach across it. What is outside of `box` is left out.
    """
    behind = jnp.broadcast_to(background, (*rays.near.shape, 3))
    if isinstance(config, SampledConfig) and not marches(config):
        return _sample(config, stage, params, grid, None, rays, behind, box)[0][-1].rendering
    assert isinstance(grid, WeightTrackedGrid | DensityEmaGrid)
    seen = rays
    if config.convention.samples_at == "start":
        # Steps that begin in the box go on to its end.
        seen = dataclasses.replace(rays, far=jnp.full_like(rays.far, 1e9))
    if grid.bounds is None and aabb is not None:
        marched = clip_to_aabb(seen, aabb)
    else:
        marched = occupancy.to_marched_rays(grid, seen)
    step = step_length(config, stage, grid.aabb)
    if config.convention.samples_at == "start":
        hit = marched.far > marched.near
        near, far = marched.near - 0.5 * step, marched.far + 0.5 * step
        marched = dataclasses.replace(
            marched,
            near=jnp.where(hit, near, marched.near),
            far=jnp.where(hit, far, marched.far),
        )
    blocks = occupancy.occupied_blocks(grid.coarse, marched, STEPS_PER_BLOCK * step, stage.blocks)
    at_once = max(3 * samples // 8, STEPS_PER_BLOCK)

    # Where rays enter the box is then a sample, and rounding is not to decide whether it counts.
    pulls = config.convention.samples_at == "start"
    fns = bind_model(config, stage, params, grid, box=box)

    def density(positions: Array, frusta: ConicalFrusta) -> tuple[Array, Any]:
        return fns.density(clamp_to_aabb(positions, grid.aabb), frusta)

    def holds_something(positions: Array) -> Array:
        if pulls:
            # The border itself is in no cell.
            positions = clamp_to_aabb(positions, grid.aabb, AABB_EPS)
        occupied = occupancy.lookup(grid, occupancy.contract_positions(grid, positions))
        return occupied if box is None else occupied & in_aabb(positions, box)

    return march_and_render(
        fns._replace(density=density) if pulls else fns,
        marched,
        blocks,
        step,
        holds_something,
        behind,
        rays.far,
        steps=STEPS_PER_BLOCK,
        at_once=max(samples // 8, 1),
        samples=at_once,
        per_ray=config.shading == "per_ray",
        color_budget=max(at_once // 3, 1) if stage.color_budget else None,
        color_threshold=_color_threshold(config),
        stop=config.convention.stop,
        to_ray_distances=lambda distances, origins: occupancy.to_ray_distances(
            grid, distances, origins
        ),
    )


def eval_stage(
    config: FieldConfig, stage: Stage, grid: OccupancyGrid, crop_to_occupied: bool
) -> tuple[Stage, Float[np.ndarray, "2 3"]]:
    """What of a stage matters to rendering, and the box to render.

    `crop_to_occupied` makes it the box of what is occupied and takes as few blocks as reach across it. Rays
    march through less so; but each pruning makes it another program.
    """
    box = np.asarray(grid.aabb)
    bare = Stage(
        resolution=stage.resolution,
        cells=stage.cells,
        rays=0,
        supersample=1,
        blocks=stage.blocks,
        color_budget=min(stage.color_budget, 1),
        table_rows=stage.table_rows,
    )
    # Steps that are counted from the box have to begin at the same box.
    crop_to_occupied = crop_to_occupied and config.convention.samples_at == "middle"
    if crop_to_occupied and marches(config) and grid.bounds is None:
        step = step_length(config, stage, grid.aabb)
        box = occupancy.occupied_aabb(grid).astype(np.float32)
        bare = dataclasses.replace(bare, blocks=max_blocks_per_ray(box, step))
    return bare, box


def _color_threshold(config: FieldConfig) -> float:
    return 0.0 if isinstance(config, VoxelsConfig) else config.color_threshold


def rays_at_once(config: TrainConfig) -> int:
    """Rays rendered at a time, such that `render_samples` samples of them fit into memory."""
    if not isinstance(config.field, SampledConfig) or marches(config.field):
        return config.render_samples
    return max(64, config.render_samples // samples_per_ray(config.field))


def regularization(
    config: FieldConfig,
    stage: Stage,
    params: Params,
    grid: OccupancyGrid,
    key: jax.Array,
    fade: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """The penalty on the parameters that is added to the loss.

    `fade` is a factor of the weights of total variation.
    """
    zero = jnp.zeros(())
    match config:
        case VoxelsConfig():
            if not (config.density_tv_weight or config.feature_tv_weight):
                return zero
            assert isinstance(grid, voxels.VoxelGrid)
            cells = jax.random.randint(key, (config.tv_cells,), 1, grid.count)
            density, features = voxels.total_variation(params["table"], grid.rows[cells])
            total = config.density_tv_weight * density + config.feature_tv_weight * features
            return fade * total
        case TensoRFConfig():
            l1_weight = config.l1_weight_pruned if stage.pruned else config.l1_weight
            total = zero
            if l1_weight:
                total += l1_weight * tensorf.l1_norm(params)
            for weight, part in (
                (config.density_tv_weight, "density"),
                (config.feature_tv_weight, "features"),
            ):
                if weight:
                    total += weight * fade * tensorf.total_variation(params[part])
            if config.orthogonality_weight:
                total += config.orthogonality_weight * tensorf.ortho_loss(params)
            return total
        case PyNeRFConfig() if config.consistency_weight:
            field = make_field(config, stage)
            assert isinstance(field, pynerf.PyNeRF)
            unit = jax.random.uniform(key, (config.consistency_points, 3))
            networks = [params[name] for name in ("coarse", "fine") if name in params]
            terms = (pynerf.level_consistency_loss(field, inner, unit) for inner in networks)
            return config.consistency_weight * sum(terms, zero)
        case SampledConfig():
            return zero
    assert_never(config)
