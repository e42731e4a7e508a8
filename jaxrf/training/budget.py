"""The number of training steps that fits a budget of seconds, estimated from the speed so far.

The speed of a machine that others use too changes, and compilation between stages takes time that
no step shows. So the number is fitted several times (`should_fit_steps`), and the schedule is
rescaled each time (`schedule.rescale_schedule`).
"""

import math

from jaxrf.training import schedule
from jaxrf.training.config import TrainConfig
from jaxrf.training.timing import StepTimer

# Seconds that a validation or a video takes as long as none was measured.
DEFAULT_EVALUATION_SECONDS = 1.0
# Seconds between two stages in which no step runs.
TRANSITION_SECONDS = 1.5
# Share of the remaining time for steps, and seconds less, as checkpoints and logs take time too. A
# training that is cut off before its learning rate has decayed loses more than a few steps.
STEP_SHARE, RESERVE_SECONDS = 0.96, 0.3


def should_fit_steps(
    config: TrainConfig,
    step: int,
    timer: StepTimer,
    seconds_left: float,
    growing: bool,
    past_half_time: bool,
) -> bool:
    """Whether to fit the number of steps to the budget at this step.

    It is fitted as soon as the speed is known, again after the last stage transition, and whenever
    half of the remaining time or progress has passed since.

    Args:
      config: its schedule knots tell how often and where it was fitted before.
      step: the number of steps done.
      timer: of the current stage.
      seconds_left: until the deadline.
      growing: whether stage transitions are still to come.
      past_half_time: whether half of the time is over that was left at the last fit.
    """
    if len(config.schedule_knots) == schedule.MAX_KNOTS:
        return False
    is_first = not config.schedule_knots
    min_seconds = min(0.7, 0.03 * seconds_left) if is_first else min(2.0, 0.1 * seconds_left)
    if not timer.is_reliable(min_seconds):
        return False
    # While stages change, the speed of the last one is unknown: wait for it unless time runs out.
    if not is_first and growing and not past_half_time:
        return False
    if len(config.schedule_knots) > 1 and not growing and not past_half_time:
        halfway = 0.5 * (1.0 + config.schedule_knots[-1].progress)
        return schedule.progress_at(config, step) >= halfway
    return True


def fit_num_steps(
    step: int,
    timer: StepTimer,
    seconds_left: float,
    growing: bool,
    num_transitions: int,
    is_first: bool,
    evaluation_seconds: float,
) -> tuple[int, float]:
    """The total number of steps that fits the budget, and the estimated seconds per step.

    Args:
      step: the number of steps done.
      timer: of the current stage.
      seconds_left: until the deadline.
      growing: whether stage transitions are still to come.
      num_transitions: how many of them.
      is_first: whether the number is fitted for the first time.
      evaluation_seconds: of validations and videos still to come, which get at most half of the
        time.
    """
    seconds_per_step = timer.seconds / timer.steps
    if is_first and growing:
        # The first steps share the machine with compilation; later ones are about as fast as the
        # best of them. The estimate is refined after the last transition.
        seconds_per_step = timer.best
    seconds_left -= TRANSITION_SECONDS * num_transitions
    seconds_left -= min(evaluation_seconds, 0.5 * max(seconds_left, 0.0))
    seconds_left = STEP_SHARE * seconds_left - RESERVE_SECONDS
    return step + max(int(seconds_left / seconds_per_step), 1), seconds_per_step


def count_remaining(config: TrainConfig, step: int, interval: float) -> int:
    """How many multiples of a fraction of training are still to come, without the end."""
    if interval <= 0:
        return 0
    return max(math.ceil((1.0 - schedule.progress_at(config, step)) / interval) - 1, 0)


def passed_multiple(config: TrainConfig, step: int, steps: int, interval: float) -> bool:
    """Whether the last `steps` steps passed a multiple of a fraction of training, not its end."""
    if interval <= 0 or step >= config.num_steps:
        return False
    after, before = (schedule.progress_at(config, s) / interval for s in (step, step - steps))
    return math.floor(after) > math.floor(before)
