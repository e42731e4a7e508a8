"""Bits of masks; the packing of samples is tested with the renderer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.packing import find_bit, pack_bits


@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_the_next_set_bit_is_found_as_by_a_loop(size: int, share: float) -> None:
    mask = np.random.default_rng(size).uniform(size=(20, size)) < share
    words = jax.jit(pack_bits)(jnp.asarray(mask))
    assert words.shape == (20, -(-size // 32)) and words.dtype == jnp.uint32
    find = jax.jit(find_bit, static_argnums=2)
    for start in range(size + 1):
        found = find(words, jnp.full((20,), start, jnp.int32), 777)
        wanted = [next((i for i in range(start, size) if row[i]), 777) for row in mask]
        assert found.tolist() == wanted
