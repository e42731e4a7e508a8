"""The training step: its losses by hand, microbatches, 16-bit networks, updates and metrics."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import (
    Recorder,
    change,
    differing_leaves,
    first_state,
    make_scene,
    slow,
    tiny_hashgrid,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)
from steps import (
    compile_steps,
    do_steps,
    first_batch,
    jit_steps,
    make_spec,
    render_batch,
    run_steps,
    step_inputs,
    train_pixels,
)

from jaxrf.core import memory
from jaxrf.training import loop, schedule, transitions
from jaxrf.training.config import LossConfig, OptimizerConfig, TrainConfig
from jaxrf.training.losses import make_rgb_loss_fn
from jaxrf.training.state import Metrics, TrainState
from jaxrf.training.step import train_steps


def test_train_steps_with_another_schedule_or_key_is_the_same_program() -> None:
    config = tiny_nerf(num_steps=3)
    stage, _ = first_state(config)
    dataset = train_pixels()
    run = jax.jit(partial(train_steps, make_spec(config, stage)))
    results = []
    for other in (
        config,
        dataclasses.replace(config, seed=1),
        dataclasses.replace(config, num_steps=50),
        schedule.rescale_schedule(config, 1, 50),
    ):
        _, state = first_state(config)
        rng, train_schedule = schedule.training_key(other), schedule.make_train_schedule(other)
        results.append(run(state, dataset, rng, train_schedule, jnp.asarray(3, jnp.int32))[0])
    assert run._cache_size() == 1
    for result in results[1:]:
        assert "params" in " ".join(differing_leaves(results[0], result))


# ---------------------------------------------------------------------------------------------
# Microbatches, checkpointed chunks, 16 bits
# ---------------------------------------------------------------------------------------------


def assert_same_training(
    result: tuple[TrainState, Metrics], expected: tuple[TrainState, Metrics]
) -> None:
    """Moments and metrics agree within rounding."""
    for a, b in zip(
        jax.tree.leaves(result[0].opt_state), jax.tree.leaves(expected[0].opt_state), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for name in Metrics._fields:
        a, b = (float(getattr(metrics, name)) for metrics in (result[1], expected[1]))
        assert a == pytest.approx(b, rel=1e-4), name


@pytest.mark.parametrize(("supersample", "scales"), [slow(1, 1), slow(2, 1), (1, 3)])
def test_gradients_of_microbatches_add_up_to_that_of_the_batch(
    supersample: int, scales: int
) -> None:
    """The state after three steps, each microbatch of which has its own rays."""
    results = []
    for samples in (None, 200):
        config = tiny_nerf(
            batch_rays=32,
            supersample=supersample,
            supersample_from=0.0,
            microbatch_samples=samples,
            color_correction="affine",
            num_appearances=6,
        )
        stage, state = first_state(config)
        assert stage.num_microbatches == (1 if samples is None else 8)
        dataset = train_pixels(tuple(2**k for k in range(scales)))
        run = compile_steps(config, stage, state, dataset)
        results.append(run(state, dataset, *step_inputs(config, 3)))
    assert_same_training(*results)


@pytest.mark.parametrize(
    ("tiny", "wide", "kernels"),
    [
        slow(tiny_nerf, {"width": 128, "layers": 4}, "off"),
        (tiny_voxels, {}, "off"),
        (tiny_voxels, {}, "on"),
    ],
)
def test_checkpointed_chunks_give_the_same_training_with_less_memory(
    monkeypatch: pytest.MonkeyPatch,
    tiny: Callable[..., TrainConfig],
    wide: dict[str, int],
    kernels: str,
) -> None:
    monkeypatch.setenv("JAXRF_KERNELS", kernels)
    results, needed = [], []
    for chunks in (1, 7):
        config = tiny(batch_samples=1 << 14, batch_rays=512)
        config = change(config, checkpoint_chunks=chunks, **wide)
        stage, state = first_state(config)
        dataset = train_pixels()
        run = compile_steps(config, stage, state, dataset)
        needed.append(memory.needed_bytes(run))
        results.append(run(state, dataset, *step_inputs(config, 3)))
    assert_same_training(*results)
    # The look-ups of kernels store nothing that could be computed again.
    assert kernels == "on" or needed[1] < needed[0]


@pytest.mark.parametrize("dtype", ["bfloat16", slow("float16")])
@pytest.mark.parametrize("tiny", [tiny_nerf, tiny_voxels])
def test_gradients_of_16_bit_networks_are_close_to_those_of_32_bits(
    tiny: Callable[..., TrainConfig], dtype: str
) -> None:
    """The gradient of the first step, whose size a scaled loss does not change."""
    plain, half = (do_steps(tiny(compute_dtype=kind), 1)[2] for kind in ("float32", dtype))
    assert half.finite_fraction == plain.finite_fraction == 1.0
    assert half.grad_norm != plain.grad_norm
    assert float(half.grad_norm) == pytest.approx(float(plain.grad_norm), rel=0.05)
    assert float(half.loss) == pytest.approx(float(plain.loss), rel=0.02)


def test_a_step_whose_gradients_overflow_changes_only_the_loss_scale() -> None:
    config = tiny_voxels(compute_dtype="float16")
    before, after, metrics = do_steps(config, 1, factor=2.0**100)
    assert differing_leaves(after.params, before.params) == []
    assert differing_leaves(after.opt_state.base_opt_state, before.opt_state.base_opt_state) == []
    assert differing_leaves(after.grid, before.grid) == []
    assert float(after.opt_state.scale.factor) == 2.0**99
    assert int(after.step) == 1 and float(metrics.finite_fraction) == 0.0
    assert all(math.isfinite(float(value)) for value in metrics)


def test_metrics_are_means_over_the_steps_with_finite_gradients() -> None:
    """The scale is too large for some of the steps only."""
    config = tiny_voxels(compute_dtype="float16")
    _, after, metrics = do_steps(config, 30, factor=2.0**40)
    assert 0.0 < float(metrics.finite_fraction) < 1.0
    _, _, plain = do_steps(tiny_voxels(compute_dtype="float32"), 30)
    assert 0.5 < float(metrics.mse) / float(plain.mse) < 2.0
    assert 1.0 < float(after.opt_state.scale.factor) < 2.0**40


# ---------------------------------------------------------------------------------------------
# The loss
# ---------------------------------------------------------------------------------------------


def test_loss_and_metrics_equal_those_of_an_independent_rendering() -> None:
    """One step by hand: the same batch, rendered and compared in the test."""
    config = tiny_nerf(num_steps=1, steps_per_dispatch=1)
    recorder = Recorder()
    stage, _ = loop.fit(config, make_scene(), recorder)
    _, state = first_state(config)
    batch, keys = first_batch(config, stage)
    rendering = render_batch(config, stage, state, batch, keys)
    errors = [float(np.mean(np.square(rgb - batch.target_rgb))) for rgb in rendering.rgb]
    assert len(errors) == 2
    metrics = recorder.metrics[0]
    np.testing.assert_allclose(metrics.mse, errors[-1], rtol=1e-4)
    np.testing.assert_allclose(metrics.loss, sum(errors), rtol=1e-4)
    np.testing.assert_allclose(metrics.target_alpha, batch.alpha.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics.opacity, rendering.opacity.mean(), rtol=1e-3)
    assert float(metrics.num_samples) == float(rendering.num_samples)


@pytest.mark.slow
def test_loss_compares_the_mean_of_the_sub_rays_with_the_pixel() -> None:
    config = tiny_nerf(num_steps=1, steps_per_dispatch=1, supersample=2)
    recorder = Recorder()
    stage, _ = loop.fit(config, make_scene(), recorder)
    assert stage.supersample == 2 and stage.num_rays == 64
    _, state = first_state(config)
    batch, keys = first_batch(config, stage)
    rgb = render_batch(config, stage, state, batch, keys).rgb[-1]
    mean = np.stack([np.mean(rgb[4 * i : 4 * i + 4], axis=0) for i in range(16)])
    error = np.mean(np.square(mean - batch.target_rgb))
    np.testing.assert_allclose(recorder.metrics[0].mse, error, rtol=1e-4)


@pytest.mark.parametrize("supersample", [slow(1), 2])
def test_loss_leaves_out_pixels_that_do_not_fit_into_the_budget(supersample: int) -> None:
    config = tiny_tensorf(supersample=supersample, supersample_from=0.0, l1_weight=0.0)
    stage, state = first_state(config)
    stage = dataclasses.replace(stage, sample_budget=501)
    run = jit_steps(config, stage)
    after, metrics = run(state, train_pixels(), *step_inputs(config, 1))
    batch, keys = first_batch(config, stage)
    rendering = render_batch(config, stage, state, batch, keys)
    overflowed = np.asarray(rendering.overflowed)
    assert 10 < overflowed.sum() < 118
    errors, parts = [], supersample**2
    for pixel in range(128 // parts):
        rays = slice(pixel * parts, (pixel + 1) * parts)
        if not overflowed[rays].any():
            color = np.mean(np.asarray(rendering.rgb[-1])[rays], axis=0)
            errors.append(np.mean(np.square(color - np.asarray(batch.target_rgb)[pixel])))
    np.testing.assert_allclose(metrics.mse, np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(metrics.loss, np.mean(errors), rtol=1e-4)
    np.testing.assert_allclose(metrics.overflowed, overflowed.mean(), rtol=1e-6)
    assert float(metrics.num_samples) == 501 and int(after.step) == 1


def test_loss_weights_pixels_of_smaller_images_by_their_area() -> None:
    config = tiny_nerf(num_steps=1, steps_per_dispatch=1, num_train_scales=2)
    recorder = Recorder()
    loop.fit(config, make_scene(), recorder)
    stage, state = first_state(config)
    batch, keys = first_batch(config, stage, (1, 2))
    rendering = render_batch(config, stage, state, batch, keys)
    loss = 0.0
    area = np.asarray(batch.loss_mult, np.float64)
    # Relative to the mean area of the batch.
    ratio = area / area.min()
    np.testing.assert_allclose(np.unique(np.round(ratio, 4)), [1.0, 4.0])
    for rgb in rendering.rgb:
        error = np.mean(np.square(np.asarray(rgb - batch.target_rgb, np.float64)), axis=-1)
        loss += np.sum(area * error) / np.sum(area)
    assert float(recorder.metrics[0].loss) == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_a_custom_rgb_loss_fn_is_minimized() -> None:
    def weighted(rgb: jax.Array, target_rgb: jax.Array) -> jax.Array:
        return 3.0 * jnp.abs(rgb - target_rgb)[:, 0] + 1.0

    config = tiny_hashgrid()
    plain_states, (plain, *_) = run_steps(config, 1)
    states, (metrics, *_) = run_steps(config, 1, weighted)
    np.testing.assert_allclose(plain.loss, plain.mse, rtol=1e-5)
    np.testing.assert_allclose(metrics.mse, plain.mse, rtol=1e-5)
    stage, state = first_state(config)
    batch, keys = first_batch(config, stage)
    assert stage.num_rays == 128
    rendering = render_batch(config, stage, state, batch, keys)
    complete = ~np.asarray(rendering.overflowed)
    errors = 3.0 * np.abs(np.asarray(rendering.rgb[-1] - batch.target_rgb))[complete, 0] + 1.0
    np.testing.assert_allclose(metrics.loss, np.mean(errors), rtol=1e-4)
    assert "params" in " ".join(differing_leaves(states[-1], plain_states[-1]))


@pytest.mark.slow
def test_loss_has_the_terms_of_its_configuration() -> None:
    difference = np.array([[0.05, -0.3, 0.0], [0.5, 0.0, -0.02]])
    for kind, terms in (
        ("squared", difference**2),
        (
            "huber",
            np.where(abs(difference) <= 0.2, difference**2 / 2, 0.2 * abs(difference) - 0.02),
        ),
        ("charbonnier", np.sqrt(difference**2 + 0.04)),
    ):
        loss: Any = LossConfig(rgb_loss=kind, huber_delta=0.2, charbonnier_epsilon=0.2)  # type: ignore[arg-type]
        errors = make_rgb_loss_fn(loss)(jnp.asarray(0.3 + difference), jnp.full((2, 3), 0.3))
        np.testing.assert_allclose(errors, terms.mean(axis=-1), rtol=1e-5)
    loss = LossConfig(distortion_weight=2.0, entropy_weight=0.5)
    config = tiny_hashgrid(density_scale=5.0, loss=loss)
    _, (metrics, *_) = run_steps(config, 1)
    stage, state = first_state(config)
    batch, keys = first_batch(config, stage)
    rendering = render_batch(config, stage, state, batch, keys)
    complete = ~np.asarray(rendering.overflowed)
    p = np.clip(np.asarray(rendering.opacity, np.float64), 1e-5, 1 - 1e-5)[complete]
    entropy = np.mean(-p * np.log(p) - (1 - p) * np.log(1 - p))
    distortion = np.mean(np.asarray(rendering.distortion_loss)[complete])
    assert entropy > 0.01 and distortion > 1e-3
    expected = float(metrics.mse) + 2.0 * distortion + 0.5 * entropy
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-3)


# ---------------------------------------------------------------------------------------------
# Updates
# ---------------------------------------------------------------------------------------------


def test_first_step_moves_each_parameter_group_by_its_learning_rate() -> None:
    config = tiny_tensorf(num_steps=1000, optimizer=OptimizerConfig(grid_lr=0.5, mlp_lr=0.01))
    stage, before = first_state(config)
    groups = config.model.param_groups(stage.field, before.params)
    # Adam's bias-corrected step is at most the rate, and nearly that where there is a gradient.
    moved = {"grid": 0.0, "mlp": 0.0}
    config = dataclasses.replace(config, steps_per_dispatch=1)
    _, state = loop.fit(config, make_scene(), Recorder(1))
    assert int(state.step) == 1
    for group, a, b in zip(
        jax.tree.leaves(groups),
        jax.tree.leaves(state.params),
        jax.tree.leaves(before.params),
        strict=True,
    ):
        moved[group] = max(moved[group], float(jnp.max(jnp.abs(a - b))))
    assert moved["grid"] == pytest.approx(0.5, rel=0.02)
    assert moved["mlp"] == pytest.approx(0.01, rel=0.02)


@pytest.mark.slow
def test_ema_params_average_the_parameters_and_are_rendered() -> None:
    optimizer = dataclasses.replace(tiny_hashgrid().optimizer, ema_decay=0.2)
    config = tiny_hashgrid(optimizer=optimizer)
    states, _ = run_steps(config, 4)
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), states[0].params)
    assert differing_leaves(states[0].ema_params, states[0].params) == []
    for step, state in enumerate(states[1:]):
        # The decay warms up.
        decay = min(0.2, (1 + step) / (10 + step))
        expected = jax.tree.map(
            lambda a, b, decay=decay: decay * a + (1 - decay) * np.asarray(b, np.float64),
            expected,
            state.params,
        )
        for a, b in zip(jax.tree.leaves(state.ema_params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert state.eval_params is state.ema_params
    assert differing_leaves(states[-1].ema_params, states[-1].params) != []
    # It changes nothing else.
    plain, _ = run_steps(tiny_hashgrid(), 4)
    assert plain[-1].ema_params is None and plain[-1].eval_params is plain[-1].params
    assert differing_leaves(plain[-1].params, states[-1].params) == []
    assert differing_leaves(plain[-1].grid, states[-1].grid) == []


@pytest.mark.slow
def test_precrop_fraction_trains_on_the_centers_first_and_on_all_pixels_later() -> None:
    # A quarter of the images' sides shows only the ball.
    config = tiny_nerf(num_steps=12, precrop_fraction=0.4, precrop_scale=0.25)
    _, metrics = run_steps(config, 8)
    alphas = [float(m.target_alpha) for m in metrics]
    # Progress is 0, 1/12, ..., and reaches 0.4 after the fifth step.
    assert alphas[:5] == [1.0] * 5 and max(alphas[5:]) < 0.7
    _, plain = run_steps(tiny_nerf(), 1)
    assert float(plain[0].target_alpha) < 0.7


def test_a_stage_without_microbatches_and_shards_is_one_batch() -> None:
    config = tiny_nerf()
    stage = transitions.first_stage(config, make_scene().aabb)
    assert make_spec(config, stage).is_one_batch
    for changes in ({"num_microbatches": 2}, {"num_shards": 2}):
        assert not make_spec(config, dataclasses.replace(stage, **changes)).is_one_batch
