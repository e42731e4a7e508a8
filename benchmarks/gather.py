"""Speed of an interpolation and its gradient by memory layout, row width and vmap axis.

python benchmarks/gather.py                prints a table in Markdown

All forms compute the same: the weighted sum of 8 rows of a table for each of 65,536 samples, as in
trilinear interpolation. They run in a compiled loop that updates its table, as training does: the
time of a single call would include the allocation of memory, and with constant indices XLA would
move the lookup out of the loop.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrf.core.grids import weighted_gather

SAMPLES, CORNERS, LOOPS = 1 << 16, 8, 8


def one_gather(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """rows; all corners in one gather"""
    return jnp.einsum("mk,mkc->mc", weights, table[corners])


def gather_per_corner(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """rows; one gather for each corner"""
    return sum((weights[:, k, None] * table[corners[:, k]] for k in range(CORNERS)), jnp.zeros(()))


def vmap_samples(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """rows; one sample, vmap over samples"""
    return jax.vmap(lambda c, w: w @ table[c])(corners, weights)


def vmap_corners(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """rows; one corner of all samples, vmap over corners"""
    return jax.vmap(lambda c, w: w[:, None] * table[c], in_axes=1)(corners, weights).sum(0)


def mix(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """rows; `grids.weighted_gather`"""
    return weighted_gather(table, corners, weights)


def channel_first(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """channels first; all at once"""
    return jnp.einsum("mk,cmk->mc", weights, table[:, corners])


def vmap_channels(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """channels first; one channel, vmap over channels"""
    return jax.vmap(lambda row: jnp.sum(weights * row[corners], axis=1), out_axes=1)(table)


ROW_MAJOR = (mix, one_gather, gather_per_corner, vmap_samples, vmap_corners)
CHANNEL_MAJOR = (channel_first, vmap_channels)
Form = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def loop_values(form: Form) -> Callable[..., jax.Array]:
    """Returns a function that sums the values of shifted samples."""

    def run(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
        def add(step: jax.Array, total: jax.Array) -> jax.Array:
            return total + form(table, jnp.roll(corners, step, axis=0), weights)

        zero = jnp.zeros((SAMPLES, table.size // max(table.shape)))
        return jax.lax.fori_loop(0, LOOPS, add, zero)

    return run


def loop_gradients(form: Form) -> Callable[..., jax.Array]:
    """Returns a function that does gradient descent with shifted samples."""

    def run(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
        def descend(step: jax.Array, table: jax.Array) -> jax.Array:
            def loss(table: jax.Array) -> jax.Array:
                return jnp.sum(jnp.square(form(table, jnp.roll(corners, step, axis=0), weights)))

            return table - 1e-6 * jax.grad(loss)(table)

        return jax.lax.fori_loop(0, LOOPS, descend, table)

    return run


def median_ms(fn: Callable[..., Any], *arguments: Any, repeats: int) -> float:
    """Returns the median milliseconds of one iteration of the loop, after a call that compiles."""
    compiled = jax.jit(fn)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times)) / LOOPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=270_000, help="rows of the table")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--channels", type=int, nargs="+", default=[4, 7, 8, 9, 16, 24])
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    # Neighboring samples of a ray share cells, as in training.
    cells = np.sort(rng.integers(0, options.rows // 8, (SAMPLES // 16, 16)), axis=1).ravel()
    offsets = np.array([0, 1, 64, 65, 4096, 4097, 4160, 4161])
    corners = jnp.asarray((8 * cells[:, None] + offsets) % options.rows, jnp.int32)
    weights = jnp.asarray(rng.uniform(size=(SAMPLES, CORNERS)), jnp.float32)
    print(f"{SAMPLES} samples of {CORNERS} corners, {options.rows} rows, {jax.devices()[0]}\n")
    print("Milliseconds: value / value, gradient and update of the table\n")
    print("| layout; form | " + " | ".join(f"{c} channels" for c in options.channels) + " |")
    print("|---" * (1 + len(options.channels)) + "|")
    for form in (*ROW_MAJOR, *CHANNEL_MAJOR):
        cells_ms = []
        for channels in options.channels:
            shape = (options.rows, channels)
            table = jnp.asarray(rng.normal(size=shape if form in ROW_MAJOR else shape[::-1]), "f4")
            value, gradient = (
                median_ms(loop(form), table, corners, weights, repeats=options.repeats)
                for loop in (loop_values, loop_gradients)
            )
            cells_ms.append(f"{value:.1f} / {gradient:.1f}")
        print(f"| {form.__doc__} | " + " | ".join(cells_ms) + " |", flush=True)


if __name__ == "__main__":
    main()
