"""The kernels for CPUs against JAX or loops: values, gradients, extremes, any number of threads."""

import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.core.errors import InputError
from jaxrf.core.kernels import calls
from jaxrf.core.packing import sum_before

pytestmark = pytest.mark.skipif(not calls.can_call(), reason="numba is not installed")

SIDE = 12
BOX = np.array([[-1.0, 0.5, 2.0], [2.0, 3.5, 5.0]], np.float32)


def make_cells(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some occupied cells, their ids, and the rows at their corners, numbered as in `VoxelGrid`."""
    occupied = np.random.default_rng(seed).random((SIDE,) * 3) < 0.3
    cells = np.argwhere(occupied)
    ids = np.zeros((SIDE,) * 3, np.int32)
    ids[occupied] = np.arange(1, len(cells) + 1)
    corners = cells[:, None] + np.array(list(np.ndindex(2, 2, 2)))
    vertex = np.ravel_multi_index(tuple(np.moveaxis(corners, -1, 0)), (SIDE + 1,) * 3)
    _, rows = np.unique(vertex, return_inverse=True)
    rows = np.concatenate([np.zeros((1, 8)), rows.reshape(-1, 8) + 1]).astype(np.int32)
    return occupied, ids, rows


def make_positions(count: int, seed: int = 1) -> np.ndarray:
    """Inside and outside of the box, and some that are infinite or no numbers."""
    positions = np.random.default_rng(seed).uniform(BOX[0] - 0.4, BOX[1] + 0.4, (count, 3))
    positions[::97, 1] = np.nan
    positions[::89, 2] = np.inf
    return positions.astype(np.float32)


def find_slowly(positions: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids of cells, and where in them positions are."""
    scaled = (positions - BOX[0]) / ((BOX[1] - BOX[0]) / np.float32(SIDE))
    cells = np.zeros(len(positions), np.int32)
    for number, (x, y, z) in enumerate(scaled):
        if 0 <= x < SIDE and 0 <= y < SIDE and 0 <= z < SIDE:
            cells[number] = ids[int(x), int(y), int(z)]
    finite = np.where(np.isfinite(scaled), scaled, 0.0)
    return cells, finite - np.floor(finite)


def trilinear(fraction: np.ndarray) -> np.ndarray:
    upper = np.array(list(np.ndindex(2, 2, 2)))
    return np.where(upper, fraction, 1.0 - fraction).prod(axis=-1)


@pytest.mark.parametrize("channels", [8, 16])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_voxels_equal_loops(count: int, channels: int) -> None:
    _, ids, rows = make_cells()
    rng, positions = np.random.default_rng(2), make_positions(count)
    table = rng.normal(size=(rows.max() + 1, channels)).astype(np.float32)
    expected, fraction = find_slowly(positions, ids)
    grid = jnp.asarray(rows), jnp.asarray(ids.ravel()), jnp.asarray(BOX)
    cells = calls.find_voxels(jnp.asarray(positions), grid[1], grid[2])
    np.testing.assert_array_equal(cells, expected)
    first, others = calls.interpolate_voxels(
        jnp.asarray(table), jnp.asarray(positions), cells, *grid
    )
    values = np.concatenate([np.asarray(first)[:, None], others], axis=1)
    upstream = rng.normal(size=(count, channels)).astype(np.float32)
    upstream[::5] = 0.0
    gradient = np.zeros_like(table, np.float64)
    for number in np.flatnonzero(expected):
        weights, corners = trilinear(fraction[number]), rows[expected[number]]
        np.testing.assert_allclose(values[number], weights @ table[corners], atol=1e-5)
        np.add.at(gradient, corners, weights[:, None] * upstream[number])
    actual = calls.scatter_voxels(
        len(table),
        jnp.asarray(positions),
        cells,
        grid[0],
        jnp.asarray(len(rows)),
        *grid[1:],
        (jnp.asarray(upstream[:, 0]), jnp.asarray(upstream[:, 1:])),
    )
    np.testing.assert_allclose(actual, gradient, atol=1e-5)


def test_scatter_voxels_leaves_out_ids_that_are_not_in_use() -> None:
    _, ids, rows = make_cells()
    padded = np.concatenate([rows, np.zeros((50, 8), np.int32)])
    positions = jnp.asarray(make_positions(300))
    arguments = jnp.asarray(ids.ravel()), jnp.asarray(BOX)
    cells = calls.find_voxels(positions, *arguments)
    upstream = jnp.ones(300), jnp.ones((300, 7))
    few, many = (
        calls.scatter_voxels(
            int(rows.max()) + 9, positions, cells, jnp.asarray(r), jnp.asarray(len(rows)),
            *arguments, upstream,
        )
        for r in (rows, padded)
    )  # fmt: skip
    np.testing.assert_array_equal(few, many)
    assert np.any(few) and not np.any(few[0]) and not np.any(few[-8:])


def plane_slowly(plane: np.ndarray, across: float, down: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (4, 2) of the rows of a plane around a point, and their weights."""
    height, width = plane.shape[:2]
    y, x = (
        np.clip(at, 0.0, 1.0) * (size - 1)
        for at, size in ((np.float32(down), height), (np.float32(across), width))
    )
    low = np.array([min(int(y), max(height - 2, 0)), min(int(x), max(width - 2, 0))])
    fy, fx = y - low[0], x - low[1]
    corners = np.minimum(low + np.array(list(np.ndindex(2, 2))), [height - 1, width - 1])
    return corners, np.array([(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx])


@pytest.mark.parametrize("shape", [(1, 9, 8), (7, 5, 16), (6, 1, 8), (1, 1, 24), (40, 30, 8)])
def test_planes_equal_loops(shape: tuple[int, int, int]) -> None:
    rng, count = np.random.default_rng(10), 300
    plane = rng.normal(size=shape).astype(np.float32)
    across, down = rng.uniform(-0.2, 1.2, (2, count)).astype(np.float32)
    across[:3], down[:3] = [0.0, 1.0, 0.5], [1.0, 0.0, 1.0]
    upstream = rng.normal(size=(count, shape[2])).astype(np.float32)
    upstream[::4] = 0.0
    coordinates = jnp.asarray(across), jnp.asarray(down)
    features = calls.interpolate_plane(jnp.asarray(plane), *coordinates)
    gradient = calls.scatter_plane(shape, *coordinates, jnp.asarray(upstream))
    expected = np.zeros(shape)
    for sample in range(count):
        corners, weights = plane_slowly(plane, across[sample], down[sample])
        rows = plane[tuple(corners.T)]
        np.testing.assert_allclose(features[sample], weights @ rows, atol=2e-5)
        np.add.at(expected, tuple(corners.T), weights[:, None] * upstream[sample])
    np.testing.assert_allclose(gradient, expected, atol=2e-5)


def test_planes_stay_inside_for_what_is_not_a_number() -> None:
    wild = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, 1e30, -1e30])
    plane, down = jnp.ones((4, 5, 8)), jnp.full(5, 0.5)
    features = calls.interpolate_plane(plane, wild, down)
    np.testing.assert_allclose(features[1:], 1.0, rtol=1e-6)
    gradient = calls.scatter_plane((4, 5, 8), wild, down, jnp.ones((5, 8)))
    assert gradient.shape == plane.shape


def march_slowly(
    occupied: np.ndarray, rays: tuple[np.ndarray, ...], begin: np.ndarray, step: float, steps: int
) -> tuple[list[tuple[int, float, float]], set[tuple[int, int]]]:
    """Every sample as (ray, start, end), and steps whose middle is too near to a cell's face."""
    samples, unclear = [], set()
    size = (BOX[1] - BOX[0]).astype(np.float64) / SIDE
    for ray, (origin, direction, near, far) in enumerate(zip(*rays, strict=True)):
        for number in range(steps):
            start, end = np.clip(begin[ray] + step * np.array([number, number + 1.0]), near, far)
            scaled = (origin + 0.5 * (start + end) * direction - BOX[0]) / size
            inside = np.all((scaled >= 0) & (scaled < SIDE))
            if np.min(np.abs(scaled - np.round(scaled))) < 1e-3:
                unclear.add((ray, number))
            elif end > start and inside and occupied[tuple(scaled.astype(int))]:
                samples.append((ray, start, end))
    return samples, unclear


def make_rays(count: int) -> tuple[np.ndarray, ...]:
    """Through the box, beside it and away from it."""
    rng = np.random.default_rng(3)
    origins = np.array([0.5, 2.0, 3.5]) + rng.normal(size=(count, 3)) * 4.0
    targets = rng.uniform(BOX[0] - 0.5, BOX[1] + 0.5, (count, 3))
    directions = targets - origins
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    near = rng.uniform(0.0, 2.0, count)
    far = np.where(rng.random(count) < 0.1, near, near + rng.uniform(2.0, 9.0, count))
    return tuple(x.astype(np.float32) for x in (origins, directions, near, far))


@pytest.mark.parametrize("count", [1, 60])
def test_march_equals_loops(count: int) -> None:
    occupied, _, _ = make_cells()
    rays, step, blocks = make_rays(count), 0.11, 13
    begin = rays[2] - np.random.default_rng(4).random(count).astype(np.float32) * np.float32(step)
    full = np.ones((3, 3, 3), bool)
    starts, ends, ray, mask, complete = calls.march(
        (jnp.asarray(occupied), jnp.asarray(BOX)),
        (jnp.asarray(full), jnp.asarray(BOX + np.array([[-9.0], [9.0]], np.float32))),
        tuple(jnp.asarray(x) for x in rays),
        jnp.asarray(begin),
        jnp.asarray(step, jnp.float32),
        blocks,
        8 * blocks * count,
    )
    assert int(complete) == count and mask.dtype == bool
    used = int(np.sum(mask))
    assert np.all(mask[:used]) and not np.any(starts[used:]) and np.all(ray[used:] == count - 1)
    samples, unclear = march_slowly(occupied, rays, begin, step, 8 * blocks)
    actual = []
    for number, start, end in zip(ray[:used], starts[:used], ends[:used], strict=True):
        middle = 0.5 * (float(start) + float(end))
        step_of_ray = int((middle - begin[int(number)]) / step)
        if (int(number), step_of_ray) not in unclear:
            actual.append((int(number), float(start), float(end)))
    assert len(unclear) < 0.05 * 8 * blocks * count
    np.testing.assert_allclose(actual, samples, atol=1e-4)
    assert samples or count == 1


def test_march_tells_which_rays_fit() -> None:
    occupied, _, _ = make_cells()
    rays = tuple(jnp.asarray(x) for x in make_rays(60))
    cells = (jnp.asarray(occupied), jnp.asarray(BOX)), (jnp.ones((1, 1, 1), bool), jnp.asarray(BOX))
    march = functools.partial(calls.march, *cells, rays, rays[2], jnp.asarray(0.11), 13)
    everything = march(6000)
    total = int(np.sum(everything[3]))
    for budget in (1, total // 2, total - 1, total):
        starts, _, ray, mask, complete = march(budget)
        assert np.all(mask)
        np.testing.assert_array_equal(starts, everything[0][:budget])
        cut = set(np.asarray(everything[2])[budget:total].tolist())
        assert int(complete) == min(cut, default=60)
        np.testing.assert_array_equal(ray, everything[2][:budget])


def test_march_takes_rays_that_are_not_numbers_for_empty_ones() -> None:
    occupied, _, _ = make_cells()
    nan = jnp.full(4, jnp.nan)
    rays = jnp.zeros((4, 3)), jnp.full((4, 3), jnp.nan), nan, nan
    cells = (jnp.asarray(occupied), jnp.asarray(BOX))
    *_, mask, complete = calls.march(cells, cells, rays, nan, jnp.asarray(0.1), 5, 100)
    assert not np.any(mask) and int(complete) == 4


def composite_slowly(depths: Any, rays: Any, values: Any, num_rays: int) -> tuple[Any, ...]:
    before = sum_before(depths, rays)
    weights = jnp.exp(-before) * -jnp.expm1(-depths)
    zeros = jnp.zeros((num_rays, values.shape[1]))
    return (
        weights,
        jnp.exp(-before - depths),
        jnp.zeros(num_rays).at[rays].add(weights),
        zeros.at[rays].add(weights[:, None] * values),
    )


@pytest.mark.parametrize("scale", [0.0, 0.1, 1e10])
@pytest.mark.parametrize(("count", "channels"), [(1, 3), (500, 7), (501, 1)])
def test_composite_and_its_gradient_equal_jax(count: int, channels: int, scale: float) -> None:
    rng = np.random.default_rng(5)
    # Rays without samples at the start, at the end and in between.
    rays = jnp.asarray(np.sort(rng.choice([2, 3, 7, 8, 9, 30, 44], count)).astype(np.int32))
    depths = jnp.asarray(scale * rng.exponential(size=count), jnp.float32)
    values = jnp.asarray(rng.normal(size=(count, channels)), jnp.float32)
    actual = calls.composite(depths, rays, values, 50)
    expected = composite_slowly(depths, rays, values, 50)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)
    gradients = tuple(
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((count,), (50,), (50, channels))
    )

    def forward(depths: Any, values: Any) -> Any:
        weights, _, opacity, sums = composite_slowly(depths, rays, values, 50)
        return weights, opacity, sums

    slow = jax.vjp(forward, depths, values)[1](gradients)
    fast = calls.composite_gradient(actual[0], actual[1], rays, values, gradients)
    for a, b in zip(fast, slow, strict=True):
        assert np.all(np.isfinite(a))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)


def test_update_maxima_equals_jax() -> None:
    rng = np.random.default_rng(6)
    memory = jnp.asarray(rng.normal(size=40), jnp.float32)
    slots = jnp.asarray(rng.integers(0, 40, 300), jnp.int32)
    values = jnp.asarray(rng.normal(size=300), jnp.float32)
    before = np.array(memory)
    np.testing.assert_array_equal(
        calls.update_maxima(memory, slots, values), memory.at[slots].max(values)
    )
    np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("shape", [(1,), (31,), (100_003,), (3, 50, 40, 16)])
def test_sum_squares_equals_numpy(shape: tuple[int, ...]) -> None:
    numbers = np.random.default_rng(7).normal(size=shape).astype(np.float32)
    total = calls.sum_squares(jnp.asarray(numbers))
    assert float(total) == pytest.approx(np.sum(np.square(numbers, dtype=np.float64)), rel=1e-5)
    assert np.isnan(calls.sum_squares(jnp.asarray(numbers).at[0].set(jnp.nan)))


def adam_slowly(parameters: Any, moments: Any, gradients: Any, factors: Any) -> tuple[Any, ...]:
    scale, rate, beta1, beta2, epsilon, bias1, bias2, skips = np.asarray(factors, np.float64)
    g = scale * gradients
    first = beta1 * moments[0] + (1 - beta1) * g
    second = beta2 * moments[1] + (1 - beta2) * g * g
    new = parameters - rate * (first / bias1) / (np.sqrt(second / bias2) + epsilon)
    leave = (gradients == 0) & (skips > 0)
    pairs = ((parameters, new), (moments[0], first), (moments[1], second))
    return tuple(np.where(leave, a, b) for a, b in pairs)


@pytest.mark.parametrize("skips", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1,), (13,), (1000,), (5, 41, 3)])
def test_adam_equals_numpy_and_leaves_its_operands(shape: tuple[int, ...], skips: float) -> None:
    rng = np.random.default_rng(8)
    parameters, first, gradients = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    second = np.square(rng.normal(size=shape)).astype(np.float32)
    gradients.reshape(-1)[shape[0] // 3 :: 2] = 0.0
    factors = np.array([0.5, 0.03, 0.9, 0.99, 1e-8, 0.3, 0.2, skips], np.float32)
    operands = [jnp.asarray(x) for x in (parameters, first, second, gradients, factors)]
    actual = calls.adam(operands[0], (operands[1], operands[2]), operands[3], operands[4])
    expected = adam_slowly(parameters, (first, second), gradients, factors)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(operands[0], parameters)


@pytest.mark.parametrize("index", [0, 12])
def test_adam_passes_on_what_is_not_a_number(index: int) -> None:
    zeros, factors = jnp.zeros(13), jnp.asarray([1.0, 0.1, 0.9, 0.99, 1e-8, 0.1, 0.01, 1.0])
    new, first, _ = calls.adam(zeros, (zeros, zeros), zeros.at[index].set(jnp.nan), factors)
    assert np.isnan(new[index]) and np.isnan(first[index])
    assert np.sum(np.isnan(new)) == 1


def test_kernels_can_be_vmapped_and_compiled() -> None:
    numbers = jnp.arange(24.0).reshape(2, 3, 4)
    sums = jax.jit(jax.vmap(calls.sum_squares))(numbers)
    np.testing.assert_allclose(sums, np.square(numbers).sum((1, 2)))


def test_can_call_leaves_other_precisions_to_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    single, integers = jnp.zeros(3), jnp.zeros(3, int)
    assert calls.can_call(single, integers)
    assert not calls.can_call(single, jnp.zeros(3, jnp.bfloat16))
    with jax.enable_x64(True):
        assert not calls.can_call(jnp.zeros(3, jnp.float64))
    monkeypatch.setenv(calls.SWITCH, "off")
    assert not calls.can_call(single)
    monkeypatch.setenv(calls.SWITCH, "never")
    with pytest.raises(InputError, match="JAXRF_KERNELS is 'never': set it to on or off"):
        calls.can_call(single)


def test_can_call_knows_when_numba_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls._has_numba.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not calls.can_call(jnp.zeros(3))
    monkeypatch.undo()
    calls._has_numba.cache_clear()
    assert calls.can_call(jnp.zeros(3))


PROGRAM = """
import hashlib, os, sys
cpus = sys.argv[1]
if cpus == "one":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax
sys.path.insert(0, sys.argv[2])
from test_calls import digest
print(digest())
"""


def digest() -> str:
    """Of what the kernels make of some numbers."""
    _, ids, rows = make_cells()
    rng, positions = np.random.default_rng(9), jnp.asarray(make_positions(20_000))
    grid = jnp.asarray(ids.ravel()), jnp.asarray(BOX)
    cells = calls.find_voxels(positions, *grid)
    upstream = tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in (20_000, (20_000, 7)))
    gradient = calls.scatter_voxels(
        int(rows.max()) + 1, positions, cells, jnp.asarray(rows), jnp.asarray(len(rows)), *grid,
        upstream,
    )  # fmt: skip
    rays = jnp.asarray(np.sort(rng.integers(0, 900, 20_000)), jnp.int32)
    composited = calls.composite(jnp.abs(upstream[0]), rays, upstream[1], 900)
    results = (gradient, *composited, calls.sum_squares(upstream[1]))
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in results)).hexdigest()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot choose processors here")
def test_results_depend_on_no_number_of_threads_and_need_no_cache(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    results = []
    for cpus, cache in (("one", tmp_path / "cache"), ("all", blocked)):
        finished = subprocess.run(
            [sys.executable, "-c", PROGRAM, cpus, str(Path(__file__).parent)],
            env=os.environ | {"XDG_CACHE_HOME": str(cache)},
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 0, finished.stderr
        results.append(finished.stdout.split()[-1])
    assert results[0] == results[1]
    assert list((tmp_path / "cache").rglob("*.nbi"))


def test_loading_in_the_background_tells_whether_kernels_must_be_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(calls, "compile_kernel", loaded.append)
    monkeypatch.setattr(calls, "_folder", lambda: tmp_path)
    assert calls.load_in_background()
    (tmp_path / "native").mkdir()
    for name in ("march.march", "adam.sum_squares"):
        (tmp_path / "native" / f"{name}-12.py311.nbi").touch()
    assert not calls.load_in_background()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(timeout=10)
    assert loaded == ["march", "sum_squares"]
    monkeypatch.setenv(calls.SWITCH, "off")
    assert not calls.load_in_background()


def test_integers_of_64_bits_are_narrowed() -> None:
    memory, slots, values = np.zeros(5, np.float32), [1, 4], np.ones(2, np.float32)
    with jax.enable_x64(True):
        wide = jnp.asarray(slots, jnp.int64)
        updated = calls.update_maxima(jnp.asarray(memory), wide, jnp.asarray(values))
    np.testing.assert_array_equal(updated, [0.0, 1.0, 0.0, 0.0, 1.0])
