"""Adam's updates of large tables in one pass over their memory, beside optax's of all else.

optax makes a new array for each of Adam's steps; for a table of millions of rows these are most of
what a training step on a CPU reads and writes. The state is optax's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxrf.core.kernels import calls
from jaxrf.fields.base import Params
from jaxrf.training import optim
from jaxrf.training.config import OptimizerConfig
from jaxrf.training.schedule import TrainSchedule


def find_tables(groups: Params, params: Params) -> Params:
    """Which parameters are large tables of the group "grid"; False for all where XLA updates all.

    Args:
      groups: the name of a group at each leaf, or for all parameters below it.
      params: all parameters.
    """

    def is_table(group: str, leaf: Array) -> bool:
        return group == "grid" and leaf.size >= optim.LARGE_TABLE and calls.can_call(leaf)

    return jax.tree.map(
        lambda group, below: jax.tree.map(partial(is_table, group), below), groups, params
    )


def update_params(
    config: OptimizerConfig,
    schedule: TrainSchedule,
    groups: Params,
    params: Params,
    opt_state: Any,
    grads: Params,
    norm: Float[Array, ""],
    amend: Callable[[Params], Params] = lambda updates: updates,
) -> tuple[Params, Any]:
    """The parameters and the optimizer's state after a step of `optim.make_optimizer`.

    Args:
      config: of the optimizer.
      schedule: of the training.
      groups: the name of a group at each leaf of the parameters.
      params: all parameters.
      opt_state: of the optimizer.
      grads: shaped like the parameters.
      norm: of all gradients.
      amend: changes the updates of all but tables before they are added.
    """
    optimizer = optim.make_optimizer(config, schedule, groups)
    is_table = find_tables(groups, params)
    without_tables = partial(jax.tree.map, _empty_if, is_table)
    updates, state = optimizer.update(
        without_tables(grads),
        optim.map_moments(without_tables, opt_state),
        without_tables(params),
        norm=norm,
    )
    others = optax.apply_updates(without_tables(params), amend(updates))
    if not any(jax.tree.leaves(is_table)):
        return others, state
    adam = optim.find_adam(opt_state)
    factors = _adam_factors(config, schedule, adam.count, optim.count_updates(opt_state), norm)
    update = partial(_update_table, config.skip_zero_gradients, factors)
    new = jax.tree.map(
        lambda is_table, *table: update(*table) if is_table else table[:3],
        is_table, params, adam.mu, adam.nu, grads,
    )  # fmt: skip
    tables, mu, nu = (
        jax.tree.map(lambda _, three, i=index: three[i], is_table, new) for index in range(3)
    )
    choose = partial(jax.tree.map, lambda is_table, table, other: table if is_table else other)
    moments = iter((mu, nu))
    state = optim.map_moments(lambda moment: choose(is_table, next(moments), moment), state)
    return choose(is_table, tables, others), state


def _empty_if(is_table: bool, leaf: Array) -> Array:
    return jnp.zeros((0,), leaf.dtype) if is_table else leaf


def _adam_factors(
    config: OptimizerConfig,
    schedule: TrainSchedule,
    count: Int[Array, ""],
    num_updates: Int[Array, ""],
    norm: Float[Array, ""],
) -> Float[Array, "8"]:
    """The numbers that `calls.adam` takes, of a step after `count` ones."""
    rate = optim.make_lr_schedules(config, schedule)["grid"](num_updates)
    steps = (count + 1).astype(jnp.float32)
    numbers = (
        optim.clip_factor(config, norm),
        rate,
        config.beta1,
        config.beta2,
        config.epsilon,
        1.0 - config.beta1**steps,
        1.0 - config.beta2**steps,
        config.skip_zero_gradients * 1.0,
    )
    return jnp.stack([jnp.asarray(number, jnp.float32) for number in numbers])


def _update_table(
    skips: bool, factors: Float[Array, "8"], table: Array, mu: Array, nu: Array, grad: Array
) -> tuple[Array, Array, Array]:
    updated: tuple[Array, Array, Array] = jax.lax.platform_dependent(
        table,
        mu,
        nu,
        grad,
        cpu=lambda table, mu, nu, grad: calls.adam(table, (mu, nu), grad, factors),
        default=partial(adam_with_xla, skips, factors),
    )
    return updated


def adam_with_xla(
    skips: bool, factors: Float[Array, "8"], table: Array, mu: Array, nu: Array, grad: Array
) -> tuple[Array, Array, Array]:
    """`calls.adam` in JAX (Kingma and Ba 2015, algorithm 1)."""
    scale, rate, beta1, beta2, epsilon, bias1, bias2, _ = factors
    scaled = scale * grad
    first = beta1 * mu + (1.0 - beta1) * scaled
    second = beta2 * nu + (1.0 - beta2) * scaled * scaled
    new = table - rate * (first / bias1) / (jnp.sqrt(second / bias2) + epsilon)
    if not skips:
        return new, first, second
    used: Bool[Array, "*shape"] = grad != 0
    return (
        jnp.where(used, new, table),
        jnp.where(used, first, mu),
        jnp.where(used, second, nu),
    )
