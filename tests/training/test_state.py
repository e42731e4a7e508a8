"""The training state: how it begins, and how transitions carry over moments and averages."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scenes import (
    Recorder,
    differing_leaves,
    first_state,
    make_scene,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.fields import tensorf
from jaxrf.fields.base import StageTransition
from jaxrf.models.base import ModelParams
from jaxrf.training import loop, optim, transitions
from jaxrf.training.config import OptimizerConfig, TrainConfig
from jaxrf.training.state import (
    TrainState,
    background_color,
    make_stage_optimizer,
    split_ray_rngs,
    step_rngs,
)


def resetting_tensorf(**changes: Any) -> TrainConfig:
    """`tiny_tensorf` whose learning rates and moments begin anew at its upsampling."""
    return tiny_tensorf(reset_lr=True, **changes)


@pytest.mark.parametrize("make", [tiny_voxels, tiny_nerf, tiny_tensorf])
def test_init_state_does_not_depend_on_the_number_of_steps(make: Any) -> None:
    states = [first_state(make(num_steps=steps))[1] for steps in (1000, 1001, 100_000)]
    for other in states[1:]:
        assert differing_leaves(other, states[0]) == []


def test_step_rngs_and_ray_rngs_are_all_different() -> None:
    rng = jax.random.key(0)
    keys = [key for step in range(5) for key in step_rngs(rng, jnp.asarray(step, jnp.int32))]
    keys += list(split_ray_rngs(keys[1], 7))
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}) == 17


def test_background_color_of_random_backgrounds_is_white() -> None:
    for background, level in (("white", 1.0), ("black", 0.0), ("random", 1.0)):
        np.testing.assert_array_equal(background_color(tiny_nerf(background=background)), level)


# ---------------------------------------------------------------------------------------------
# Transitions
# ---------------------------------------------------------------------------------------------


def resample(params: ModelParams, before: Any, after: Any) -> ModelParams:
    """Planes and lines of 12^3 voxels."""
    return params._replace(field=tensorf._resample(params.field, (12, 12, 12), before, after))


def test_transition_resamples_the_moments_of_the_optimizer() -> None:
    config = tiny_tensorf()
    stage, state = first_state(config)
    moved = jax.tree.map(lambda x: 2.0 * x + 1.0, state.params)
    state = dataclasses.replace(
        state, opt_state=optim.map_moments(lambda _: moved, state.opt_state)
    )
    transition = StageTransition(12, False, 12**3, 1)
    new_stage, new_state = transitions.transition_stage(config, stage, state, transition)
    assert new_stage.field.resolution == (12, 12, 12)  # type: ignore[attr-defined]
    boxes = state.grid.aabb, new_state.grid.aabb
    expected = optim.map_moments(lambda tree: resample(tree, *boxes), state.opt_state)
    assert jax.tree.structure(new_state.opt_state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(new_state.opt_state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_transition_resamples_the_ema_params() -> None:
    config = tiny_tensorf(optimizer=OptimizerConfig(ema_decay=0.5))
    stage, state = first_state(config)
    other = jax.tree.map(lambda x: 2.0 * x + 1.0, state.params)
    state = dataclasses.replace(state, ema_params=other)
    transition = StageTransition(12, False, 12**3, 1)
    _, new = transitions.transition_stage(config, stage, state, transition)
    expected = resample(other, state.grid.aabb, new.grid.aabb)
    for a, b in zip(jax.tree.leaves(new.ema_params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)


def schedule_counts(state: TrainState) -> list[int]:
    """Numbers of steps that the optimizer's schedules have counted, without Adam's count."""
    without_moments = optim.map_moments(lambda _: None, state.opt_state)
    nodes = jax.tree.leaves(without_moments, is_leaf=is_adam)
    return [int(n) for n in nodes if not is_adam(n)]


def test_reset_lr_forgets_the_moments_and_the_schedules_go_on() -> None:
    config = resetting_tensorf()
    stage, state = loop.fit(config, make_scene(), Recorder(12))
    transition = StageTransition(12, True, 12**3, 1)
    _, new = transitions.transition_stage(config, stage, state, transition)
    (adam,) = (node for node in jax.tree.leaves(new.opt_state, is_leaf=is_adam) if is_adam(node))
    assert int(adam.count) == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves((adam.mu, adam.nu)))
    shapes = jax.tree.map(jnp.shape, new.params)
    assert jax.tree.map(jnp.shape, adam.mu) == shapes == jax.tree.map(jnp.shape, adam.nu)
    assert set(schedule_counts(new)) == {12} == set(schedule_counts(state))
    # Pruning alone resets nothing.
    pruning = transition._replace(num_voxels=None)
    _, pruned = transitions.transition_stage(config, stage, state, pruning)
    assert differing_leaves(pruned.opt_state, state.opt_state) == []


def test_reset_lr_begins_with_the_first_learning_rates() -> None:
    """Adam's first step is as large as the rate, wherever there is a gradient."""
    rates = OptimizerConfig(grid_lr=0.5, mlp_lr=0.01, lr_final_mult=0.01)
    config = resetting_tensorf(optimizer=rates, steps_per_dispatch=1)
    stage, state = first_state(config)
    schedule = transitions.schedule_from(config, 13)
    optimizer = make_stage_optimizer(config, stage, state.params, schedule)
    grads = jax.tree.map(jnp.ones_like, state.params)
    for step, expected in ((12, 0.5), (18, 0.5 * 0.01 ** (6 / 24))):
        counted = jax.tree.map(
            lambda x, n=step: jnp.full_like(x, n) if x.dtype == jnp.int32 else x, state.opt_state
        )
        opt_state = optim.reset_adam_moments(counted)
        updates, _ = jax.jit(optimizer.update)(grads, opt_state, state.params)
        # The norm is clipped, which changes Adam's step only through its epsilon.
        for leaf in jax.tree.leaves(updates.field["density"]):
            np.testing.assert_allclose(leaf, -expected, rtol=1e-3)
    assert transitions.last_lr_reset(config, 13) == 0.5
