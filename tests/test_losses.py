"""Losses against loops, with rays that are not to be used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.losses import mean_squared_error


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_mean_squared_error_equals_loop_over_the_used_rays(share: float) -> None:
    rng = np.random.default_rng(0)
    predicted, truth = rng.uniform(size=(2, 20, 3)).astype(np.float32)
    used = rng.uniform(size=20) < share
    squares = [
        (float(predicted[r, c]) - float(truth[r, c])) ** 2
        for r in range(20)
        for c in range(3)
        if used[r]
    ]
    loss = mean_squared_error(jnp.asarray(predicted), jnp.asarray(truth), jnp.asarray(used))
    assert loss.shape == ()
    assert float(loss) == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def test_unused_rays_change_neither_the_loss_nor_its_gradient() -> None:
    truth, used = jnp.full((4, 3), 0.5), jnp.asarray([True, False, True, False])
    wild = jnp.zeros((4, 3)).at[1].set(1e10).at[3].set(jnp.inf)
    loss, gradient = jax.value_and_grad(mean_squared_error)(wild, truth, used)
    assert float(loss) == pytest.approx(0.25)
    np.testing.assert_allclose(gradient[jnp.asarray([0, 2])], -1.0 / 6.0, rtol=1e-5)
    np.testing.assert_array_equal(gradient[1], 0.0)


def test_loss_is_zero_with_finite_gradient_where_no_ray_is_used() -> None:
    loss, gradient = jax.value_and_grad(mean_squared_error)(
        jnp.ones((3, 3)), jnp.zeros((3, 3)), jnp.zeros(3, bool)
    )
    assert float(loss) == 0.0
    np.testing.assert_array_equal(gradient, 0.0)
