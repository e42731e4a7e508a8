"""Checkpoints, written atomically by orbax; the last few and the best are kept.

Orbax is imported by the functions that use it, as its import would delay the start of training.
"""

import contextlib
import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxrf.core import memory
from jaxrf.core.errors import InputError

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


# Raised by orbax where its files hold something else than it wrote.
UNREADABLE = (
    ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError
)  # fmt: skip
# Key of the metadata that has the checksums of the state's arrays; key of its own checksum there.
CHECKSUMS, META = "checksums", "metadata"


class DamagedCheckpointError(InputError):
    """A checkpoint is not what was written; an earlier one may be."""


def open_checkpoints(folder: Path, keep: int, cleans_up: bool = False) -> "ocp.CheckpointManager":
    """A manager of a folder's checkpoints that keeps the last `keep` and the best by PSNR.

    Args:
      folder: of the checkpoints.
      keep: number of the last ones.
      cleans_up: removes what a killed process had begun to write; for the only process that writes.

    Raises:
      DamagedCheckpointError: if what orbax keeps about a checkpoint cannot be read.
    """
    import orbax.checkpoint as ocp

    # What a thread logs with its traceback is raised, too, when the save is waited for.
    logging.getLogger("absl").addFilter(_has_no_traceback_of_orbax)
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
        cleanup_tmp_directories=cleans_up,
    )
    try:
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except UNREADABLE as error:
        step = _find_unreadable(folder)
        raise DamagedCheckpointError(
            f"The checkpoint of step {step} in {folder} is damaged: delete its folder "
            f"{folder / step} to fall back on an earlier one."
        ) from error


def _find_unreadable(folder: Path) -> str:
    """Name of the last step whose file of orbax is no JSON object, else of the last step."""
    steps = sorted((p.name for p in folder.glob("*") if p.name.isdigit()), key=int, reverse=True)
    for step in steps:
        try:
            content = json.loads((folder / step / "_CHECKPOINT_METADATA").read_bytes())
        except (OSError, ValueError, RecursionError):
            return step
        if not isinstance(content, dict):
            return step
    return steps[0]


def _has_no_traceback_of_orbax(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


def save(
    manager: "ocp.CheckpointManager",
    step: int,
    state: Any,
    meta: dict[str, Any],
    psnr: float | None,
) -> None:
    """Starts writing a checkpoint. `meta` is stored as JSON and can be read before the state."""
    import orbax.checkpoint as ocp

    meta = {**meta, CHECKSUMS: {**checksum_arrays(state), META: _checksum_meta(meta)}}
    with _allow_missing_metrics():
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
            metrics=None if psnr is None else {"psnr": psnr},
        )


def checksum_arrays(tree: Any) -> dict[str, int]:
    """CRC-32 of the numbers of every array by its path; empty if another process has some."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not all(getattr(leaf, "is_fully_addressable", True) for _, leaf in leaves):
        return {}
    return {jax.tree_util.keystr(path): _checksum(leaf) for path, leaf in leaves}


def _checksum(array: Any) -> int:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    # A view as bytes, as types of 16 bits have no buffer of their own.
    return zlib.crc32(np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8).data)


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
    """The metadata of a checkpoint.

    Raises:
      DamagedCheckpointError: if it cannot be read, or has changed since it was written.
    """
    import orbax.checkpoint as ocp

    try:
        restored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta = dict(restored["meta"])
        unsigned = {name: value for name, value in meta.items() if name != CHECKSUMS}
        expected = meta.get(CHECKSUMS, {}).get(META)
        if expected is not None and expected != _checksum_meta(unsigned):
            raise ValueError("its metadata have changed")
    except (OSError, *UNREADABLE) as error:
        folder = Path(manager.directory) / str(step)
        raise DamagedCheckpointError(
            f"The checkpoint of step {step} in {manager.directory} is damaged: delete its folder "
            f"{folder} to fall back on an earlier one."
        ) from error
    return meta


def _checksum_meta(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def restore(
    manager: "ocp.CheckpointManager",
    step: int,
    target: Any,
    checksums: dict[str, int] | None = None,
) -> Any:
    """The state of a checkpoint.

    Args:
      manager: of the checkpoints.
      step: of the checkpoint.
      target: arrays or `jax.ShapeDtypeStruct`s of the same tree structure, shapes and dtypes.
      checksums: those of the metadata, if it has any.

    Raises:
      DamagedCheckpointError: if the checkpoint does not have these shapes or these numbers.
    """
    import orbax.checkpoint as ocp

    try:
        restored = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        )
    except Exception as error:
        # Files that are cut off or changed raise whatever the layer that meets them does.
        if memory.ran_out(error):
            raise
        reason = str(error).split("\n", 1)[0].split(". See full", 1)[0]
        raise DamagedCheckpointError(
            f"The checkpoint of step {step} in {manager.directory} does not fit its configuration "
            f"({reason}): it is damaged or of another version; resume from another checkpoint or "
            "train anew."
        ) from error
    state = restored["state"]
    expected = checksums or {}
    actual = checksum_arrays(state) if expected else {}
    changed = [path for path, value in actual.items() if expected.get(path, value) != value]
    if changed:
        raise DamagedCheckpointError(
            f"The checkpoint of step {step} in {manager.directory} is damaged: the numbers of "
            f"{changed[0].lstrip('.')} are not those that were written; use another step, or train "
            "anew."
        )
    return state
