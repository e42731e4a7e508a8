"""Keys: those of rays draw what each would draw alone."""

import jax
import numpy as np
import pytest

from jaxrf.core import rngs


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_uniform_and_normal_draw_per_key(lead: tuple[int, ...]) -> None:
    key = jax.random.split(jax.random.key(0), lead) if lead else jax.random.key(0)
    uniform = np.asarray(rngs.uniform(key, (*lead, 5, 2), low=-1.0, high=3.0))
    normal = np.asarray(rngs.normal(key, (*lead, 5)))
    folded = rngs.fold_in(key, 7)
    assert uniform.shape == (*lead, 5, 2) and folded.shape == lead
    for index in np.ndindex(lead):
        alone = key[index]
        expected = jax.random.uniform(alone, (5, 2), minval=-1.0, maxval=3.0)
        np.testing.assert_array_equal(uniform[index], expected)
        np.testing.assert_array_equal(normal[index], jax.random.normal(alone, (5,)))
        one = jax.random.fold_in(alone, 7)
        np.testing.assert_array_equal(jax.random.key_data(folded[index]), jax.random.key_data(one))


def test_shape_must_begin_with_the_shape_of_the_keys() -> None:
    with pytest.raises(AssertionError):
        rngs.uniform(jax.random.split(jax.random.key(0), 3), (4, 3))
