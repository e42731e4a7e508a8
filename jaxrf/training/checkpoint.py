"""Checkpoints through orbax: written atomically, the last few and the best kept.

Orbax is imported where it is used, so that training can begin without it.
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
        # Without it orbax writes no metrics down, and a resumed run forgets which was its best.
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
    """Starts writing a checkpoint; `meta` is what must be known before `state` can be restored."""
    import orbax.checkpoint as ocp

    with _accepting_no_metrics():
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
            metrics=None if psnr is None else {"psnr": psnr},
        )


@contextlib.contextmanager
def _accepting_no_metrics() -> Iterator[None]:
    """Without orbax's warning that a checkpoint has no metrics, which is as it should be."""

    def admit(record: logging.LogRecord) -> bool:
        return "tracked_metric" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(admit)
    try:
        yield
    finally:
        logger.removeFilter(admit)


def read_meta(manager: "ocp.CheckpointManager", step: int) -> dict[str, Any]:
    """What was saved beside the state of a step."""
    import orbax.checkpoint as ocp

    restored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
    return restored["meta"]


def restore(manager: "ocp.CheckpointManager", step: int, target: Any) -> Any:
    """The state of a step, in the shapes and types of `target` (arrays or `eval_shape`'s result).

    Raises InputError if it holds something else.
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
