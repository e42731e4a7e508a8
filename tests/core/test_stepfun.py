"""Step functions: distributions and their inverses against loops, and at the extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrf.core import stepfun
from jaxrf.core.stepfun import integrate_weights, invert_cdf, midpoints

integrate = jax.jit(integrate_weights, static_argnames="padding")
invert = jax.jit(invert_cdf)

BATCHES = [(), (5,), (2, 3)]
WEIGHTS = hnp.arrays(
    np.float32, 6, elements=st.one_of(st.just(0.0), st.floats(0.0009765625, 1e3, width=32))
)


def integrate_slowly(weights: np.ndarray, padding: float) -> list[float]:
    padded = [float(w) + padding for w in weights]
    if sum(padded) == 0:
        padded = [1.0] * len(padded)
    cdf, reached = [0.0], 0.0
    for w in padded:
        reached += w
        cdf.append(reached / sum(padded))
    return cdf


def invert_slowly(u: float, edges: np.ndarray, cdf: np.ndarray) -> float:
    """The interval of non-zero probability in which the CDF passes u."""
    for i in range(len(cdf) - 1):
        low, high = float(cdf[i]), float(cdf[i + 1])
        if low <= u < high:
            return float(edges[i]) + (u - low) / (high - low) * float(edges[i + 1] - edges[i])
    raise AssertionError("u is not in [0, 1)")


@pytest.mark.parametrize("batch", BATCHES)
def test_midpoints_equal_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    edges = np.sort(np.random.default_rng(0).uniform(0, 9, (*batch, 5)), -1).astype(np.float32)
    middles = midpoints(jnp.asarray(edges))
    assert middles.shape == (*batch, 4)
    for index in np.ndindex(*batch, 4):
        *ray, i = index
        expected = (float(edges[(*ray, i)]) + float(edges[(*ray, i + 1)])) / 2
        assert float(middles[index]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("padding", [0.0, 0.01])
@pytest.mark.parametrize("batch", BATCHES)
def test_integrate_weights_equals_loop_for_any_batch_shape(
    batch: tuple[int, ...], padding: float
) -> None:
    weights = np.random.default_rng(1).exponential(1.0, (*batch, 7)).astype(np.float32)
    cdf = integrate(jnp.asarray(weights), padding=padding)
    assert cdf.shape == (*batch, 8)
    for index in np.ndindex(batch):
        np.testing.assert_allclose(cdf[index], integrate_slowly(weights[index], padding), atol=1e-6)


@settings(max_examples=50)
@given(WEIGHTS)
def test_integrate_weights_rises_from_exactly_0_to_exactly_1(weights: np.ndarray) -> None:
    cdf = np.asarray(integrate(jnp.asarray(weights)))
    assert cdf[0] == 0.0 and cdf[-1] == 1.0
    assert np.all(np.diff(cdf) >= 0)


@pytest.mark.parametrize("padding", [0.0, 0.01])
def test_integrate_weights_of_zeros_is_uniform_with_finite_gradient(padding: float) -> None:
    weights = jnp.zeros((2, 4))
    expected = np.broadcast_to(np.linspace(0, 1, 5), (2, 5))
    np.testing.assert_allclose(integrate(weights, padding=padding), expected, atol=1e-6)
    factors = jnp.arange(5.0)[None]
    gradient = jax.grad(lambda w: jnp.sum(integrate_weights(w, padding) * factors))(weights)
    assert np.all(np.isfinite(gradient))


def test_integrate_weights_of_one_weight_is_one_step() -> None:
    for weight in (0.0, 1e-20, 3.0, 1e30):
        np.testing.assert_array_equal(integrate(jnp.asarray([weight])), [0.0, 1.0])


def test_integrate_weights_handles_huge_and_tiny_weights() -> None:
    for scale in (1e-25, 1e25):
        cdf = integrate(jnp.asarray([1.0, 0.0, 3.0]) * scale)
        np.testing.assert_allclose(cdf, [0.0, 0.25, 0.25, 1.0], rtol=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
def test_invert_cdf_equals_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    weights = rng.exponential(1.0, (*batch, 6)).astype(np.float32)
    weights[..., [0, 3]] = 0.0
    edges = np.sort(rng.uniform(1, 9, (*batch, 7)), -1).astype(np.float32)
    cdf = np.asarray(integrate(jnp.asarray(weights)))
    uniforms = rng.uniform(0, 1, (*batch, 20)).astype(np.float32)
    drawn = invert(jnp.asarray(uniforms), jnp.asarray(edges), jnp.asarray(cdf))
    assert drawn.shape == (*batch, 20)
    for index in np.ndindex(*batch, 20):
        ray = index[:-1]
        expected = invert_slowly(float(uniforms[index]), edges[ray], cdf[ray])
        assert float(drawn[index]) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=50)
@given(WEIGHTS, hnp.arrays(np.float32, 9, elements=st.floats(0, 1, width=32, exclude_max=True)))
def test_invert_cdf_is_the_inverse_of_the_cdf(weights: np.ndarray, uniforms: np.ndarray) -> None:
    edges = np.array([1.0, 1.5, 2.5, 3.0, 4.0, 6.0, 6.5], np.float32)
    cdf = integrate(jnp.asarray(weights))
    drawn = np.asarray(invert(jnp.asarray(uniforms), jnp.asarray(edges), cdf))
    np.testing.assert_allclose(np.interp(drawn, edges, np.asarray(cdf)), uniforms, atol=1e-5)
    order = np.argsort(uniforms, kind="stable")
    assert np.all(np.diff(drawn[order]) >= -1e-6)


@settings(max_examples=50)
@given(hnp.arrays(bool, 6), hnp.arrays(np.float32, 9, elements=st.floats(0, 1, width=32)))
def test_invert_cdf_never_samples_intervals_without_probability(
    taken: np.ndarray, uniforms: np.ndarray
) -> None:
    if not taken.any():
        return
    edges = np.arange(7, dtype=np.float32)
    # Multiples of an eighth, so that the flat stretches are exactly flat.
    rise = np.where(taken, 0.125, 0.0)
    rise[np.flatnonzero(taken)[0]] += 1.0 - rise.sum()
    cdf = np.concatenate([[0.0], np.cumsum(rise)]).astype(np.float32)
    for t in np.asarray(invert(jnp.asarray(uniforms), jnp.asarray(edges), jnp.asarray(cdf))):
        assert any(taken[i] and edges[i] <= t <= edges[i + 1] for i in range(6)), t


def test_invert_cdf_of_0_and_1_gives_the_ends_of_the_support() -> None:
    edges = jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    cdf = jnp.asarray([0.0, 0.0, 0.5, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(invert(jnp.asarray([0.0, 1.0]), edges, cdf), [2.0, 4.0])


def test_invert_cdf_gradient_is_finite_on_flat_parts() -> None:
    edges = jnp.asarray([1.0, 2.0, 2.0, 4.0])
    uniforms = jnp.asarray([0.0, 0.25, 0.5, 1.0])

    def total(cdf: jax.Array, edges: jax.Array) -> jax.Array:
        return jnp.sum(invert_cdf(uniforms, edges, cdf))

    for cdf in ([0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0]):
        gradients = jax.grad(total, argnums=(0, 1))(jnp.asarray(cdf), edges)
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


# Blurred step functions.


def sample_blur(tdist: np.ndarray, values: np.ndarray, radius: float, at: float) -> float:
    """Mean of a step function over [at - radius, at + radius]."""
    total = 0.0
    for low, high, value in zip(tdist[:-1], tdist[1:], values, strict=True):
        total += value * max(0.0, min(high, at + radius) - max(low, at - radius))
    return total / (2.0 * radius)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("radius", [0.01, 0.3])
def test_blur_equals_means_over_a_moving_box_for_any_batch_shape(
    batch: tuple[int, ...], radius: float
) -> None:
    rng = np.random.default_rng(1)
    tdist = np.sort(rng.uniform(size=(*batch, 6)), axis=-1)
    values = rng.uniform(size=(*batch, 5))
    knots, blurred = stepfun.blur(jnp.asarray(tdist), jnp.asarray(values), radius)
    assert knots.shape == blurred.shape == (*batch, 12)
    assert np.all(np.diff(knots) >= 0.0)
    for index in np.ndindex(*batch):
        expected = [sample_blur(tdist[index], values[index], radius, x) for x in knots[index]]
        np.testing.assert_allclose(blurred[index], expected, atol=2e-5)


def test_blur_keeps_the_integral_and_is_finite_where_edges_coincide() -> None:
    tdist = jnp.asarray([0.0, 0.5, 0.5, 0.5, 1.0])
    values = jnp.asarray([1.0, 2.0, 0.0, 3.0])
    knots, blurred = stepfun.blur(tdist, values, 0.1)
    area = float(jnp.sum(jnp.diff(knots) * stepfun.midpoints(blurred)))
    assert area == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_integrate_linear_equals_a_fine_sum_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    knots = np.sort(rng.uniform(size=(*batch, 5)), axis=-1)
    values = rng.uniform(size=(*batch, 5))
    queries = rng.uniform(-0.2, 1.2, size=(*batch, 7))
    below = stepfun.integrate_linear(*(jnp.asarray(x) for x in (queries, knots, values)))
    assert below.shape == queries.shape
    for index in np.ndindex(*batch):
        for query, integral in zip(queries[index], below[index], strict=True):
            end = max(min(query, knots[index][-1]), knots[index][0])
            x = np.linspace(knots[index][0], end, 2001)
            y = np.interp(x, knots[index], values[index])
            expected = np.sum(np.diff(x) * 0.5 * (y[1:] + y[:-1]))
            assert integral == pytest.approx(expected, abs=1e-4)


def test_integrate_linear_of_coinciding_knots_has_finite_gradients() -> None:
    knots, values = jnp.asarray([0.0, 0.5, 0.5, 1.0]), jnp.asarray([0.0, 1.0, 2.0, 0.0])

    def total(knots: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.sum(stepfun.integrate_linear(jnp.asarray([0.25, 0.5, 2.0]), knots, values))

    for gradient in jax.grad(total, argnums=(0, 1))(knots, values):
        assert np.all(np.isfinite(gradient))
