"""Whole images in constant memory: rendering in chunks, and averaging of sub-pixels."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxrf.core.rays import Rays
from jaxrf.rendering.volume import MIN_OPACITY, Rendering

# Images of less than a chunk are padded to a multiple of this number of rays.
RAY_MULTIPLE = 256


class HostRendering(NamedTuple):
    """A `Rendering` in host memory, usually of an image, batch shape (height, width).

    Attributes:
      rgb, opacity, depth, median_depth: see `Rendering`.
    """

    rgb: Float[np.ndarray, "*batch 3"]
    opacity: Float[np.ndarray, "*batch"]
    depth: Float[np.ndarray, "*batch"]
    median_depth: Float[np.ndarray, "*batch"]


def render_image(
    render_chunks: Callable[[Rays], Rendering],
    rays: Rays,
    chunk_size: int,
    chunks_per_call: int = 64,
    divisor: int = 1,
) -> HostRendering:
    """Renders rays of any batch shape in chunks of constant size.

    The last call is padded with the last ray, so that images of one size never recompile.

    Args:
      render_chunks: jitted; takes rays of batch shape (k, size) and renders one chunk after the
        other (`jax.lax.map`), so that chunks share their memory.
      rays: any batch shape, for example (height, width); host or device arrays.
      chunk_size: maximum number of rays rendered together; it bounds the memory.
      chunks_per_call: maximum number of chunks passed to `render_chunks` at once.
      divisor: the number of rays of a chunk is a multiple of this, and may exceed `chunk_size` for
        it.

    >>> import jax.numpy as jnp
    >>> def render_depth(rays):  # a wall at the end of every ray
    ...     ones = jnp.ones(rays.near.shape)
    ...     return Rendering(jnp.ones((*ones.shape, 3)), ones, rays.far, rays.far)
    >>> rays = Rays(
    ...     origins=jnp.zeros((4, 6, 3)),
    ...     directions=jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), (4, 6, 3)),
    ...     near=jnp.zeros((4, 6)),
    ...     far=jnp.full((4, 6), 3.0),
    ...     radii=jnp.zeros((4, 6)),
    ...     camera_index=jnp.zeros((4, 6), int),
    ... )
    >>> image = render_image(jax.jit(render_depth), rays, chunk_size=8)
    >>> image.rgb.shape, float(image.depth.max())
    ((4, 6, 3), 3.0)
    """
    shape = rays.near.shape
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[len(shape) :]), rays)
    num_rays = flat.near.shape[0]
    if num_rays == 0:
        empty = np.zeros(shape, np.float32)
        return HostRendering(np.zeros((*shape, 3), np.float32), empty, empty, empty)
    num_chunks = -(-num_rays // chunk_size)
    # Chunks of even size, so that a small image is not padded to a full chunk.
    even_size = -(-num_rays // (RAY_MULTIPLE * num_chunks)) * RAY_MULTIPLE
    size = -(-min(chunk_size, even_size) // divisor) * divisor
    num_chunks = min(num_chunks, chunks_per_call)
    parts = []
    for start in range(0, num_rays, num_chunks * size):
        index = np.minimum(np.arange(start, start + num_chunks * size), num_rays - 1)
        index = index.reshape(num_chunks, size)
        parts.append(render_chunks(jax.tree.map(lambda x, index=index: x[index], flat)))
    # Fetched after the loop, so that each call is dispatched without waiting for the one before.
    host_parts = jax.device_get(parts)

    def join(name: str) -> np.ndarray:
        blocks = [getattr(part, name) for part in host_parts]
        values = np.concatenate([b.reshape(-1, *b.shape[2:]) for b in blocks])[:num_rays]
        return values.reshape(shape + values.shape[1:])

    return HostRendering(*(join(name) for name in HostRendering._fields))


def resolve_supersampling(rendering: HostRendering, supersample: int) -> HostRendering:
    """Averages blocks of supersample x supersample pixels into one pixel.

    Color and opacity are means. The depth is the mean weighted by opacity, and the median depth is
    the one at which half of the block's opacity is reached.

    Args:
      rendering: batch shape (height * supersample, width * supersample).
      supersample: sub-pixels along each axis.
    """
    if supersample == 1:
        return rendering
    height, width = (size // supersample for size in rendering.opacity.shape)

    def split(x: np.ndarray) -> np.ndarray:
        blocks = x.reshape(height, supersample, width, supersample, *x.shape[2:])
        return blocks.swapaxes(1, 2).reshape(height, width, supersample**2, *x.shape[2:])

    opacity = split(rendering.opacity)
    total = opacity.sum(axis=-1)
    hit = total > MIN_OPACITY
    # Sub-pixels that hit nothing have a depth of far; a block of them takes their plain mean.
    weight = np.where(hit[..., None], opacity, 1.0)
    depth = np.sum(weight * split(rendering.depth), axis=-1) / weight.sum(axis=-1)
    median = split(rendering.median_depth)
    order = np.argsort(median, axis=-1)
    cumulative = np.cumsum(np.take_along_axis(weight, order, axis=-1), axis=-1)
    middle = np.argmax(cumulative >= 0.5 * cumulative[..., -1:], axis=-1)[..., None]
    middle = np.take_along_axis(order, middle, axis=-1)
    return HostRendering(
        rgb=split(rendering.rgb).mean(axis=2),
        opacity=opacity.mean(axis=-1),
        depth=depth,
        median_depth=np.take_along_axis(median, middle, axis=-1)[..., 0],
    )
