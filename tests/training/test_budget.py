"""The number of steps that fits a budget, as pure functions of measured times."""

import dataclasses

import pytest
from scenes import tiny_voxels

from jaxrf.training import budget, schedule
from jaxrf.training.timing import StepTimer

CONFIG = tiny_voxels(num_steps=200, budget=100.0)
TIMER = StepTimer(steps=20, seconds=4.0, best=0.1, warm=True)


def fit(**changes: float | bool) -> tuple[int, float]:
    arguments = {
        "growing": False,
        "num_transitions": 0,
        "is_first": True,
        "evaluation_seconds": 0.0,
    }
    return budget.fit_num_steps(10, TIMER, 50.0, **{**arguments, **changes})


def test_fit_num_steps_divides_the_time_left_by_the_time_of_a_step() -> None:
    assert fit() == (10 + int((0.96 * 50.0 - 0.3) / 0.2), pytest.approx(0.2))


def test_fit_num_steps_takes_the_best_time_if_it_fits_first_before_transitions() -> None:
    assert fit(growing=True)[1] == pytest.approx(0.1)
    assert fit(growing=True, is_first=False)[1] == pytest.approx(0.2)


def test_fit_num_steps_leaves_time_for_transitions_and_evaluations() -> None:
    # TIMER's step takes 0.2 s.
    without = fit(growing=True, is_first=False)[0]
    steps = fit(growing=True, num_transitions=4, is_first=False)[0]
    assert steps == pytest.approx(without - 0.96 * 4 * 1.5 / 0.2, abs=1)
    expected = fit()[0] - 0.96 * 10.0 / 0.2
    assert fit(evaluation_seconds=10.0)[0] == pytest.approx(expected, abs=1)
    # Evaluations get half of the time at most.
    assert fit(evaluation_seconds=1e9) == fit(evaluation_seconds=25.0)


def test_fit_num_steps_leaves_at_least_one_step() -> None:
    assert budget.fit_num_steps(10, TIMER, -5.0, False, 0, True, 0.0)[0] == 11


@pytest.mark.parametrize(
    ("fits", "growing", "past_half_time", "expected"),
    [
        (0, True, False, True),
        (0, False, False, True),
        (1, True, False, False),
        (1, True, True, True),
        (1, False, False, True),
        (2, False, False, False),
        (2, False, True, True),
    ],
)
def test_should_fit_steps_at_first_after_transitions_and_at_half_time(
    fits: int, growing: bool, past_half_time: bool, expected: bool
) -> None:
    config = CONFIG
    for index in range(fits):
        config = schedule.rescale_schedule(config, 10 * (index + 1), 200)
    step = 10 * fits + 5
    assert budget.should_fit_steps(config, step, TIMER, 50.0, growing, past_half_time) == expected


def test_should_fit_steps_again_after_half_of_the_remaining_progress() -> None:
    config = schedule.rescale_schedule(schedule.rescale_schedule(CONFIG, 10, 200), 20, 200)
    decisions = [
        budget.should_fit_steps(config, step, TIMER, 50.0, False, False) for step in (100, 120)
    ]
    assert decisions == [False, True]


def test_should_fit_steps_waits_for_a_reliable_time_and_for_free_knots() -> None:
    short = StepTimer(steps=1, seconds=4.0, best=4.0, warm=True)
    assert not budget.should_fit_steps(CONFIG, 5, short, 50.0, False, True)
    quick = dataclasses.replace(TIMER, seconds=0.1)
    assert not budget.should_fit_steps(CONFIG, 5, quick, 50.0, False, True)
    full = CONFIG
    for index in range(schedule.MAX_KNOTS):
        full = schedule.rescale_schedule(full, 10 * (index + 1), 200)
    assert not budget.should_fit_steps(full, 60, TIMER, 50.0, False, True)


@pytest.mark.parametrize(
    ("step", "interval", "expected"),
    [(0, 0.25, 3), (60, 0.25, 2), (150, 0.25, 0), (199, 0.25, 0), (0, 0.0, 0), (0, 1.0, 0)],
)
def test_count_remaining_counts_multiples_before_the_end(
    step: int, interval: float, expected: int
) -> None:
    assert budget.count_remaining(CONFIG, step, interval) == expected


@pytest.mark.parametrize(
    ("step", "steps", "interval", "expected"),
    [(50, 10, 0.25, True), (49, 10, 0.25, False), (110, 100, 0.25, True), (200, 10, 0.25, False),
     (50, 10, 0.0, False)],
)  # fmt: skip
def test_passed_multiple_of_an_interval(
    step: int, steps: int, interval: float, expected: bool
) -> None:
    assert budget.passed_multiple(CONFIG, step, steps, interval) == expected
