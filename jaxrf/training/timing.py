"""Clocks of a training: seconds since the process started, of its phases, and of a step."""

import dataclasses
import math
import os
import time
from pathlib import Path

import psutil


def seconds_since_start() -> float:
    """Seconds since this process started."""
    by_date = time.time() - psutil.Process().create_time()
    try:
        # In clock ticks since boot; the date of the start is off by up to a second.
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return by_date
    by_ticks = uptime - ticks / os.sysconf("SC_CLK_TCK")
    # In some containers the two files count from different moments.
    return by_ticks if abs(by_ticks - by_date) < 2.0 else by_date


@dataclasses.dataclass
class TrainClock:
    """Seconds of the phases of a training, and the rays and samples trained on.

    Attributes:
      compile: waiting for compilation.
      train: running steps.
      validate: rendering validation views and videos; not part of `train`.
      first_step: from the start of the process to the end of the first dispatch.
      rays, samples: trained on.
    """

    compile: float = 0.0
    train: float = 0.0
    validate: float = 0.0
    first_step: float = 0.0
    rays: float = 0.0
    samples: float = 0.0


@dataclasses.dataclass
class StepTimer:
    """Steps of a stage and their seconds, without the first dispatch, which warms up.

    Attributes:
      steps, seconds: of all timed dispatches.
      best: the fewest seconds per step of a dispatch.
      warm: whether the first dispatch is over.
    """

    steps: int = 0
    seconds: float = 0.0
    best: float = math.inf
    warm: bool = False

    def update(self, steps: int, seconds: float) -> None:
        """Counts a dispatch."""
        if self.warm:
            self.steps, self.seconds = self.steps + steps, self.seconds + seconds
            self.best = min(self.best, seconds / steps)
        self.warm = True

    def is_reliable(self, min_seconds: float) -> bool:
        """Whether at least two steps and `min_seconds` were timed."""
        return self.steps >= 2 and self.seconds >= min_seconds
