"""How far a training has come: the one clock that all schedules go by.

Progress rises from 0 to 1 over the steps, evenly unless the number of steps was fitted to a budget
of time while training: then its pace changes at the steps where that was done, and what lies behind
stays as it was.
"""

import dataclasses
import math

import numpy as np

from jaxrf.training.config import ScheduleKnot, TrainConfig

MOST_KNOTS = 4


def progress_at(config: TrainConfig, step: int) -> float:
    """Progress, in [0, 1], when so many steps are done."""
    return float(np.interp(step, *_corners(config)))


def step_at(config: TrainConfig, progress: float) -> int:
    """How many steps are done when progress, from 0 on, is reached; past the last beyond 1."""
    if progress > 1.0:
        return math.ceil(progress * config.steps)
    steps, reached = _corners(config)
    return round(float(np.interp(progress, reached, steps)))


def rescale_schedule(config: TrainConfig, step: int, steps: int) -> TrainConfig:
    """The configuration with another number of steps, found out when `step` of them are done.

    Nothing changes up to `step`; from there on progress goes evenly to 1.
    """
    assert 0 < step < steps and len(config.knots) < MOST_KNOTS
    knot = ScheduleKnot(step, progress_at(config, step))
    return dataclasses.replace(config, steps=steps, knots=(*config.knots, knot))


def schedule_table(config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the progress reached there, for interpolation; always of the same length."""
    steps, reached = _corners(config)
    missing = MOST_KNOTS + 2 - len(steps)
    padded = np.pad(steps, (0, missing), mode="edge"), np.pad(reached, (0, missing), mode="edge")
    return padded[0].astype(np.float32), padded[1].astype(np.float32)


def _corners(config: TrainConfig) -> tuple[list[float], list[float]]:
    steps = [0.0, *(float(knot.step) for knot in config.knots), float(config.steps)]
    return steps, [0.0, *(knot.progress for knot in config.knots), 1.0]
