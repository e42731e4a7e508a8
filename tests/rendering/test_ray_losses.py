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
    distortion_loss,
    interlevel_loss,
    opacity_entropy,
    packed_distortion_loss,
)

measure = jax.jit(distortion_loss)
measure_packed = jax.jit(packed_distortion_loss, static_argnums=4)
compare = jax.jit(interlevel_loss)
differentiate = jax.jit(jax.value_and_grad(distortion_loss, argnums=(0, 1)))
differentiate_proposal = jax.jit(jax.value_and_grad(interlevel_loss, argnums=3))

BATCHES = [(), (5,), (2, 3)]
SEEDS = st.integers(0, 2**20)


# The entropy of opacities.


def test_entropy_equals_the_sum_over_both_outcomes() -> None:
    opacity = np.random.default_rng(3).uniform(0.001, 0.999, 50).astype(np.float32)
    expected = [-sum(q * math.log(q) for q in (float(p), 1.0 - float(p))) for p in opacity]
    np.testing.assert_allclose(opacity_entropy(jnp.asarray(opacity)), expected, rtol=1e-4)


def test_entropy_is_largest_at_a_half_and_next_to_nothing_at_the_ends() -> None:
    opacity = jnp.asarray([0.0, 0.25, 0.5, 0.75, 1.0, -1e-6, 1.0 + 1e-6])
    entropy = np.asarray(opacity_entropy(opacity))
    assert np.argmax(entropy) == 2 and entropy[2] == pytest.approx(math.log(2))
    assert entropy[1] == pytest.approx(entropy[3], rel=1e-5)
    assert np.all(entropy[[0, 4, 5, 6]] < 2e-4) and np.all(entropy >= 0)


def test_the_gradient_of_entropy_is_finite_at_the_ends_and_points_away_from_a_half() -> None:
    opacity = jnp.asarray([0.0, 1.0, 1e-7, 1.0 - 1e-7, 0.1, 0.9, 0.5])
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(opacity_entropy(x)))(opacity))
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[:4], 0.0)
    # Descent goes down at 0.1 and up at 0.9.
    np.testing.assert_allclose(gradient[4:], [math.log(9), -math.log(9), 0.0], atol=1e-4)


# Distortion.


def distortion_slowly(weights: np.ndarray, sdist: np.ndarray) -> float:
    """The double sum over all pairs, and the intervals' own part."""
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
    """Weights that sum to 1 at most, some zero, and edges from 0 to 1, some of them equal."""
    edges = np.sort(rng.uniform(size=(*batch, count + 1)), axis=-1)
    edges[..., 0], edges[..., -1] = 0.0, 1.0
    if count > 3:
        edges[..., 2] = edges[..., 1]
    weights = rng.exponential(size=(*batch, count)) * (rng.uniform(size=(*batch, count)) < 0.7)
    weights /= np.sum(weights, axis=-1, keepdims=True) + 0.1
    return weights.astype(np.float32), edges.astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("batch", BATCHES)
def test_distortion_equals_the_double_sum_for_any_batch_shape(
    batch: tuple[int, ...], count: int
) -> None:
    weights, edges = random_histogram(np.random.default_rng(4), batch, count)
    measured = measure(jnp.asarray(weights), jnp.asarray(edges))
    assert measured.shape == batch
    for index in np.ndindex(batch):
        expected = distortion_slowly(weights[index], edges[index])
        assert float(measured[index]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


@settings(max_examples=40)
@given(SEEDS)
def test_distortion_is_the_mean_distance_of_two_points_drawn_from_the_histogram(seed: int) -> None:
    # So it stays the same if an interval is cut in two, weight and all: hence the third.
    rng = np.random.default_rng(seed)
    weights, edges = random_histogram(rng, (), 6)
    place, share = int(rng.integers(6)), float(rng.uniform())
    cut = edges[place] + share * (edges[place + 1] - edges[place])
    finer = np.insert(edges, place + 1, cut).astype(np.float32)
    split = np.insert(weights, place, share * weights[place])
    split[place + 1] = (1 - share) * weights[place]
    before = measure(jnp.asarray(weights), jnp.asarray(edges))
    after = measure(jnp.asarray(split), jnp.asarray(finer))
    assert float(after) == pytest.approx(float(before), rel=1e-4, abs=1e-6)


@settings(max_examples=40)
@given(SEEDS, st.sampled_from([0.25, 1.0, 4.0]), st.sampled_from([-2.0, 0.0, 1.0]))
def test_distortion_scales_with_the_ray_and_does_not_see_where_it_is_or_which_way_it_runs(
    seed: int, scale: float, shift: float
) -> None:
    weights, edges = random_histogram(np.random.default_rng(seed), (), 6)
    before = float(measure(jnp.asarray(weights), jnp.asarray(edges)))
    moved = float(measure(jnp.asarray(weights), jnp.asarray(scale * edges + shift)))
    turned = float(measure(jnp.asarray(weights[::-1]), jnp.asarray(1.0 - edges[::-1])))
    assert moved == pytest.approx(scale * before, rel=1e-4, abs=1e-5)
    assert turned == pytest.approx(before, rel=1e-4, abs=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 7), st.floats(0, 1), st.floats(0, 1, width=32))
def test_distortion_of_one_thin_interval_is_zero_wherever_it_is(
    place: int, at: float, weight: float
) -> None:
    edges = np.concatenate([np.linspace(at, 0, place + 1)[::-1], np.linspace(at, 1, 8 - place)])
    weights = np.zeros(8, np.float32)
    weights[place] = weight
    measured = measure(jnp.asarray(weights), jnp.asarray(edges, jnp.float32))
    assert float(measured) == pytest.approx(0.0, abs=1e-7)


def test_distortion_grows_as_two_thin_intervals_part() -> None:
    for gap in (0.0, 0.25, 0.5, 1.0):
        edges = jnp.asarray([0.0, 0.0, gap, gap])
        measured = measure(jnp.asarray([0.5, 0.0, 0.5]), edges)
        assert float(measured) == pytest.approx(0.5 * gap, abs=1e-7)


@pytest.mark.parametrize("weight", [0.0, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("length", [0.0, 1e-12, 1.0])
def test_distortion_and_its_gradients_are_finite_for_any_length_and_weight(
    length: float, weight: float
) -> None:
    edges, weights = jnp.linspace(0.0, length, 6), jnp.full((5,), weight)
    value, gradients = differentiate(weights, edges)
    assert float(value) == pytest.approx(25.0 * weight**2 * length / 3, rel=1e-4, abs=1e-30)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_the_gradient_of_distortion_is_that_of_the_double_sum() -> None:
    weights, edges = random_histogram(np.random.default_rng(5), (), 7)
    _, gradients = differentiate(jnp.asarray(weights), jnp.asarray(edges))
    for which, gradient in enumerate(gradients):
        for i in range(len(gradient)):
            ends = []
            for sign in (-1, 1):
                moved = [weights.astype(np.float64), edges.astype(np.float64)]
                moved[which][i] += sign * 1e-6
                ends.append(distortion_slowly(*moved))
            expected = (ends[1] - ends[0]) / 2e-6
            assert float(gradient[i]) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("lengths", [[4, 0, 1, 7, 0], [0, 0, 0, 12], [12], [1, 1, 1]])
def test_packed_distortion_equals_the_double_sum_of_every_ray(lengths: list[int]) -> None:
    rng = np.random.default_rng(6)
    starts, ends, weights, expected = [], [], [], []
    for length in lengths:
        w, edges = random_histogram(rng, (), 2 * length + 1)
        # Every other interval is left out, as empty space is.
        kept = np.arange(1, 2 * length, 2)
        starts += edges[kept].tolist()
        ends += edges[kept + 1].tolist()
        weights += w[kept].tolist()
        w[::2] = 0.0
        expected.append(distortion_slowly(w, edges))
    index = np.repeat(np.arange(len(lengths)), lengths)
    # The empty places are the last ray's, without weight.
    padded = [np.pad(np.asarray(x, np.float32), (0, 3)) for x in (weights, starts, ends)]
    owner = np.pad(index, (0, 3), constant_values=len(lengths) - 1).astype(np.int32)
    measured = measure_packed(*map(jnp.asarray, (*padded, owner)), len(lengths))
    assert measured.shape == (len(lengths),)
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-7)


def test_packed_distortion_of_whole_rays_is_that_of_unpacked_ones_gradients_included() -> None:
    weights, edges = random_histogram(np.random.default_rng(7), (4,), 6)
    factors = jnp.asarray([1.0, -2.0, 3.0, 0.5])
    owner = jnp.repeat(jnp.arange(4), 6)

    def unpacked(weights: jax.Array, edges: jax.Array) -> jax.Array:
        return jnp.dot(factors, distortion_loss(weights, edges))

    def packed(weights: jax.Array, edges: jax.Array) -> jax.Array:
        starts, ends = edges[:, :-1].ravel(), edges[:, 1:].ravel()
        return jnp.dot(factors, packed_distortion_loss(weights.ravel(), starts, ends, owner, 4))

    arguments = jnp.asarray(weights), jnp.asarray(edges)
    one, other = (jax.jit(jax.value_and_grad(f, (0, 1)))(*arguments) for f in (unpacked, packed))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_packed_distortion_of_no_samples_is_zero_for_every_ray() -> None:
    nothing = jnp.zeros((0,))
    measured = measure_packed(nothing, nothing, nothing, jnp.zeros((0,), jnp.int32), 3)
    np.testing.assert_array_equal(measured, 0.0)


def test_a_huge_weight_of_one_packed_ray_leaves_the_others_alone() -> None:
    weights = jnp.asarray([1e15, 1e15, 0.5, 0.5, 0.0])
    starts = jnp.asarray([0.0, 0.5, 0.2, 0.8, 0.9])
    owner = jnp.asarray([0, 0, 1, 1, 2], jnp.int32)
    measured = measure_packed(weights, starts, starts, owner, 3)
    np.testing.assert_allclose(measured, [1e30, 0.3, 0.0], rtol=1e-5)


# The loss of proposals.


def interlevel_slowly(
    tdist: np.ndarray, weights: np.ndarray, proposed_tdist: np.ndarray, proposed: np.ndarray
) -> float:
    total = 0.0
    for i, weight in enumerate(weights):
        low, high = float(tdist[i]), float(tdist[i + 1])
        allowed = 0.0
        for j, more in enumerate(proposed):
            if float(proposed_tdist[j]) < high and float(proposed_tdist[j + 1]) > low:
                allowed += float(more)
        total += max(0.0, float(weight) - allowed) ** 2 / (float(weight) + 1e-7)
    return total


@pytest.mark.parametrize("counts", [(1, 1), (7, 3), (3, 7), (6, 6)])
@pytest.mark.parametrize("batch", BATCHES)
def test_interlevel_equals_loop_over_overlaps_for_any_batch_shape(
    batch: tuple[int, ...], counts: tuple[int, int]
) -> None:
    rng = np.random.default_rng(8)
    weights, edges = random_histogram(rng, batch, counts[0])
    proposed, proposed_edges = random_histogram(rng, batch, counts[1])
    # The proposal need not cover the ray, and is to be too small in places.
    tdist, proposed_tdist = 2.0 + 4.0 * edges, 2.5 + 3.0 * proposed_edges
    proposed *= 0.3
    loss = compare(*map(jnp.asarray, (tdist, weights, proposed_tdist, proposed)))
    assert loss.shape == batch
    for index in np.ndindex(batch):
        expected = interlevel_slowly(
            tdist[index], weights[index], proposed_tdist[index], proposed[index]
        )
        assert float(loss[index]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@settings(max_examples=50)
@given(st.data())
def test_interlevel_equals_loop_where_edges_coincide(data: st.DataObject) -> None:
    # Quarters are exact, and so few that most edges are shared and many intervals have no length.
    edges = [
        np.array(sorted(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))) / 4
        for n in (6, 5)
    ]
    weights = [
        np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))) / 8 for n in (5, 4)
    ]
    arguments = [np.asarray(x, np.float32) for x in (edges[0], weights[0], edges[1], weights[1])]
    loss = compare(*map(jnp.asarray, arguments))
    assert float(loss) == pytest.approx(interlevel_slowly(*arguments), rel=1e-5, abs=1e-6)


@settings(max_examples=40)
@given(SEEDS)
def test_a_proposal_that_is_a_coarser_histogram_of_the_same_costs_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, edges = random_histogram(rng, (), 8)
    weights[edges[1:] == edges[:-1]] = 0.0
    kept = np.sort(rng.choice(np.arange(1, 8), 3, replace=False))
    coarse = np.add.reduceat(weights, [0, *kept])
    coarse_edges = edges[[0, *kept, 8]]
    loss = compare(*map(jnp.asarray, (edges, weights, coarse_edges, coarse)))
    assert float(loss) == pytest.approx(0.0, abs=1e-5)


@settings(max_examples=40)
@given(SEEDS)
def test_a_larger_proposal_never_costs_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, edges = random_histogram(rng, (), 8)
    proposed, proposed_edges = random_histogram(rng, (), 4)
    losses = [
        float(compare(*map(jnp.asarray, (edges, weights, proposed_edges, factor * proposed))))
        for factor in (np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(1e9))
    ]
    assert losses[0] == pytest.approx(float(np.sum(weights)), rel=1e-4)
    assert all(more <= less + 1e-6 for less, more in itertools.pairwise(losses))


def test_gradients_of_interlevel_flow_to_the_proposed_weights_alone() -> None:
    edges = jnp.asarray([0.0, 0.3, 0.6, 1.0])
    weights = jnp.asarray([0.1, 0.8, 0.05])
    proposed_edges, proposed = jnp.asarray([0.0, 0.45, 1.0]), jnp.asarray([0.2, 0.3])
    all_four = jax.jit(jax.grad(interlevel_loss, argnums=(0, 1, 2, 3)))
    gradients = all_four(edges, weights, proposed_edges, proposed)
    for gradient in gradients[:3]:
        np.testing.assert_array_equal(gradient, 0.0)
    # The second interval alone has too much, and overlaps both: -2 (0.8 - 0.5) / 0.8.
    np.testing.assert_allclose(gradients[3], [-0.75, -0.75], rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 1e-20, 1.0, 1e10])
@pytest.mark.parametrize("proposed", [0.0, 1e-20, 1e10])
@pytest.mark.parametrize("length", [0.0, 1.0])
def test_interlevel_and_its_gradient_are_finite_for_any_length_and_weight(
    length: float, proposed: float, weight: float
) -> None:
    edges, proposed_edges = 2.0 + jnp.linspace(0.0, length, 6), 2.0 + jnp.linspace(0.0, length, 4)
    arguments = (edges, jnp.full((5,), weight), proposed_edges, jnp.full((3,), proposed))
    loss, gradient = differentiate_proposal(*arguments)
    assert np.isfinite(loss) and float(loss) >= 0 and np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient) <= 0)
