"""Checkpoints, written atomically by orbax; the last few and the best are kept.

Orbax is imported by the functions that use it, as its import would delay the start of training.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxrf.core.errors import InputError

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


def open_checkpoints(folder: Path, keep: int) -> "ocp.CheckpointManager":
    """A manager of a folder's checkpoints that keeps the last `keep` and the best by PSNR."""
    import orbax.checkpoint as ocp

    policy = ocp.checkpoint_managers.AnyPreservationPolicy(
        [
            ocp.checkpoint_managers.LatestN(keep),
            ocp.checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics["psnr"],
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        # Without `best_fn` orbax stores no metrics, and a resumed run could not tell its best.
        best_fn=lambda metrics: metrics["psnr"],
        preservation_policy=policy,
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(
    manager: "ocp.CheckpointManager",
    step: int,
    state: Any,
    meta: dict[str, Any],
    psnr: float | None,
) -> None:
    """Starts writing a checkpoint. `meta` is stored as JSON and can be read before the state."""
    import orbax.checkpoint as ocp

    with _allow_missing_metrics():
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
            metrics=None if psnr is None else {"psnr": psnr},
        )


@contextlib.contextmanager
def _allow_missing_metrics() -> Iterator[None]:
    """Suppresses orbax's warning about checkpoints without metrics, which are valid here."""

    def is_other_record(record: logging.LogRecord) -> bool:
        return "tracked_metric" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(is_other_record)
    try:
        yield
    finally:
        logger.removeFilter(is_other_record)


def read_meta(manager: "ocp.CheckpointManager", step: int) -> dict[str, Any]:
    """The metadata of a checkpoint."""
    import orbax.checkpoint as ocp

    restored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
    return restored["meta"]


def restore(manager: "ocp.CheckpointManager", step: int, target: Any) -> Any:
    """The state of a checkpoint.

    Args:
      manager: of the checkpoints.
      step: of the checkpoint.
      target: arrays or `jax.ShapeDtypeStruct`s of the same tree structure, shapes and dtypes.

    Raises:
      InputError: if the checkpoint does not have these shapes or is damaged.
    """
    import orbax.checkpoint as ocp

    try:
        restored = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        )
    except (ValueError, KeyError, TypeError, FileNotFoundError, json.JSONDecodeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"The checkpoint of step {step} in {manager.directory} does not fit its configuration "
            f"({reason}): it is damaged or of another version; resume from another checkpoint or "
            "train anew."
        ) from error
    return restored["state"]
