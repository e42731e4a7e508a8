"""What watches a training: progress bar, TensorBoard, validation, checkpoints, signals."""

import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
import numpy as np
import psutil
from tqdm import tqdm

from jaxrf import evaluate, methods, optim, pictures, runs
from jaxrf.config import TrainConfig
from jaxrf.data.base import Split
from jaxrf.methods import Stage
from jaxrf.runs import SceneSummary
from jaxrf.train import Metrics, TrainState, background_color
from jaxrf.writers import EventWriter


def peak_memory_bytes() -> int:
    """Most memory used so far: the accelerator's if there is one, else this process's."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying; a second one acts as it always does."""
    caught: list[int] = []
    previous = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for known, handler in previous.items():
            signal.signal(known, handler)

    for known in previous:
        signal.signal(known, handle)
    try:
        yield caught
    finally:
        for known, handler in previous.items():
            signal.signal(known, handler)


@dataclasses.dataclass
class Clock:
    """Seconds spent compiling and training, and rays trained on; validation stands apart."""

    compile: float = 0.0
    train: float = 0.0
    rays: float = 0.0


class Monitor:
    """The observer of `train.fit` behind the command line."""

    def __init__(
        self,
        config: TrainConfig,
        scene: SceneSummary,
        events: EventWriter,
        manager: Any,
        val: Split | None,
        caught: list[int],
        done: int,
        seconds: float,
        deadline: float | None = None,
    ) -> None:
        self.config, self.scene, self.events, self.manager = config, scene, events, manager
        self.val, self.caught = val, caught
        self.deadline = deadline
        self.clock = Clock()
        self.seconds_before = seconds
        self._schedules = optim.make_schedules(config.optimizer, config.steps)
        self._bar = tqdm(total=config.steps, initial=done, unit="step", desc="train", leave=True)
        self._mark = time.perf_counter()
        self._saved_at = time.perf_counter()
        self._saved_step: int | None = None
        self._val_psnr: float | None = None

    @property
    def seconds(self) -> float:
        """Training time, that before a resume included."""
        return self.seconds_before + self.clock.train + self.clock.compile

    def on_stage(self, stage: Stage, state: TrainState, pixels: int, seconds: float) -> None:
        """Notes the compilation and says what the stage is."""
        now = time.perf_counter()
        self.clock.compile += seconds
        self.clock.train += now - self._mark - seconds
        self._mark = now
        grid = methods.describe_grid(self.config.field, stage, state.grid)
        if grid:
            rays = f"{stage.rays} rays a step, {stage.subrays**2} a pixel, from {pixels} pixels"
            self._bar.write(f"  step {self._bar.n}: {grid}; {rays}")

    def on_dispatch(self, state: TrainState, stage: Stage, metrics: Metrics, steps: int) -> bool:
        """Writes scalars, validates and saves where it is time; stops after a signal."""
        now = time.perf_counter()
        elapsed = now - self._mark
        self.clock.train += elapsed
        rays = steps * stage.rays * (1.0 - float(metrics.dropped))
        self.clock.rays += rays
        step = int(state.step)
        rate = rays / elapsed
        psnr = -10.0 * math.log10(max(float(metrics.mse), 1e-12))
        self._bar.update(steps)
        self._bar.set_postfix_str(
            f"loss {float(metrics.loss):.5f}, PSNR {psnr:.2f} dB, {rate / 1e3:.1f}k rays/s"
        )
        rates = {f"learning_rate/{k}": float(f(step)) for k, f in self._schedules.items()}
        self.events.scalars(
            {
                "train/loss": float(metrics.loss),
                "train/psnr": psnr,
                "train/gradient_norm": float(metrics.gradient_norm),
                "train/opacity": float(metrics.opacity),
                "train/dropped_rays": float(metrics.dropped),
                "speed/rays_per_second": rate,
                "machine/memory_bytes": psutil.Process().memory_info().rss,
                "machine/peak_memory_bytes": peak_memory_bytes(),
                **rates,
            },
            step,
        )
        late = self.deadline is not None and time.time() + elapsed > self.deadline
        stop = bool(self.caught) or late
        validate = not stop and self._is_validation_due(step, steps)
        if validate:
            self._validate(stage, state, step)
        if stop or validate or now - self._saved_at > self.config.checkpoint_seconds:
            self.save(stage, state)
        self._mark = time.perf_counter()
        return stop

    def save(self, stage: Stage, state: TrainState) -> None:
        """Saves a checkpoint unless this step has one."""
        step = int(state.step)
        if step == self._saved_step:
            return
        runs.save(self.manager, self.scene, stage, state, self.seconds, self._val_psnr)
        self._saved_step, self._val_psnr = step, None
        self._saved_at = time.perf_counter()

    def close(self) -> None:
        """Waits for the last checkpoint to be on disk."""
        self._bar.close()
        self.manager.wait_until_finished()

    def _is_validation_due(self, step: int, steps: int) -> bool:
        interval = self.config.validate_every * self.config.steps
        if self.val is None or interval <= 0 or step >= self.config.steps:
            return False
        return step // interval > (step - steps) // interval

    def _validate(self, stage: Stage, state: TrainState, step: int) -> None:
        assert self.val is not None
        background = background_color(self.config)
        render = evaluate.make_render_view(
            self.config,
            stage,
            state.params,
            state.grid,
            (self.scene.near, self.scene.far),
            background,
        )
        indices = evaluate.spread(len(self.val), self.config.validation_views)
        scored = list(evaluate.score_split(render, self.val, background, indices))
        summary = evaluate.summarise(scored)
        self._val_psnr = summary["psnr"]
        self.events.scalars({"val/psnr": summary["psnr"], "val/ssim": summary["ssim"]}, step)
        write_pictures(self.events, f"val/{scored[0].name}", scored[0], step)
        self._bar.write(
            f"  step {step}: validation PSNR {summary['psnr']:.2f} dB on {len(scored)} views"
        )


def write_pictures(events: EventWriter, tag: str, scored: evaluate.Scored, step: int) -> None:
    """A rendering beside the truth, its depth and its error, as TensorBoard images."""
    rendering = scored.rendering
    seen = rendering.depth[rendering.opacity > 0.5]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 1.0)
    truth_and_result = np.concatenate([scored.truth, np.clip(rendering.rgb, 0, 1)], axis=1)
    events.picture(f"{tag}/truth_and_rendering", truth_and_result, step)
    depth = pictures.depth_picture(rendering.median_depth, rendering.opacity, low, high)
    events.picture(f"{tag}/depth", depth, step)
    events.picture(f"{tag}/error", pictures.error_picture(rendering.rgb, scored.truth), step)
