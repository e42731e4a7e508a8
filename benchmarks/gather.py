"""What layout, row width and vmap axis do to the speed of a trilinear gather and its gradient.

python benchmarks/gather.py                prints a table in Markdown
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SAMPLES, CORNERS = 1 << 16, 8


def median_ms(fn: Callable[..., Any], *arguments: Any, repeats: int) -> float:
    """Median milliseconds of a call after the first; arguments stay arguments, so that XLA cannot
    fold or hoist anything."""
    compiled = jax.jit(fn)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times))


def one_gather(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """Rows (rows, c); all corners in one gather."""
    return jnp.einsum("mk,mkc->mc", weights, table[corners])


def gather_per_corner(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """Rows (rows, c); one gather for each corner."""
    return sum((weights[:, k, None] * table[corners[:, k]] for k in range(CORNERS)), jnp.zeros(()))


def vmap_samples(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """Rows (rows, c); one sample's mixture, mapped over samples."""
    return jax.vmap(lambda c, w: w @ table[c])(corners, weights)


def vmap_corners(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """Rows (rows, c); one corner of all samples, mapped over corners."""
    return jax.vmap(lambda c, w: w[:, None] * table[c], in_axes=1)(corners, weights).sum(0)


def channel_first(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """Channels (c, rows); all channels indexed at once."""
    return jnp.einsum("mk,cmk->mc", weights, table[:, corners])


def vmap_channels(table: jax.Array, corners: jax.Array, weights: jax.Array) -> jax.Array:
    """Channels (c, rows); one channel, mapped over channels."""
    return jax.vmap(lambda row: jnp.sum(weights * row[corners], axis=1), out_axes=1)(table)


ROW_MAJOR = (one_gather, gather_per_corner, vmap_samples, vmap_corners)
CHANNEL_MAJOR = (channel_first, vmap_channels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=270_000, help="rows of the table")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    # Neighbouring samples of a ray share cells, as in training.
    cells = np.sort(rng.integers(0, options.rows // 8, (SAMPLES // 16, 16)), axis=1).ravel()
    offsets = np.array([0, 1, 64, 65, 4096, 4097, 4160, 4161])
    corners = jnp.asarray((8 * cells[:, None] + offsets) % options.rows, jnp.int32)
    weights = jnp.asarray(rng.uniform(size=(SAMPLES, CORNERS)), jnp.float32)
    print(f"{SAMPLES} samples of {CORNERS} corners, {options.rows} rows, {jax.devices()[0]}\n")
    print("| form | channels | value ms | value and gradient ms |\n|---|---|---|---|")
    for channels in (4, 7, 8, 9, 16):
        rows = jnp.asarray(rng.normal(size=(options.rows, channels)), jnp.float32)
        for form in (*ROW_MAJOR, *CHANNEL_MAJOR):
            table = rows.T.copy() if form in CHANNEL_MAJOR else rows

            def loss(table: Any, corners: Any, weights: Any, form: Any = form) -> jax.Array:
                return jnp.sum(jnp.square(form(table, corners, weights)))

            value = median_ms(form, table, corners, weights, repeats=options.repeats)
            gradient = median_ms(
                jax.value_and_grad(loss), table, corners, weights, repeats=options.repeats
            )
            name = f"{form.__name__}: {(form.__doc__ or '').rstrip('.')}"
            print(f"| {name} | {channels} | {value:.1f} | {gradient:.1f} |", flush=True)


if __name__ == "__main__":
    main()
