"""Interval samplers: edges are sorted, exact at the ends, and distributed as specified."""

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
from jaxrf.sampling import intervals
from jaxrf.sampling.intervals import (
    Spacing,
    hierarchical_legacy,
    hierarchical_sample,
    resample_intervals,
    stratified,
    stratified_legacy,
    stratified_uniforms,
)

stratified_edges = jax.jit(stratified, static_argnames=("count", "spacing"))
merge = jax.jit(hierarchical_sample, static_argnames="count")

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
    """Kolmogorov-Smirnov test; uniform samples exceed the bound with probability 1e-3."""
    ordered = np.sort(values)
    count = len(ordered)
    distance = np.max(np.abs(ordered - (np.arange(count) + 0.5) / count))
    assert distance < 1.95 / np.sqrt(count)


# Stratified sampling.


@pytest.mark.parametrize("batch", BATCHES)
def test_stratified_edges_without_key_are_even_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    far = np.random.default_rng(0).uniform(3, 9, batch)
    tdist = stratified_edges(None, make_rays(batch, far=far), count=5)
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
    tdist = np.asarray(stratified_edges(key, make_rays((3,), near32, far32), count=16))
    assert np.all(np.diff(tdist, axis=-1) >= 0)
    np.testing.assert_array_equal(tdist[:, 0], near32)
    np.testing.assert_array_equal(tdist[:, -1], far32)


def test_stratified_edges_end_exactly_at_far_despite_rounding() -> None:
    rng = np.random.default_rng(2)
    near = rng.uniform(0, 3, 5000).astype(np.float32)
    far = (near + rng.uniform(0, 5, 5000)).astype(np.float32)
    tdist = np.asarray(stratified_edges(jax.random.key(0), make_rays((5000,), near, far), count=16))
    assert np.all(np.diff(tdist, axis=-1) >= 0)
    np.testing.assert_array_equal(tdist[:, 0], near)
    np.testing.assert_array_equal(tdist[:, -1], far)


@pytest.mark.parametrize("with_key", [False, True])
def test_stratified_of_one_interval_spans_the_ray(with_key: bool) -> None:
    key = jax.random.key(0) if with_key else None
    np.testing.assert_array_equal(stratified_edges(key, make_rays((2,)), count=1), [[2.0, 6.0]] * 2)


@pytest.mark.parametrize("with_key", [False, True])
def test_stratified_of_a_ray_of_zero_length_has_zero_length(with_key: bool) -> None:
    key, rays = jax.random.key(0) if with_key else None, make_rays((2,), far=2.0)
    np.testing.assert_array_equal(stratified_edges(key, rays, count=4), 2.0)


def test_stratified_with_one_key_jitters_rays_independently() -> None:
    tdist = np.asarray(stratified_edges(jax.random.key(3), make_rays((10, 10)), count=8))
    for edge in range(1, 8):
        assert len(np.unique(tdist[..., edge])) > 95


def test_stratified_edges_are_uniform_in_their_cells_and_independent() -> None:
    count = 5
    tdist = np.asarray(stratified_edges(jax.random.key(4), make_rays((3000,)), count=count))
    within = (tdist - 2.0) / 4.0 * count - np.arange(count + 1) + 0.5
    for edge in range(1, count):
        assert_uniform(within[:, edge])
    correlation = np.corrcoef(within[:, 1:-1].T)
    assert np.max(np.abs(correlation - np.eye(count - 1))) < 0.1


def test_samplers_are_deterministic_in_the_key() -> None:
    rays = make_rays((4,))
    for sample in (
        lambda key: stratified_edges(key, rays, count=8),
        lambda key: merge(
            key, jnp.tile(EDGES[None], (4, 1)), jnp.tile(WEIGHTS[None], (4, 1)), count=8
        ),
    ):
        first, again, other = (np.asarray(sample(jax.random.key(k))) for k in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


# Stratified sampling in disparity.


@pytest.mark.parametrize("batch", BATCHES)
def test_stratified_in_disparity_equals_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    far = np.random.default_rng(0).uniform(3, 90, batch)
    tdist = stratified_edges(None, make_rays(batch, far=far), count=5, spacing="disparity")
    assert tdist.shape == (*batch, 6)
    for index in np.ndindex(*batch, 6):
        fraction = index[-1] / 5
        inverse = (1 - fraction) / 2.0 + fraction / float(far[index[:-1]])
        assert float(tdist[index]) == pytest.approx(1 / inverse, rel=1e-5)


@settings(max_examples=60)
@given(
    st.just(0.0) | FLOATS(2**-40, 10),
    st.just(0.0) | FLOATS(2**-40, 2**20),
    st.integers(0, 1000),
    st.booleans(),
)
def test_stratified_in_disparity_is_sorted_from_exactly_near_to_exactly_far(
    near: float, length: float, seed: int, with_key: bool
) -> None:
    near32, far32 = np.float32(near), np.float32(near) + np.float32(length)
    key = jax.random.key(seed) if with_key else None
    rays = make_rays((3,), near32, far32)
    tdist = np.asarray(stratified_edges(key, rays, count=16, spacing="disparity"))
    assert np.all(np.diff(tdist, axis=-1) >= 0)
    np.testing.assert_array_equal(tdist[:, 0], near32)
    np.testing.assert_array_equal(tdist[:, -1], far32)


def test_stratified_in_disparity_starts_and_ends_exactly_despite_rounding() -> None:
    rng = np.random.default_rng(2)
    near = rng.uniform(0.01, 3, 5000).astype(np.float32)
    far = (near + rng.uniform(0, 50, 5000)).astype(np.float32)
    rays = make_rays((5000,), near, far)
    tdist = np.asarray(stratified_edges(jax.random.key(0), rays, count=16, spacing="disparity"))
    assert np.all(np.diff(tdist, axis=-1) >= 0)
    np.testing.assert_array_equal(tdist[:, 0], near)
    np.testing.assert_array_equal(tdist[:, -1], far)


@pytest.mark.parametrize("near", [0.0, 1e-20, 1e-3])
def test_stratified_in_disparity_replaces_a_tiny_near_for_interior_edges(
    near: float,
) -> None:
    tdist = stratified_edges(None, make_rays((), near, 8.0), count=4, spacing="disparity")
    inverse = [(1 - fraction) / 8e-3 + fraction / 8.0 for fraction in (0.25, 0.5, 0.75)]
    assert float(tdist[0]) == np.float32(near) and float(tdist[-1]) == 8.0
    np.testing.assert_allclose(tdist[1:-1], 1 / np.array(inverse), rtol=1e-5)


@pytest.mark.parametrize("with_key", [False, True])
@pytest.mark.parametrize("place", [0.0, 1e-6, 2.0, 1e6])
def test_stratified_in_disparity_of_a_ray_of_zero_length_has_zero_length(
    place: float, with_key: bool
) -> None:
    key, rays = jax.random.key(0) if with_key else None, make_rays((2,), place, place)
    tdist = stratified_edges(key, rays, count=4, spacing="disparity")
    np.testing.assert_array_equal(tdist, np.float32(place))


def test_stratified_in_disparity_is_uniform_in_its_cells() -> None:
    count = 5
    rays = make_rays((3000,), 0.5, 50.0)
    tdist = np.asarray(stratified_edges(jax.random.key(4), rays, count=count, spacing="disparity"))
    sdist = (1 / tdist - 2.0) / (1 / 50.0 - 2.0)
    for edge in range(1, count):
        assert_uniform(sdist[:, edge] * count - edge + 0.5)


@pytest.mark.parametrize("spacing", ["linear", "disparity", "power"])
def test_stratified_gradients_with_respect_to_near_and_far_are_finite(spacing: str) -> None:
    near = jnp.asarray([0.0, 0.0, 2.0, 2.0, 1e-20, 1e6])
    far = jnp.asarray([0.0, 4.0, 2.0, 6.0, 1e6, 1e6])

    def total(near: jax.Array, far: jax.Array) -> jax.Array:
        rays = dataclasses.replace(make_rays((6,)), near=near, far=far)
        return jnp.sum(stratified(None, rays, 8, spacing) * jnp.arange(9.0)[None])

    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(near, far):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("unit", [0.5, 3.0])
def test_power_spacing_against_the_formula(unit: float) -> None:
    """Even in P(2 t / unit), P(x) = (2.5 / -1.5) ((x / 2.5 + 1)^-1.5 - 1), whatever the unit."""
    near, far, count = 0.2, 400.0, 16

    def power(x: float) -> float:
        return float(2.5 / -1.5 * ((x / 2.5 + 1.0) ** -1.5 - 1.0))

    first, last = power(2.0 * near / unit), power(2.0 * far / unit)
    tdist = np.asarray(stratified(None, make_rays((), near, far), count, "power", unit))
    heights = [power(2.0 * t / unit) for t in tdist.tolist()]
    np.testing.assert_allclose(heights, np.linspace(first, last, count + 1), atol=2e-4)
    assert tdist[1] < near + (far - near) / count
    assert tdist[0] == np.float32(near) and tdist[-1] == np.float32(far)


# Hierarchical sampling.


def blurred_cdf_slowly(weights: np.ndarray) -> list[float]:
    """CDF of the mean of maxima with both neighbors (repeated at the ends), padded by 0.01."""
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
def test_hierarchical_sample_without_key_equals_loop_for_any_batch_shape(
    batch: tuple[int, ...],
) -> None:
    rng = np.random.default_rng(6)
    edges = np.sort(rng.uniform(2, 6, (*batch, 7)), axis=-1).astype(np.float32)
    weights = rng.exponential(0.2, (*batch, 6)).astype(np.float32)
    tdist = merge(None, jnp.asarray(edges), jnp.asarray(weights), count=9)
    assert tdist.shape == (*batch, 7 + 9)
    for index in np.ndindex(batch):
        cdf = blurred_cdf_slowly(weights[index])
        drawn = [np.interp((i + 0.5) / 9, cdf, edges[index]) for i in range(9)]
        expected = sorted([*edges[index].tolist(), *drawn])
        np.testing.assert_allclose(tdist[index], expected, rtol=1e-4)


@pytest.mark.parametrize("with_key", [False, True])
def test_hierarchical_sample_is_sorted_and_contains_the_edges(with_key: bool) -> None:
    key = jax.random.key(7) if with_key else None
    rng = np.random.default_rng(8)
    edges = np.sort(rng.uniform(2, 6, (50, 7)), axis=-1).astype(np.float32)
    edges[0] = 3.0
    edges[1, 2:5] = edges[1, 2]
    weights = rng.exponential(0.2, (50, 6)).astype(np.float32)
    weights[2], weights[3] = 0.0, np.eye(6)[4]
    tdist = np.asarray(merge(key, jnp.asarray(edges), jnp.asarray(weights), count=11))
    assert np.all(np.isfinite(tdist))
    assert np.all(np.diff(tdist, axis=-1) >= 0)
    assert np.all(tdist >= edges[:, :1]) and np.all(tdist <= edges[:, -1:])
    for old, new in zip(edges, tdist, strict=True):
        assert set(old.tolist()) <= set(new.tolist())


def test_hierarchical_sample_follows_the_histogram() -> None:
    rays, count = 2000, 8
    edges, weights = (jnp.tile(jnp.asarray(x)[None], (rays, 1)) for x in (EDGES, WEIGHTS))
    tdist = np.asarray(merge(jax.random.key(9), edges, weights, count=count))
    drawn = tdist[~np.isin(tdist, EDGES)]
    assert drawn.size == pytest.approx(rays * count, abs=20)
    cdf = blurred_cdf_slowly(WEIGHTS)
    counts, _ = np.histogram(drawn, EDGES)
    expected = np.diff(cdf) * drawn.size
    # Stratification makes this smaller than chi-square of 5 degrees of freedom (20.5 at 0.001).
    assert np.sum((counts - expected) ** 2 / expected) < 20.5
    # The CDF maps samples of its distribution to uniform numbers.
    assert_uniform(np.interp(drawn, EDGES, cdf))


def test_hierarchical_sample_with_one_key_draws_rays_independently() -> None:
    edges, weights = (jnp.tile(jnp.asarray(x)[None], (100, 1)) for x in (EDGES, WEIGHTS))
    tdist = np.asarray(merge(jax.random.key(10), edges, weights, count=1))
    assert len(np.unique(tdist[~np.isin(tdist, EDGES)])) > 95


def test_hierarchical_sample_of_zero_weights_is_even() -> None:
    edges = jnp.linspace(2.0, 6.0, 5)[None]
    tdist = np.asarray(merge(None, edges, jnp.zeros((1, 4)), count=8))[0]
    expected = sorted([*np.linspace(2, 6, 5), *(2.0 + (np.arange(8) + 0.5) / 2)])
    np.testing.assert_allclose(tdist, expected, rtol=1e-5)


def test_hierarchical_sample_concentrates_where_the_weight_is() -> None:
    weights = np.zeros((1, 6), np.float32)
    weights[0, 3] = 1.0
    tdist = np.asarray(merge(None, jnp.asarray(EDGES)[None], jnp.asarray(weights), count=1000))[0]
    # The blur gives each neighbor half of the interval's weight.
    inside = np.sum((tdist > EDGES[3]) & (tdist < EDGES[4]))
    around = np.sum((tdist > EDGES[2]) & (tdist < EDGES[5]))
    assert inside == pytest.approx(1000 * 1.01 / 2.06, abs=3)
    assert around == pytest.approx(1000 * 2.03 / 2.06, abs=4)


def test_hierarchical_sample_has_no_gradient() -> None:
    def total(edges: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(hierarchical_sample(None, edges, weights, 5) * jnp.arange(12.0))

    for gradient in jax.grad(total, argnums=(0, 1))(jnp.asarray(EDGES), jnp.asarray(WEIGHTS)):
        np.testing.assert_array_equal(gradient, 0.0)


def test_hierarchical_sample_accepts_one_interval() -> None:
    tdist = merge(None, jnp.asarray([[1.0, 3.0]]), jnp.asarray([[0.5]]), count=4)
    np.testing.assert_allclose(tdist, [[1.0, 1.25, 1.75, 2.25, 2.75, 3.0]], rtol=1e-6)


# Resampling.


@pytest.mark.parametrize("seed", [None, 0])
def test_resample_intervals_concentrates_where_the_weights_are(seed: int | None) -> None:
    tdist = jnp.linspace(2.0, 6.0, 9)[None].repeat(3, axis=0)
    weights = jnp.zeros((3, 8)).at[:, 5].set(jnp.asarray([1.0, 0.5, 0.0]))
    key = None if seed is None else jax.random.key(seed)
    edges = np.asarray(resample_intervals(key, tdist, weights, 40))
    assert edges.shape == (3, 41) and np.all(np.diff(edges, axis=-1) >= 0)
    assert np.all(edges[:, 0] == 2.0) and np.all(edges[:, -1] == 6.0)
    inside = np.mean((edges[:, 1:-1] >= 4.5) & (edges[:, 1:-1] <= 5.0), axis=-1)
    assert np.all(inside[:2] > 0.9)
    # A ray without weight is sampled evenly.
    np.testing.assert_allclose(np.diff(edges[2, 1:-1]), 4.0 / 39, atol=0.12)


def test_resample_intervals_inverts_the_padded_distribution() -> None:
    rng = np.random.default_rng(0)
    weights, tdist = rng.uniform(size=6), np.cumsum(rng.uniform(0.1, 1.0, 7))
    padded = weights + 0.01 / 6
    cdf = np.concatenate([[0.0], np.cumsum(padded) / padded.sum()])
    expected = np.interp((np.arange(9) + 0.5) / 9, cdf, tdist)
    edges = resample_intervals(None, jnp.asarray(tdist), jnp.asarray(weights), 10)
    np.testing.assert_allclose(edges[1:-1], expected, rtol=1e-5)


def test_resample_intervals_of_one_interval_spans_the_ray_and_has_no_gradient() -> None:
    tdist = jnp.asarray([1.0, 2.0, 3.0])
    edges = resample_intervals(None, tdist, jnp.asarray([0.3, 0.7]), 1)
    assert np.asarray(edges).tolist() == [1.0, 3.0]
    slope = jax.grad(lambda w: jnp.sum(resample_intervals(None, tdist, w, 4)))(jnp.ones(2))
    assert not np.any(slope)


@pytest.mark.parametrize("spacing", ["linear", "disparity", "power"])
def test_samplers_in_float64_equal_those_in_float32(spacing: str) -> None:
    rng = np.random.default_rng(7)
    near, weights = rng.uniform(0.5, 2.0, 40), rng.exponential(0.2, (40, 8))

    def sample(dtype: Any) -> list[jax.Array]:
        ends = {"near": jnp.asarray(near, dtype), "far": jnp.asarray(near + 4.0, dtype)}
        rays = dataclasses.replace(make_rays((40,)), **ends)
        tdist = stratified(None, rays, 8, spacing)
        sample_weights = jnp.asarray(weights, dtype)
        drawn = (
            hierarchical_sample(None, tdist, sample_weights, 12),
            resample_intervals(None, tdist, sample_weights, 12),
        )
        return [tdist, *drawn]

    narrow = sample(jnp.float32)
    with jax.enable_x64(True):
        exact = sample(jnp.float64)
        assert all(value.dtype == jnp.float64 for value in exact)
    for value, expected in zip(narrow, exact, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1e-30, 1e30])
def test_samplers_are_sorted_within_the_ray_for_weights_of_any_size(weight: float) -> None:
    """For a ray of zero length, one spike and equal weights."""
    tdist = jnp.asarray([np.full(7, 3.0), EDGES, EDGES * 1e6])
    weights = weight * jnp.asarray([WEIGHTS, WEIGHTS == 0.5, np.ones(6)], jnp.float32)
    for drawn in (
        hierarchical_sample(None, tdist, weights, 9),
        resample_intervals(None, tdist, weights, 9),
    ):
        assert np.all(np.isfinite(drawn)) and np.all(np.diff(np.asarray(drawn)) >= 0)
        np.testing.assert_array_equal(drawn[:, 0], tdist[:, 0])
        np.testing.assert_array_equal(drawn[:, -1], tdist[:, -1])


# Points of NeRF's original code.


@pytest.mark.parametrize("spacing", ["linear", "disparity"])
@pytest.mark.parametrize("batch", BATCHES)
def test_stratified_legacy_is_even_without_key_and_between_midpoints_with_one(
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
        expected = line if spacing == "linear" else inverse
        np.testing.assert_allclose(even[index], expected, rtol=1e-6)
        middles = 0.5 * (expected[1:] + expected[:-1])
        lower, upper = np.append(expected[0], middles), np.append(middles, expected[-1])
        points = np.asarray(drawn[index])
        assert np.all(points >= lower - 1e-5) and np.all(points <= upper + 1e-5)
    assert not np.array_equal(even, drawn)


@pytest.mark.parametrize("seed", [None, 3])
def test_hierarchical_legacy_draws_points_by_the_weights(seed: int | None) -> None:
    points = np.array([2.0, 2.5, 3.5, 4.0, 5.0, 5.5], np.float32)
    weights = np.array([9.0, 0.2, 0.0, 0.5, 0.1, 9.0], np.float32)
    count = 4000
    key = None if seed is None else jax.random.key(seed)
    union = hierarchical_legacy(key, jnp.asarray(points), jnp.asarray(weights), count)
    assert union.shape == (count + 6,) and np.all(np.diff(union) >= 0)
    assert all(np.any(np.asarray(union) == p) for p in points)
    drawn = np.asarray(union).tolist()
    for p in points:
        drawn.remove(p)
    middles = 0.5 * (points[1:] + points[:-1])
    counts, _ = np.histogram(drawn, middles)
    expected = weights[1:-1] / weights[1:-1].sum()
    np.testing.assert_allclose(counts / count, expected, atol=0.03 if seed else 2e-3)
    assert min(drawn) >= middles[0] and max(drawn) <= middles[-1]


def draw_like_jaxnerf(points: np.ndarray, weights: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """The points and those at which jaxnerf inverts the CDF, one number after the other."""
    edges, interior = 0.5 * (points[1:] + points[:-1]), weights[1:-1].astype(np.float64)
    interior = interior + max(0.0, 1e-5 - interior.sum()) / len(interior)
    cdf = [min(1.0, interior[:i].sum() / interior.sum()) for i in range(len(interior))] + [1.0]
    drawn = []
    for u in uniforms:
        before = [i for i in range(len(cdf)) if u >= cdf[i]]
        after = [i for i in range(len(cdf)) if u < cdf[i]]
        low, high = max(before, key=lambda i: edges[i]), min(after, key=lambda i: edges[i])
        fraction = (u - cdf[low]) / (cdf[high] - cdf[low])
        drawn.append(edges[low] + fraction * (edges[high] - edges[low]))
    return np.sort(np.concatenate([points, drawn]))


NEARLY_EMPTY = np.array([0.0, 1e-7, 0.0, 3e-7, 0.0, 0.0])


@pytest.mark.parametrize(
    "weights",
    [
        np.array([9.0, 0.2, 0.0, 0.5, 0.1, 9.0]),
        np.array([0.0, 0.0, 0.7, 0.0, 0.0, 0.0]),
        np.array([0.0, 3e-5, 0.0, 0.0, 1e-5, 0.9]),
        NEARLY_EMPTY,
        np.zeros(6),
    ],
)
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_hierarchical_legacy_without_padding_draws_as_jaxnerf(
    weights: np.ndarray, batch: tuple[int, ...]
) -> None:
    points = np.array([2.0, 2.5, 3.5, 4.0, 5.0, 5.5])
    uniforms = np.linspace(0.0, 1.0 - np.finfo(np.float32).eps, 33)
    expected = draw_like_jaxnerf(points, weights, uniforms)
    with jax.enable_x64(True):
        inputs = (jnp.asarray(np.broadcast_to(x, (*batch, 6))) for x in (points, weights))
        actual = np.asarray(hierarchical_legacy(None, *inputs, 33, padded=False))
    assert actual.shape == (*batch, 39)
    np.testing.assert_allclose(actual, np.broadcast_to(expected, actual.shape), atol=1e-9)


def test_hierarchical_legacy_pads_only_if_told() -> None:
    points = jnp.array([2.0, 2.5, 3.5, 4.0, 5.0, 5.5])
    weights = jnp.array([0.0, 0.0, 0.7, 0.0, 0.0, 0.0])
    padded, unpadded = (
        np.asarray(hierarchical_legacy(None, points, weights, 9, padded=padded))
        for padded in (True, False)
    )
    # Only with padding does the last interval, which ends at 5.25, have a probability.
    assert np.any(np.isclose(padded, 5.25)) and not np.any(np.isclose(unpadded, 5.25))
    assert np.sum((unpadded >= 3.0) & (unpadded <= 3.75)) == 9 + 1


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 8), (2, 3, 64)])
@pytest.mark.parametrize("with_key", [False, True])
def test_stratified_uniforms_have_one_number_in_each_stratum(
    shape: tuple[int, ...], with_key: bool
) -> None:
    uniforms = np.asarray(stratified_uniforms(jax.random.key(0) if with_key else None, shape))
    assert uniforms.shape == shape and uniforms.dtype == np.float32
    assert np.all(uniforms >= 0) and np.all(uniforms < 1)
    for index in np.ndindex(shape):
        count, i = shape[-1], index[-1]
        assert i - 1e-4 <= float(uniforms[index]) * count <= i + 1 + 1e-4
        if not with_key:
            assert float(uniforms[index]) == pytest.approx((i + 0.5) / count, rel=1e-6)


def test_stratified_uniforms_are_independent_between_rays_and_uniform_in_strata() -> None:
    count = 4
    uniforms = np.asarray(stratified_uniforms(jax.random.key(1), (2000, count)))
    within = uniforms * count - np.arange(count)
    for i in range(count):
        ordered = np.sort(within[:, i])
        # Kolmogorov-Smirnov; uniform samples exceed 1.95 / sqrt(n) with probability 1e-3.
        distance = np.max(np.abs(ordered - (np.arange(2000) + 0.5) / 2000))
        assert distance < 1.95 / np.sqrt(2000)
    assert np.max(np.abs(np.corrcoef(within.T) - np.eye(count))) < 0.1


@pytest.mark.parametrize("sampler", ["stratified", "points", "hierarchical", "resample"])
def test_samplers_with_a_key_per_ray_are_independent_of_other_rays(sampler: str) -> None:
    keys = jax.random.split(jax.random.key(3), 6)
    edges, weights = (jnp.broadcast_to(jnp.asarray(x), (6, x.size)) for x in (EDGES, WEIGHTS))

    def sample(rays: slice) -> np.ndarray:
        selected = jax.tree.map(lambda x: x[rays], make_rays((6,)))
        match sampler:
            case "stratified":
                drawn = stratified(keys[rays], selected, 5)
            case "points":
                drawn = stratified_legacy(keys[rays], selected, 5)
            case "hierarchical":
                drawn = hierarchical_sample(keys[rays], edges[rays], weights[rays], 5)
            case _:
                drawn = resample_intervals(keys[rays], edges[rays], weights[rays], 5)
        return np.asarray(drawn)

    together = sample(slice(0, 6))
    np.testing.assert_array_equal(together[2:5], sample(slice(2, 5)))
    assert len(np.unique(together, axis=0)) == 6


@pytest.mark.parametrize("spacing", ["linear", "disparity", "power"])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_undo_spacing_makes_stratified_edges_even(spacing: Spacing, batch: tuple[int, ...]) -> None:
    rays = make_rays(batch, near=0.3, far=7.0)
    edges = intervals.stratified(None, rays, 8, spacing)
    even = intervals.undo_spacing(rays, edges, spacing)
    np.testing.assert_allclose(even, np.broadcast_to(np.linspace(0, 1, 9), even.shape), atol=1e-5)


@pytest.mark.parametrize("spacing", ["linear", "disparity", "power"])
def test_undo_spacing_of_rays_without_length_is_0_with_finite_gradients(spacing: Spacing) -> None:
    rays = make_rays((2,), near=0.0, far=0.0)

    def total(edges: jax.Array) -> jax.Array:
        return jnp.sum(intervals.undo_spacing(rays, edges, spacing))

    assert total(jnp.zeros((2, 3))) == 0.0
    assert np.all(np.isfinite(jax.grad(total)(jnp.zeros((2, 3)))))
