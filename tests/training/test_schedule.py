"""Progress over steps: there and back, through changes of pace."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import tiny_nerf

from jaxrf.training import config_json
from jaxrf.training.config import ScheduleKnot, TrainConfig
from jaxrf.training.schedule import (
    MAX_KNOTS,
    make_train_schedule,
    progress_at,
    rescale_schedule,
    schedule_table,
    step_at,
)

EVEN = tiny_nerf(num_steps=100)
# After 20 steps 400 were planned, after 60 of these 140.
ONCE = rescale_schedule(EVEN, 20, 400)
TWICE = rescale_schedule(ONCE, 60, 140)


def progress_slowly(config: TrainConfig, step: int) -> float:
    """One stretch of even pace after the other, from the first step on."""
    reached, begun = 0.0, 0
    ends = [
        *((knot.step, knot.progress) for knot in config.schedule_knots),
        (config.num_steps, 1.0),
    ]
    for end, progress in ends:
        if step <= end:
            return reached + (progress - reached) * (step - begun) / (end - begun)
        reached, begun = progress, end
    return 1.0


def test_progress_is_even_without_a_budget() -> None:
    for step in range(101):
        assert progress_at(EVEN, step) == pytest.approx(step / 100)
    assert [step_at(EVEN, p) for p in (0.0, 0.004, 0.006, 0.37, 1.0)] == [0, 0, 1, 37, 100]


def test_progress_bends_where_the_pace_changed() -> None:
    assert ONCE.schedule_knots == (ScheduleKnot(20, 0.2),)
    assert TWICE.schedule_knots[:1] == ONCE.schedule_knots and TWICE.schedule_knots[1].step == 60
    assert TWICE.schedule_knots[1].progress == pytest.approx(0.2 + 0.8 * 40 / 380)
    for config in (ONCE, TWICE):
        for step in range(config.num_steps + 1):
            assert progress_at(config, step) == pytest.approx(progress_slowly(config, step))


@pytest.mark.parametrize("config", [EVEN, ONCE, TWICE], ids=["even", "once", "twice"])
def test_step_at_is_the_inverse_of_progress_at(config: TrainConfig) -> None:
    for step in range(config.num_steps + 1):
        assert step_at(config, progress_at(config, step)) == step
    for progress in np.linspace(0, 1, 77):
        step = step_at(config, progress)
        steepest = max(
            progress_at(config, s + 1) - progress_at(config, s) for s in range(config.num_steps)
        )
        assert abs(progress_at(config, step) - progress) <= 0.5 * steepest + 1e-9


@pytest.mark.parametrize("config", [EVEN, ONCE, TWICE], ids=["even", "once", "twice"])
def test_progress_stays_at_1_past_the_end(config: TrainConfig) -> None:
    assert progress_at(config, config.num_steps + 1) == progress_at(config, 10**9) == 1.0
    for progress in (1.001, 1.5, 100.0):
        assert step_at(config, progress) > config.num_steps


runs = st.integers(2, 5000).flatmap(
    lambda steps: st.tuples(st.just(steps), st.integers(1, steps - 1), st.integers(1, 10_000))
)


@settings(max_examples=60)
@given(runs, st.integers(1, 10_000), st.integers(1, 10_000))
def test_rescale_schedule_changes_no_earlier_step(
    run: tuple[int, int, int], later: int, left: int
) -> None:
    steps, first, added = run
    configs = [tiny_nerf(num_steps=steps)]
    configs.append(rescale_schedule(configs[0], first, first + added))
    if added > 1:
        second = first + 1 + later % (added - 1)
        configs.append(rescale_schedule(configs[1], second, second + left))
    for before, after in itertools.pairwise(configs):
        knot = after.schedule_knots[-1].step
        for step in {0, 1, knot // 2, knot - 1, knot}:
            assert progress_at(after, step) == pytest.approx(progress_at(before, step), abs=1e-12)
            # A transition that is done must not be due again at another step.
            assert step_at(after, progress_at(before, step)) == step
        for progress in np.linspace(0, after.schedule_knots[-1].progress, 9):
            assert abs(step_at(after, progress) - step_at(before, progress)) <= 1
        assert (
            dataclasses.replace(
                after, num_steps=before.num_steps, schedule_knots=before.schedule_knots
            )
            == before
        )
        ahead = np.linspace(knot, after.num_steps, 20).astype(int)
        reached = [progress_at(after, int(step)) for step in ahead]
        assert np.all(np.diff(reached) >= 0) and reached[-1] == 1.0


def test_rescale_schedule_rejects_past_steps_and_too_many_knots() -> None:
    for step, steps in ((0, 50), (30, 30), (30, 29)):
        with pytest.raises(AssertionError):
            rescale_schedule(EVEN, step, steps)
    often = EVEN
    for step in range(1, MAX_KNOTS + 1):
        often = rescale_schedule(often, step, 100 + step)
    with pytest.raises(AssertionError):
        rescale_schedule(often, 90, 200)


@pytest.mark.parametrize("config", [EVEN, ONCE, TWICE], ids=["even", "once", "twice"])
def test_schedule_table_has_one_length_and_interpolates_to_progress_at(config: TrainConfig) -> None:
    steps, reached = schedule_table(config)
    assert steps.shape == reached.shape == (MAX_KNOTS + 2,)
    assert steps.dtype == reached.dtype == np.float32
    for step in [*range(config.num_steps + 1), config.num_steps + 50]:
        progress = float(jnp.interp(jnp.float32(step), jnp.asarray(steps), jnp.asarray(reached)))
        assert progress == pytest.approx(progress_at(config, step), abs=1e-6)
        progress = float(make_train_schedule(config).progress_at(step))
        assert progress == pytest.approx(progress_at(config, step), abs=1e-6)


def test_schedule_knots_survive_json() -> None:
    assert config_json.from_json(config_json.to_json(TWICE)) == TWICE
