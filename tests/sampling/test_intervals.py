"""Samplers: sorted edges within near and far, chance that is independent and has the right law."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrf.core.rays import Rays
from jaxrf.sampling.intervals import (
    hierarchical_legacy,
    hierarchical_sample,
    resample_intervals,
    stratified,
    stratified_legacy,
    stratified_uniforms,
)

stratify = jax.jit(stratified, static_argnames=("count", "spacing"))
draw = jax.jit(hierarchical_sample, static_argnames="count")

# XLA flushes subnormal numbers to zero.
FLOATS = partial(st.floats, width=32, allow_subnormal=False)

BATCHES = [(), (5,), (2, 3)]
EDGES = np.array([2.0, 2.5, 3.5, 4.0, 5.0, 5.5, 7.0], np.float32)
WEIGHTS = np.array([0.0, 0.2, 0.0, 0.5, 0.1, 0.0], np.float32)


def make_rays(
    batch: tuple[int, ...], near: float | np.ndarray = 2.0, far: float | np.ndarray = 6.0
) -> Rays:
    return Rays(
        origins=jnp.zeros((*batch, 3)),
        directions=jnp.broadcast_to(jnp.asarray([0.0, 0.0, -1.0]), (*batch, 3)),
        near=jnp.asarray(np.broadcast_to(near, batch), jnp.float32),
        far=jnp.asarray(np.broadcast_to(far, batch), jnp.float32),
        radii=jnp.zeros(batch),
        camera_index=jnp.zeros(batch, jnp.int32),
    )


def assert_uniform(values: np.ndarray) -> None:
    """Kolmogorov-Smirnov against [0, 1]; the bound is exceeded by chance once in a thousand."""
    ordered = np.sort(values)
    count = len(ordered)
    distance = np.max(np.abs(ordered - (np.arange(count) + 0.5) / count))
    assert distance < 1.95 / np.sqrt(count)


# Stratified sampling.


@pytest.mark.parametrize("batch", BATCHES)
def test_stratified_edges_without_key_are_even_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    far = np.random.default_rng(0).uniform(3, 9, batch)
    tdist = stratify(None, make_rays(batch, far=far), count=5)
    assert tdist.shape == (*batch, 6)
    for index in np.ndindex(*batch, 6):
        expected = 2.0 + index[-1] / 5 * (float(far[index[:-1]]) - 2.0)
        assert float(tdist[index]) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=60)
@given(FLOATS(0, 10), FLOATS(0, 1000), st.integers(0, 1000), st.booleans())
def test_stratified_edges_are_sorted_from_exactly_near_to_exactly_far(
    near: float, length: float, seed: int, with_key: bool
) -> None:
    near32, far32 = np.float32(near), np.float32(near) + np.float32(length)
    key = jax.random.key(seed) if with_key else None
    tdist = np.asarray(stratify(key, make_rays((3,), near32, far32), count=16))
    assert np.all(np.diff(tdist, axis=-1) >= 0)
    np.testing.assert_array_equal(tdist[:, 0], near32)
    np.testing.assert_array_equal(tdist[:, -1], far32)


def test_stratified_edges_end_exactly_at_far_whatever_the_rounding() -> None:
    rng = np.random.default_rng(2)
    near = rng.uniform(0, 3, 5000).astype(np.float32)
    far = (near + rng.uniform(0, 5, 5000)).astype(np.float32)
    tdist = np.asarray(stratify(jax.random.key(0), make_rays((5000,), near, far), count=16))
    assert np.all(np.diff(tdist, axis=-1) >= 0)
    np.testing.assert_array_equal(tdist[:, 0], near)
    np.testing.assert_array_equal(tdist[:, -1], far)


@pytest.mark.parametrize("with_key", [False, True])
def test_one_stratified_interval_is_the_whole_ray(with_key: bool) -> None:
    key = jax.random.key(0) if with_key else None
    np.testing.assert_array_equal(stratify(key, make_rays((2,)), count=1), [[2.0, 6.0]] * 2)


@pytest.mark.parametrize("with_key", [False, True])
def test_a_ray_without_length_gets_intervals_without_length(with_key: bool) -> None:
    key, rays = jax.random.key(0) if with_key else None, make_rays((2,), far=2.0)
    np.testing.assert_array_equal(stratify(key, rays, count=4), 2.0)


def test_one_key_gives_every_ray_its_own_strata() -> None:
    tdist = np.asarray(stratify(jax.random.key(3), make_rays((10, 10)), count=8))
    for edge in range(1, 8):
        assert len(np.unique(tdist[..., edge])) > 95


def test_stratified_edges_are_uniform_in_their_cells_and_independent() -> None:
    count = 5
    tdist = np.asarray(stratify(jax.random.key(4), make_rays((3000,)), count=count))
    within = (tdist - 2.0) / 4.0 * count - np.arange(count + 1) + 0.5
    for edge in range(1, count):
        assert_uniform(within[:, edge])
    correlation = np.corrcoef(within[:, 1:-1].T)
    assert np.max(np.abs(correlation - np.eye(count - 1))) < 0.1


def test_the_same_key_gives_the_same_edges_and_another_key_others() -> None:
    rays = make_rays((4,))
    for sample in (
        lambda key: stratify(key, rays, count=8),
        lambda key: draw(
            key, jnp.tile(EDGES[None], (4, 1)), jnp.tile(WEIGHTS[None], (4, 1)), count=8
        ),
    ):
        first, again, other = (np.asarray(sample(jax.random.key(k))) for k in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


# Stratified sampling that is even in disparity.


@pytest.mark.parametrize("batch", BATCHES)
def test_edges_even_in_disparity_equal_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    far = np.random.default_rng(0).uniform(3, 90, batch)
    tdist = stratify(None, make_rays(batch, far=far), count=5, spacing="disparity")
    assert tdist.shape == (*batch, 6)
    for index in np.ndindex(*batch, 6):
        share = index[-1] / 5
        inverse = (1 - share) / 2.0 + share / float(far[index[:-1]])
        assert float(tdist[index]) == pytest.approx(1 / inverse, rel=1e-5)


@settings(max_examples=60)
@given(
    st.just(0.0) | FLOATS(2**-40, 10),
    st.just(0.0) | FLOATS(2**-40, 2**20),
    st.integers(0, 1000),
    st.booleans(),
)
def test_edges_in_disparity_are_sorted_from_exactly_near_to_exactly_far(
    near: float, length: float, seed: int, with_key: bool
) -> None:
    near32, far32 = np.float32(near), np.float32(near) + np.float32(length)
    key = jax.random.key(seed) if with_key else None
    rays = make_rays((3,), near32, far32)
    tdist = np.asarray(stratify(key, rays, count=16, spacing="disparity"))
    assert np.all(np.diff(tdist, axis=-1) >= 0)
    np.testing.assert_array_equal(tdist[:, 0], near32)
    np.testing.assert_array_equal(tdist[:, -1], far32)


def test_edges_in_disparity_begin_and_end_exactly_whatever_the_rounding() -> None:
    rng = np.random.default_rng(2)
    near = rng.uniform(0.01, 3, 5000).astype(np.float32)
    far = (near + rng.uniform(0, 50, 5000)).astype(np.float32)
    rays = make_rays((5000,), near, far)
    tdist = np.asarray(stratify(jax.random.key(0), rays, count=16, spacing="disparity"))
    assert np.all(np.diff(tdist, axis=-1) >= 0)
    np.testing.assert_array_equal(tdist[:, 0], near)
    np.testing.assert_array_equal(tdist[:, -1], far)


@pytest.mark.parametrize("near", [0.0, 1e-20, 1e-3])
def test_a_near_of_next_to_nothing_counts_as_a_thousandth_of_far_for_the_inner_edges(
    near: float,
) -> None:
    tdist = stratify(None, make_rays((), near, 8.0), count=4, spacing="disparity")
    inverse = [(1 - share) / 8e-3 + share / 8.0 for share in (0.25, 0.5, 0.75)]
    assert float(tdist[0]) == np.float32(near) and float(tdist[-1]) == 8.0
    np.testing.assert_allclose(tdist[1:-1], 1 / np.array(inverse), rtol=1e-5)


@pytest.mark.parametrize("with_key", [False, True])
@pytest.mark.parametrize("place", [0.0, 1e-6, 2.0, 1e6])
def test_a_ray_without_length_gets_intervals_without_length_in_disparity(
    place: float, with_key: bool
) -> None:
    key, rays = jax.random.key(0) if with_key else None, make_rays((2,), place, place)
    tdist = stratify(key, rays, count=4, spacing="disparity")
    np.testing.assert_array_equal(tdist, np.float32(place))


def test_edges_are_uniform_in_their_cells_of_disparity() -> None:
    count = 5
    rays = make_rays((3000,), 0.5, 50.0)
    tdist = np.asarray(stratify(jax.random.key(4), rays, count=count, spacing="disparity"))
    sdist = (1 / tdist - 2.0) / (1 / 50.0 - 2.0)
    for edge in range(1, count):
        assert_uniform(sdist[:, edge] * count - edge + 0.5)


@pytest.mark.parametrize("spacing", ["linear", "disparity"])
def test_gradients_of_edges_by_near_and_far_are_finite(spacing: str) -> None:
    near = jnp.asarray([0.0, 0.0, 2.0, 2.0, 1e-20, 1e6])
    far = jnp.asarray([0.0, 4.0, 2.0, 6.0, 1e6, 1e6])

    def total(near: jax.Array, far: jax.Array) -> jax.Array:
        rays = dataclasses.replace(make_rays((6,)), near=near, far=far)
        return jnp.sum(stratified(None, rays, 8, spacing) * jnp.arange(9.0)[None])

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(near, far):
        assert np.all(np.isfinite(gradient))


# Importance sampling.


def blurred_cdf_slowly(weights: np.ndarray) -> list[float]:
    """Mean of the maxima with either neighbour (the ends are their own), padded by 0.01."""
    count, blurred = len(weights), []
    for i in range(count):
        left = max(float(weights[max(i - 1, 0)]), float(weights[i]))
        right = max(float(weights[i]), float(weights[min(i + 1, count - 1)]))
        blurred.append((left + right) / 2 + 0.01)
    cdf = [0.0]
    for value in blurred:
        cdf.append(cdf[-1] + value / sum(blurred))
    return cdf


@pytest.mark.parametrize("batch", BATCHES)
def test_importance_without_key_equals_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    edges = np.sort(rng.uniform(2, 6, (*batch, 7)), axis=-1).astype(np.float32)
    weights = rng.exponential(0.2, (*batch, 6)).astype(np.float32)
    tdist = draw(None, jnp.asarray(edges), jnp.asarray(weights), count=9)
    assert tdist.shape == (*batch, 7 + 9)
    for index in np.ndindex(batch):
        cdf = blurred_cdf_slowly(weights[index])
        drawn = [np.interp((i + 0.5) / 9, cdf, edges[index]) for i in range(9)]
        expected = sorted([*edges[index].tolist(), *drawn])
        np.testing.assert_allclose(tdist[index], expected, rtol=1e-4)


@pytest.mark.parametrize("with_key", [False, True])
def test_importance_is_sorted_within_the_ray_and_keeps_the_edges(with_key: bool) -> None:
    key = jax.random.key(7) if with_key else None
    rng = np.random.default_rng(8)
    edges = np.sort(rng.uniform(2, 6, (50, 7)), axis=-1).astype(np.float32)
    edges[0] = 3.0
    edges[1, 2:5] = edges[1, 2]
    weights = rng.exponential(0.2, (50, 6)).astype(np.float32)
    weights[2], weights[3] = 0.0, np.eye(6)[4]
    tdist = np.asarray(draw(key, jnp.asarray(edges), jnp.asarray(weights), count=11))
    assert np.all(np.isfinite(tdist))
    assert np.all(np.diff(tdist, axis=-1) >= 0)
    assert np.all(tdist >= edges[:, :1]) and np.all(tdist <= edges[:, -1:])
    for old, new in zip(edges, tdist, strict=True):
        assert set(old.tolist()) <= set(new.tolist())


def test_importance_samples_follow_the_histogram() -> None:
    rays, count = 2000, 8
    edges, weights = (jnp.tile(jnp.asarray(x)[None], (rays, 1)) for x in (EDGES, WEIGHTS))
    tdist = np.asarray(draw(jax.random.key(9), edges, weights, count=count))
    drawn = tdist[~np.isin(tdist, EDGES)]
    assert drawn.size == pytest.approx(rays * count, abs=20)
    cdf = blurred_cdf_slowly(WEIGHTS)
    counts, _ = np.histogram(drawn, EDGES)
    expected = np.diff(cdf) * drawn.size
    # Stratification makes this smaller than chi-square of 5 degrees of freedom (20.5 at 0.001).
    assert np.sum((counts - expected) ** 2 / expected) < 20.5
    # Within the intervals too: what the CDF maps to uniform numbers has the CDF.
    assert_uniform(np.interp(drawn, EDGES, cdf))


def test_importance_gives_every_ray_its_own_samples() -> None:
    edges, weights = (jnp.tile(jnp.asarray(x)[None], (100, 1)) for x in (EDGES, WEIGHTS))
    tdist = np.asarray(draw(jax.random.key(10), edges, weights, count=1))
    assert len(np.unique(tdist[~np.isin(tdist, EDGES)])) > 95


def test_rays_that_saw_nothing_are_sampled_evenly() -> None:
    edges = jnp.linspace(2.0, 6.0, 5)[None]
    tdist = np.asarray(draw(None, edges, jnp.zeros((1, 4)), count=8))[0]
    expected = sorted([*np.linspace(2, 6, 5), *(2.0 + (np.arange(8) + 0.5) / 2)])
    np.testing.assert_allclose(tdist, expected, rtol=1e-5)


def test_importance_finds_most_samples_where_the_weight_is() -> None:
    weights = np.zeros((1, 6), np.float32)
    weights[0, 3] = 1.0
    tdist = np.asarray(draw(None, jnp.asarray(EDGES)[None], jnp.asarray(weights), count=1000))[0]
    # The interval and, by the blur, half as much in both neighbours.
    inside = np.sum((tdist > EDGES[3]) & (tdist < EDGES[4]))
    around = np.sum((tdist > EDGES[2]) & (tdist < EDGES[5]))
    assert inside == pytest.approx(1000 * 1.01 / 2.06, abs=3)
    assert around == pytest.approx(1000 * 2.03 / 2.06, abs=4)


def test_no_gradient_flows_through_importance_sampling() -> None:
    def total(edges: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(hierarchical_sample(None, edges, weights, 5) * jnp.arange(12.0))

    for gradient in jax.grad(total, argnums=(0, 1))(jnp.asarray(EDGES), jnp.asarray(WEIGHTS)):
        np.testing.assert_array_equal(gradient, 0.0)


def test_one_coarse_interval_is_enough() -> None:
    tdist = draw(None, jnp.asarray([[1.0, 3.0]]), jnp.asarray([[0.5]]), count=4)
    np.testing.assert_allclose(tdist, [[1.0, 1.25, 1.75, 2.25, 2.75, 3.0]], rtol=1e-6)


# ---------------------------------------------------------------------------------------------
# Resampling
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 0])
def test_resampled_edges_lie_where_the_weights_are(seed: int | None) -> None:
    tdist = jnp.linspace(2.0, 6.0, 9)[None].repeat(3, axis=0)
    weights = jnp.zeros((3, 8)).at[:, 5].set(jnp.asarray([1.0, 0.5, 0.0]))
    key = None if seed is None else jax.random.key(seed)
    edges = np.asarray(resample_intervals(key, tdist, weights, 40))
    assert edges.shape == (3, 41) and np.all(np.diff(edges, axis=-1) >= 0)
    assert np.all(edges[:, 0] == 2.0) and np.all(edges[:, -1] == 6.0)
    inside = np.mean((edges[:, 1:-1] >= 4.5) & (edges[:, 1:-1] <= 5.0), axis=-1)
    assert np.all(inside[:2] > 0.9)
    # Where nothing has weight all of the ray is looked at.
    np.testing.assert_allclose(np.diff(edges[2, 1:-1]), 4.0 / 39, atol=0.12)


def test_resampling_inverts_the_padded_distribution() -> None:
    rng = np.random.default_rng(0)
    weights, tdist = rng.uniform(size=6), np.cumsum(rng.uniform(0.1, 1.0, 7))
    padded = weights + 0.01 / 6
    cdf = np.concatenate([[0.0], np.cumsum(padded) / padded.sum()])
    wanted = np.interp((np.arange(9) + 0.5) / 9, cdf, tdist)
    found = resample_intervals(None, jnp.asarray(tdist), jnp.asarray(weights), 10)
    np.testing.assert_allclose(found[1:-1], wanted, rtol=1e-5)


def test_one_interval_spans_the_ray_and_no_gradient_flows() -> None:
    tdist = jnp.asarray([1.0, 2.0, 3.0])
    edges = resample_intervals(None, tdist, jnp.asarray([0.3, 0.7]), 1)
    assert np.asarray(edges).tolist() == [1.0, 3.0]
    slope = jax.grad(lambda w: jnp.sum(resample_intervals(None, tdist, w, 4)))(jnp.ones(2))
    assert not np.any(slope)


@pytest.mark.parametrize("spacing", ["linear", "disparity"])
def test_samplers_in_float64_equal_those_in_float32(spacing: str) -> None:
    rng = np.random.default_rng(7)
    near, weights = rng.uniform(0.5, 2.0, 40), rng.exponential(0.2, (40, 8))

    def sample(dtype: Any) -> list[jax.Array]:
        ends = {"near": jnp.asarray(near, dtype), "far": jnp.asarray(near + 4.0, dtype)}
        rays = dataclasses.replace(make_rays((40,)), **ends)
        tdist = stratified(None, rays, 8, spacing)
        given_ = jnp.asarray(weights, dtype)
        drawn = (
            hierarchical_sample(None, tdist, given_, 12),
            resample_intervals(None, tdist, given_, 12),
        )
        return [tdist, *drawn]

    narrow = sample(jnp.float32)
    with jax.enable_x64(True):
        exact = sample(jnp.float64)
        assert all(value.dtype == jnp.float64 for value in exact)
    for value, wanted in zip(narrow, exact, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1e-30, 1e30])
def test_samples_are_in_order_within_their_ray_for_weights_of_any_size(weight: float) -> None:
    """No length, one spike, all the same: drawn where there is something, finite and in order."""
    tdist = jnp.asarray([np.full(7, 3.0), EDGES, EDGES * 1e6])
    weights = weight * jnp.asarray([WEIGHTS, WEIGHTS == 0.5, np.ones(6)], jnp.float32)
    for drawn in (
        hierarchical_sample(None, tdist, weights, 9),
        resample_intervals(None, tdist, weights, 9),
    ):
        assert np.all(np.isfinite(drawn)) and np.all(np.diff(np.asarray(drawn)) >= 0)
        np.testing.assert_array_equal(drawn[:, 0], tdist[:, 0])
        np.testing.assert_array_equal(drawn[:, -1], tdist[:, -1])


# Points, as in NeRF's original code.


@pytest.mark.parametrize("spacing", ["linear", "disparity"])
@pytest.mark.parametrize("batch", BATCHES)
def test_points_without_key_are_even_and_with_one_between_the_middles(
    batch: tuple[int, ...], spacing: Any
) -> None:
    far = np.random.default_rng(0).uniform(3, 9, batch)
    rays = make_rays(batch, far=far)
    even = stratified_legacy(None, rays, 6, spacing)
    drawn = stratified_legacy(jax.random.key(1), rays, 6, spacing)
    assert even.shape == drawn.shape == (*batch, 6)
    for index in np.ndindex(*batch):
        steps = np.linspace(0, 1, 6)
        line = 2.0 * (1 - steps) + float(far[index]) * steps
        inverse = 1 / (1 / 2.0 * (1 - steps) + 1 / float(far[index]) * steps)
        wanted = line if spacing == "linear" else inverse
        np.testing.assert_allclose(even[index], wanted, rtol=1e-6)
        middles = 0.5 * (wanted[1:] + wanted[:-1])
        lower, upper = np.append(wanted[0], middles), np.append(middles, wanted[-1])
        found = np.asarray(drawn[index])
        assert np.all(found >= lower - 1e-5) and np.all(found <= upper + 1e-5)
    assert not np.array_equal(even, drawn)


@pytest.mark.parametrize("seed", [None, 3])
def test_more_points_are_drawn_between_the_middles_where_the_weights_are(seed: int | None) -> None:
    points = np.array([2.0, 2.5, 3.5, 4.0, 5.0, 5.5], np.float32)
    weights = np.array([9.0, 0.2, 0.0, 0.5, 0.1, 9.0], np.float32)
    count = 4000
    key = None if seed is None else jax.random.key(seed)
    union = hierarchical_legacy(key, jnp.asarray(points), jnp.asarray(weights), count)
    assert union.shape == (count + 6,) and np.all(np.diff(union) >= 0)
    assert all(np.any(np.asarray(union) == p) for p in points)
    rest = np.asarray(union).tolist()
    for p in points:
        rest.remove(p)
    middles = 0.5 * (points[1:] + points[:-1])
    found, _ = np.histogram(rest, middles)
    wanted = weights[1:-1] / weights[1:-1].sum()
    np.testing.assert_allclose(found / count, wanted, atol=0.03 if seed else 2e-3)
    assert min(rest) >= middles[0] and max(rest) <= middles[-1]


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 8), (2, 3, 64)])
@pytest.mark.parametrize("with_key", [False, True])
def test_each_stratum_gets_one_uniform(shape: tuple[int, ...], with_key: bool) -> None:
    uniforms = np.asarray(stratified_uniforms(jax.random.key(0) if with_key else None, shape))
    assert uniforms.shape == shape and uniforms.dtype == np.float32
    assert np.all(uniforms >= 0) and np.all(uniforms < 1)
    for index in np.ndindex(shape):
        count, i = shape[-1], index[-1]
        assert i - 1e-4 <= float(uniforms[index]) * count <= i + 1 + 1e-4
        if not with_key:
            assert float(uniforms[index]) == pytest.approx((i + 0.5) / count, rel=1e-6)


def test_uniforms_differ_between_rays_and_fill_their_strata_evenly() -> None:
    count = 4
    uniforms = np.asarray(stratified_uniforms(jax.random.key(1), (2000, count)))
    within = uniforms * count - np.arange(count)
    for i in range(count):
        ordered = np.sort(within[:, i])
        # Kolmogorov-Smirnov; 1.95 / sqrt(n) is exceeded by chance once in a thousand.
        distance = np.max(np.abs(ordered - (np.arange(2000) + 0.5) / 2000))
        assert distance < 1.95 / np.sqrt(2000)
    assert np.max(np.abs(np.corrcoef(within.T) - np.eye(count))) < 0.1


@pytest.mark.parametrize("draw", ["stratified", "points", "importance", "resample"])
def test_with_a_key_of_its_own_a_ray_does_not_mind_its_neighbours(draw: str) -> None:
    own = jax.random.split(jax.random.key(3), 6)
    edges, weights = (jnp.broadcast_to(jnp.asarray(x), (6, x.size)) for x in (EDGES, WEIGHTS))

    def sample(rays: slice) -> np.ndarray:
        some = jax.tree.map(lambda x: x[rays], make_rays((6,)))
        match draw:
            case "stratified":
                found = stratified(own[rays], some, 5)
            case "points":
                found = stratified_legacy(own[rays], some, 5)
            case "importance":
                found = hierarchical_sample(own[rays], edges[rays], weights[rays], 5)
            case _:
                found = resample_intervals(own[rays], edges[rays], weights[rays], 5)
        return np.asarray(found)

    together = sample(slice(0, 6))
    np.testing.assert_array_equal(together[2:5], sample(slice(2, 5)))
    assert len(np.unique(together, axis=0)) == 6
