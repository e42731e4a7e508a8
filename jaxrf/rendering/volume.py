"""The volume renderer: densities and colours along rays in, pixels out.

Everything takes callables, never a field. Letters in shapes: r rays, n intervals of a ray,
m packed samples, c channels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrf.core.packing import find_bit, pack, pack_bits, rank_samples, sum_before
from jaxrf.core.pytree import as_pytree
from jaxrf.core.rays import ConicalFrusta, Rays, cast_cones, points_along
from jaxrf.core.stepfun import midpoints
from jaxrf.sampling.occupancy import PackedSamples

# Length of an interval that has no end (the original code of NeRF).
OPEN_INTERVAL_LENGTH = 1e10
DensityFn = Callable[[Float[Array, "m 3"], ConicalFrusta], tuple[Float[Array, "m"], Any]]
FeaturesFn = Callable[[Any], Float[Array, "m c"]]
ColorFn = Callable[[Float[Array, "m c"], Float[Array, "m 3"], Int[Array, "m"]], Float[Array, "m 3"]]
ToRayDistances = Callable[[Float[Array, "w n"], Float[Array, "w 3"]], Float[Array, "w n"]]


class RadianceFns(NamedTuple):
    """A radiance field as three callables.

    density: (positions, frusta) -> (density, latent), the latent being whatever the field hands on.
    features: latent -> features, which may be composited along a ray.
    color: (features, directions, camera_index) -> rgb in [0, 1].
    """

    density: DensityFn
    features: FeaturesFn
    color: ColorFn


@as_pytree()
@dataclasses.dataclass(frozen=True)
class Rendering:
    """What a ray sees.

    Attributes:
      rgb: (..., 3) composited over the background.
      opacity: (...) in [0, 1].
      depth: (...) expected distance along the ray given that it hits something; far if nothing.
      median_depth: (...) distance at which half of the ray's opacity is reached; far if nothing.
    """

    rgb: Float[Array, "*batch 3"]
    opacity: Float[Array, "*batch"]
    depth: Float[Array, "*batch"]
    median_depth: Float[Array, "*batch"]


class Picture(NamedTuple):
    """A `Rendering` in host memory, of an image as a rule."""

    rgb: Float[np.ndarray, "*batch 3"]
    opacity: Float[np.ndarray, "*batch"]
    depth: Float[np.ndarray, "*batch"]
    median_depth: Float[np.ndarray, "*batch"]


def compute_weights(
    density: Float[Array, "*batch n"],
    tdist: Float[Array, "*batch n_plus_1"],
    inclusive: bool = False,
) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch n"]]:
    """Weight of each interval in the pixel, and the transmittance with which light reaches it.

    w_i = T_i (1 - exp(-density_i delta_i)), T_i = exp(-sum_{j<i} density_j delta_j) (NeRF, eq. 3;
    Max 1995). The transmittance is exclusive: the first interval's is 1. Density, length
    and optical depth are capped at 1e10, so that infinite ones give no NaN. `inclusive` is how some
    other code has it: the light that an interval sends has to pass that interval, too.
    """
    optical_depth = _optical_depth(density, jnp.diff(tdist, axis=-1))
    reached = jnp.cumsum(optical_depth[..., :-1], axis=-1)
    reached = jnp.concatenate([jnp.zeros_like(optical_depth[..., :1]), reached], axis=-1)
    transmittance = jnp.exp(-reached - optical_depth if inclusive else -reached)
    return transmittance * -jnp.expm1(-optical_depth), transmittance


def _optical_depth(
    density: Float[Array, "*batch n"], lengths: Float[Array, "*batch n"]
) -> Float[Array, "*batch n"]:
    return jnp.minimum(jnp.minimum(density, 1e10) * jnp.minimum(lengths, 1e10), 1e10)


def compute_packed_weights(
    density: Float[Array, "m"], samples: PackedSamples
) -> tuple[Float[Array, "m"], Float[Array, "m"]]:
    """Weight of each packed sample in its ray's pixel, and the exclusive transmittance before it.

    As `compute_weights`, but with rays of any number of samples in one array.
    """
    optical_depth = _optical_depth(density, samples.t_ends - samples.t_starts)
    optical_depth = jnp.where(samples.mask, optical_depth, 0.0)
    transmittance = jnp.exp(-sum_before(optical_depth, samples.ray_indices))
    return transmittance * -jnp.expm1(-optical_depth), transmittance


def expected_depth(
    weights: Float[Array, "*batch n"],
    tdist: Float[Array, "*batch n_plus_1"],
    far: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Mean distance of what the ray hits, sum w t / sum w; far where it hits nothing."""
    opacity = jnp.sum(weights, axis=-1)
    hit = opacity > 1e-6
    mean = jnp.sum(weights * midpoints(tdist), axis=-1) / jnp.where(hit, opacity, 1.0)
    return jnp.where(hit, mean, far)


def median_depth(
    weights: Float[Array, "*batch n"],
    tdist: Float[Array, "*batch n_plus_1"],
    far: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Distance at which half of the ray's opacity is reached, linear within an interval."""
    total = jnp.cumsum(weights, axis=-1)[..., -1]
    return jnp.where(total > 1e-6, _find_distance(0.5 * total, weights, tdist), far)


def _find_distance(
    wanted: Float[Array, "*batch"],
    weights: Float[Array, "*batch n"],
    tdist: Float[Array, "*batch n_plus_1"],
) -> Float[Array, "*batch"]:
    """Distance at which the sum of the weights reaches what is wanted, linear in an interval."""
    reached = jnp.cumsum(weights, axis=-1)
    # Rounding may leave the sum of all just short of it.
    bound = jnp.minimum(wanted, reached[..., -1])[..., None]
    index = jnp.argmax(reached >= bound, axis=-1)[..., None]
    weight = jnp.take_along_axis(weights, index, axis=-1)
    missing = wanted[..., None] - (jnp.take_along_axis(reached, index, axis=-1) - weight)
    fraction = jnp.clip(missing / jnp.where(weight > 0, weight, 1.0), 0.0, 1.0)
    start = jnp.take_along_axis(tdist, index, axis=-1)
    stop = jnp.take_along_axis(tdist, index + 1, axis=-1)
    return (start + fraction * (stop - start))[..., 0]


def _shade_ray(
    color_fn: ColorFn,
    summed: Float[Array, "r c"],
    opacity: Float[Array, "r"],
    rays: Rays,
) -> Float[Array, "r 3"]:
    """Premultiplied colour of rays from their composited features: one colour for each ray."""
    mean = summed / jnp.maximum(opacity, 1e-3)[:, None]
    return color_fn(mean, rays.directions, rays.camera_index) * opacity[:, None]


class LegacyRenderOptions(NamedTuple):
    """What other programs do otherwise when they add up light along a ray.

    length_unit: (r,) what lengths are measured in.
    direction_length: (r,) of the directions that fields see.
    inclusive: see `compute_weights`.
    """

    length_unit: Float[Array, "r"]
    direction_length: Float[Array, "r"]
    inclusive: bool


def render_samples(
    fns: RadianceFns,
    rays: Rays,
    tdist: Float[Array, "r n_plus_1"],
    background: Float[Array, "r 3"],
    *,
    per_ray: bool = False,
    at_starts: bool = False,
    legacy_options: LegacyRenderOptions | None = None,
) -> tuple[Rendering, Float[Array, "r n"]]:
    """Renders rays from every one of the given intervals.

    Args:
      fns: the field.
      rays: batch shape (r,).
      tdist: (r, n + 1) edges; the field is evaluated at the middle of each interval.
      background: (r, 3) colour behind each ray.
      per_ray: composite features along the ray and colour them once, instead of colouring each
        sample and compositing colours.
      at_starts: evaluate the field where each interval starts, and take the last one for endless,
        as NeRF's original code does.
      legacy_options: what other programs do otherwise.

    Returns:
      The rendering and the weights (r, n).
    """
    distances = tdist[:, :-1] if at_starts else midpoints(tdist)
    count, intervals = distances.shape
    positions = points_along(rays, distances).reshape(-1, 3)
    frusta = cast_cones(rays, tdist)
    frusta = frusta._replace(ends=frusta.starts) if at_starts else frusta
    density, latent = fns.density(positions, frusta)
    edges = jnp.concatenate(
        [distances, jnp.full((count, 1), OPEN_INTERVAL_LENGTH, tdist.dtype)], axis=-1
    )
    edges = edges if at_starts else tdist
    seen, inclusive = rays.directions, False
    if legacy_options is not None:
        inclusive = legacy_options.inclusive
        edges = edges / legacy_options.length_unit[:, None]
        seen = seen * legacy_options.direction_length[:, None]
    weights, _ = compute_weights(density.reshape(count, intervals), edges, inclusive)
    opacity = jnp.sum(weights, axis=-1)
    values = fns.features(latent)
    if not per_ray:
        directions = jnp.broadcast_to(seen[:, None], (count, intervals, 3))
        cameras = jnp.broadcast_to(rays.camera_index[:, None], (count, intervals))
        values = fns.color(values, directions.reshape(-1, 3), cameras.ravel())
    summed = jnp.sum(weights[..., None] * values.reshape(count, intervals, -1), axis=1)
    if per_ray:
        towards = dataclasses.replace(rays, directions=seen)
        summed = _shade_ray(fns.color, summed, opacity, towards)
    rendering = _finish(summed, opacity, weights, rays, tdist, background)
    if at_starts:
        mean = jnp.sum(weights * distances, axis=-1) / jnp.where(opacity > 1e-6, opacity, 1.0)
        depth = jnp.where(opacity > 1e-6, mean, rays.far)
        rendering = dataclasses.replace(rendering, depth=depth)
    return rendering, weights


def compute_proposal_weights(
    fns: RadianceFns, rays: Rays, tdist: Float[Array, "r n_plus_1"]
) -> Float[Array, "r n"]:
    """Weights of the given intervals, without any colour."""
    distances = midpoints(tdist)
    positions = points_along(rays, distances).reshape(-1, 3)
    density, _ = fns.density(positions, cast_cones(rays, tdist))
    return compute_weights(density.reshape(distances.shape), tdist)[0]


def sample_points(
    rays: Rays, samples: PackedSamples
) -> tuple[Float[Array, "m 3"], Float[Array, "m"]]:
    """Position of the middle of each packed sample, and its distance along the ray."""
    ray = samples.ray_indices
    distance = 0.5 * (samples.t_starts + samples.t_ends)
    return rays.origins[ray] + distance[:, None] * rays.directions[ray], distance


class PackedRendering(NamedTuple):
    """What rays see, rendered from packed samples.

    rgb: (r, 3) composited over the background.
    opacity: (r,).
    weights: (m,) of the samples.
    fitting: () of the first so many rays all samples that matter were coloured.
    """

    rgb: Float[Array, "r 3"]
    opacity: Float[Array, "r"]
    weights: Float[Array, "m"]
    fitting: Int[Array, ""]


def render_packed(
    fns: RadianceFns,
    rays: Rays,
    samples: PackedSamples,
    background: Float[Array, "r 3"],
    *,
    per_ray: bool = False,
    color_budget: int | None = None,
    color_threshold: float = 0.0,
) -> PackedRendering:
    """Renders rays from packed samples; differentiable.

    Args:
      fns: the field.
      rays: batch shape (r,).
      samples: along them.
      background: (r, 3) colour behind each ray.
      per_ray: composite features along the ray and colour them once, instead of colouring each
        sample and compositing colours.
      color_budget: how many samples get features at most; None is for fields whose features cost
        little once the density is known: all samples get them.
      color_threshold: with a budget, samples of less weight get none (TensoRF, section 4).
    """
    count = rays.near.size
    ray = samples.ray_indices
    positions, _ = sample_points(rays, samples)
    frusta = ConicalFrusta(rays.directions[ray], rays.radii[ray], samples.t_starts, samples.t_ends)
    density, latent = fns.density(positions, frusta)
    weights, _ = compute_packed_weights(density, samples)
    opacity = jnp.zeros((count,), weights.dtype).at[ray].add(weights, indices_are_sorted=True)
    fitting, colored = jnp.asarray(count, jnp.int32), weights
    if color_budget is not None:
        matters = (samples.mask & (weights > color_threshold))[None]
        rank = rank_samples(matters)
        chosen = pack(matters, rank, color_budget)
        index = jnp.minimum(chosen.sample, ray.size - 1)
        first_over = jnp.argmax(matters & (rank >= color_budget))
        fitting = jnp.where(rank[0, -1] + matters[0, -1] > color_budget, ray[first_over], count)
        colored, ray = jnp.where(chosen.valid, weights[index], 0.0), ray[index]
        latent = jax.tree.map(lambda x: x[index], latent)
    values = fns.features(latent)
    if not per_ray:
        values = fns.color(values, rays.directions[ray], rays.camera_index[ray])
    wide = jnp.promote_types(values.dtype, weights.dtype)
    rgb = jnp.zeros((count, values.shape[-1]), wide)
    rgb = rgb.at[ray].add(values * colored[:, None], indices_are_sorted=True)
    if per_ray:
        rgb = _shade_ray(fns.color, rgb, opacity, rays)
    rgb = rgb + (1.0 - opacity)[:, None] * background
    return PackedRendering(rgb, opacity, weights, fitting)


class _MarchState(NamedTuple):
    """What `march_and_render` carries, per ray: where it stands and what it has gathered."""

    block: Int[Array, "r"]
    transmittance: Float[Array, "r"]
    summed: Float[Array, "r c"]
    totals: Float[Array, "rn"]


def march_and_render(
    fns: RadianceFns,
    rays: Rays,
    blocks: Bool[Array, "r n"],
    step: Float[Array, ""] | float,
    occupied: Callable[[Float[Array, "m s 3"]], Bool[Array, "m s"]],
    background: Float[Array, "r 3"],
    nothing: Float[Array, "r"],
    *,
    steps: int,
    at_once: int,
    samples: int,
    per_ray: bool = False,
    color_budget: int | None = None,
    color_threshold: float = 0.0,
    stop: float = 1e-3,
    to_ray_distances: ToRayDistances | None = None,
) -> Rendering:
    """Renders rays front to back, block by block of steps, until they are opaque.

    In each wave the first `at_once` rays that are not done advance by their next block. Equal to
    rendering all samples at once up to a transmittance of `stop`. Not differentiable.

    Args:
      fns: the field.
      rays: batch shape (r,), as they are marched (`occupancy.to_marched_rays`).
      blocks: (r, n) which blocks of each ray, from near on, may hold anything.
      step: length of a step, in scene units.
      occupied: whether a position is worth evaluating.
      background: (r, 3) colour behind each ray.
      nothing: (r,) depth of rays that hit nothing.
      steps: of a block.
      at_once: rays of a wave.
      samples: evaluated in a wave at most, not fewer than `steps`; rays that do not fit wait.
      per_ray: composite features along the ray and colour them once.
      color_budget: how many samples get features at once, as many times as needed, where it pays
        to give them only to samples of a weight above `color_threshold`; None gives them to all.
      color_threshold: see there.
      stop: transmittance below which a ray is done.
      to_ray_distances: distances along rays from some origins that are so far in marching; by default
        the same.
    """
    count, most = blocks.shape
    wave_sizes = (steps, samples, to_ray_distances or _stay)
    bits = pack_bits(blocks)

    def is_alive(wave: _MarchState) -> Bool[Array, "r"]:
        return (wave.block < most) & (wave.transmittance > stop)

    def add_features(summed: Array, ray: Array, weight: Array, found: _BlockSamples) -> Array:
        ones = jnp.ones_like(weight)

        def add(summed: Array, ray: Array, weight: Array, latent: Any, first: Array) -> Array:
            values = fns.features(latent)
            if not per_ray:
                values = fns.color(values, rays.directions[ray], rays.camera_index[ray])
            values = jnp.concatenate([first, values], axis=-1)
            return summed.at[ray].add(values * weight[:, None])

        first = jnp.stack([ones, found.distance], axis=-1)
        if color_budget is None:
            return add(summed, ray, weight, found.latent, first)
        summed = summed.at[ray, :2].add(first * weight[:, None])
        matters = (weight > color_threshold)[None]
        rank = rank_samples(matters)
        total = rank[0, -1] + matters[0, -1]

        def add_some(index: Array, summed: Array) -> Array:
            chosen = pack(matters, rank, color_budget, index * color_budget)
            place = jnp.minimum(chosen.sample, weight.size - 1)
            some = jnp.where(chosen.valid, weight[place], 0.0)
            latent = jax.tree.map(lambda x: x[place], found.latent)
            return add(summed, ray[place], some, latent, jnp.zeros((color_budget, 2)))

        chunks = (total + color_budget - 1) // color_budget
        return jax.lax.fori_loop(0, chunks, add_some, summed)

    def advance(wave: _MarchState) -> _MarchState:
        alive = is_alive(wave)[None]
        chosen = pack(alive, rank_samples(alive), at_once)
        ray = jnp.minimum(chosen.sample, count - 1)
        block = jnp.minimum(wave.block[ray], most - 1)
        found = _evaluate_blocks(fns, rays, ray, chosen.valid, block, step, occupied, *wave_sizes)
        before = wave.transmittance[ray]
        weights, after = _composite_block(found, before)
        weight = jnp.where(found.valid, weights.ravel()[found.place], 0.0)
        summed = add_features(wave.summed, ray[found.row], weight, found)
        done = jnp.where(found.fits, ray, count)
        cell = jnp.where(found.fits, ray * most + block, count * most)
        return _MarchState(
            block=wave.block.at[done].set(find_bit(bits[ray], block + 1, most), mode="drop"),
            transmittance=wave.transmittance.at[done].set(after, mode="drop"),
            summed=summed,
            totals=wave.totals.at[cell].set(jnp.sum(weights, axis=-1), mode="drop"),
        )

    def probe(positions: Array) -> Array:
        frusta = ConicalFrusta(positions, *(positions[:, 0],) * 3)
        return fns.features(fns.density(positions, frusta)[1])

    channels = jax.eval_shape(probe, jnp.zeros((1, 3))).shape[-1] if per_ray else 3
    wave = jax.lax.while_loop(
        lambda wave: jnp.any(is_alive(wave)),
        advance,
        _MarchState(
            find_bit(bits, jnp.zeros((count,), jnp.int32), most),
            jnp.ones((count,)),
            jnp.zeros((count, 2 + channels)),
            jnp.zeros((count * most,)),
        ),
    )
    opacity, distance = wave.summed[:, 0], wave.summed[:, 1]
    hit = opacity > 1e-6

    # The median lies in the block in which half of the opacity is reached, which is entered again.
    reached = jnp.cumsum(wave.totals.reshape(count, most), axis=-1)
    half = 0.5 * reached[:, -1]
    middle = jnp.argmax(reached >= half[:, None], axis=-1).astype(jnp.int32)
    begun = jnp.take_along_axis(reached, middle[:, None], axis=-1)[:, 0]
    begun = begun - wave.totals.reshape(count, most)[jnp.arange(count), middle]

    def finish(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        waiting, median, rgb = carry
        chosen = pack(waiting[None], rank_samples(waiting[None]), at_once)
        ray = jnp.minimum(chosen.sample, count - 1)
        found = _evaluate_blocks(
            fns, rays, ray, chosen.valid, middle[ray], step, occupied, *wave_sizes
        )
        weights, _ = _composite_block(found, 1.0 - begun[ray])
        here = _find_distance(half[ray] - begun[ray], weights, found.edges)
        color = wave.summed[ray, 2:]
        if per_ray:
            color = _shade_ray(fns.color, color, opacity[ray], jax.tree.map(lambda x: x[ray], rays))
        done = jnp.where(found.fits, ray, count)
        return (
            waiting.at[done].set(False, mode="drop"),
            median.at[done].set(here, mode="drop"),
            rgb.at[done].set(color, mode="drop"),
        )

    _, median, rgb = jax.lax.while_loop(
        lambda carry: jnp.any(carry[0]), finish, (hit, nothing, jnp.zeros((count, 3)))
    )
    return Rendering(
        rgb=rgb + (1.0 - opacity)[:, None] * background,
        opacity=opacity,
        depth=jnp.where(hit, distance / jnp.where(hit, opacity, 1.0), nothing),
        median_depth=median,
    )


def _stay(marched: Float[Array, "w n"], origins: Float[Array, "w 3"]) -> Float[Array, "w n"]:
    del origins
    return marched


class _BlockSamples(NamedTuple):
    """Blocks of steps that were looked into, one of each of w rays; s steps, m packed samples."""

    edges: Float[Array, "w s_plus_1"]
    density: Float[Array, "w s"]
    fits: Bool[Array, "w"]
    place: Int[Array, "m"]
    valid: Bool[Array, "m"]
    row: Int[Array, "m"]
    distance: Float[Array, "m"]
    latent: Any


def _evaluate_blocks(
    fns: RadianceFns,
    rays: Rays,
    ray: Int[Array, "w"],
    wanted: Bool[Array, "w"],
    block: Int[Array, "w"],
    step: Float[Array, ""] | float,
    occupied: Callable[[Float[Array, "m s 3"]], Bool[Array, "m s"]],
    steps: int,
    samples: int,
    to_ray_distances: ToRayDistances,
) -> _BlockSamples:
    """The density along one block of each ray, evaluated where it is occupied."""
    near, far = rays.near[ray][:, None], rays.far[ray][:, None]
    index = block[:, None] * steps + jnp.arange(steps + 1, dtype=jnp.int32)[None]
    origins = rays.origins[ray]
    edges = to_ray_distances(jnp.minimum(near + step * index, far), origins)
    middle = midpoints(edges)
    directions = rays.directions[ray][:, None]
    positions = origins[:, None] + middle[..., None] * directions
    inside = wanted[:, None] & (jnp.diff(edges, axis=-1) > 0) & occupied(positions)
    rank = rank_samples(inside)
    # Rays whose samples do not all fit are left for later.
    fits = wanted & (rank[:, -1] + inside[:, -1] <= samples)
    packed = pack(inside & fits[:, None], rank, samples)
    place = jnp.minimum(packed.sample, inside.size - 1)
    row = place // steps
    distance = middle.ravel()[place]
    frusta = ConicalFrusta(
        rays.directions[ray[row]],
        rays.radii[ray[row]],
        edges[:, :-1].ravel()[place],
        edges[:, 1:].ravel()[place],
    )
    density, latent = fns.density(positions.reshape(-1, 3)[place], frusta)
    dense = jnp.zeros((inside.size,)).at[packed.sample].set(density, mode="drop")
    return _BlockSamples(
        edges, dense.reshape(inside.shape), fits, place, packed.valid, row, distance, latent
    )


def _composite_block(
    found: _BlockSamples, before: Float[Array, "w"]
) -> tuple[Float[Array, "w s"], Float[Array, "w"]]:
    """Weights in blocks that light enters with some transmittance, and that behind them."""
    weights, _ = compute_weights(found.density, found.edges)
    return weights * before[:, None], before * (1.0 - jnp.sum(weights, axis=-1))


def _finish(
    summed: Float[Array, "r 3"],
    opacity: Float[Array, "r"],
    weights: Float[Array, "r n"],
    rays: Rays,
    tdist: Float[Array, "r n_plus_1"],
    background: Float[Array, "r 3"],
) -> Rendering:
    return Rendering(
        rgb=summed + (1.0 - opacity)[:, None] * background,
        opacity=opacity,
        depth=expected_depth(weights, tdist, rays.far),
        median_depth=median_depth(weights, tdist, rays.far),
    )


def render_image(
    render_chunks: Callable[[Rays], Rendering],
    rays: Rays,
    chunk: int,
    at_once: int = 64,
    divisor: int = 1,
) -> Picture:
    """Renders rays of any batch shape in chunks of one constant size.

    Args:
      render_chunks: jitted; takes rays of batch shape (k, chunk) and renders one chunk after the
        other (`jax.lax.map`), so that they share their memory.
      rays: any batch shape, for example (height, width); host arrays or device arrays.
      chunk: most rays rendered together, which is what bounds the memory.
      at_once: most chunks handed over in one call. The last call is padded with the last ray, so
        images of one size never recompile.
      divisor: what the number of rays of a chunk is to be divisible by.
    """
    shape = rays.near.shape
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[len(shape) :]), rays)
    count = flat.near.shape[0]
    if count == 0:
        return Picture(np.zeros((*shape, 3), np.float32), *(np.zeros(shape, np.float32),) * 3)
    chunks = -(-count // chunk)
    # Chunks of even size, lest a small image be mostly padding.
    chunk = min(chunk, -(-count // (256 * chunks)) * 256)
    chunk = -(-chunk // divisor) * divisor
    chunks = min(chunks, at_once)
    parts = []
    for start in range(0, count, chunks * chunk):
        index = np.minimum(np.arange(start, start + chunks * chunk), count - 1)
        index = index.reshape(chunks, chunk)
        parts.append(render_chunks(jax.tree.map(lambda x, index=index: x[index], flat)))
    # Fetched only now, so that a call is dispatched without waiting for the one before.
    host = jax.device_get(parts)

    def join(name: str) -> np.ndarray:
        blocks = [getattr(part, name) for part in host]
        whole = np.concatenate([b.reshape(-1, *b.shape[2:]) for b in blocks])[:count]
        return whole.reshape(shape + whole.shape[1:])

    return Picture(*(join(name) for name in Picture._fields))


def resolve_supersampling(picture: Picture, supersample: int) -> Picture:
    """A picture each of whose pixels is the mean of supersample x supersample pixels of the given one.

    Depths are those of what the pixel as a whole hits: the mean weighted by opacity, and the
    distance at which half of its opacity is reached.
    """
    if supersample == 1:
        return picture
    height, width = (size // supersample for size in picture.opacity.shape)

    def parts(x: np.ndarray) -> np.ndarray:
        blocks = x.reshape(height, supersample, width, supersample, *x.shape[2:])
        return blocks.swapaxes(1, 2).reshape(height, width, supersample**2, *x.shape[2:])

    opacity = parts(picture.opacity)
    total = opacity.sum(axis=-1)
    hit = total > 1e-6
    # What hits nothing has a depth of `far` already.
    weight = np.where(hit[..., None], opacity, 1.0)
    depth = np.sum(weight * parts(picture.depth), axis=-1) / weight.sum(axis=-1)
    median = parts(picture.median_depth)
    order = np.argsort(median, axis=-1)
    reached = np.cumsum(np.take_along_axis(weight, order, axis=-1), axis=-1)
    middle = np.argmax(reached >= 0.5 * reached[..., -1:], axis=-1)[..., None]
    middle = np.take_along_axis(order, middle, axis=-1)
    return Picture(
        rgb=parts(picture.rgb).mean(axis=2),
        opacity=opacity.mean(axis=-1),
        depth=depth,
        median_depth=np.take_along_axis(median, middle, axis=-1)[..., 0],
    )
