"""Sums in an order that depends only on the number of parts."""

import jax
import numpy as np
import pytest

from jaxrf.parallel import sums

pytestmark = pytest.mark.as_used


@pytest.mark.parametrize("count", [1, 2, 8])
def test_pairwise_sum_adds_halves_recursively(count: int) -> None:
    """Numbers of very different magnitudes, whose sum depends on the order."""
    parts = np.random.default_rng(0).normal(size=count).astype(np.float32)
    parts *= np.float32(10.0) ** np.arange(count, dtype=np.float32)

    def add_recursively(parts: list[np.float32]) -> np.float32:
        if len(parts) == 1:
            return parts[0]
        half = len(parts) // 2
        return add_recursively(parts[:half]) + add_recursively(parts[half:])

    total = jax.jit(
        lambda x: sums.pairwise_sum(
            lambda part: part, x, count, np.float32(0.0), lambda a, b: a + b
        )
    )(parts)
    assert np.float32(total) == add_recursively(list(parts))
