"""Callbacks: how `loop.fit` reports its progress, and asks whether to go on."""

from typing import Protocol, runtime_checkable

import numpy as np

from jaxrf.core.progress import ProgressBar
from jaxrf.models.base import StageSpec
from jaxrf.training.config import TrainConfig
from jaxrf.training.state import Metrics, TrainState


@runtime_checkable
class TrainCallback(Protocol):
    """Receives the progress of `loop.fit`; derive from `NullCallback` to define only some of it."""

    def should_wait_for_compile(self) -> bool:
        """Whether to go on waiting for a stage to be compiled; asked now and then."""
        ...

    def dispatch_seconds(self) -> float:
        """Approximate length of a dispatch; a request to stop has to wait for its end."""
        ...

    def on_note(self, sentence: str) -> None:
        """Something that the user may want to know."""
        ...

    def on_stage(self, stage: StageSpec, state: TrainState, pixels: int, seconds: float) -> None:
        """A stage begins; its step has been compiled in so many seconds."""
        ...

    def on_dispatch(
        self, state: TrainState, stage: StageSpec, metrics: Metrics, steps: int
    ) -> bool:
        """Some steps are done; returns whether to stop."""
        ...

    def replan(self, config: TrainConfig, step: int, growing: bool) -> TrainConfig:
        """May change the number of steps, not below `step` + 1.

        Asked after every dispatch; `growing` tells whether transitions are still to come.
        """
        ...

    def on_config_change(self, config: TrainConfig, step: int, reason: str) -> None:
        """The configuration is another one from this step on."""
        ...


class NullCallback:
    """A callback that neither reports nor changes anything."""

    def should_wait_for_compile(self) -> bool:
        """True: the loop always waits."""
        return True

    def dispatch_seconds(self) -> float:
        """One second."""
        return 1.0

    def on_note(self, sentence: str) -> None:
        """Does nothing."""

    def on_stage(self, stage: StageSpec, state: TrainState, pixels: int, seconds: float) -> None:
        """Does nothing."""

    def on_dispatch(
        self, state: TrainState, stage: StageSpec, metrics: Metrics, steps: int
    ) -> bool:
        """False: training goes on."""
        del state, stage, metrics, steps
        return False

    def replan(self, config: TrainConfig, step: int, growing: bool) -> TrainConfig:
        """Keeps the configuration."""
        del step, growing
        return config

    def on_config_change(self, config: TrainConfig, step: int, reason: str) -> None:
        """Does nothing."""


class ProgressCallback(NullCallback):
    """Shows a progress bar with the loss and the PSNR of the last training steps' rays."""

    def __init__(self, num_steps: int, title: str = "train", enabled: bool = True) -> None:
        """Of a training of so many steps; prints nothing unless `enabled`."""
        self._bar = ProgressBar(num_steps, title, "step", disable=not enabled)
        self._last_step = num_steps
        self._enabled = enabled

    def on_note(self, sentence: str) -> None:
        """Prints the sentence above the bar."""
        if self._enabled:
            self._bar.write(sentence)

    def on_dispatch(
        self, state: TrainState, stage: StageSpec, metrics: Metrics, steps: int
    ) -> bool:
        """Advances the bar."""
        psnr = -10.0 * np.log10(max(float(metrics.mse), 1e-12))
        self._bar.set_postfix(f"loss {float(metrics.loss):.5f}, training PSNR {psnr:.2f} dB")
        self._bar.update(steps)
        if int(state.step) >= self._last_step:
            self._bar.close()
        return False
