"""Rendering by marching: rays advance front to back, block by block, until they are opaque.

Letters in shapes: r rays, n blocks of a ray, w rays of a wave, s steps of a block, m samples of a
wave, c channels.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxrf.core.packing import find_bit, pack, pack_bits, rank_samples
from jaxrf.core.rays import ConicalFrusta, Rays
from jaxrf.core.stepfun import midpoints
from jaxrf.rendering.volume import (
    MIN_OPACITY,
    ColorFn,
    RadianceFns,
    RaySums,
    Rendering,
    color_ray,
    compute_weights,
    find_distance,
)

# Rays that are colored together.
RAYS_PER_CHUNK = 2048

IsOccupied = Callable[[Float[Array, "w s 3"]], Bool[Array, "w s"]]
SToTFn = Callable[[Float[Array, "w n"], Float[Array, "w 3"]], Float[Array, "w n"]]


class MarchRenderConfig(NamedTuple):
    """Static shapes and thresholds of `march_and_render`.

    Attributes:
      steps_per_block: steps of a block.
      rays_per_wave: rays that advance together by one block each.
      samples_per_wave: maximum number of samples evaluated in a wave, at least `steps_per_block`;
        rays that do not fit wait for a later wave.
      color_per_ray: composite features along the ray and color them once, instead of coloring each
        sample and compositing colors.
      color_budget: number of samples that get features at once, in as many rounds as needed. None
        gives features to all samples of a wave, whatever their weight.
      color_threshold: with a budget, samples of no more weight than this get no features.
      transmittance_threshold: a ray is finished when its transmittance is no more than this.
    """

    steps_per_block: int
    rays_per_wave: int
    samples_per_wave: int
    color_per_ray: bool = False
    color_budget: int | None = None
    color_threshold: float = 0.0
    transmittance_threshold: float = 1e-3


class _MarchInputs(NamedTuple):
    """Everything that stays the same from wave to wave."""

    fns: RadianceFns
    rays: Rays
    block_bits: UInt32[Array, "r words"]
    num_blocks: int
    step_size: Float[Array, ""] | float
    is_occupied: IsOccupied
    s_to_t: SToTFn
    config: MarchRenderConfig


class _MarchState(NamedTuple):
    """Progress of each ray.

    Attributes:
      block: (r,) index of the next block to evaluate; the number of blocks if there is none.
      transmittance: (r,) after the blocks evaluated so far.
      accumulated: (r, 2 + c) sums of weight times (1, distance, features or color).
      block_opacity: (r * n,) sum of the weights in each block.
    """

    block: Int[Array, "r"]
    transmittance: Float[Array, "r"]
    accumulated: Float[Array, "r c"]
    block_opacity: Float[Array, "rn"]


class _BlockSamples(NamedTuple):
    """Samples of one block of each of w rays, dense and packed.

    Attributes:
      edges: (w, s + 1) distances along the rays.
      density: (w, s); 0 where the field was not evaluated.
      fits: (w,) whether all samples of the ray's block were evaluated.
      flat_index: (m,) index of each packed sample in (w, s).
      valid: (m,) whether the slot holds a sample.
      row: (m,) index of the sample's ray among the w rays.
      distance: (m,) of the sample along its ray.
      latent: what the field's `density` passes on to `features`.
    """

    edges: Float[Array, "w s_plus_1"]
    density: Float[Array, "w s"]
    fits: Bool[Array, "w"]
    flat_index: Int[Array, "m"]
    valid: Bool[Array, "m"]
    row: Int[Array, "m"]
    distance: Float[Array, "m"]
    latent: Any


class _MedianBlocks(NamedTuple):
    """The block of each ray in which half of its opacity is reached.

    Attributes:
      half: (r,) half of the ray's opacity.
      block: (r,) index of the block.
      opacity_before: (r,) of the blocks before it.
    """

    half: Float[Array, "r"]
    block: Int[Array, "r"]
    opacity_before: Float[Array, "r"]


class _FinishState(NamedTuple):
    """Rays that hit something and still need their median depth and color."""

    waiting: Bool[Array, "r"]
    median_depth: Float[Array, "r"]
    rgb: Float[Array, "r 3"]


def march_and_render(
    fns: RadianceFns,
    rays: Rays,
    blocks: Bool[Array, "r n"],
    step_size: Float[Array, ""] | float,
    is_occupied: IsOccupied,
    background: Float[Array, "r 3"],
    miss_depth: Float[Array, "r"],
    config: MarchRenderConfig,
    s_to_t: SToTFn | None = None,
) -> Rendering:
    """Renders rays front to back, block by block of steps, until they are opaque.

    In each wave the first `config.rays_per_wave` unfinished rays advance by their next block. The
    result equals that of rendering all samples at once, up to a transmittance of
    `config.transmittance_threshold`. Not differentiable.

    Args:
      fns: the field.
      rays: batch shape (r,), near and far as s distances (`occupancy.to_s_rays`).
      blocks: (r, n) which blocks of each ray, counted from near, may be occupied.
      step_size: length of a step, an s distance.
      is_occupied: positions (w, s, 3) -> mask (w, s) of positions to evaluate.
      background: (r, 3) color behind each ray.
      miss_depth: (r,) depth of rays that hit nothing.
      config: static shapes and thresholds.
      s_to_t: (s distances (w, n), origins (w, 3)) -> distances along the rays in
        scene units; by default the identity.
    """
    inputs = _MarchInputs(
        fns=fns,
        rays=rays,
        block_bits=pack_bits(blocks),
        num_blocks=blocks.shape[1],
        step_size=step_size,
        is_occupied=is_occupied,
        s_to_t=s_to_t or identity,
        config=config,
    )
    state = jax.lax.while_loop(
        lambda state: jnp.any(_is_alive(inputs, state)),
        lambda state: _march_wave(inputs, state),
        _start_march(inputs),
    )
    opacity, distance = state.accumulated[:, 0], state.accumulated[:, 1]
    hit = opacity > MIN_OPACITY
    median_blocks = _find_median_blocks(state.block_opacity.reshape(blocks.shape))
    finished = jax.lax.while_loop(
        lambda finish: jnp.any(finish.waiting),
        lambda finish: _finish_wave(inputs, state.accumulated, median_blocks, finish),
        _FinishState(hit, miss_depth.astype(opacity.dtype), jnp.zeros((len(blocks), 3))),
    )
    return Rendering(
        rgb=finished.rgb + (1.0 - opacity)[:, None] * background,
        opacity=opacity,
        depth=jnp.where(hit, distance / jnp.where(hit, opacity, 1.0), miss_depth),
        median_depth=finished.median_depth,
    )


def color_sums(
    color_fn: ColorFn,
    sums: RaySums,
    rays: Rays,
    background: Float[Array, "r 3"],
    miss_depth: Float[Array, "r"],
) -> Rendering:
    """A rendering of rays whose samples were composited: colors each ray once.

    Args:
      color_fn: see `RadianceFns`.
      sums: of the rays.
      rays: batch shape (r,).
      background: (r, 3) color behind each ray.
      miss_depth: (r,) depth of rays that hit nothing.
    """
    hit = sums.opacity > MIN_OPACITY
    chunks = -(-len(hit) // RAYS_PER_CHUNK)

    def split(x: Array) -> Array:
        padding = ((0, chunks * RAYS_PER_CHUNK - len(x)), *((0, 0),) * (x.ndim - 1))
        return jnp.pad(x, padding).reshape(chunks, RAYS_PER_CHUNK, *x.shape[1:])

    def color_chunk(chunk: tuple[Array, Array, Rays]) -> Float[Array, "r 3"]:
        features, opacity, rays = chunk
        # Whole rows of a picture may show nothing.
        color: Array = jax.lax.cond(
            jnp.any(opacity > MIN_OPACITY),
            lambda: color_ray(color_fn, features, opacity, rays),
            lambda: jnp.zeros((RAYS_PER_CHUNK, 3)),
        )
        return color

    chunked = jax.tree.map(split, (sums.features, sums.opacity, rays))
    rgb = jax.lax.map(color_chunk, chunked).reshape(-1, 3)[: len(hit)]
    return Rendering(
        rgb=jnp.where(hit[:, None], rgb, 0.0) + (1.0 - sums.opacity)[:, None] * background,
        opacity=sums.opacity,
        depth=jnp.where(hit, sums.distance / jnp.where(hit, sums.opacity, 1.0), miss_depth),
        median_depth=jnp.where(hit, sums.median_depth, miss_depth),
    )


def identity(distances: Float[Array, "w n"], origins: Float[Array, "w 3"]) -> Float[Array, "w n"]:
    """The distances themselves: s distances of space that is not contracted."""
    del origins
    return distances


def _start_march(inputs: _MarchInputs) -> _MarchState:
    num_rays, num_blocks = len(inputs.block_bits), inputs.num_blocks
    num_channels = _count_features(inputs.fns) if inputs.config.color_per_ray else 3
    first = jnp.zeros((num_rays,), jnp.int32)
    return _MarchState(
        block=find_bit(inputs.block_bits, first, num_blocks),
        transmittance=jnp.ones((num_rays,)),
        accumulated=jnp.zeros((num_rays, 2 + num_channels)),
        block_opacity=jnp.zeros((num_rays * num_blocks,)),
    )


def _count_features(fns: RadianceFns) -> int:
    """Number of the field's feature channels, without evaluating it."""
    shape = jax.eval_shape(functools.partial(_features_at, fns), jnp.zeros((1, 3))).shape
    return int(shape[-1])


def _features_at(fns: RadianceFns, positions: Float[Array, "m 3"]) -> Float[Array, "m c"]:
    frusta = ConicalFrusta(positions, *(positions[:, 0],) * 3)
    return fns.features(fns.density(positions, frusta)[1])


def _is_alive(inputs: _MarchInputs, state: _MarchState) -> Bool[Array, "r"]:
    """Rays that have a block left and are not opaque."""
    threshold = inputs.config.transmittance_threshold
    return (state.block < inputs.num_blocks) & (state.transmittance > threshold)


def _march_wave(inputs: _MarchInputs, state: _MarchState) -> _MarchState:
    """Advances the first unfinished rays by one block each."""
    num_rays, num_blocks = len(inputs.block_bits), inputs.num_blocks
    ray, valid = _select_rays(_is_alive(inputs, state), inputs.config.rays_per_wave)
    block = jnp.minimum(state.block[ray], num_blocks - 1)
    samples = _evaluate_blocks(inputs, ray, valid, block)
    weights, transmittance = _composite_block(samples, state.transmittance[ray])
    weight = jnp.where(samples.valid, weights.ravel()[samples.flat_index], 0.0)
    accumulated = _accumulate(inputs, state.accumulated, ray[samples.row], weight, samples)
    # Rays that did not fit are written past the end, which drops them.
    target = jnp.where(samples.fits, ray, num_rays)
    cell = jnp.where(samples.fits, ray * num_blocks + block, num_rays * num_blocks)
    next_block = find_bit(inputs.block_bits[ray], block + 1, num_blocks)
    opacity = jnp.sum(weights, axis=-1)
    return _MarchState(
        block=state.block.at[target].set(next_block, mode="drop"),
        transmittance=state.transmittance.at[target].set(transmittance, mode="drop"),
        accumulated=accumulated,
        block_opacity=state.block_opacity.at[cell].set(opacity, mode="drop"),
    )


def _select_rays(
    mask: Bool[Array, "r"], num_selected: int
) -> tuple[Int[Array, "w"], Bool[Array, "w"]]:
    """Indices of the first rays in the mask, and which of them are valid."""
    rows = mask[None]
    selected = pack(rows, rank_samples(rows), num_selected)
    return jnp.minimum(selected.sample, mask.size - 1), selected.valid


def _evaluate_blocks(
    inputs: _MarchInputs,
    ray: Int[Array, "w"],
    valid: Bool[Array, "w"],
    block: Int[Array, "w"],
) -> _BlockSamples:
    """Evaluates the density along one block of each valid ray, where it is occupied."""
    rays, steps = inputs.rays, inputs.config.steps_per_block
    near, far = rays.near[ray][:, None], rays.far[ray][:, None]
    step = block[:, None] * steps + jnp.arange(steps + 1, dtype=jnp.int32)[None]
    origins = rays.origins[ray]
    edges = inputs.s_to_t(jnp.minimum(near + inputs.step_size * step, far), origins)
    middle = midpoints(edges)
    directions = rays.directions[ray][:, None]
    positions = origins[:, None] + middle[..., None] * directions
    mask = valid[:, None] & (jnp.diff(edges, axis=-1) > 0) & inputs.is_occupied(positions)
    rank = rank_samples(mask)
    # Rays whose samples do not all fit wait for a later wave.
    budget = inputs.config.samples_per_wave
    fits = valid & (rank[:, -1] + mask[:, -1] <= budget)
    packed = pack(mask & fits[:, None], rank, budget)
    index = jnp.minimum(packed.sample, mask.size - 1)
    row = index // steps
    distance = middle.ravel()[index]
    frusta = ConicalFrusta(
        rays.directions[ray[row]],
        rays.radii[ray[row]],
        edges[:, :-1].ravel()[index],
        edges[:, 1:].ravel()[index],
    )
    density, latent = inputs.fns.density(positions.reshape(-1, 3)[index], frusta)
    dense = jnp.zeros((mask.size,)).at[packed.sample].set(density, mode="drop")
    dense = dense.reshape(mask.shape)
    return _BlockSamples(edges, dense, fits, index, packed.valid, row, distance, latent)


def _composite_block(
    samples: _BlockSamples, transmittance: Float[Array, "w"]
) -> tuple[Float[Array, "w s"], Float[Array, "w"]]:
    """Weights in each block, given the transmittance before it, and the transmittance after it."""
    weights, _ = compute_weights(samples.density, samples.edges)
    return weights * transmittance[:, None], transmittance * (1.0 - jnp.sum(weights, axis=-1))


def _accumulate(
    inputs: _MarchInputs,
    accumulated: Float[Array, "r c"],
    ray: Int[Array, "m"],
    weight: Float[Array, "m"],
    samples: _BlockSamples,
) -> Float[Array, "r c"]:
    """Adds weight times (1, distance, features or color) of each sample to its ray."""
    budget = inputs.config.color_budget
    moments = jnp.stack([jnp.ones_like(weight), samples.distance], axis=-1)
    if budget is None:
        return _add_features(inputs, accumulated, ray, weight, samples.latent, moments)
    accumulated = accumulated.at[ray, :2].add(moments * weight[:, None])
    needs_color = (weight > inputs.config.color_threshold)[None]
    rank = rank_samples(needs_color)
    total = rank[0, -1] + needs_color[0, -1]
    add_chunk = functools.partial(
        _add_chunk, inputs, budget, ray, weight, samples.latent, needs_color, rank
    )
    num_chunks = (total + budget - 1) // budget
    return jax.lax.fori_loop(0, num_chunks, add_chunk, accumulated)


def _add_chunk(
    inputs: _MarchInputs,
    budget: int,
    ray: Int[Array, "m"],
    weight: Float[Array, "m"],
    latent: Any,
    needs_color: Bool[Array, "1 m"],
    rank: Int[Array, "1 m"],
    chunk: Int[Array, ""],
    accumulated: Float[Array, "r c"],
) -> Float[Array, "r c"]:
    """Adds the features of the chunk's samples, `budget` of those that need color."""
    selected = pack(needs_color, rank, budget, chunk * budget)
    index = jnp.minimum(selected.sample, weight.size - 1)
    selected_weight = jnp.where(selected.valid, weight[index], 0.0)
    selected_latent = jax.tree.map(lambda x: x[index], latent)
    # Opacity and distance have been added for all samples.
    moments = jnp.zeros((budget, 2))
    return _add_features(inputs, accumulated, ray[index], selected_weight, selected_latent, moments)


def _add_features(
    inputs: _MarchInputs,
    accumulated: Float[Array, "r c"],
    ray: Int[Array, "k"],
    weight: Float[Array, "k"],
    latent: Any,
    moments: Float[Array, "k 2"],
) -> Float[Array, "r c"]:
    fns, rays = inputs.fns, inputs.rays
    values = fns.features(latent)
    if not inputs.config.color_per_ray:
        values = fns.color(values, rays.directions[ray], rays.camera_index[ray])
    values = jnp.concatenate([moments, values], axis=-1)
    return accumulated.at[ray].add(values * weight[:, None])


def _find_median_blocks(block_opacity: Float[Array, "r n"]) -> _MedianBlocks:
    cumulative = jnp.cumsum(block_opacity, axis=-1)
    half = 0.5 * cumulative[:, -1]
    block = jnp.argmax(cumulative >= half[:, None], axis=-1).astype(jnp.int32)
    opacity_after = jnp.take_along_axis(cumulative, block[:, None], axis=-1)[:, 0]
    opacity_before = opacity_after - block_opacity[jnp.arange(len(block_opacity)), block]
    return _MedianBlocks(half, block, opacity_before)


def _finish_wave(
    inputs: _MarchInputs,
    accumulated: Float[Array, "r c"],
    median: _MedianBlocks,
    state: _FinishState,
) -> _FinishState:
    """Finds the median depth and color of the first waiting rays.

    Their median block is evaluated a second time, as marching does not store samples.
    """
    ray, valid = _select_rays(state.waiting, inputs.config.rays_per_wave)
    samples = _evaluate_blocks(inputs, ray, valid, median.block[ray])
    opacity_before = median.opacity_before[ray]
    weights, _ = _composite_block(samples, 1.0 - opacity_before)
    median_depth = find_distance(median.half[ray] - opacity_before, weights, samples.edges)
    opacity, color = accumulated[ray, 0], accumulated[ray, 2:]
    if inputs.config.color_per_ray:
        selected = jax.tree.map(lambda x: x[ray], inputs.rays)
        color = color_ray(inputs.fns.color, color, opacity, selected)
    target = jnp.where(samples.fits, ray, state.waiting.size)
    return _FinishState(
        waiting=state.waiting.at[target].set(False, mode="drop"),
        median_depth=state.median_depth.at[target].set(median_depth, mode="drop"),
        rgb=state.rgb.at[target].set(color, mode="drop"),
    )
