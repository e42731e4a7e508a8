"""Clocks of a training."""

import math
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jaxrf.training import timing
from jaxrf.training.timing import StepTimer


def test_seconds_since_start_counts_from_the_start_of_the_process() -> None:
    code = (
        "import time; time.sleep(0.7)\n"
        "from jaxrf.training.timing import seconds_since_start as s\n"
        "a = s(); time.sleep(0.5); print(a, s() - a)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    elapsed = time.perf_counter() - started
    first, slept = (float(x) for x in done.stdout.split())
    assert 0.7 < first < elapsed and slept == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("text", ["", "no number", "1e9 3", "1 (a b) c) " + "10000000 " * 30])
def test_seconds_since_start_ignores_implausible_files(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    created = psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert timing.seconds_since_start() == pytest.approx(time.time() - created, abs=0.5)


def test_step_timer_leaves_out_the_first_dispatch() -> None:
    timer = StepTimer()
    timer.update(10, 100.0)
    assert (timer.steps, timer.seconds, timer.best) == (0, 0.0, math.inf)
    timer.update(10, 2.0)
    timer.update(5, 2.0)
    assert (timer.steps, timer.seconds) == (15, 4.0) and timer.best == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("steps", "seconds", "expected"), [(1, 9.0, False), (2, 0.9, False), (2, 1.0, True)]
)
def test_step_timer_is_reliable_after_two_steps_and_the_least_seconds(
    steps: int, seconds: float, expected: bool
) -> None:
    assert StepTimer(steps, seconds).is_reliable(1.0) == expected
