"""Schedules in closed form, one rate for each group, clipping, and moments that change shape."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrf.config import OptimizerConfig
from jaxrf.optim import Course, make_optimizer, make_schedule, make_schedules, map_moments

CONFIG = OptimizerConfig(
    grid_rate=0.02, network_rate=1e-3, final_fraction=0.1, warmup=0.0, clip_norm=1e9
)


def even_course(steps: int, places: int = 4) -> Course:
    """The course of a training of so many steps at an even pace, as `progress` tabulates it."""
    corners = [0.0] + [float(steps)] * (places - 1), [0.0] + [1.0] * (places - 1)
    return Course(jax.random.key(0), *(jnp.asarray(values) for values in corners))


# Paced so that 20 of 100 steps, 40 of 300, and then all 240 steps were planned.
BENT = Course(
    jax.random.key(0),
    jnp.asarray([0.0, 20.0, 40.0, 240.0]),
    jnp.asarray([0.0, 0.2, 0.25, 1.0]),
)


def bent_progress(step: int) -> float:
    if step <= 20:
        return step / 100
    if step <= 40:
        return 0.2 + (step - 20) / 400
    return min(0.25 + 0.75 * (step - 40) / 200, 1.0)


@pytest.mark.parametrize("step", [0, 1, 37, 50, 100, 150])
def test_schedule_decays_exponentially_to_the_final_fraction(step: int) -> None:
    rate = float(make_schedule(CONFIG, 0.02, even_course(100))(step))
    assert rate == pytest.approx(0.02 * 0.1 ** (min(step, 100) / 100), rel=1e-5)


@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_a_change_of_pace_bends_the_schedule_and_moves_nothing_behind_it(warmup: float) -> None:
    config = dataclasses.replace(CONFIG, warmup=warmup)
    schedule = make_schedule(config, 0.02, BENT)
    planned = make_schedule(config, 0.02, even_course(100))
    for step in (0, 1, 13, 20, 21, 30, 40, 41, 77, 239, 240, 241, 10**6):
        done = bent_progress(step)
        ramp = min(0.01 + 0.99 * done / 0.3, 1.0) if warmup else 1.0
        assert float(schedule(step)) == pytest.approx(0.02 * 0.1**done * ramp, rel=1e-5)
        if step <= 20:
            assert float(schedule(step)) == float(planned(step))


def test_one_program_serves_every_course() -> None:
    rate = jax.jit(lambda course, step: make_schedule(CONFIG, 0.02, course)(step))
    for course in (even_course(100), even_course(7), BENT):
        wanted = make_schedule(CONFIG, 0.02, course)(5)
        np.testing.assert_allclose(rate(course, jnp.asarray(5)), wanted, rtol=1e-6)
    assert rate._cache_size() == 1


@pytest.mark.parametrize("step", [0, 1, 5, 10, 11, 60, 100])
def test_warm_up_rises_linearly_from_a_hundredth_without_delaying_the_decay(step: int) -> None:
    config = dataclasses.replace(CONFIG, warmup=0.1)
    ramp = min(1.0, 0.01 + 0.99 * step / 10)
    expected = 0.02 * 0.1 ** (step / 100) * ramp
    assert float(make_schedule(config, 0.02, even_course(100))(step)) == pytest.approx(
        expected, rel=1e-5
    )


def test_schedules_of_a_run_without_or_with_one_step_are_finite() -> None:
    for steps in (0, 1):
        config = dataclasses.replace(CONFIG, warmup=0.5)
        for schedule in make_schedules(config, even_course(steps)).values():
            assert all(0 < float(schedule(step)) <= 0.02 for step in (0, 1))


def test_each_group_has_its_own_schedule() -> None:
    schedules = make_schedules(CONFIG, even_course(100))
    assert set(schedules) == {"grid", "network"}
    assert float(schedules["grid"](0)) == pytest.approx(0.02)
    assert float(schedules["network"](0)) == pytest.approx(1e-3)


def adam_slowly(gradients: list[float], rates: list[float], config: OptimizerConfig) -> list[float]:
    """Kingma and Ba's Adam of one number; the values after each step, from zero."""
    value = mean = square = 0.0
    values = []
    for i, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        mean = config.beta1 * mean + (1 - config.beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient**2
        corrected = mean / (1 - config.beta1**i)
        corrected_square = square / (1 - config.beta2**i)
        value -= rate * corrected / (math.sqrt(corrected_square) + config.epsilon)
        values.append(value)
    return values


def test_steps_equal_adam_with_the_rate_of_each_group() -> None:
    params = {"planes": jnp.zeros(2), "mlp": {"kernel": jnp.zeros((2, 2))}}
    labels = {"planes": "grid", "mlp": {"kernel": "network"}}
    optimizer = make_optimizer(CONFIG, even_course(10), labels)
    state, gradients = optimizer.init(params), [0.3, -1.2, 0.5, 0.0]

    @jax.jit
    def update(params: Any, state: Any, gradient: jax.Array) -> Any:
        same = jax.tree.map(lambda p: jnp.full_like(p, gradient), params)
        updates, state = optimizer.update(same, state, params)
        return optax.apply_updates(params, updates), state

    rates = [0.1 ** (i / 10) for i in range(4)]
    grid = adam_slowly(gradients, [0.02 * r for r in rates], CONFIG)
    network = adam_slowly(gradients, [1e-3 * r for r in rates], CONFIG)
    for i, gradient in enumerate(gradients):
        params, state = update(params, state, jnp.asarray(gradient))
        np.testing.assert_allclose(params["planes"], grid[i], rtol=1e-4)
        np.testing.assert_allclose(params["mlp"]["kernel"], network[i], rtol=1e-4)


def test_labels_may_stand_above_the_leaves() -> None:
    params = {"planes": (jnp.zeros(2), jnp.zeros(3)), "mlp": {"kernel": jnp.zeros(2)}}
    optimizer = make_optimizer(CONFIG, even_course(10), {"planes": "grid", "mlp": "network"})
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(ones, optimizer.init(params), params)
    np.testing.assert_allclose(updates["planes"][1], -0.02, rtol=1e-4)
    np.testing.assert_allclose(updates["mlp"]["kernel"], -1e-3, rtol=1e-4)


@pytest.mark.parametrize("size", [0.0, 0.1, 100.0, 1e15])
def test_gradients_are_clipped_by_their_global_norm(size: float) -> None:
    config = dataclasses.replace(CONFIG, clip_norm=2.0)
    params = {"grid": jnp.zeros(3), "network": jnp.zeros(4)}
    optimizer = make_optimizer(config, even_course(10), {"grid": "grid", "network": "network"})
    gradients = {"grid": jnp.full(3, size), "network": jnp.full(4, -size)}
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    norm = size * math.sqrt(7)
    clipped = size * min(1.0, 2.0 / norm if norm else 1.0)
    (adam,) = [
        node
        for node in jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, optax.ScaleByAdamState))
        if isinstance(node, optax.ScaleByAdamState)
    ]
    np.testing.assert_allclose(adam.mu["grid"], 0.1 * clipped, rtol=1e-4)
    np.testing.assert_allclose(adam.mu["network"], -0.1 * clipped, rtol=1e-4)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


def test_mapped_moments_are_resampled_and_the_counts_stay() -> None:
    params = {"planes": jnp.zeros(2), "kernel": jnp.zeros(3)}
    labels = {"planes": "grid", "kernel": "network"}
    optimizer = make_optimizer(CONFIG, even_course(10), labels)
    state = optimizer.init(params)
    gradients = {"planes": jnp.asarray([1.0, 3.0]), "kernel": jnp.ones(3)}
    for _ in range(3):
        _, state = optimizer.update(gradients, state, params)

    def double(tree: Any) -> Any:
        return {**tree, "planes": jnp.repeat(tree["planes"], 2)}

    grown = map_moments(double, state)
    fresh = optimizer.init(double(params))
    assert jax.tree.structure(grown) == jax.tree.structure(fresh)
    assert [x.shape for x in jax.tree.leaves(grown)] == [x.shape for x in jax.tree.leaves(fresh)]
    for name in ("mu", "nu"):
        old, new = (optax.tree.get(s, name) for s in (state, grown))
        np.testing.assert_array_equal(new["planes"], np.repeat(old["planes"], 2))
        np.testing.assert_array_equal(new["kernel"], old["kernel"])
        assert np.all(np.asarray(new["planes"]) > 0)
    counts = [
        [int(x) for x in jax.tree.leaves(s) if jnp.issubdtype(x.dtype, jnp.integer)]
        for s in (state, grown)
    ]
    assert counts[0] == counts[1] and set(counts[0]) == {3} and len(counts[0]) == 3
    # The next step is that of an optimiser that always had the finer grid.
    updates, _ = optimizer.update(double(gradients), grown, double(params))
    coarse, _ = optimizer.update(gradients, state, params)
    np.testing.assert_allclose(updates["planes"], np.repeat(coarse["planes"], 2), rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], coarse["kernel"], rtol=1e-5)
