"""What watches a training: signals, scalars, when to validate and to save."""

import dataclasses
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scenes import make_scene, tiny_nerf

from jaxrf import methods, monitor, runs, train
from jaxrf.config import TrainConfig
from jaxrf.monitor import Monitor, catch_signals
from jaxrf.train import Metrics, TrainState
from jaxrf.writers import EventWriter

METRICS = Metrics(*(np.float32(x) for x in (0.02, 0.01, 0.3, 0.4, 0.05, 1.5)))


# ---------------------------------------------------------------------------------------------
# Signals
# ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def keep_handlers() -> Iterator[None]:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_nothing_else_happens(number: signal.Signals) -> None:
    with catch_signals() as caught:
        assert caught == []
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        assert caught == [number]


def test_a_second_signal_acts_as_it_always_does() -> None:
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    # A shell starts what it runs in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with catch_signals() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert (caught, seen) == ([signal.SIGTERM], [])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert (caught, seen) == ([signal.SIGTERM], [signal.SIGTERM])
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)


def test_handlers_are_put_back_even_after_an_error() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), catch_signals():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise ZeroDivisionError
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


# ---------------------------------------------------------------------------------------------
# The monitor, with a writer that only notes and a manager that only counts
# ---------------------------------------------------------------------------------------------


class FakeWriter(EventWriter):
    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}
        self.pictures: list[tuple[str, int]] = []

    def scalars(self, values: dict[str, float], step: int) -> None:
        self.values.setdefault(step, {}).update(values)

    def picture(self, tag: str, image: np.ndarray, step: int) -> None:
        assert image.min() >= 0 and image.max() <= 1
        self.pictures.append((tag, step))


@dataclasses.dataclass
class Watched:
    monitor: Monitor
    writer: FakeWriter
    saved: list[tuple[int, float | None]]
    caught: list[int]
    state: TrainState
    stage: methods.Stage

    def dispatch(self, step: int, steps: int) -> bool:
        state = dataclasses.replace(self.state, step=jnp.asarray(step, jnp.int32))
        return self.monitor.on_dispatch(state, self.stage, METRICS, steps)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Any:
    saved: list[tuple[int, float | None]] = []

    def save(manager: Any, scene: Any, stage: Any, state: Any, seconds: Any, psnr: Any) -> None:
        assert seconds >= 100.0
        saved.append((int(state.step), psnr))

    def start(
        config: TrainConfig, val: bool = True, done: int = 0, deadline: float | None = None
    ) -> Watched:
        scene = make_scene()
        summary = runs.summarise_scene(scene, Path("ball"))
        stage = methods.first_stage(config, scene.aabb)
        state = train.init_state(config, stage)
        writer = FakeWriter()
        caught: list[int] = []
        split = scene.splits["val"] if val else None
        watcher = Monitor(config, summary, writer, None, split, caught, done, 100.0, deadline)
        return Watched(watcher, writer, saved, caught, state, stage)

    monkeypatch.setattr(runs, "save", save)
    return start


def test_training_stops_with_a_checkpoint_when_its_time_is_over(watch: Any) -> None:
    config = tiny_nerf(steps=100, validate_every=0.0, checkpoint_seconds=1e9)
    early, late = (watch(config, deadline=time.time() + left) for left in (1e6, 0.0))
    assert not early.dispatch(25, 25) and early.saved == []
    assert late.dispatch(25, 25) and late.saved == [(25, None)]


def test_dropped_rays_do_not_count_for_the_speed(watch: Any) -> None:
    watched = watch(tiny_nerf(steps=100, validate_every=0.0, checkpoint_seconds=1e9))
    watched.dispatch(10, 10)
    per_step = watched.stage.rays * (1.0 - float(METRICS.dropped))
    assert watched.monitor.clock.rays == pytest.approx(10 * per_step)


def test_scalars_are_written_for_every_dispatch(watch: Any) -> None:
    watched = watch(tiny_nerf(steps=100, validate_every=0.0, checkpoint_seconds=1e9))
    assert not watched.dispatch(25, 25)
    assert not watched.dispatch(50, 25)
    assert sorted(watched.writer.values) == [25, 50]
    values = watched.writer.values[50]
    assert values["train/loss"] == pytest.approx(0.02)
    assert values["train/psnr"] == pytest.approx(20.0, abs=1e-4)
    assert values["train/gradient_norm"] == pytest.approx(1.5)
    assert values["train/opacity"] == pytest.approx(0.3)
    assert values["train/dropped_rays"] == pytest.approx(0.05)
    # Decays exponentially to a tenth of 5e-3 at the last step.
    assert values["learning_rate/network"] == pytest.approx(5e-3 * math.sqrt(0.1), rel=1e-4)
    assert values["speed/rays_per_second"] > 0
    assert values["machine/memory_bytes"] > 1e7
    assert watched.monitor.clock.rays == pytest.approx(50 * 64 * 0.95)
    assert watched.saved == [] and watched.writer.pictures == []


@pytest.mark.parametrize(("every", "expected"), [(0.25, [30, 50, 80]), (0.5, [50]), (0.0, [])])
def test_validation_comes_when_its_fraction_has_passed_and_never_at_the_end(
    watch: Any, every: float, expected: list[int]
) -> None:
    config = tiny_nerf(steps=100, validate_every=every, checkpoint_seconds=1e9, validation_views=1)
    watched = watch(config)
    for step in range(10, 101, 10):
        watched.dispatch(step, 10)
    validated = [step for step, values in watched.writer.values.items() if "val/psnr" in values]
    assert validated == expected
    # Each is saved with its figure, so that the best is known.
    assert [step for step, psnr in watched.saved if psnr is not None] == expected
    assert all(psnr == watched.writer.values[step]["val/psnr"] for step, psnr in watched.saved)
    kinds = ("truth_and_rendering", "depth", "error")
    assert watched.writer.pictures == [(f"val/r_0/{k}", s) for s in expected for k in kinds]


def test_without_val_pictures_nothing_is_validated(watch: Any) -> None:
    watched = watch(tiny_nerf(steps=100, validate_every=0.1, checkpoint_seconds=1e9), val=False)
    watched.dispatch(50, 50)
    assert "val/psnr" not in watched.writer.values[50]


def test_checkpoints_come_after_their_seconds(watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now)
    watched = watch(tiny_nerf(steps=100, validate_every=0.0, checkpoint_seconds=30.0))
    for step, seconds in ((10, 10), (20, 29), (30, 31), (40, 50), (50, 62), (60, 63)):
        now = 1000.0 + seconds
        assert not watched.dispatch(step, 10)
    assert watched.saved == [(30, None), (50, None)]


def test_after_a_signal_training_is_saved_and_stopped_without_validation(watch: Any) -> None:
    watched = watch(tiny_nerf(steps=100, validate_every=0.1, checkpoint_seconds=1e9))
    watched.caught.append(signal.SIGTERM)
    assert watched.dispatch(50, 50)
    assert watched.saved == [(50, None)]
    watched.monitor.save(watched.stage, dataclasses.replace(watched.state, step=jnp.asarray(50)))
    assert watched.saved == [(50, None)]  # a step is saved once


def test_time_spent_is_split_into_compiling_and_training(
    watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now)
    watched = watch(tiny_nerf(steps=100, validate_every=0.0, checkpoint_seconds=1e9))
    now += 5.0
    watched.monitor.on_stage(watched.stage, watched.state, 100, 4.0)
    now += 2.0
    watched.dispatch(10, 10)
    assert watched.monitor.clock.compile == pytest.approx(4.0)
    assert watched.monitor.clock.train == pytest.approx(3.0)
    assert watched.monitor.seconds == pytest.approx(107.0)
    assert watched.writer.values[10]["speed/rays_per_second"] == pytest.approx(10 * 64 * 0.95 / 2.0)


def test_peak_memory_is_that_of_this_process() -> None:
    before = monitor.peak_memory_bytes()
    block = np.ones(1 << 25)  # 256 MiB
    assert monitor.peak_memory_bytes() >= max(before, block.nbytes)
