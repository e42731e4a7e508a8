"""Rates that a machine reaches at the operations that fields consist of."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrf.core import grids
from jaxrf.fields.base import ROW_CHANNELS

# Short measurements report the best time of this many calls.
NUM_TRIES = 5
# Rows of the table, positions per lookup, corners per position, and lookups per compiled loop.
TABLE_ROWS, POSITIONS, CORNERS, LOOPS = 1 << 18, 1 << 16, 8, 8


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Rates that this machine reaches.

    Attributes:
      matmul: float32 GFLOP/s, square matrices of 4096.
      layer: the same for 65,536 x 256 times 256 x 256, a layer of the original NeRF.
      memory: GB/s read and written by an addition in place.
      gather: million rows of 8 channels per second, read at random from 262,144.
      scatter: the same, added to.
    """

    matmul: float
    layer: float
    memory: float
    gather: float
    scatter: float


def measure_roofline() -> Roofline:
    """Measures the machine; takes some seconds on a CPU and less on an accelerator."""
    rng = np.random.default_rng(0)
    gather, scatter = _measure_lookups(rng)
    return Roofline(
        matmul=_measure_product(rng, 4096, 4096, 4096),
        layer=_measure_product(rng, 1 << 16, 256, 256),
        memory=_measure_memory(),
        gather=gather,
        scatter=scatter,
    )


def best_seconds(fn: Callable[..., Any], *arguments: Any) -> float:
    """Returns the shortest time of `NUM_TRIES` calls, after one that compiles."""
    times = []
    for _ in range(NUM_TRIES + 1):
        started = time.perf_counter()
        jax.block_until_ready(fn(*arguments))
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _measure_product(rng: np.random.Generator, m: int, k: int, n: int) -> float:
    """GFLOP/s of an m x k matrix times a k x n matrix."""
    a, b = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((m, k), (k, n)))
    return 2e-9 * m * k * n / best_seconds(jax.jit(jnp.matmul), a, b)


def _measure_memory() -> float:
    """GB/s that an addition in place reads and writes."""
    add_one = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    array = jnp.zeros((1 << 26,), jnp.float32)
    times = []
    for _ in range(NUM_TRIES + 1):
        started = time.perf_counter()
        array = jax.block_until_ready(add_one(array))
        times.append(time.perf_counter() - started)
    return 2e-9 * array.nbytes / min(times[1:])


def _measure_lookups(rng: np.random.Generator) -> tuple[float, float]:
    """Million rows per second that are gathered, and that are added to by the gradient."""
    table = jnp.asarray(rng.normal(size=(TABLE_ROWS, ROW_CHANNELS)), jnp.float32)
    index = jnp.asarray(rng.integers(0, TABLE_ROWS, (POSITIONS, CORNERS)), jnp.int32)
    weight = jnp.ones((POSITIONS, CORNERS), jnp.float32)
    values = jnp.ones((POSITIONS, ROW_CHANNELS), jnp.float32)

    million_rows = 1e-6 * LOOPS * POSITIONS * CORNERS
    return (
        million_rows / best_seconds(_gather_often, table, index, weight, values),
        million_rows / best_seconds(_scatter_often, table, index, weight, values),
    )


# In a loop, as in training: in a single call, allocation takes longer than the lookups.
@jax.jit
def _gather_often(
    table: jax.Array, index: jax.Array, weight: jax.Array, values: jax.Array
) -> jax.Array:
    def add(step: jax.Array, total: jax.Array) -> jax.Array:
        return total + grids.weighted_gather(table, jnp.roll(index, step, axis=0), weight)

    return jax.lax.fori_loop(0, LOOPS, add, values)


@jax.jit
def _scatter_often(
    table: jax.Array, index: jax.Array, weight: jax.Array, values: jax.Array
) -> jax.Array:
    def add(step: jax.Array, table: jax.Array) -> jax.Array:
        shifted = jnp.roll(index, step, axis=0)
        _, pullback = jax.vjp(lambda t: grids.weighted_gather(t, shifted, weight), table)
        return table + pullback(values)[0]

    return jax.lax.fori_loop(0, LOOPS, add, table)
