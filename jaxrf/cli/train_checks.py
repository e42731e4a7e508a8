"""Checks of a training configuration: ranges of numbers, and options that exclude each other."""

from jaxrf.core.checks import require_non_negative, require_port, require_positive
from jaxrf.core.errors import InputError
from jaxrf.training.config import TrainConfig


def check_train_config(config: TrainConfig) -> None:
    """Checks a training configuration; not the numbers of its field.

    Raises:
      InputError: for the first option that is out of range or contradicts another one.
    """
    require_positive(
        config, "downscale", "steps", "batch_samples", "batch_rays", "render_samples",
        "steps_per_dispatch", "validation_views", "checkpoint_seconds", "keep_checkpoints",
        "supersample", "budget", "test_every", "microbatch_samples", "devices", "processes",
        "shards",
    )  # fmt: skip
    require_positive(config.bricks, "size", "train_views", "test_views", prefix="bricks.")
    if config.video.frames:
        require_positive(config.video, "frames", "size", prefix="video.")
    require_non_negative(config.video, "every", prefix="video.")
    require_port(config.viewer, "port", prefix="viewer.")
    require_positive(
        config.optimizer, "grid_lr", "mlp_lr", "lr_final_mult", "epsilon", "clip_norm",
        prefix="optimizer.",
    )  # fmt: skip
    require_positive(config.loss, "huber_delta", "charbonnier_epsilon", prefix="loss.")
    if config.shards is not None and config.shards & (config.shards - 1):
        raise InputError(f"--shards is {config.shards}: give a power of two.")
    _check_processes(config)
    _check_scale_schedule(config)
    require_non_negative(config, "validate_every")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed is {config.seed}: give a number from 0 to 2^32 - 1.")


def _check_processes(config: TrainConfig) -> None:
    address = config.coordinator
    if address not in (None, "auto") and not (address or "").rpartition(":")[2].isdigit():
        raise InputError(f"--coordinator is {address}: give host:port, or auto.")
    if address is None and (config.processes or config.process_id is not None):
        raise InputError(
            "--processes and --process-id are for processes that train together: add --coordinator "
            "host:port."
        )


def _check_scale_schedule(config: TrainConfig) -> None:
    schedule = config.train_scale_schedule
    starts = [start for start, _ in schedule]
    if starts and (
        starts[0] != 0 or starts != sorted(set(starts)) or min(factor for _, factor in schedule) < 1
    ):
        text = " ".join(f"{start:g} {factor}" for start, factor in schedule)
        raise InputError(
            f"--train-scale-schedule is {text}: give ascending steps from 0 on, each followed by a "
            "factor of 1 or more."
        )
    if max(starts, default=0) >= config.steps:
        raise InputError(
            f"--train-scale-schedule reaches step {max(starts):g}, but training ends at "
            f"{config.steps}: give earlier steps, or fractions of all steps."
        )
