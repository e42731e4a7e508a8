"""Hash grids against loops over the corners with the integers of Python."""

import itertools
import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.core import hash_grids
from jaxrf.core.hash_grids import (
    HashLevels,
    hash_rows,
    level_downweights,
    plan_hash_levels,
    plan_scaled_hash_levels,
    sample_hash_grid,
)
from jaxrf.core.kernels import calls


def hat(distance: float) -> float:
    return max(0.0, 1.0 - abs(distance))


def random_table(rows: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, channels)).astype(np.float32)


@pytest.mark.parametrize(
    ("levels", "coarsest", "finest"),
    [(16, 16, 2048), (16, 16, 524_288), (8, 16, 256), (3, 4, 12), (5, 2, 32), (2, 7, 7), (1, 9, 9)],
)
def test_plan_hash_levels_cells_follow_the_geometric_series(
    levels: int, coarsest: int, finest: int
) -> None:
    plan = plan_hash_levels(levels, coarsest, finest, 1 << 19)
    assert len(plan.cells) == levels and plan.cells[0] == coarsest
    assert plan.cells[-1] == finest
    for level, cells in enumerate(plan.cells):
        # cells <= coarsest (finest / coarsest)^(level / (levels - 1)), in integers.
        last = max(levels - 1, 1)
        exact = coarsest ** (last - level) * finest**level
        assert cells**last <= exact < (cells + 1) ** last


@pytest.mark.parametrize("most_rows", [1, 64, 256, 1 << 19])
def test_plan_hash_levels_rows_are_corners_or_max_rows(most_rows: int) -> None:
    plan = plan_hash_levels(5, 3, 40, most_rows)
    start = 0
    for cells, first in zip(plan.cells, plan.starts[:-1], strict=True):
        assert first == start
        start += min((cells + 1) ** 3, most_rows)
    assert plan.starts[-1] == start and len(plan.starts) == 6
    hash(plan)


def hash_row_slowly(corner: tuple[int, ...], cells: int, rows: int) -> int:
    x, y, z = corner
    if (cells + 1) ** 3 <= rows:
        return x * (cells + 1) ** 2 + y * (cells + 1) + z
    return (x ^ (y * 2_654_435_761) % 2**32 ^ (z * 805_459_861) % 2**32) % rows


@pytest.mark.parametrize(("cells", "rows"), [(6, 7**3), (6, 512), (7, 512), (7, 256), (9, 1)])
def test_hash_rows_equal_python_for_all_corners(cells: int, rows: int) -> None:
    corners = list(np.ndindex(cells + 1, cells + 1, cells + 1))
    x, y, z = (jnp.asarray(axis, jnp.int32) for axis in np.transpose(corners))
    result = np.asarray(hash_rows((x, y, z), cells, rows))
    assert result.tolist() == [hash_row_slowly(corner, cells, rows) for corner in corners]
    assert result.min() >= 0 and result.max() < rows
    if len(corners) <= rows:
        assert len(set(result.tolist())) == len(corners), "no two corners share a row"


def test_hash_rows_equal_python_for_a_very_fine_level() -> None:
    cells, rows = 524_288, 1 << 19
    corners = np.random.default_rng(0).integers(0, cells + 1, (500, 3))
    corners[:2] = [[0, 0, 0], [cells, cells, cells]]
    x, y, z = (jnp.asarray(axis, jnp.int32) for axis in corners.T)
    expected = [hash_row_slowly(tuple(c), cells, rows) for c in corners.tolist()]
    assert np.asarray(hash_rows((x, y, z), cells, rows)).tolist() == expected


def hash_grid_slowly(table: np.ndarray, unit: np.ndarray, levels: list[tuple[int, int]]) -> Any:
    """Features of one position: for each (cells, rows) the 8 corners around it by their hats."""
    result, start = [], 0
    for cells, rows in levels:
        at = [min(max(float(u), 0.0), 1.0) * cells for u in unit]
        total = np.zeros(table.shape[1])
        for offset in np.ndindex(2, 2, 2):
            corner = tuple(min(int(a), cells - 1) + o for a, o in zip(at, offset, strict=True))
            share = np.prod([hat(a - c) for a, c in zip(at, corner, strict=True)])
            row = start + hash_row_slowly(corner, cells, rows)
            total += share * table[row].astype(np.float64)
        result.append(total)
        start += rows
    assert start == len(table)
    return np.concatenate(result)


# 4, 6 and 12 cells: one level with a row for each of its corners, two with fewer.
HASHED = plan_hash_levels(3, 4, 12, 256)
HASH_LEVELS = [(4, 125), (6, 256), (12, 256)]
hash_grid_at = jax.jit(sample_hash_grid, static_argnums=2)


def hash_case(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A table, and positions inside, on corners, on the faces and outside."""
    unit = np.random.default_rng(4).uniform(-0.1, 1.1, (count, 3))
    unit[:10] = np.random.default_rng(5).choice([0.0, 0.25, 0.5, 1.0], (10, 3))
    unit[10:13] = [[0, 0, 0], [1, 1, 1], [-1e30, 1e30, np.inf]]
    return random_table(HASHED.starts[-1], 2), unit.astype(np.float32)


def test_sample_hash_grid_equals_loops_over_all_corners() -> None:
    assert HASHED.cells == (4, 6, 12) and HASHED.starts == (0, 125, 381, 637)
    table, unit = hash_case()
    result = hash_grid_at(jnp.asarray(table), jnp.asarray(unit), HASHED)
    assert result.shape == (60, 6)
    for value, position in zip(result, unit, strict=True):
        expected = hash_grid_slowly(table, position, HASH_LEVELS)
        np.testing.assert_allclose(value, expected, atol=2e-5)


def other_grid_slowly(
    table: np.ndarray, position: np.ndarray, scales: list[float], most: int, centered: bool
) -> list[float]:
    """nerfstudio's two layouts, corner by corner in Python's whole numbers."""
    out, first = [], 0
    for scale in scales:
        at = [float(v) * scale + (0.5 if centered else 0.0) for v in position]
        points = math.ceil(scale) + 1
        rows = min(-(-(points**3) // 8) * 8, most) if centered else most
        total = np.zeros(table.shape[1])
        for corner in itertools.product((0, 1), repeat=3):
            place, weight = [], 1.0
            for value, up in zip(at, corner, strict=True):
                part = value - math.floor(value)
                place.append(math.floor(value) + up)
                weight *= part if up else 1.0 - part
            x, y, z = place
            if centered and points**3 <= most:
                row = (x + points * y + points**2 * z) % rows
            else:
                row = (x ^ (y * 2654435761) ^ (z * 805459861)) % 2**32 % rows
            total += weight * table[first + row]
        out += list(total)
        first += rows
    assert first == len(table)
    return out


@pytest.mark.parametrize("rule", ["all_hashed", "tcnn"])
def test_sample_hash_grid_other_layouts_equal_loops(rule: Any) -> None:
    scales = (5.0, 7.0, 12.0) if rule == "all_hashed" else (4.0, 6.5, 11.3)
    plan = plan_scaled_hash_levels(scales, 512, rule)
    assert plan.starts == ((0, 512, 1024, 1536) if rule == "all_hashed" else (0, 128, 640, 1152))
    table = random_table(plan.starts[-1], 2)
    unit = np.random.default_rng(4).uniform(0.0, 1.0, (40, 3)).astype(np.float32)
    unit[:3] = [[0, 0, 0], [0.999, 0.5, 0.25], [0.2, 0.4, 0.6]]
    result = hash_grid_at(jnp.asarray(table), jnp.asarray(unit), plan)
    for value, position in zip(result, unit, strict=True):
        expected = other_grid_slowly(table, position, list(scales), 512, rule == "tcnn")
        np.testing.assert_allclose(value, expected, atol=5e-5)


def test_sample_hash_grid_in_float64_equals_loops_closely() -> None:
    table, unit = (x[:20].astype(np.float64) if i else x for i, x in enumerate(hash_case()))
    with jax.enable_x64(True):
        wide = jnp.asarray(table, jnp.float64)
        result = sample_hash_grid(wide, jnp.asarray(unit, jnp.float64), HASHED)
        assert result.dtype == jnp.float64
        for value, position in zip(result, unit, strict=True):
            expected = hash_grid_slowly(table, position, HASH_LEVELS)
            np.testing.assert_allclose(value, expected, atol=1e-13)


def test_sample_hash_grid_accepts_zero_positions() -> None:
    result = sample_hash_grid(jnp.ones((637, 2)), jnp.zeros((0, 3)), HASHED)
    assert result.shape == (0, 6)


def test_sample_hash_grid_reproduces_constant_and_linear_functions() -> None:
    _, unit = hash_case()
    same = hash_grid_at(jnp.full((637, 2), 3.0), jnp.asarray(unit), HASHED)
    np.testing.assert_allclose(same, 3.0, rtol=1e-5)
    corners = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * 3, indexing="ij"), axis=-1)
    table = jnp.asarray(corners.reshape(-1, 3), jnp.float32)
    result = hash_grid_at(table, jnp.asarray(unit), HashLevels((4,), (0, 125)))
    np.testing.assert_allclose(result, np.clip(unit, 0, 1), atol=1e-6)


def test_sample_hash_grid_gradients_equal_corner_weights_and_slopes() -> None:
    table, unit = hash_case()
    pull = np.random.default_rng(6).normal(size=(60, 6)).astype(np.float32)

    @jax.jit
    def slopes(table: jax.Array, unit: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = lambda t, u: jnp.sum(jnp.asarray(pull) * sample_hash_grid(t, u, HASHED))  # noqa: E731
        return jax.grad(total, argnums=(0, 1))(table, unit)

    to_table, to_unit = slopes(jnp.asarray(table), jnp.asarray(unit))
    assert np.all(np.isfinite(to_table)) and np.all(np.isfinite(to_unit))
    for row in (0, 62, 124, 130, 300, 500, 636):
        one = np.zeros_like(table)
        one[row] = 1.0
        expected = np.zeros(2)
        for position, weights in zip(unit, pull, strict=True):
            shares = hash_grid_slowly(one, position, HASH_LEVELS)
            expected += np.sum((shares * weights).reshape(3, 2), axis=0)
        np.testing.assert_allclose(to_table[row], expected, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(to_unit)[(unit < 0) | (unit > 1)], 0.0)
    for index in range(20, 30):
        for axis in range(3):
            if not 0.01 < unit[index, axis] < 0.99:
                continue
            ends = []
            for shift in (-1e-4, 1e-4):
                moved = unit[index].astype(np.float64)
                moved[axis] += shift
                ends.append(np.sum(pull[index] * hash_grid_slowly(table, moved, HASH_LEVELS)))
            wanted_slope = (ends[1] - ends[0]) / 2e-4
            assert float(to_unit[index, axis]) == pytest.approx(wanted_slope, rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("layout", ["dense_coarse", "all_hashed", "tcnn"])
@pytest.mark.parametrize("table_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_sample_hash_grid_by_level_equals_all_levels_at_once_with_gradients(
    layout: Any, table_dtype: Any, count: int
) -> None:
    plan = HASHED
    if layout != "dense_coarse":
        plan = plan_scaled_hash_levels((5.0, 7.0, 12.0), 512, layout)
    table = jnp.asarray(random_table(plan.starts[-1], 2))
    unit = jnp.asarray(hash_case(60)[1][:count])

    def sample_at_once(table: jax.Array, unit: jax.Array, *options: Any) -> jax.Array:
        # The slope is that of one side on the faces.
        inside = jnp.where(unit > 1.0, 1.0, jnp.where(unit < 0.0, 0.0, unit))
        return hash_grids._sample_at_once(table, inside, *options)

    by_level = hash_grids._sample_by_level(table, jnp.clip(unit, 0, 1), plan, table_dtype)
    at_once = sample_at_once(table, unit, plan, table_dtype)
    np.testing.assert_allclose(by_level, at_once, atol=1e-6)
    pull = jnp.asarray(np.random.default_rng(7).normal(size=at_once.shape), jnp.float32)

    def total(sample: Any, table: jax.Array, unit: jax.Array) -> jax.Array:
        return jnp.sum(pull * sample(table, unit, plan, table_dtype))

    for sample in (sample_hash_grid, jax.jit(sample_hash_grid, static_argnums=(2, 3))):
        result = jax.grad(partial(total, sample), argnums=(0, 1))(table, unit)
        expected = jax.grad(partial(total, sample_at_once), argnums=(0, 1))(table, unit)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), result, expected)


def test_sample_hash_grid_vmaps_over_positions_and_tables() -> None:
    table, unit = (jnp.asarray(x) for x in hash_case())
    once = sample_hash_grid(table, unit, HASHED)
    sample = partial(sample_hash_grid, levels=HASHED, table_dtype="float32")
    np.testing.assert_allclose(
        jax.vmap(lambda one: sample(table, one[None])[0])(unit), once, atol=1e-6
    )
    tables = jnp.stack([table, -table])
    np.testing.assert_allclose(jax.vmap(lambda t: sample(t, unit))(tables)[1], -once, atol=1e-6)


def test_positions_of_hash_grids_are_computed_once_for_all_levels() -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("fusion is that of a CPU")
    table, unit = (jnp.asarray(x) for x in hash_case())

    def total(table: jax.Array, unit: jax.Array) -> jax.Array:
        # No other operation is a cosine.
        return jnp.sum(jnp.square(sample_hash_grid(table, 0.5 + 0.5 * jnp.cos(unit), HASHED)))

    text = jax.jit(jax.grad(total)).lower(table, unit).compile().as_text()
    assert text is not None
    # XLA may compute them in the fusion that asks whether they are inside, and once to keep them.
    assert 1 <= len(re.findall(r" = f32\[[\d,]+\](?:\{[\d,]*\})? cosine\(", text)) <= 2


# Weights of levels.


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_level_downweights_equal_the_error_function_for_any_batch_shape(
    batch: tuple[int, ...],
) -> None:
    plan = plan_hash_levels(4, 2, 16, 64)
    stds = np.random.default_rng(0).uniform(0.001, 0.5, batch).astype(np.float32)
    level_weights = level_downweights(jnp.asarray(stds), plan)
    assert level_weights.shape == (*batch, 4)
    for index in np.ndindex(*batch):
        for level, cells in enumerate(plan.cells):
            expected = math.erf(1.0 / math.sqrt(8.0 * float(stds[index]) ** 2 * cells**2))
            assert level_weights[(*index, level)] == pytest.approx(expected, rel=1e-4)


def test_level_downweights_are_1_for_points_and_0_for_everything_with_finite_gradients() -> None:
    plan = plan_scaled_hash_levels((3.0, 7.0, 15.0), 64, "tcnn")
    stds = jnp.asarray([0.0, 1e-30, 1e9])
    level_weights = level_downweights(stds, plan)
    np.testing.assert_array_equal(level_weights[:2], 1.0)
    assert np.all(np.asarray(level_weights[2]) < 1e-6)
    gradient = jax.grad(lambda s: jnp.sum(level_downweights(s, plan)))(stds)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("max_rows", [64, 1 << 12])
@pytest.mark.parametrize("channels", [4, 2])
def test_hash_grids_look_the_same_with_and_without_kernels(
    monkeypatch: pytest.MonkeyPatch, channels: int, max_rows: int
) -> None:
    plan, rng = plan_hash_levels(4, 3, 40, max_rows), np.random.default_rng(1)
    table = jnp.asarray(random_table(plan.starts[-1], channels))
    unit = np.concatenate([rng.uniform(-0.2, 1.2, (300, 3)), [[0, 0, 0], [1, 1, 1], [1, 0, 0.5]]])
    unit = jnp.asarray(unit, jnp.float32)
    factors = jnp.asarray(rng.normal(size=(len(unit), 4 * channels)), jnp.float32)
    factors = factors.at[::3].set(0.0)

    def total(table: Any, unit: Any) -> Any:
        features = sample_hash_grid(table, unit, plan)
        return jnp.sum(jnp.square(features) * factors), features

    results = []
    for switch in ("on", "off"):
        monkeypatch.setenv(calls.SWITCH, switch)
        both = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(table, unit)
        of_table, _ = jax.grad(total, has_aux=True)(table, unit)
        results.append(jax.tree.leaves((both, of_table)))
    for on, off in zip(*results, strict=True):
        np.testing.assert_allclose(on, off, rtol=1e-4, atol=2e-3)
