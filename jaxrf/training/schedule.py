"""How far a training has come: the progress that all schedules go by.

Progress rises from 0 to 1 over the steps, evenly unless the number of steps was fitted to a time
budget while training: then its pace changes at the steps where that was done, and the progress
before them stays as it was.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrf.core.pytree import as_pytree
from jaxrf.training.config import ScheduleKnot, TrainConfig

MAX_KNOTS = 4


@as_pytree()
@dataclasses.dataclass(frozen=True)
class TrainSchedule:
    """Traced inputs of a training's schedules, so that one program serves any number of steps.

    Attributes:
      steps, progress: (k,) progress reached after a number of steps, linear in between.
      last_lr_reset: () progress at which learning rates last began anew; 0 if they never did.
    """

    steps: Float[Array, "k"]
    progress: Float[Array, "k"]
    last_lr_reset: Float[Array, ""]

    def progress_at(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Progress in [0, 1] after a number of steps."""
        return jnp.interp(jnp.asarray(step, jnp.float32), self.steps, self.progress)


def make_train_schedule(config: TrainConfig, last_lr_reset: float = 0.0) -> TrainSchedule:
    """The schedule of a configuration, whose learning rates last began anew at this progress."""
    steps, reached = schedule_table(config)
    return TrainSchedule(
        jnp.asarray(steps), jnp.asarray(reached), jnp.asarray(last_lr_reset, jnp.float32)
    )


def training_key(config: TrainConfig) -> jax.Array:
    """The key that all randomness of a training is folded out of."""
    return jax.random.key(config.seed)


def progress_at(config: TrainConfig, step: int) -> float:
    """Progress in [0, 1] after a number of steps."""
    return float(np.interp(step, *_knots(config)))


def step_at(config: TrainConfig, progress: float) -> int:
    """Number of steps at which progress, from 0 on, is reached; past the last beyond 1."""
    if progress > 1.0:
        return math.ceil(progress * config.num_steps)
    steps, reached = _knots(config)
    return round(float(np.interp(progress, reached, steps)))


def rescale_schedule(config: TrainConfig, step: int, num_steps: int) -> TrainConfig:
    """The configuration with another number of steps, decided after `step` steps.

    Nothing changes up to `step`; from there on progress goes evenly to 1.
    """
    assert 0 < step < num_steps and len(config.schedule_knots) < MAX_KNOTS
    knot = ScheduleKnot(step, progress_at(config, step))
    return dataclasses.replace(
        config, num_steps=num_steps, schedule_knots=(*config.schedule_knots, knot)
    )


def schedule_table(config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the progress reached there, for interpolation; always of the same length."""
    steps, reached = _knots(config)
    missing = MAX_KNOTS + 2 - len(steps)
    padded = np.pad(steps, (0, missing), mode="edge"), np.pad(reached, (0, missing), mode="edge")
    return padded[0].astype(np.float32), padded[1].astype(np.float32)


def _knots(config: TrainConfig) -> tuple[list[float], list[float]]:
    knots = config.schedule_knots
    steps = [0.0, *(float(knot.step) for knot in knots), float(config.num_steps)]
    return steps, [0.0, *(knot.progress for knot in knots), 1.0]
