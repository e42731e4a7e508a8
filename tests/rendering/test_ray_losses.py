"""Losses on ray weights against loops, with intervals of zero length and extreme weights."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrf.rendering.ray_losses import (
    antialiased_interlevel_loss,
    depth_loss,
    distortion_loss,
    interlevel_loss,
    opacity_entropy,
    packed_depth_loss,
    packed_distortion_loss,
)

distortion_of = jax.jit(distortion_loss)
packed_distortion_of = jax.jit(packed_distortion_loss, static_argnums=4)
interlevel_of = jax.jit(interlevel_loss)
distortion_and_grad = jax.jit(jax.value_and_grad(distortion_loss, argnums=(0, 1)))
interlevel_and_grad = jax.jit(jax.value_and_grad(interlevel_loss, argnums=3))

BATCHES = [(), (5,), (2, 3)]
SEEDS = st.integers(0, 2**20)


# Opacity entropy.


def test_opacity_entropy_equals_the_sum_over_both_outcomes() -> None:
    opacity = np.random.default_rng(3).uniform(0.001, 0.999, 50).astype(np.float32)
    expected = [-sum(q * math.log(q) for q in (float(p), 1.0 - float(p))) for p in opacity]
    np.testing.assert_allclose(opacity_entropy(jnp.asarray(opacity)), expected, rtol=1e-4)


def test_opacity_entropy_is_largest_at_one_half_and_near_zero_at_the_ends() -> None:
    opacity = jnp.asarray([0.0, 0.25, 0.5, 0.75, 1.0, -1e-6, 1.0 + 1e-6])
    entropy = np.asarray(opacity_entropy(opacity))
    assert np.argmax(entropy) == 2 and entropy[2] == pytest.approx(math.log(2))
    assert entropy[1] == pytest.approx(entropy[3], rel=1e-5)
    assert np.all(entropy[[0, 4, 5, 6]] < 2e-4) and np.all(entropy >= 0)


def test_opacity_entropy_gradient_is_finite_and_points_away_from_one_half() -> None:
    opacity = jnp.asarray([0.0, 1.0, 1e-7, 1.0 - 1e-7, 0.1, 0.9, 0.5])
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(opacity_entropy(x)))(opacity))
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[:4], 0.0)
    # Gradient descent decreases 0.1 and increases 0.9.
    np.testing.assert_allclose(gradient[4:], [math.log(9), -math.log(9), 0.0], atol=1e-4)


# Distortion.


def distortion_slowly(weights: np.ndarray, sdist: np.ndarray) -> float:
    """Double sum over all pairs of intervals, and the term of each interval."""
    w, s = weights.astype(np.float64), sdist.astype(np.float64)
    total = 0.0
    for i in range(len(w)):
        total += w[i] ** 2 * (s[i + 1] - s[i]) / 3
        for j in range(len(w)):
            total += w[i] * w[j] * abs((s[i] + s[i + 1]) / 2 - (s[j] + s[j + 1]) / 2)
    return total


def random_histogram(
    rng: np.random.Generator, batch: tuple[int, ...], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights with a sum of at most 1 and edges from 0 to 1; several are zero or equal."""
    edges = np.sort(rng.uniform(size=(*batch, count + 1)), axis=-1)
    edges[..., 0], edges[..., -1] = 0.0, 1.0
    if count > 3:
        edges[..., 2] = edges[..., 1]
    weights = rng.exponential(size=(*batch, count)) * (rng.uniform(size=(*batch, count)) < 0.7)
    weights /= np.sum(weights, axis=-1, keepdims=True) + 0.1
    return weights.astype(np.float32), edges.astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("batch", BATCHES)
def test_distortion_loss_equals_the_double_sum_for_any_batch_shape(
    batch: tuple[int, ...], count: int
) -> None:
    weights, edges = random_histogram(np.random.default_rng(4), batch, count)
    loss = distortion_of(jnp.asarray(weights), jnp.asarray(edges))
    assert loss.shape == batch
    for index in np.ndindex(batch):
        expected = distortion_slowly(weights[index], edges[index])
        assert float(loss[index]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


@settings(max_examples=40)
@given(SEEDS)
def test_distortion_loss_is_unchanged_by_splitting_an_interval(seed: int) -> None:
    # It is the mean distance of two points drawn from the histogram; hence the factor 1/3.
    rng = np.random.default_rng(seed)
    weights, edges = random_histogram(rng, (), 6)
    index, fraction = int(rng.integers(6)), float(rng.uniform())
    edge = edges[index] + fraction * (edges[index + 1] - edges[index])
    finer = np.insert(edges, index + 1, edge).astype(np.float32)
    split = np.insert(weights, index, fraction * weights[index])
    split[index + 1] = (1 - fraction) * weights[index]
    before = distortion_of(jnp.asarray(weights), jnp.asarray(edges))
    after = distortion_of(jnp.asarray(split), jnp.asarray(finer))
    assert float(after) == pytest.approx(float(before), rel=1e-4, abs=1e-6)


@settings(max_examples=40)
@given(SEEDS, st.sampled_from([0.25, 1.0, 4.0]), st.sampled_from([-2.0, 0.0, 1.0]))
def test_distortion_loss_scales_with_the_ray_and_ignores_shift_and_reversal(
    seed: int, scale: float, shift: float
) -> None:
    weights, edges = random_histogram(np.random.default_rng(seed), (), 6)
    before = float(distortion_of(jnp.asarray(weights), jnp.asarray(edges)))
    moved = float(distortion_of(jnp.asarray(weights), jnp.asarray(scale * edges + shift)))
    turned = float(distortion_of(jnp.asarray(weights[::-1]), jnp.asarray(1.0 - edges[::-1])))
    assert moved == pytest.approx(scale * before, rel=1e-4, abs=1e-5)
    assert turned == pytest.approx(before, rel=1e-4, abs=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 7), st.floats(0, 1), st.floats(0, 1, width=32))
def test_distortion_loss_of_one_interval_of_zero_length_is_zero(
    index: int, position: float, weight: float
) -> None:
    edges = np.concatenate(
        [np.linspace(position, 0, index + 1)[::-1], np.linspace(position, 1, 8 - index)]
    )
    weights = np.zeros(8, np.float32)
    weights[index] = weight
    loss = distortion_of(jnp.asarray(weights), jnp.asarray(edges, jnp.float32))
    assert float(loss) == pytest.approx(0.0, abs=1e-7)


def test_distortion_loss_of_two_intervals_is_proportional_to_their_distance() -> None:
    for gap in (0.0, 0.25, 0.5, 1.0):
        edges = jnp.asarray([0.0, 0.0, gap, gap])
        loss = distortion_of(jnp.asarray([0.5, 0.0, 0.5]), edges)
        assert float(loss) == pytest.approx(0.5 * gap, abs=1e-7)


@pytest.mark.parametrize("weight", [0.0, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("length", [0.0, 1e-12, 1.0])
def test_distortion_loss_and_gradients_are_finite_for_any_length_and_weight(
    length: float, weight: float
) -> None:
    edges, weights = jnp.linspace(0.0, length, 6), jnp.full((5,), weight)
    value, gradients = distortion_and_grad(weights, edges)
    assert float(value) == pytest.approx(25.0 * weight**2 * length / 3, rel=1e-4, abs=1e-30)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_distortion_loss_gradient_equals_that_of_the_double_sum() -> None:
    weights, edges = random_histogram(np.random.default_rng(5), (), 7)
    _, gradients = distortion_and_grad(jnp.asarray(weights), jnp.asarray(edges))
    for argument, gradient in enumerate(gradients):
        for i in range(len(gradient)):
            ends = []
            for sign in (-1, 1):
                moved = [weights.astype(np.float64), edges.astype(np.float64)]
                moved[argument][i] += sign * 1e-6
                ends.append(distortion_slowly(*moved))
            expected = (ends[1] - ends[0]) / 2e-6
            assert float(gradient[i]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("lengths", [[4, 0, 1, 7, 0], [0, 0, 0, 12], [12], [1, 1, 1]])
def test_packed_distortion_loss_equals_the_double_sum_of_every_ray(lengths: list[int]) -> None:
    rng = np.random.default_rng(6)
    starts, ends, weights, expected = [], [], [], []
    for length in lengths:
        w, edges = random_histogram(rng, (), 2 * length + 1)
        # Every other interval is omitted, as empty space is.
        edge_indices = np.arange(1, 2 * length, 2)
        starts += edges[edge_indices].tolist()
        ends += edges[edge_indices + 1].tolist()
        weights += w[edge_indices].tolist()
        w[::2] = 0.0
        expected.append(distortion_slowly(w, edges))
    index = np.repeat(np.arange(len(lengths)), lengths)
    # Unused slots belong to the last ray and have no weight.
    padded = [np.pad(np.asarray(x, np.float32), (0, 3)) for x in (weights, starts, ends)]
    owner = np.pad(index, (0, 3), constant_values=len(lengths) - 1).astype(np.int32)
    loss = packed_distortion_of(*map(jnp.asarray, (*padded, owner)), len(lengths))
    assert loss.shape == (len(lengths),)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-7)


def test_packed_distortion_loss_and_gradients_equal_those_of_unpacked_rays() -> None:
    weights, edges = random_histogram(np.random.default_rng(7), (4,), 6)
    factors = jnp.asarray([1.0, -2.0, 3.0, 0.5])
    owner = jnp.repeat(jnp.arange(4), 6)

    def unpacked(weights: jax.Array, edges: jax.Array) -> jax.Array:
        return jnp.dot(factors, distortion_loss(weights, edges))

    def packed(weights: jax.Array, edges: jax.Array) -> jax.Array:
        starts, ends = edges[:, :-1].ravel(), edges[:, 1:].ravel()
        return jnp.dot(factors, packed_distortion_loss(weights.ravel(), starts, ends, owner, 4))

    arguments = jnp.asarray(weights), jnp.asarray(edges)
    expected, actual = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(*arguments) for f in (unpacked, packed)
    )
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_packed_distortion_loss_of_no_samples_is_zero() -> None:
    empty = jnp.zeros((0,))
    loss = packed_distortion_of(empty, empty, empty, jnp.zeros((0,), jnp.int32), 3)
    np.testing.assert_array_equal(loss, 0.0)


def test_packed_distortion_loss_keeps_precision_after_a_huge_weight() -> None:
    weights = jnp.asarray([1e15, 1e15, 0.5, 0.5, 0.0])
    starts = jnp.asarray([0.0, 0.5, 0.2, 0.8, 0.9])
    owner = jnp.asarray([0, 0, 1, 1, 2], jnp.int32)
    loss = packed_distortion_of(weights, starts, starts, owner, 3)
    np.testing.assert_allclose(loss, [1e30, 0.3, 0.0], rtol=1e-5)


# Interlevel loss.


def interlevel_slowly(
    tdist: np.ndarray, weights: np.ndarray, proposed_tdist: np.ndarray, proposed: np.ndarray
) -> float:
    total = 0.0
    for i, weight in enumerate(weights):
        low, high = float(tdist[i]), float(tdist[i + 1])
        bound = 0.0
        for j, proposed_weight in enumerate(proposed):
            if float(proposed_tdist[j]) < high and float(proposed_tdist[j + 1]) > low:
                bound += float(proposed_weight)
        total += max(0.0, float(weight) - bound) ** 2 / (float(weight) + 1e-7)
    return total


@pytest.mark.parametrize("counts", [(1, 1), (7, 3), (3, 7), (6, 6)])
@pytest.mark.parametrize("batch", BATCHES)
def test_interlevel_loss_equals_loop_over_overlaps_for_any_batch_shape(
    batch: tuple[int, ...], counts: tuple[int, int]
) -> None:
    rng = np.random.default_rng(8)
    weights, edges = random_histogram(rng, batch, counts[0])
    proposed, proposed_edges = random_histogram(rng, batch, counts[1])
    # The proposal does not cover the ray, and its weights are too small in parts.
    tdist, proposed_tdist = 2.0 + 4.0 * edges, 2.5 + 3.0 * proposed_edges
    proposed *= 0.3
    loss = interlevel_of(*map(jnp.asarray, (tdist, weights, proposed_tdist, proposed)))
    assert loss.shape == batch
    for index in np.ndindex(batch):
        expected = interlevel_slowly(
            tdist[index], weights[index], proposed_tdist[index], proposed[index]
        )
        assert float(loss[index]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@settings(max_examples=50)
@given(st.data())
def test_interlevel_loss_equals_loop_where_edges_coincide(data: st.DataObject) -> None:
    # Multiples of 1/4 are exact; with so few values, edges coincide and intervals have no length.
    edges = [
        np.array(sorted(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))) / 4
        for n in (6, 5)
    ]
    weights = [
        np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))) / 8 for n in (5, 4)
    ]
    arguments = [np.asarray(x, np.float32) for x in (edges[0], weights[0], edges[1], weights[1])]
    loss = interlevel_of(*map(jnp.asarray, arguments))
    assert float(loss) == pytest.approx(interlevel_slowly(*arguments), rel=1e-5, abs=1e-6)


@settings(max_examples=40)
@given(SEEDS)
def test_interlevel_loss_of_a_coarser_histogram_is_zero(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, edges = random_histogram(rng, (), 8)
    weights[edges[1:] == edges[:-1]] = 0.0
    edge_indices = np.sort(rng.choice(np.arange(1, 8), 3, replace=False))
    coarse = np.add.reduceat(weights, [0, *edge_indices])
    coarse_edges = edges[[0, *edge_indices, 8]]
    loss = interlevel_of(*map(jnp.asarray, (edges, weights, coarse_edges, coarse)))
    assert float(loss) == pytest.approx(0.0, abs=1e-5)


@settings(max_examples=40)
@given(SEEDS)
def test_interlevel_loss_decreases_with_larger_proposal_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, edges = random_histogram(rng, (), 8)
    proposed, proposed_edges = random_histogram(rng, (), 4)
    losses = [
        float(interlevel_of(*map(jnp.asarray, (edges, weights, proposed_edges, factor * proposed))))
        for factor in (np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(1e9))
    ]
    assert losses[0] == pytest.approx(float(np.sum(weights)), rel=1e-4)
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(losses))


def test_interlevel_loss_gradients_flow_to_the_proposal_weights_only() -> None:
    edges = jnp.asarray([0.0, 0.3, 0.6, 1.0])
    weights = jnp.asarray([0.1, 0.8, 0.05])
    proposed_edges, proposed = jnp.asarray([0.0, 0.45, 1.0]), jnp.asarray([0.2, 0.3])
    gradient_fn = jax.jit(jax.grad(interlevel_loss, argnums=(0, 1, 2, 3)))
    gradients = gradient_fn(edges, weights, proposed_edges, proposed)
    for gradient in gradients[:3]:
        np.testing.assert_array_equal(gradient, 0.0)
    # Only the second interval exceeds its bound; it overlaps both: -2 (0.8 - 0.5) / 0.8.
    np.testing.assert_allclose(gradients[3], [-0.75, -0.75], rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 1e-20, 1.0, 1e10])
@pytest.mark.parametrize("proposed", [0.0, 1e-20, 1e10])
@pytest.mark.parametrize("length", [0.0, 1.0])
def test_interlevel_loss_and_gradient_are_finite_for_any_length_and_weight(
    length: float, proposed: float, weight: float
) -> None:
    edges, proposed_edges = 2.0 + jnp.linspace(0.0, length, 6), 2.0 + jnp.linspace(0.0, length, 4)
    arguments = (edges, jnp.full((5,), weight), proposed_edges, jnp.full((3,), proposed))
    loss, gradient = interlevel_and_grad(*arguments)
    assert np.isfinite(loss) and float(loss) >= 0 and np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient) <= 0)


# Depth.


def depth_loss_slowly(weights: np.ndarray, tdist: np.ndarray, depth: float, std: float) -> float:
    """Loop over intervals, whose probabilities are sums over many small parts."""
    total = 0.0
    for weight, start, end in zip(weights, tdist[:-1], tdist[1:], strict=True):
        parts = np.linspace(start, end, 2001)
        middle = 0.5 * (parts[1:] + parts[:-1])
        normal = np.exp(-0.5 * ((middle - depth) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        total -= float(np.sum(normal * np.diff(parts))) * math.log(weight + 1e-5)
    return total


@pytest.mark.parametrize("batch", BATCHES)
def test_depth_loss_equals_loop(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    weights = rng.uniform(0.0, 0.2, (*batch, 6)).astype(np.float32)
    tdist = np.sort(rng.uniform(1.0, 5.0, (*batch, 7)), axis=-1).astype(np.float32)
    depth = rng.uniform(1.0, 5.0, batch).astype(np.float32)
    std = rng.uniform(0.2, 1.0, batch).astype(np.float32)
    loss = jax.jit(depth_loss)(*map(jnp.asarray, (weights, tdist, depth, std)))
    expected = [
        depth_loss_slowly(*arguments)
        for arguments in zip(
            weights.reshape(-1, 6), tdist.reshape(-1, 7), depth.ravel(), std.ravel(), strict=True
        )
    ]
    np.testing.assert_allclose(np.ravel(loss), expected, rtol=1e-4, atol=1e-5)


def test_packed_depth_loss_equals_that_of_each_ray() -> None:
    rng = np.random.default_rng(8)
    tdist = np.sort(rng.uniform(1.0, 5.0, (4, 7)), axis=-1).astype(np.float32)
    weights = rng.uniform(0.0, 0.2, (4, 6)).astype(np.float32)
    depth, std = jnp.asarray([2.0, 3.0, 4.0, 2.5]), jnp.asarray([0.3, 0.01, 1.0, 0.2])
    # Two unused slots, of the last ray.
    packed = [
        jnp.asarray(np.append(values, extra), dtype)
        for values, extra, dtype in (
            (weights.ravel(), [0, 0], jnp.float32),
            (tdist[:, :-1].ravel(), [0, 0], jnp.float32),
            (tdist[:, 1:].ravel(), [0, 0], jnp.float32),
            (np.repeat(np.arange(4), 6), [3, 3], jnp.int32),
        )
    ]
    loss = jax.jit(packed_depth_loss)(*packed, depth, std)
    expected = depth_loss(jnp.asarray(weights), jnp.asarray(tdist), depth, std)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)


def test_depth_loss_is_least_where_the_weights_are_at_the_depth() -> None:
    tdist = jnp.linspace(0.0, 10.0, 21)
    weights = jnp.zeros(20).at[8].set(1.0)  # from 4 to 4.5
    losses = [
        float(depth_loss(weights, tdist, jnp.asarray(depth), jnp.asarray(0.1)))
        for depth in np.linspace(0.5, 9.5, 37)
    ]
    assert np.argmin(losses) == 15 and losses[15] < 0.2  # of 4.25
    assert losses[0] > 5.0


def test_depth_loss_has_finite_gradients_at_the_extremes() -> None:
    tdist = jnp.asarray([0.0, 1.0, 1.0, 2.0, 1e9, jnp.inf])
    for weights in (jnp.zeros(5), jnp.ones(5), jnp.full(5, 1e-30)):
        for depth, std in ((1.0, 1e-6), (0.0, 1.0), (1e12, 1.0), (1.5, 1e6)):
            loss, grads = jax.value_and_grad(depth_loss, argnums=(0, 1))(
                weights, tdist, jnp.asarray(depth), jnp.asarray(std)
            )
            assert np.isfinite(loss) and all(np.all(np.isfinite(grad)) for grad in grads)


# Antialiased interlevel loss.


def antialiased_interlevel_slowly(
    sdist: np.ndarray,
    weights: np.ndarray,
    proposal_sdist: np.ndarray,
    proposal_weights: np.ndarray,
    width: float,
) -> float:
    """Blurs the weights' histogram on a fine lattice and sums it up in the proposal's bins."""
    x = np.linspace(-1.0, 2.0, 30_001)
    density = np.zeros_like(x)
    for low, high, weight in zip(sdist[:-1], sdist[1:], weights, strict=True):
        # Overlap of the box around x with the interval.
        overlap = np.minimum(high, x + width) - np.maximum(low, x - width)
        density += weight / (high - low) * np.maximum(overlap, 0.0) / (2.0 * width)
    loss = 0.0
    for low, high, proposed in zip(
        proposal_sdist[:-1], proposal_sdist[1:], proposal_weights, strict=True
    ):
        resampled = np.sum(density[(x >= low) & (x < high)]) * (x[1] - x[0])
        loss += max(0.0, resampled - proposed) ** 2 / (proposed + 1e-5)
    return loss


@pytest.mark.parametrize("batch", BATCHES)
def test_antialiased_interlevel_loss_equals_a_fine_sum_for_any_batch_shape(
    batch: tuple[int, ...],
) -> None:
    rng = np.random.default_rng(4)
    sdist = np.sort(rng.uniform(size=(*batch, 5)), axis=-1)
    proposal_sdist = np.sort(rng.uniform(size=(*batch, 8)), axis=-1)
    weights, proposed = rng.uniform(0.1, 0.4, (*batch, 4)), rng.uniform(0.1, 0.3, (*batch, 7))
    arrays = (jnp.asarray(x) for x in (sdist, weights, proposal_sdist, proposed))
    loss = antialiased_interlevel_loss(*arrays, 0.05)
    assert loss.shape == batch
    for index in np.ndindex(*batch):
        at = (sdist[index], weights[index], proposal_sdist[index], proposed[index])
        assert loss[index] == pytest.approx(antialiased_interlevel_slowly(*at, 0.05), rel=2e-2)


def test_antialiased_interlevel_loss_is_smooth_as_a_surface_moves() -> None:
    edges = jnp.linspace(0.0, 1.0, 9)
    proposed = jnp.asarray([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])

    def loss(shift: float, antialiased: bool) -> float:
        sdist = jnp.asarray([0.0, 0.374, 0.376, 1.0]).at[1:3].add(shift)
        weights = jnp.asarray([0.0, 1.0, 0.0])
        if antialiased:
            return float(antialiased_interlevel_loss(sdist, weights, edges, proposed, 0.06))
        return float(interlevel_loss(sdist, weights, edges, proposed))

    # Across the proposal's edge at 0.375 the plain loss jumps.
    shifts = [0.002 * k for k in range(-2, 3)]
    plain = [loss(shift, False) for shift in shifts]
    smooth = [loss(shift, True) for shift in shifts]
    assert max(plain) - min(plain) > 0.9 * max(plain)
    assert max(smooth) - min(smooth) < 0.3 * max(smooth)


def test_antialiased_interlevel_loss_gradients_flow_to_the_proposal_only_and_are_finite() -> None:
    sdist, weights = jnp.asarray([0.0, 0.5, 0.5, 1.0]), jnp.asarray([0.3, 0.5, 0.2])
    proposed = jnp.asarray([0.0, 0.5, 0.0])
    gradients = jax.grad(antialiased_interlevel_loss, argnums=(0, 1, 3))(
        sdist, weights, jnp.asarray([0.0, 0.2, 0.2, 1.0]), proposed, 0.01
    )
    np.testing.assert_array_equal(gradients[0], 0.0)
    np.testing.assert_array_equal(gradients[1], 0.0)
    assert np.all(np.isfinite(gradients[2])) and gradients[2][2] < 0.0
