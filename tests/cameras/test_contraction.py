"""Contraction: against loops and numeric derivatives, and how fast rays cross it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrf.cameras import contraction
from jaxrf.cameras.contraction import (
    contract,
    inverse_contraction_scale,
    s_to_t,
    t_to_s,
    uncontract,
)

BOXES = {
    "unit": np.array([[-1.0] * 3, [1.0] * 3], np.float32),
    "long": np.array([[-1.5, -1.0, 4.5], [1.5, 1.2, 6.0]], np.float32),
}
each_box = pytest.mark.parametrize("box", list(BOXES.values()), ids=list(BOXES))
each_norm = pytest.mark.parametrize("norm", ["max", "euclidean"])


def slow_contract(
    position: np.ndarray, box: np.ndarray, norm: contraction.Norm = "max"
) -> list[float]:
    center, half = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    scaled = [(position[a] - center[a]) / half[a] for a in range(3)]
    m = max(abs(value) for value in scaled)
    if norm == "euclidean":
        m = sum(value**2 for value in scaled) ** 0.5
    if m > 1:
        scaled = [(2 - 1 / m) * value / m for value in scaled]
    return [center[a] + half[a] * scaled[a] for a in range(3)]


def positions_around(box: np.ndarray, count: int = 300, seed: int = 0) -> np.ndarray:
    """Inside of the box, near it and far away, not next to where faces or diagonals meet."""
    rng = np.random.default_rng(seed)
    scaled = rng.uniform(-1.0, 1.0, (count, 3)) * 10.0 ** rng.uniform(-1.0, 2.0, (count, 1))
    sizes = np.sort(np.abs(scaled), axis=-1)
    apart = (sizes[:, 2] > 1.05 * sizes[:, 1]) & (np.abs(sizes[:, 2] - 1.0) > 0.01)
    return (box[0] + box[1]) / 2 + scaled[apart] * (box[1] - box[0]) / 2


@each_box
@each_norm
def test_contract_equals_loop(box: np.ndarray, norm: contraction.Norm) -> None:
    positions = positions_around(box)
    expected = np.array([slow_contract(p, box.astype(np.float64), norm) for p in positions])
    result = contract(jnp.asarray(positions, jnp.float32), jnp.asarray(box), norm)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-5)


@each_box
@each_norm
def test_contract_is_identity_inside_and_stays_in_contracted_space(
    box: np.ndarray, norm: contraction.Norm
) -> None:
    rng = np.random.default_rng(1)
    order = np.inf if norm == "max" else 2
    inside = rng.uniform(box[0], box[1], (100, 3))
    sizes = np.linalg.norm((inside - box.mean(0)) / (box[1] - box[0]) * 2, order, axis=-1)
    unchanged = jnp.asarray(inside[sizes < 1.0], jnp.float32)
    np.testing.assert_allclose(contract(unchanged, jnp.asarray(box), norm), unchanged, atol=1e-6)
    far = jnp.asarray(1e6 * rng.normal(size=(100, 3)), jnp.float32)
    low, high = contraction.contracted_aabb(box)
    contracted = np.asarray(contract(far, jnp.asarray(box), norm))
    assert np.all(contracted >= low - 1e-5) and np.all(contracted <= high + 1e-5)
    reaches = np.linalg.norm((contracted - (low + high) / 2) / (high - low) * 2, order, axis=-1)
    np.testing.assert_allclose(reaches, 1.0, atol=1e-4)


@each_box
@each_norm
def test_uncontract_is_the_inverse_of_contract(box: np.ndarray, norm: contraction.Norm) -> None:
    positions = jnp.asarray(positions_around(box), jnp.float32)
    there = contract(positions, jnp.asarray(box), norm)
    size = np.linalg.norm(np.asarray(positions) - (box[0] + box[1]) / 2, axis=-1, keepdims=True)
    error = np.abs(np.asarray(uncontract(there, jnp.asarray(box), norm) - positions))
    # Far out the contracted coordinate hardly changes.
    assert np.all(error < 1e-5 * (1.0 + size) ** 2)


@each_box
@each_norm
def test_inverse_contraction_scale_equals_finite_differences(
    box: np.ndarray, norm: contraction.Norm
) -> None:
    wide = box.astype(np.float64)
    for position in positions_around(box, 60):
        center = (wide[0] + wide[1]) / 2
        outwards = 1e-6 * (position - center)
        there, beyond = (
            np.array(slow_contract(p, wide, norm)) for p in (position, position + outwards)
        )
        expected = np.linalg.norm(outwards) / np.linalg.norm(beyond - there)
        result = inverse_contraction_scale(jnp.asarray(there, jnp.float32), jnp.asarray(box), norm)
        np.testing.assert_allclose(result, expected, rtol=2e-2)


@each_box
@each_norm
def test_contract_radii_scale_with_cube_root_of_volume(
    box: np.ndarray, norm: contraction.Norm
) -> None:
    wide = box.astype(np.float64)
    positions = positions_around(box, 60)
    steps = 1e-6 * np.eye(3)
    for position in positions:
        columns = [
            (
                np.array(slow_contract(position + s, wide, norm))
                - slow_contract(position - s, wide, norm)
            )
            / 2e-6
            for s in steps
        ]
        expected = 0.1 * abs(np.linalg.det(np.array(columns))) ** (1 / 3)
        result = contraction.contract_radii(
            jnp.asarray(0.1), jnp.asarray(position, jnp.float32), jnp.asarray(box), norm
        )
        np.testing.assert_allclose(result, expected, rtol=1e-3)


def make_lines(
    box: np.ndarray, away: float, count: int = 200, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Origins so many half diagonals from the box's center, and unit directions."""
    rng = np.random.default_rng(seed)
    origins, directions = rng.normal(size=(2, count, 3))
    origins *= away / np.linalg.norm(origins, axis=-1, keepdims=True)
    origins = (box[0] + box[1]) / 2 + origins * np.linalg.norm(box[1] - box[0]) / 2
    return origins, directions / np.linalg.norm(directions, axis=-1, keepdims=True)


@each_box
@pytest.mark.parametrize("away", [0.0, 0.7, 2.0, 9.0])
def test_t_to_s_is_monotonic_bounded_and_invertible(box: np.ndarray, away: float) -> None:
    origins = jnp.asarray(make_lines(box, away)[0], jnp.float32)
    diagonal = float(np.linalg.norm(box[1] - box[0]))
    distances = np.concatenate([[0.0], np.geomspace(0.01, 3e2, 60)]).astype(np.float32)
    tiled = jnp.broadcast_to(jnp.asarray(distances * diagonal), (len(origins), 61))
    marched = np.asarray(t_to_s(tiled, origins, jnp.asarray(box)))
    assert np.all(np.diff(marched) > 0.0)
    assert marched.max() <= contraction.MAX_MARCH_DIAGONALS * diagonal * (1 + 1e-6)
    back = s_to_t(jnp.asarray(marched), origins, jnp.asarray(box))
    tolerance = 1e-5 * diagonal * (1.0 + distances) ** 2
    assert np.all(np.abs(np.asarray(back - tiled)) <= tolerance * (1.0 + away))
    ends = contraction.far_distance(origins, jnp.asarray(box))[:, None]
    beyond = t_to_s(jnp.broadcast_to(ends, (len(origins), 1)), origins, jnp.asarray(box))
    np.testing.assert_allclose(s_to_t(beyond, origins, jnp.asarray(box)), ends, rtol=1e-3)


@each_box
@pytest.mark.parametrize("away", [0.0, 0.7, 1.9])
def test_t_to_s_is_linear_up_to_beyond_the_box(box: np.ndarray, away: float) -> None:
    origins, _ = make_lines(box, away)
    corners = np.array([[box[i][0], box[j][1], box[k][2]] for i, j, k in np.ndindex(2, 2, 2)])
    farthest = np.linalg.norm(origins[:, None] - corners, axis=-1)
    lines = jnp.asarray(origins, jnp.float32)
    result = t_to_s(jnp.asarray(farthest, jnp.float32), lines, jnp.asarray(box))
    np.testing.assert_allclose(result, farthest, rtol=1e-5)


@each_box
@each_norm
@pytest.mark.parametrize("away", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_t_to_s_speed_is_below_its_bound(
    box: np.ndarray, norm: contraction.Norm, away: float
) -> None:
    origins, directions = make_lines(box, away)
    lines, where = jnp.asarray(origins, jnp.float32), jnp.asarray(box)
    end = t_to_s(contraction.far_distance(lines, where)[:, None], lines, where)
    marched = np.linspace(0.0, 1.0, 400)[None] * np.asarray(end)
    distances = s_to_t(jnp.asarray(marched, jnp.float32), lines, where)
    places = lines[:, None] + distances[..., None] * jnp.asarray(directions, jnp.float32)[:, None]
    moved = np.abs(np.diff(contract(places, where, norm), axis=1)).max(axis=-1)
    assert np.all(moved <= contraction.MAX_MARCH_SPEED * np.diff(marched) + 1e-4)


@each_norm
@given(x=st.floats(-1e9, 1e9), y=st.floats(-1e9, 1e9), distance=st.floats(0.0, 1e9))
def test_contraction_gradients_are_finite_everywhere(
    norm: contraction.Norm, x: float, y: float, distance: float
) -> None:
    box = jnp.asarray(BOXES["unit"])
    position = jnp.array([x, y, 0.0], jnp.float32)

    def total(position: jax.Array, distance: jax.Array) -> jax.Array:
        there = contract(position, box, norm)
        marched = t_to_s(distance[None], position, box)
        back = s_to_t(marched, position, box)
        radius = contraction.contract_radii(jnp.ones(()), position, box, norm)
        return jnp.sum(there) + jnp.sum(marched) + jnp.sum(back) * 1e-9 + radius

    value, grads = jax.value_and_grad(total, (0, 1))(position, jnp.asarray(distance, jnp.float32))
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in grads)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_any_batch_shape(shape: tuple[int, ...]) -> None:
    box = jnp.asarray(BOXES["long"])
    positions = jnp.ones((*shape, 3)) * 7.0
    assert contract(positions, box).shape == (*shape, 3)
    assert uncontract(positions, box).shape == (*shape, 3)
    assert inverse_contraction_scale(positions, box).shape == shape
    assert contraction.contract_radii(jnp.ones(shape), positions, box).shape == shape
    assert t_to_s(jnp.ones((*shape, 5)), positions, box).shape == (*shape, 5)
    assert s_to_t(jnp.ones((*shape, 5)), positions, box).shape == (*shape, 5)
    assert contraction.far_distance(positions, box).shape == shape
