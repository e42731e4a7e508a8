"""Rendering of images in chunks, and averaging of sub-pixels, against loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_rendering import FNS, make_rays, render_slowly

from jaxrf.core.rays import Rays
from jaxrf.rendering.image import HostRendering, render_image, resolve_supersampling
from jaxrf.rendering.volume import Rendering, render_samples


def render_linspace_image(
    rays: Rays, chunk_size: int, chunks_per_call: int
) -> tuple[HostRendering, int]:
    """Renders an image; returns it and the number of times its program was traced."""
    traces = 0

    def render_chunk(rays: Rays) -> Rendering:
        assert rays.near.shape == (chunk_size,)
        tdist = jnp.broadcast_to(jnp.linspace(0.5, 2.0, 5)[None], (chunk_size, 5))
        return render_samples(FNS, rays, tdist, jnp.ones((chunk_size, 3)))[0]

    @jax.jit
    def render_chunks(rays: Rays) -> Rendering:
        nonlocal traces
        traces += 1
        assert rays.near.shape[0] <= chunks_per_call
        return jax.lax.map(render_chunk, rays)

    return render_image(render_chunks, rays, chunk_size, chunks_per_call), traces


@pytest.mark.parametrize(
    ("chunk_size", "chunks_per_call"), [(1, 5), (5, 64), (5, 1), (5, 2), (6, 1), (12, 64), (50, 3)]
)
def test_render_image_is_independent_of_chunk_size_and_compiles_once(
    chunk_size: int, chunks_per_call: int
) -> None:
    rays = jax.tree.map(lambda x: x.reshape(3, 4, *x.shape[1:]), make_rays(12))
    image, traces = render_linspace_image(rays, chunk_size, chunks_per_call)
    assert traces == 1
    assert image.rgb.shape == (3, 4, 3)
    assert image.opacity.shape == image.depth.shape == image.median_depth.shape == (3, 4)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(image))
    tdist = jnp.broadcast_to(jnp.linspace(0.5, 2.0, 5)[None], (12, 5))
    slow = render_slowly(make_rays(12), tdist, jnp.ones((12, 3)))
    for name, values in slow.items():
        actual = getattr(image, name).reshape(values.shape)
        np.testing.assert_allclose(actual, values, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("batch", [(), (12,), (2, 3, 2)])
def test_render_image_accepts_any_batch_shape(batch: tuple[int, ...]) -> None:
    count = math.prod(batch)
    flat = make_rays(count)
    rays = jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), flat)
    image, _ = render_linspace_image(rays, 5, 2)
    assert image.rgb.shape == (*batch, 3) and image.opacity.shape == batch
    reference, _ = render_linspace_image(flat, 5, 2)
    np.testing.assert_array_equal(image.rgb.reshape(count, 3), reference.rgb)


# Supersampling.


@pytest.mark.parametrize("supersample", [1, 2, 3])
def test_resolve_supersampling_equals_loop(supersample: int) -> None:
    rng = np.random.default_rng(supersample)
    height, width, far = 4, 5, 9.0
    shape = (height * supersample, width * supersample)
    opacity = rng.uniform(size=shape) * (rng.uniform(size=shape) < 0.6)
    opacity[:supersample, :supersample] = 0.0  # a pixel that hits nothing
    depth = np.where(opacity > 0, rng.uniform(2, 6, shape), far)
    median = np.where(opacity > 0, rng.uniform(2, 6, shape), far)
    fine = HostRendering(
        rng.uniform(size=(*shape, 3)).astype(np.float32),
        *(x.astype(np.float32) for x in (opacity, depth, median)),
    )
    coarse = resolve_supersampling(fine, supersample)
    assert coarse.rgb.shape == (height, width, 3) and coarse.depth.shape == (height, width)
    for i, j in np.ndindex(height, width):
        block = np.s_[
            i * supersample : (i + 1) * supersample, j * supersample : (j + 1) * supersample
        ]
        np.testing.assert_allclose(
            coarse.rgb[i, j], fine.rgb[block].reshape(-1, 3).mean(0), rtol=1e-5
        )
        alpha = fine.opacity[block].ravel()
        np.testing.assert_allclose(coarse.opacity[i, j], alpha.mean(), rtol=1e-5)
        if alpha.sum() == 0:
            assert coarse.depth[i, j] == far and coarse.median_depth[i, j] == far
            continue
        mean = np.sum(alpha * fine.depth[block].ravel()) / alpha.sum()
        np.testing.assert_allclose(coarse.depth[i, j], mean, rtol=1e-5)
        order = np.argsort(fine.median_depth[block].ravel())
        cumulative, index = 0.0, -1
        while cumulative < 0.5 * alpha.sum() - 1e-6:
            index += 1
            cumulative += alpha[order[index]]
        assert coarse.median_depth[i, j] == fine.median_depth[block].ravel()[order[index]]
