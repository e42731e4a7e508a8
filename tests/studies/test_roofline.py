"""Timing of operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.studies import roofline

pytestmark = pytest.mark.as_used


def test_best_seconds_is_positive_and_short() -> None:
    product = jax.jit(jnp.matmul)
    a = jnp.asarray(np.ones((256, 256), np.float32))
    assert 0.0 < roofline.best_seconds(product, a, a) < 1.0
