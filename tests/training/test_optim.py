"""Schedules in closed form, rates of groups, clipping, decay, and moments that change shape."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrf.training import optim
from jaxrf.training.config import OptimizerConfig
from jaxrf.training.optim import (
    CAMERA_PULL_WIDTH,
    make_lr_schedule,
    make_lr_schedules,
    make_optimizer,
    map_moments,
    move_cameras,
)
from jaxrf.training.schedule import TrainSchedule

CONFIG = OptimizerConfig(grid_lr=0.02, mlp_lr=1e-3, lr_final_mult=0.1, warmup=0.0, clip_norm=1e9)


def even_schedule(steps: int, knots: int = 4, last_lr_reset: float = 0.0) -> TrainSchedule:
    """The schedule of a training of so many steps at an even pace."""
    table = [0.0] + [float(steps)] * (knots - 1), [0.0] + [1.0] * (knots - 1)
    return TrainSchedule(*(jnp.asarray(values) for values in (*table, last_lr_reset)))


# Paced so that 20 of 100 steps, 40 of 300, and then all 240 steps were planned.
BENT = TrainSchedule(
    jnp.asarray([0.0, 20.0, 40.0, 240.0]),
    jnp.asarray([0.0, 0.2, 0.25, 1.0]),
    jnp.asarray(0.0),
)


def bent_progress(step: int) -> float:
    if step <= 20:
        return step / 100
    if step <= 40:
        return 0.2 + (step - 20) / 400
    return min(0.25 + 0.75 * (step - 40) / 200, 1.0)


@pytest.mark.parametrize("step", [0, 1, 37, 50, 100, 150])
def test_lr_schedule_decays_exponentially_to_lr_final_mult(step: int) -> None:
    rate = float(make_lr_schedule(CONFIG, 0.02, even_schedule(100))(step))
    assert rate == pytest.approx(0.02 * 0.1 ** (min(step, 100) / 100), rel=1e-5)


@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_a_change_of_pace_bends_the_lr_schedule_and_changes_no_earlier_rate(warmup: float) -> None:
    config = dataclasses.replace(CONFIG, warmup=warmup)
    schedule = make_lr_schedule(config, 0.02, BENT)
    planned = make_lr_schedule(config, 0.02, even_schedule(100))
    for step in (0, 1, 13, 20, 21, 30, 40, 41, 77, 239, 240, 241, 10**6):
        progress = bent_progress(step)
        ramp = min(0.01 + 0.99 * progress / 0.3, 1.0) if warmup else 1.0
        assert float(schedule(step)) == pytest.approx(0.02 * 0.1**progress * ramp, rel=1e-5)
        if step <= 20:
            assert float(schedule(step)) == float(planned(step))


def test_one_program_serves_every_schedule() -> None:
    rate = jax.jit(lambda schedule, step: make_lr_schedule(CONFIG, 0.02, schedule)(step))
    for schedule in (
        even_schedule(100),
        even_schedule(7),
        BENT,
        even_schedule(9, last_lr_reset=0.4),
    ):
        expected = make_lr_schedule(CONFIG, 0.02, schedule)(5)
        np.testing.assert_allclose(rate(schedule, jnp.asarray(5)), expected, rtol=1e-6)
    assert rate._cache_size() == 1


@pytest.mark.parametrize("step", [0, 1, 5, 10, 11, 60, 100])
def test_warmup_rises_linearly_from_a_hundredth_without_delaying_the_decay(step: int) -> None:
    config = dataclasses.replace(CONFIG, warmup=0.1)
    ramp = min(1.0, 0.01 + 0.99 * step / 10)
    expected = 0.02 * 0.1 ** (step / 100) * ramp
    assert float(make_lr_schedule(config, 0.02, even_schedule(100))(step)) == pytest.approx(
        expected, rel=1e-5
    )


def decay_slowly(decay: str, final: float, since: float) -> float:
    """Factor of the peak rate at a fraction of all steps after the decay began."""
    if decay == "exponential":
        return math.exp(math.log(final) * since)
    if decay == "cosine":
        return (1 + final) / 2 + (1 - final) / 2 * math.cos(math.pi * since)
    factor = 1.0
    for at in (0.5, 0.75, 0.9):
        if since >= at:
            factor *= final ** (1 / 3)
    return factor


DECAYS = ["exponential", "cosine", "steps"]


@pytest.mark.parametrize("decay", DECAYS)
def test_each_lr_schedule_goes_from_the_peak_to_lr_final_mult_by_its_law(decay: str) -> None:
    config = dataclasses.replace(CONFIG, lr_schedule=decay)
    schedule = jax.jit(make_lr_schedule(config, 0.02, even_schedule(200)))
    for step in (0, 1, 50, 99, 100, 101, 149, 150, 151, 179, 180, 181, 199, 200, 300):
        expected = 0.02 * decay_slowly(decay, 0.1, min(step / 200, 1.0))
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5), step
    assert float(schedule(0)) == pytest.approx(0.02)
    assert float(schedule(200)) == pytest.approx(0.002)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_after_a_reset_the_decay_begins_anew_at_the_same_pace_without_warmup(
    decay: str, warmup: float
) -> None:
    config = dataclasses.replace(CONFIG, lr_schedule=decay, warmup=warmup)
    schedule = jax.jit(make_lr_schedule(config, 0.02, even_schedule(100, last_lr_reset=0.25)))
    fresh = jax.jit(
        make_lr_schedule(dataclasses.replace(config, warmup=0.0), 0.02, even_schedule(100))
    )
    assert float(schedule(25)) == pytest.approx(0.02, rel=1e-5)
    for step in (25, 26, 50, 74, 76, 99, 100, 200):
        assert float(schedule(step)) == pytest.approx(float(fresh(min(step, 100) - 25)), rel=1e-4)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("final", [1e-3, 0.5, 1.0])
def test_rates_lie_between_lr_final_mult_and_the_peak_and_never_rise(
    decay: str, final: float
) -> None:
    config = dataclasses.replace(CONFIG, lr_schedule=decay, lr_final_mult=final)
    rates = jax.jit(
        lambda schedule: jax.vmap(make_lr_schedule(config, 1.0, schedule))(jnp.arange(103))
    )
    for reset in (0.0, 0.1, 0.33, 0.999, 1.0):
        values = np.asarray(rates(even_schedule(100, last_lr_reset=reset)))
        assert np.all(np.diff(values) <= 1e-6)
        assert final * (1 - 1e-5) <= values[-1] and values[0] == pytest.approx(1.0)
        assert values[math.floor(100 * reset)] == pytest.approx(1.0)


def test_lr_schedules_of_zero_steps_or_one_are_finite() -> None:
    for steps in (0, 1):
        config = dataclasses.replace(CONFIG, warmup=0.5)
        for group, schedule in make_lr_schedules(config, even_schedule(steps)).items():
            rates = [float(schedule(step)) for step in (0, 1)]
            assert all(0.0 <= rate <= CONFIG.camera_lr for rate in rates)
            # Cameras rest at first.
            assert group == "camera" or min(rates) > 0.0


def test_each_group_has_a_schedule() -> None:
    schedules = make_lr_schedules(CONFIG, even_schedule(100))
    assert set(schedules) == {"grid", "mlp", "camera"}
    assert float(schedules["grid"](0)) == pytest.approx(0.02)
    assert float(schedules["mlp"](0)) == pytest.approx(1e-3)


def test_cameras_rest_then_move_then_calm_down() -> None:
    schedules = make_lr_schedules(CONFIG, even_schedule(1000))
    rates = np.array(
        [float(schedules["camera"](step)) for step in (0, 99, 125, 150, 200, 600, 1000)]
    )
    shares = np.array([0.0, 0.0, 0.5, 1.0, 1.0, 0.03**0.5, 0.03])
    np.testing.assert_allclose(rates, CONFIG.camera_lr * shares, atol=1e-7)
    at_once = dataclasses.replace(CONFIG, camera_delay=0.0)
    rate = make_lr_schedules(at_once, even_schedule(1000))["camera"]
    assert float(rate(1)) == pytest.approx(CONFIG.camera_lr)


def move_slowly(
    updates: np.ndarray, rates: list[float], pull: float, width: float
) -> list[np.ndarray]:
    """How far cameras have moved after each step, camera by camera."""
    moved = np.zeros(updates.shape[1:])
    after = []
    for update, rate in zip(updates, rates, strict=True):
        for camera, z in enumerate(moved):
            strength = pull / (1.0 + sum(number**2 for number in z) / width**2)
            moved[camera] = [
                number - rate * (u + strength * number)
                for number, u in zip(z, update[camera], strict=True)
            ]
        after.append(moved.copy())
    return after


@pytest.mark.parametrize("pull", [0.0, 3.0])
def test_cameras_move_as_in_a_loop_over_cameras(pull: float) -> None:
    updates = np.random.default_rng(0).normal(size=(20, 4, 7)).astype(np.float32)
    rates = [0.1 * 0.9**step for step in range(20)]
    moving = move_cameras(lambda step: 0.1 * 0.9**step, pull)
    params = {"pose": jnp.zeros((4, 6)), "focal": jnp.zeros((4, 1))}
    state = moving.init(params)
    slow = move_slowly(updates, rates, pull, CAMERA_PULL_WIDTH)
    for update, expected in zip(updates, slow, strict=True):
        parts = {"pose": jnp.asarray(update[:, :6]), "focal": jnp.asarray(update[:, 6:])}
        moves, state = moving.update(parts, state)
        params = optax.apply_updates(params, moves)
        joined = np.concatenate([params["pose"], params["focal"]], axis=1)
        np.testing.assert_allclose(joined, expected, rtol=1e-4, atol=1e-6)


def test_the_pull_holds_cameras_against_noise_and_lets_go_of_wrong_ones() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(500, 100, 6))
    # A gradient a fifth as long as its noise: such a camera is off.
    drift = np.array([0.2, 0.0, 0.0, 0.0, 0.0, 0.0])
    ends = {}
    for pull in (0.0, 3.0):
        for name, updates in (("right", noise), ("wrong", noise - 4.0 * drift)):
            moved = move_slowly(updates, [0.02] * 500, pull, CAMERA_PULL_WIDTH)[-1]
            ends[name, pull] = np.linalg.norm(moved, axis=-1).mean()
    assert ends["right", 3.0] < 0.5 * ends["right", 0.0]
    assert ends["wrong", 3.0] > 0.8 * ends["wrong", 0.0] > 1.0


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


def test_optimizer_steps_equal_adam_with_the_rate_of_each_group() -> None:
    params = {"planes": jnp.zeros(2), "mlp": {"kernel": jnp.zeros((2, 2))}}
    groups = {"planes": "grid", "mlp": {"kernel": "mlp"}}
    optimizer = make_optimizer(CONFIG, even_schedule(10), groups)
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


def test_make_optimizer_takes_groups_of_subtrees() -> None:
    params = {"planes": (jnp.zeros(2), jnp.zeros(3)), "mlp": {"kernel": jnp.zeros(2)}}
    optimizer = make_optimizer(CONFIG, even_schedule(10), {"planes": "grid", "mlp": "mlp"})
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(ones, optimizer.init(params), params)
    np.testing.assert_allclose(updates["planes"][1], -0.02, rtol=1e-4)
    np.testing.assert_allclose(updates["mlp"]["kernel"], -1e-3, rtol=1e-4)


def run_optimizer(
    config: OptimizerConfig, params: Any, groups: Any, gradients: list[Any]
) -> list[Any]:
    """The parameters after each step."""
    optimizer = make_optimizer(config, even_schedule(10), groups)

    @jax.jit
    def update(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state, after = optimizer.init(params), []
    for gradient in gradients:
        params, state = update(params, state, gradient)
        after.append(params)
    return after


def skipping_adam_slowly(
    gradients: list[float], rates: list[float], config: OptimizerConfig
) -> list[float]:
    """As `adam_slowly`, but steps without a gradient only count for the bias."""
    value = mean = square = 0.0
    values = []
    for i, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        if gradient:
            mean = config.beta1 * mean + (1 - config.beta1) * gradient
            square = config.beta2 * square + (1 - config.beta2) * gradient**2
            corrected = mean / (1 - config.beta1**i)
            corrected_square = square / (1 - config.beta2**i)
            value -= rate * corrected / (math.sqrt(corrected_square) + config.epsilon)
        values.append(value)
    return values


@pytest.mark.parametrize("skip", [False, True])
def test_skip_zero_gradients_leaves_out_single_entries(skip: bool) -> None:
    config = dataclasses.replace(CONFIG, skip_zero_gradients=skip)
    columns = [[0.3, 0.0, 0.0, -1.2, 0.5], [0.0, 0.0, 0.7, 0.0, 0.1], [0.0] * 5, [1.0] * 5]
    gradients = [{"table": jnp.asarray(row)} for row in zip(*columns, strict=True)]
    after = run_optimizer(config, {"table": jnp.zeros(4)}, {"table": "grid"}, gradients)
    rates = [0.02 * 0.1 ** (i / 10) for i in range(5)]
    slowly = skipping_adam_slowly if skip else adam_slowly
    expected = np.array([slowly(column, rates, config) for column in columns]).T
    for params, row in zip(after, expected, strict=True):
        np.testing.assert_allclose(params["table"], row, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(after[-1]["table"][2], 0.0)
    assert (float(after[2]["table"][0]) == float(after[0]["table"][0])) == skip


def test_skip_zero_gradients_passes_nan_on() -> None:
    config = dataclasses.replace(CONFIG, skip_zero_gradients=True)
    gradients = [{"table": jnp.asarray([jnp.nan, 0.0])}]
    (after,) = run_optimizer(config, {"table": jnp.ones(2)}, {"table": "grid"}, gradients)
    assert np.isnan(after["table"][0])


@pytest.mark.parametrize("above", [False, True])
def test_weight_decay_shrinks_only_matrices_of_mlps(
    above: bool,
) -> None:
    config = dataclasses.replace(CONFIG, weight_decay=0.3)
    mlp = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0)}
    params = {"planes": (jnp.full((3, 4, 4), 2.0),), "mlp": mlp}
    groups = {
        "planes": "grid",
        "mlp": "mlp" if above else {"kernel": "mlp", "bias": "mlp"},
    }
    # With zero gradients Adam does nothing, so only the decay acts, not divided by any moment.
    zeros = [jax.tree.map(jnp.zeros_like, params)] * 3
    for skip in (False, True):
        skipping = dataclasses.replace(config, skip_zero_gradients=skip)
        kernel = 2.0
        for i, after in enumerate(run_optimizer(skipping, params, groups, zeros)):
            kernel *= 1.0 - 1e-3 * 0.1 ** (i / 10) * 0.3
            np.testing.assert_allclose(after["mlp"]["kernel"], kernel, rtol=1e-6)
            np.testing.assert_array_equal(after["mlp"]["bias"], 2.0)
            np.testing.assert_array_equal(after["planes"][0], 2.0)


def test_weight_decay_adds_to_the_step_of_adam() -> None:
    gradient, groups = [{"kernel": jnp.full((2, 2), 0.7)}], {"kernel": "mlp"}
    params = {"kernel": jnp.full((2, 2), 5.0)}
    config = dataclasses.replace(CONFIG, weight_decay=0.3)
    (plain,), (decayed,) = (run_optimizer(c, params, groups, gradient) for c in (CONFIG, config))
    difference = np.asarray(plain["kernel"], np.float64) - np.asarray(decayed["kernel"])
    np.testing.assert_allclose(difference, 1e-3 * 0.3 * 5.0, rtol=1e-3)


@pytest.mark.parametrize("size", [0.0, 0.1, 100.0, 1e15])
def test_make_optimizer_clips_gradients_by_their_global_norm(size: float) -> None:
    config = dataclasses.replace(CONFIG, clip_norm=2.0)
    params = {"grid": jnp.zeros(3), "mlp": jnp.zeros(4)}
    optimizer = make_optimizer(config, even_schedule(10), {"grid": "grid", "mlp": "mlp"})
    gradients = {"grid": jnp.full(3, size), "mlp": jnp.full(4, -size)}
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    norm = size * math.sqrt(7)
    clipped = size * min(1.0, 2.0 / norm if norm else 1.0)
    (adam,) = [
        node
        for node in jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, optax.ScaleByAdamState))
        if isinstance(node, optax.ScaleByAdamState)
    ]
    np.testing.assert_allclose(adam.mu["grid"], 0.1 * clipped, rtol=1e-4)
    np.testing.assert_allclose(adam.mu["mlp"], -0.1 * clipped, rtol=1e-4)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


def test_map_moments_resamples_moments_and_leaves_counts() -> None:
    params = {"planes": jnp.zeros(2), "kernel": jnp.zeros(3)}
    groups = {"planes": "grid", "kernel": "mlp"}
    optimizer = make_optimizer(CONFIG, even_schedule(10), groups)
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
    # The next step is that of an optimizer that always had the finer grid.
    updates, _ = optimizer.update(double(gradients), grown, double(params))
    coarse, _ = optimizer.update(gradients, state, params)
    np.testing.assert_allclose(updates["planes"], np.repeat(coarse["planes"], 2), rtol=1e-5)
    np.testing.assert_allclose(updates["kernel"], coarse["kernel"], rtol=1e-5)


def test_l2_adds_matrices_of_mlps_to_their_gradients() -> None:
    config = dataclasses.replace(CONFIG, l2=0.3, beta1=0.9, beta2=0.99, epsilon=1e-8)
    params = {"kernel": jnp.full((2, 2), 5.0), "bias": jnp.full(2, 5.0), "table": jnp.full(2, 5.0)}
    groups = {"kernel": "mlp", "bias": "mlp", "table": "grid"}
    gradients = [
        {"kernel": jnp.full((2, 2), g), "bias": jnp.zeros(2), "table": jnp.zeros(2)}
        for g in (0.7, -1.1, 0.0)
    ]
    weight, mu, nu = 5.0, 0.0, 0.0
    for i, after in enumerate(run_optimizer(config, params, groups, gradients)):
        gradient = (0.7, -1.1, 0.0)[i] + 0.3 * weight
        mu, nu = 0.9 * mu + 0.1 * gradient, 0.99 * nu + 0.01 * gradient**2
        step = (mu / (1 - 0.9 ** (i + 1))) / (math.sqrt(nu / (1 - 0.99 ** (i + 1))) + 1e-8)
        weight -= 1e-3 * 0.1 ** (i / 10) * step
        np.testing.assert_allclose(after["kernel"], weight, rtol=1e-6)
        np.testing.assert_array_equal(after["bias"], 5.0)
        np.testing.assert_array_equal(after["table"], 5.0)


def test_update_loss_scale_halves_after_an_overflow_and_doubles_after_many_finite_steps() -> None:
    """Against a loop over steps, past both of its bounds."""
    rng = np.random.default_rng(0)
    steps = [*(rng.random(60) > 0.6), *[True] * 12_600, *[False] * 30, *[True] * 501]
    factor, since = optim.INITIAL_SCALE, 0
    scale, update = optim.init_loss_scale(), jax.jit(optim.update_loss_scale)
    factors = set()
    for finite in steps:
        if finite:
            since += 1
            if since == optim.STEPS_TO_DOUBLE:
                factor, since = min(2.0 * factor, optim.MAX_SCALE), 0
        else:
            factor, since = max(factor / 2.0, 1.0), 0
        scale = update(scale, jnp.asarray(finite))
        assert (float(scale.factor), int(scale.since)) == (factor, since)
        factors.add(factor)
    assert {1.0, optim.MAX_SCALE} <= factors


@pytest.mark.parametrize(("value", "finite"), [(1e38, True), (np.inf, False), (np.nan, False)])
def test_all_finite_finds_a_single_number_that_is_not_finite(value: float, finite: bool) -> None:
    tree = {"a": jnp.zeros(3), "b": [jnp.zeros((2, 2)).at[1, 0].set(value)]}
    assert bool(optim.all_finite(tree)) is finite


def test_group_norms_equal_the_norms_of_their_leaves() -> None:
    rng = np.random.default_rng(0)
    grads = {"a": jnp.asarray(rng.normal(size=(3, 4))), "b": [jnp.asarray(rng.normal(size=5))] * 2}
    groups = {"a": "grid", "b": ["mlp", "mlp"]}
    squares = optim.square_norms(grads)
    grid, mlp = (optim.group_norm(squares, groups, group) for group in ("grid", "mlp"))
    assert float(grid) == pytest.approx(np.linalg.norm(grads["a"]), rel=1e-5)
    assert float(mlp) == pytest.approx(np.sqrt(2) * np.linalg.norm(grads["b"][0]), rel=1e-5)
    assert float(optim.group_norm(squares, groups)) == pytest.approx(
        np.hypot(float(grid), float(mlp)), rel=1e-5
    )
    empty = optim.group_norm(squares, groups, "none")
    assert float(empty) == 0.0 and empty.shape == ()
