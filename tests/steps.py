"""Single training steps of the tiny scene, and the first step's batch, computed by hand."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from scenes import first_state, make_scene

from jaxrf.models.base import StageSpec, TrainRendering
from jaxrf.parallel import devices
from jaxrf.training import compile_ahead, pixels, schedule, transitions
from jaxrf.training.config import TrainConfig
from jaxrf.training.losses import RgbLossFn, make_rgb_loss_fn
from jaxrf.training.pixels import Batch, PixelDataset
from jaxrf.training.state import Metrics, TrainState, split_ray_rngs
from jaxrf.training.step import StepSpec, train_steps

NEAR_FAR = (2.0, 6.0)


def train_pixels(scales: Sequence[int] = (1,)) -> PixelDataset:
    """The training images of the tiny scene."""
    return pixels.to_device(make_scene().splits["train"], scales)


def make_spec(
    config: TrainConfig, stage: StageSpec, rgb_loss_fn: RgbLossFn | None = None
) -> StepSpec:
    """Static facts about the steps of a stage on one device."""
    rgb_loss_fn = rgb_loss_fn or make_rgb_loss_fn(config.loss)
    return StepSpec(config, stage, NEAR_FAR, rgb_loss_fn, devices.make_mesh(1))


def jit_steps(config: TrainConfig, stage: StageSpec, rgb_loss_fn: RgbLossFn | None = None) -> Any:
    """`train_steps` of a stage, whose state is not used up."""
    return jax.jit(partial(train_steps, make_spec(config, stage, rgb_loss_fn)))


def compile_steps(
    config: TrainConfig, stage: StageSpec, state: TrainState, dataset: PixelDataset
) -> Any:
    """The compiled steps of a stage, whose state is used up."""
    return compile_ahead.compile_steps(make_spec(config, stage), state, dataset)


def step_inputs(config: TrainConfig, count: int, step: int = 0) -> tuple[Any, ...]:
    """Key, schedule and count of some steps, after `step` steps."""
    return (
        schedule.training_key(config),
        transitions.schedule_from(config, step),
        jnp.asarray(count, jnp.int32),
    )


def do_steps(
    config: TrainConfig, count: int, factor: float | None = None
) -> tuple[TrainState, TrainState, Metrics]:
    """The state before and after some steps; `factor` replaces the first scale of the loss."""
    stage, state = first_state(config)
    if factor is not None:
        scale = state.opt_state.scale._replace(factor=jnp.asarray(factor))
        state = dataclasses.replace(state, opt_state=state.opt_state._replace(scale=scale))
    dataset = train_pixels()
    before = jax.device_get(state)
    run = compile_steps(config, stage, state, dataset)
    after, metrics = run(state, dataset, *step_inputs(config, count))
    return before, after, metrics


def run_steps(
    config: TrainConfig, steps: int, rgb_loss_fn: RgbLossFn | None = None
) -> tuple[list[TrainState], list[Metrics]]:
    """The states before and after each of some single steps by one program, and their metrics."""
    stage, state = first_state(config)
    dataset = train_pixels()
    run = jit_steps(config, stage, rgb_loss_fn)
    states, metrics = [state], []
    for _ in range(steps):
        inputs = step_inputs(config, 1, int(states[-1].step))
        state, step_metrics = run(states[-1], dataset, *inputs)
        states.append(state)
        metrics.append(step_metrics)
    return states, metrics


def first_batch(
    config: TrainConfig, stage: StageSpec, scales: Sequence[int] = (1,)
) -> tuple[Batch, jax.Array]:
    """The batch of a training's first step, and the keys of its rays."""
    key_batch, key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))
    batch = pixels.sample_batch(
        train_pixels(scales), key_batch, stage.num_rays // stage.supersample**2, NEAR_FAR,
        config.background, stage.supersample,
    )  # fmt: skip
    return batch, split_ray_rngs(key, stage.num_rays)


def render_batch(
    config: TrainConfig, stage: StageSpec, state: TrainState, batch: Batch, keys: jax.Array
) -> TrainRendering:
    """The rendering of a batch of one microbatch."""
    background = jnp.repeat(batch.background, stage.supersample**2, axis=0)
    render = jax.jit(config.model.render_train, static_argnums=(0, 6))
    return render(
        stage, state.params, state.grid, keys, batch.rays, background, config.ray_convention
    )
