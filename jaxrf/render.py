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

from jaxrf.occupancy import PackedSamples
from jaxrf.packing import Packed, find_bit, pack, pack_bits, rank_samples
from jaxrf.pytree import as_pytree
from jaxrf.rays import Rays, points_along
from jaxrf.stepfun import midpoints

DensityFn = Callable[[Float[Array, "m 3"], Float[Array, "m"]], tuple[Float[Array, "m"], Any]]
FeaturesFn = Callable[[Any], Float[Array, "m c"]]
ColorFn = Callable[[Float[Array, "m c"], Float[Array, "m 3"]], Float[Array, "m 3"]]


class RadianceFns(NamedTuple):
    """A radiance field as three callables.

    density: (positions, radii) -> (density, latent), the latent being whatever the field hands on.
    features: latent -> features, which may be composited along a ray.
    color: (features, directions) -> rgb in [0, 1].
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
    density: Float[Array, "*batch n"], tdist: Float[Array, "*batch n_plus_1"]
) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch n"]]:
    """Weight of each interval in the pixel, and the transmittance with which light reaches it.

    w_i = T_i (1 - exp(-density_i delta_i)), T_i = exp(-sum_{j<i} density_j delta_j) (NeRF, eq. 3;
    Max 1995). The transmittance is exclusive: the first interval's is 1. Density, length
    and optical depth are capped at 1e10, so that infinite ones give no NaN.
    """
    lengths = jnp.minimum(jnp.diff(tdist, axis=-1), 1e10)
    optical_depth = jnp.minimum(jnp.minimum(density, 1e10) * lengths, 1e10)
    reached = jnp.cumsum(optical_depth[..., :-1], axis=-1)
    reached = jnp.concatenate([jnp.zeros_like(optical_depth[..., :1]), reached], axis=-1)
    transmittance = jnp.exp(-reached)
    return transmittance * -jnp.expm1(-optical_depth), transmittance


def compute_packed_weights(
    density: Float[Array, "m"], samples: PackedSamples
) -> tuple[Float[Array, "m"], Float[Array, "m"]]:
    """Weight of each packed sample in its ray's pixel, and the exclusive transmittance before it.

    As `compute_weights`, but with rays of any number of samples in one array: a scan that starts
    anew at each ray, because differences of one running sum would lose the digits that matter.
    """
    lengths = jnp.minimum(samples.t_ends - samples.t_starts, 1e10)
    optical_depth = jnp.minimum(jnp.minimum(density, 1e10) * lengths, 1e10)
    optical_depth = jnp.where(samples.mask, optical_depth, 0.0)
    ray = samples.ray_indices
    first = jnp.concatenate([jnp.ones((1,), bool), ray[1:] != ray[:-1]])
    before = jnp.concatenate([jnp.zeros_like(optical_depth[:1]), optical_depth[:-1]])

    def add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(right[1], right[0], left[0] + right[0]), left[1] | right[1]

    reached, _ = jax.lax.associative_scan(add, (jnp.where(first, 0.0, before), first))
    transmittance = jnp.exp(-reached)
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


def _select_samples(
    rays: Rays, tdist: Float[Array, "r n_plus_1"], packed: Packed
) -> tuple[Int[Array, "m"], Float[Array, "m 3"], Float[Array, "m"]]:
    """Ray index, position and cone radius of packed samples; empty places repeat the last ray."""
    intervals = tdist.shape[-1] - 1
    index = jnp.minimum(packed.sample, rays.near.size * intervals - 1)
    ray = index // intervals
    distance = midpoints(tdist).ravel()[index]
    position = rays.origins[ray] + distance[:, None] * rays.directions[ray]
    return ray, position, rays.radii[ray] * distance


def _for_each_block(
    total: Int[Array, ""], budget: int, body: Callable[[Int[Array, ""], Any], Any], init: Any
) -> Any:
    blocks = (total + budget - 1) // budget
    return jax.lax.fori_loop(0, blocks, lambda i, carry: body(i * budget, carry), init)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How many samples are evaluated at once where a mask says which ones matter.

    Attributes:
      density: places for samples whose density is evaluated.
      color: places for samples whose features are.
      drop: True while training: one block, and rays that overflow it are dropped whole and
        reported. False: as many blocks as there is work, nothing dropped, not differentiable.
    """

    density: int
    color: int
    drop: bool


def masked_density(
    fns: RadianceFns,
    rays: Rays,
    tdist: Float[Array, "r n_plus_1"],
    mask: Bool[Array, "r n"],
    budget: Budget,
) -> tuple[Float[Array, "r n"], Bool[Array, "r"]]:
    """Density where the mask is set and zero elsewhere; and which rays overflowed the budget.

    Arguments as in `render_masked_samples`.
    """
    rank = rank_samples(mask)
    total = rank[-1, -1] + mask[-1, -1]

    def add_block(start: int | Int[Array, ""], density: Float[Array, "s"]) -> Float[Array, "s"]:
        packed = pack(mask, rank, budget.density, start)
        _, positions, radii = _select_samples(rays, tdist, packed)
        values, _ = fns.density(positions, radii)
        return density.at[packed.sample].add(values, mode="drop")

    density = jnp.zeros((mask.size,), tdist.dtype)
    if budget.drop:
        density = add_block(0, density)
        dropped = jnp.any(mask & (rank >= budget.density), axis=-1)
    else:
        density = _for_each_block(total, budget.density, add_block, density)
        dropped = jnp.zeros(mask.shape[0], bool)
    return density.reshape(mask.shape), dropped


def _masked_features(
    fns: RadianceFns,
    rays: Rays,
    tdist: Float[Array, "r n_plus_1"],
    weights: Float[Array, "r n"],
    mask: Bool[Array, "r n"],
    budget: Budget,
    per_ray: bool,
) -> tuple[Float[Array, "r c"], Bool[Array, "r"]]:
    """Features (per ray) or colours (per sample) summed along rays where the mask is set."""
    rank = rank_samples(mask)
    total = rank[-1, -1] + mask[-1, -1]

    def block_values(start: int | Int[Array, ""]) -> tuple[Packed, Array, Array]:
        packed = pack(mask, rank, budget.color, start)
        ray, positions, radii = _select_samples(rays, tdist, packed)
        _, latent = fns.density(positions, radii)
        values = fns.features(latent)
        if not per_ray:
            values = fns.color(values, rays.directions[ray])
        weight = weights.ravel().at[packed.sample].get(mode="fill", fill_value=0.0)
        return packed, ray, values * weight[:, None]

    def add_block(start: int | Int[Array, ""], summed: Float[Array, "r c"]) -> Float[Array, "r c"]:
        _, ray, values = block_values(start)
        return summed.at[ray].add(values, indices_are_sorted=True)

    channels = jax.eval_shape(lambda: block_values(0)[2]).shape[-1]
    summed = jnp.zeros((mask.shape[0], channels), tdist.dtype)
    if budget.drop:
        return add_block(0, summed), jnp.any(mask & (rank >= budget.color), axis=-1)
    summed = _for_each_block(total, budget.color, add_block, summed)
    return summed, jnp.zeros(mask.shape[0], bool)


def _shade(
    color_fn: ColorFn,
    summed: Float[Array, "r c"],
    opacity: Float[Array, "r"],
    directions: Float[Array, "r 3"],
) -> Float[Array, "r 3"]:
    """Premultiplied colour of rays from their composited features: one colour for each ray."""
    mean = summed / jnp.maximum(opacity, 1e-3)[:, None]
    return color_fn(mean, directions) * opacity[:, None]


def render_samples(
    fns: RadianceFns,
    rays: Rays,
    tdist: Float[Array, "r n_plus_1"],
    background: Float[Array, "r 3"],
    *,
    per_ray: bool = False,
) -> tuple[Rendering, Float[Array, "r n"]]:
    """Renders rays from every one of the given intervals.

    Args:
      fns: the field.
      rays: batch shape (r,).
      tdist: (r, n + 1) edges; the field is evaluated at the middle of each interval.
      background: (r, 3) colour behind each ray.
      per_ray: composite features along the ray and colour them once, instead of colouring each
        sample and compositing colours.

    Returns:
      The rendering and the weights (r, n).
    """
    distances = midpoints(tdist)
    count, intervals = distances.shape
    positions = points_along(rays, distances).reshape(-1, 3)
    density, latent = fns.density(positions, (rays.radii[:, None] * distances).ravel())
    weights, _ = compute_weights(density.reshape(count, intervals), tdist)
    opacity = jnp.sum(weights, axis=-1)
    values = fns.features(latent)
    if not per_ray:
        directions = jnp.broadcast_to(rays.directions[:, None], (count, intervals, 3))
        values = fns.color(values, directions.reshape(-1, 3))
    summed = jnp.sum(weights[..., None] * values.reshape(count, intervals, -1), axis=1)
    if per_ray:
        summed = _shade(fns.color, summed, opacity, rays.directions)
    return _finish(summed, opacity, weights, rays, tdist, background), weights


def render_masked_samples(
    fns: RadianceFns,
    rays: Rays,
    tdist: Float[Array, "r n_plus_1"],
    background: Float[Array, "r 3"],
    mask: Bool[Array, "r n"],
    budget: Budget,
    *,
    per_ray: bool = False,
    color_threshold: float = 0.0,
) -> tuple[Rendering, Bool[Array, "r"]]:
    """Renders rays from the intervals that a mask selects, in a fixed amount of memory.

    Density is evaluated only where the mask is set, colour only where the weight then exceeds
    `color_threshold` (TensoRF, section 4). Equal to `render_samples` with the density set to zero
    outside the mask and colours to zero under the threshold. Arguments as there.

    Returns:
      The rendering, and which rays (r,) overflowed the budget and are not to be used; all False
      unless `budget.drop`.
    """
    mask = mask & (jnp.diff(tdist, axis=-1) > 0)
    density, dropped = masked_density(fns, rays, tdist, mask, budget)
    weights, _ = compute_weights(density, tdist)
    opacity = jnp.sum(weights, axis=-1)
    matters = mask & (weights > color_threshold)
    summed, overflow = _masked_features(fns, rays, tdist, weights, matters, budget, per_ray)
    if per_ray:
        summed = _shade(fns.color, summed, opacity, rays.directions)
    return _finish(summed, opacity, weights, rays, tdist, background), dropped | overflow


def render_packed_samples(
    fns: RadianceFns,
    rays: Rays,
    samples: PackedSamples,
    background: Float[Array, "r 3"],
    *,
    per_ray: bool = False,
) -> tuple[Float[Array, "r 3"], Float[Array, "r"], Float[Array, "m"]]:
    """Renders rays from packed samples; differentiable.

    For fields whose features cost little once the density is known: every sample gets both.
    Arguments as in `render_samples`.

    Returns:
      Colours (r, 3), opacities (r,) and the weights (m,) of the samples.
    """
    ray = samples.ray_indices
    middle = 0.5 * (samples.t_starts + samples.t_ends)
    positions = rays.origins[ray] + middle[:, None] * rays.directions[ray]
    density, latent = fns.density(positions, rays.radii[ray] * middle)
    weights, _ = compute_packed_weights(density, samples)
    values = fns.features(latent)
    if not per_ray:
        values = fns.color(values, rays.directions[ray])
    channels = jnp.concatenate([jnp.ones_like(weights)[:, None], values], axis=-1)
    summed = jnp.zeros((rays.near.size, channels.shape[-1]), channels.dtype)
    summed = summed.at[ray].add(channels * weights[:, None], indices_are_sorted=True)
    opacity, rgb = summed[:, 0], summed[:, 1:]
    if per_ray:
        rgb = _shade(fns.color, rgb, opacity, rays.directions)
    return rgb + (1.0 - opacity)[:, None] * background, opacity, weights


class _Wave(NamedTuple):
    """What `render_blocks` carries, per ray: where it stands and what it has gathered."""

    block: Int[Array, "r"]
    transmittance: Float[Array, "r"]
    summed: Float[Array, "r c"]
    totals: Float[Array, "rn"]


def render_blocks(
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
    stop: float = 1e-3,
) -> Rendering:
    """Renders rays front to back, block by block of steps, until they are opaque.

    In each wave the first `at_once` rays that are not done advance by their next block. Equal to
    rendering all samples at once up to a transmittance of `stop`. Not differentiable.

    Args:
      fns: the field.
      rays: batch shape (r,), clipped to the box.
      blocks: (r, n) which blocks of each ray, from near on, may hold anything.
      step: length of a step, in scene units.
      occupied: whether a position is worth evaluating.
      background: (r, 3) colour behind each ray.
      nothing: (r,) depth of rays that hit nothing.
      steps: of a block.
      at_once: rays of a wave.
      samples: evaluated in a wave at most, not fewer than `steps`; rays that do not fit wait.
      per_ray: composite features along the ray and colour them once.
      stop: transmittance below which a ray is done.
    """
    count, most = blocks.shape
    bits = pack_bits(blocks)

    def is_alive(wave: _Wave) -> Bool[Array, "r"]:
        return (wave.block < most) & (wave.transmittance > stop)

    def advance(wave: _Wave) -> _Wave:
        alive = is_alive(wave)[None]
        chosen = pack(alive, rank_samples(alive), at_once)
        ray = jnp.minimum(chosen.sample, count - 1)
        block = jnp.minimum(wave.block[ray], most - 1)
        found = _enter_blocks(fns, rays, ray, chosen.valid, block, step, occupied, steps, samples)
        before = wave.transmittance[ray]
        weights, after = _absorb(found, before)
        values = fns.features(found.latent)
        if not per_ray:
            values = fns.color(values, rays.directions[ray[found.row]])
        ones = jnp.ones_like(found.distance)
        values = jnp.concatenate([jnp.stack([ones, found.distance], axis=-1), values], axis=-1)
        weight = jnp.where(found.valid, weights.ravel()[found.place], 0.0)
        done = jnp.where(found.fits, ray, count)
        cell = jnp.where(found.fits, ray * most + block, count * most)
        return _Wave(
            block=wave.block.at[done].set(find_bit(bits[ray], block + 1, most), mode="drop"),
            transmittance=wave.transmittance.at[done].set(after, mode="drop"),
            summed=wave.summed.at[ray[found.row]].add(values * weight[:, None]),
            totals=wave.totals.at[cell].set(jnp.sum(weights, axis=-1), mode="drop"),
        )

    def probe(positions: Array) -> Array:
        return fns.features(fns.density(positions, positions[:, 0])[1])

    channels = jax.eval_shape(probe, jnp.zeros((1, 3))).shape[-1] if per_ray else 3
    wave = jax.lax.while_loop(
        lambda wave: jnp.any(is_alive(wave)),
        advance,
        _Wave(
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
        found = _enter_blocks(
            fns, rays, ray, chosen.valid, middle[ray], step, occupied, steps, samples
        )
        weights, _ = _absorb(found, 1.0 - begun[ray])
        here = _find_distance(half[ray] - begun[ray], weights, found.edges)
        color = wave.summed[ray, 2:]
        if per_ray:
            color = _shade(fns.color, color, opacity[ray], rays.directions[ray])
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


class _Entered(NamedTuple):
    """Blocks of steps that were looked into, one of each of w rays; s steps, m packed samples."""

    edges: Float[Array, "w s_plus_1"]
    density: Float[Array, "w s"]
    fits: Bool[Array, "w"]
    place: Int[Array, "m"]
    valid: Bool[Array, "m"]
    row: Int[Array, "m"]
    distance: Float[Array, "m"]
    latent: Any


def _enter_blocks(
    fns: RadianceFns,
    rays: Rays,
    ray: Int[Array, "w"],
    wanted: Bool[Array, "w"],
    block: Int[Array, "w"],
    step: Float[Array, ""] | float,
    occupied: Callable[[Float[Array, "m s 3"]], Bool[Array, "m s"]],
    steps: int,
    samples: int,
) -> _Entered:
    """The density along one block of each ray, evaluated where it is occupied."""
    near, far = rays.near[ray][:, None], rays.far[ray][:, None]
    index = block[:, None] * steps + jnp.arange(steps + 1, dtype=jnp.int32)[None]
    edges = jnp.minimum(near + step * index, far)
    middle = midpoints(edges)
    directions = rays.directions[ray][:, None]
    positions = rays.origins[ray][:, None] + middle[..., None] * directions
    inside = wanted[:, None] & (jnp.diff(edges, axis=-1) > 0) & occupied(positions)
    rank = rank_samples(inside)
    # Rays whose samples do not all fit are left for later.
    fits = wanted & (rank[:, -1] + inside[:, -1] <= samples)
    packed = pack(inside & fits[:, None], rank, samples)
    place = jnp.minimum(packed.sample, inside.size - 1)
    row = place // steps
    distance = middle.ravel()[place]
    radii = rays.radii[ray[row]] * distance
    density, latent = fns.density(positions.reshape(-1, 3)[place], radii)
    dense = jnp.zeros((inside.size,)).at[packed.sample].set(density, mode="drop")
    return _Entered(
        edges, dense.reshape(inside.shape), fits, place, packed.valid, row, distance, latent
    )


def _absorb(
    found: _Entered, before: Float[Array, "w"]
) -> tuple[Float[Array, "w s"], Float[Array, "w"]]:
    """Weights in blocks that light enters with some transmittance, and that behind them."""
    weights, reaching = compute_weights(found.density, found.edges)
    last = found.edges[:, -1] - found.edges[:, -2]
    passed = jnp.exp(-jnp.minimum(jnp.minimum(found.density[:, -1], 1e10) * last, 1e10))
    return weights * before[:, None], before * reaching[:, -1] * passed


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
    render_chunks: Callable[[Rays], Rendering], rays: Rays, chunk: int, at_once: int = 64
) -> Picture:
    """Renders rays of any batch shape in chunks of one constant size.

    Args:
      render_chunks: jitted; takes rays of batch shape (k, chunk) and renders one chunk after the
        other (`jax.lax.map`), so that they share their memory.
      rays: any batch shape, for example (height, width); host arrays or device arrays.
      chunk: rays rendered together, which is what bounds the memory.
      at_once: most chunks handed over in one call. The last call is padded with the last ray, so
        images of one size never recompile.
    """
    shape = rays.near.shape
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[len(shape) :]), rays)
    count = flat.near.shape[0]
    chunks = min(-(-count // chunk), at_once)
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


def average_subrays(picture: Picture, subrays: int) -> Picture:
    """A picture each of whose pixels is the mean of subrays x subrays pixels of the given one.

    Depths are those of what the pixel as a whole hits: the mean weighted by opacity, and the
    distance at which half of its opacity is reached.
    """
    if subrays == 1:
        return picture
    height, width = (size // subrays for size in picture.opacity.shape)

    def parts(x: np.ndarray) -> np.ndarray:
        blocks = x.reshape(height, subrays, width, subrays, *x.shape[2:])
        return blocks.swapaxes(1, 2).reshape(height, width, subrays**2, *x.shape[2:])

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
