"""Large tables updated by a kernel, and all else by optax: the same as optax alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrf.core.kernels import calls
from jaxrf.training import optim, table_updates
from jaxrf.training.config import OptimizerConfig
from jaxrf.training.optim import LARGE_TABLE
from jaxrf.training.schedule import TrainSchedule
from jaxrf.training.table_updates import find_tables, update_params

CONFIG = OptimizerConfig(clip_norm=20.0, l2=1e-3, weight_decay=0.1)
# Ten steps at an even pace.
SCHEDULE = TrainSchedule(jnp.array([0.0, 10.0]), jnp.array([0.0, 1.0]), jnp.asarray(0.0))
GROUPS = {"table": "grid", "planes": "grid", "mlp": "mlp"}


def make_params() -> Any:
    rng = np.random.default_rng(0)
    shapes = {
        "table": (LARGE_TABLE // 8 + 3, 8),
        "planes": (3, 4, 4),
        "mlp": {"kernel": (5, 6), "bias": (6,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_find_tables_finds_large_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_params() | {"large": {"kernel": jnp.zeros(LARGE_TABLE)}}
    found = find_tables(GROUPS | {"large": "mlp"}, params)
    has_kernels = calls.can_call()
    assert found["table"] is has_kernels and not found["planes"] and not found["large"]["kernel"]
    monkeypatch.setenv(calls.SWITCH, "off")
    assert not any(jax.tree.leaves(find_tables(GROUPS, make_params())))


@pytest.mark.parametrize("scale", [1e-3, 1.0, np.nan])
@pytest.mark.parametrize("skip", [False, True])
def test_update_params_equals_the_optimizer(skip: bool, scale: float) -> None:
    config = dataclasses.replace(CONFIG, skip_zero_gradients=skip)
    params = make_params()
    optimizer = optim.make_optimizer(config, SCHEDULE, GROUPS)
    rng = np.random.default_rng(1)

    @jax.jit
    def with_optax(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def with_tables(params: Any, state: Any, grads: Any) -> Any:
        norm = optim.group_norm(optim.square_norms(grads), jax.tree.map(lambda _: "", grads))
        return update_params(config, SCHEDULE, GROUPS, params, state, grads, norm)

    slow = fast = (params, optimizer.init(params))
    for _ in range(3):
        grads = jax.tree.map(
            lambda p: jnp.asarray(scale * rng.normal(size=p.shape) * (rng.random(p.shape) < 0.5)),
            params,
        )
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        slow, fast = with_optax(*slow, grads), with_tables(*fast, grads)
    assert jax.tree.structure(slow) == jax.tree.structure(fast)
    for a, b in zip(jax.tree.leaves(slow), jax.tree.leaves(fast), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


def test_update_params_amends_all_but_tables() -> None:
    params = make_params()
    state = optim.make_optimizer(CONFIG, SCHEDULE, GROUPS).init(params)
    ones = jax.tree.map(jnp.ones_like, params)

    def stop(updates: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, updates)

    norm = jnp.asarray(1.0)
    new, _ = update_params(CONFIG, SCHEDULE, GROUPS, params, state, ones, norm, stop)
    np.testing.assert_array_equal(new["mlp"]["kernel"], params["mlp"]["kernel"])
    assert calls.can_call() == bool(np.any(new["table"] != params["table"]))


@pytest.mark.parametrize("skips", [False, True])
def test_adam_with_xla_equals_the_kernel(skips: bool) -> None:
    if not calls.can_call():
        pytest.skip("numba is not installed")
    rng = np.random.default_rng(2)
    table, mu, grad = (jnp.asarray(rng.normal(size=(40, 8)), jnp.float32) for _ in range(3))
    grad = grad.at[::2].set(0.0)
    factors = jnp.asarray([0.7, 0.02, 0.9, 0.99, 1e-8, 0.4, 0.1, float(skips)])
    slow = table_updates.adam_with_xla(skips, factors, table, mu, jnp.abs(mu), grad)
    fast = calls.adam(table, (mu, jnp.abs(mu)), grad, factors)
    for a, b in zip(slow, fast, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
