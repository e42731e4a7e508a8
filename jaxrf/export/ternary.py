"""A ternary run as one small file: 2 or 1.6 bits a weight, and what rendering needs.

An .npz of numbers and text, without pickles. The pictures rendered from it are the run's own.
"""

import dataclasses
import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, UInt8

from jaxrf.core.errors import NUMPY_LOAD_ERRORS, InputError
from jaxrf.fields.base import Params
from jaxrf.fields.bitnerf import quantise_weights
from jaxrf.models import methods
from jaxrf.models.methods import Stage
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training import config as configs
from jaxrf.training import runs
from jaxrf.training.config import BitNeRFConfig, TrainConfig
from jaxrf.training.runs import Run
from jaxrf.training.train import TrainState

Format = Literal["ternary2", "ternary16"]


class Packing(NamedTuple):
    """Trits as digits of a byte: `digits` of them, each `base` times the one before."""

    base: int
    digits: int

    @property
    def places(self) -> UInt8[np.ndarray, "digits"]:
        """What each digit counts."""
        return self.base ** np.arange(self.digits, dtype=np.uint8)


# Two bits for each of four trits, or all 3^5 = 243 values of five: 1.6 bits a trit.
PACKINGS: dict[Format, Packing] = {"ternary2": Packing(4, 4), "ternary16": Packing(3, 5)}


def pack_trits(trits: Int8[np.ndarray, "n"], packing: Packing) -> UInt8[np.ndarray, "bytes"]:
    """Numbers -1, 0, 1 in as few bytes as the packing takes."""
    padded = np.pad((trits + 1).astype(np.uint8), (0, -len(trits) % packing.digits))
    packed = padded.reshape(-1, packing.digits) @ packing.places
    return packed.astype(np.uint8)


def unpack_trits(
    packed: UInt8[np.ndarray, "bytes"], count: int, packing: Packing
) -> Int8[np.ndarray, "count"]:
    """So many numbers out of what `pack_trits` made; ValueError if it cannot have."""
    if len(packed) != math.ceil(count / packing.digits):
        raise ValueError(f"{len(packed)} bytes are not those of {count} weights")
    digits = (packed[:, None] // packing.places % packing.base).reshape(-1)[:count]
    if np.any(digits > 2) or (len(packed) and packed.max() >= packing.base**packing.digits):
        raise ValueError("some weight is not ternary")
    return digits.astype(np.int8) - 1


def _is_layer(node: Any) -> bool:
    return isinstance(node, dict) and "kernel" in node


def _layers(params: Params) -> list[dict[str, Any]]:
    """All layers of all networks, in one order."""
    return jax.tree.leaves(params, is_leaf=_is_layer)


def count_weights(params: Params) -> int:
    """Numbers in all kernels and biases."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


# In one program, as rendering has it, so that the scale is summed up in the same order.
quantise = jax.jit(quantise_weights)


def check_ternary(run: Run) -> None:
    """InputError if a run's weights are not all ternary."""
    if not isinstance(run.config.field, BitNeRFConfig):
        raise InputError(
            f"The run {run.folder} is of the field {run.config.field.kind}, whose weights are not "
            "ternary: name a run of a bitnerf."
        )
    if run.config.field.sampler == "proposal":
        raise InputError(
            f"The run {run.folder} has proposals, whose hash grids are not ternary: train with "
            "--field.sampler occupancy or hierarchical to export it."
        )
    if run.config.field.appearance_dim:
        raise InputError(
            f"The run {run.folder} has learnt appearances, which are not ternary: train with "
            "--field.appearance-dim 0 to export it."
        )
    field = run.config.field
    if field.norm_gain or field.full_precision_io or field.project:
        raise InputError(
            f"The run {run.folder} has gains or layers with full weights, as those of "
            "NeRF-experiments: its weights are not all ternary."
        )


def write_ternary(run: Run, path: Path, form: Format) -> None:
    """Writes a run's rendered parameters and what rendering needs into one file.

    Args:
      run: of a BitNeRF.
      path: of the file.
      form: how its weights are packed.

    Raises:
      InputError: if the run is of another field, or the file cannot be written.
    """
    check_ternary(run)
    layers = _layers(run.state.shown)
    quantised = [quantise(jnp.asarray(layer["kernel"])) for layer in layers]
    trits = [np.asarray(ternary).astype(np.int8).reshape(-1) for ternary, _ in quantised]
    meta = {
        "format": form,
        "config": configs.to_json(run.config),
        "step": int(run.state.step),
        # The poses of all pictures would take more room than the weights.
        **runs.to_metadata(dataclasses.replace(run.scene, poses=()), run.stage, run.seconds),
    }
    grid = run.state.grid
    boxes: dict[str, Any] = {"aabb": grid.aabb} | (
        {} if grid.bounds is None else {"bounds": grid.bounds}
    )
    file = io.BytesIO()
    np.savez(
        file,
        meta=np.frombuffer(json.dumps(meta).encode(), np.uint8),
        weights=pack_trits(np.concatenate(trits), PACKINGS[form]),
        scales=np.array([scale for _, scale in quantised], np.float32),
        biases=np.concatenate([np.asarray(layer["bias"], np.float32) for layer in layers]),
        occupied=np.packbits(np.asarray(grid.occupied)),
        **boxes,
    )
    runs.make_writable(path.absolute().parent, "--output")
    with runs.atomic_path(path) as temporary:
        temporary.write_bytes(file.getvalue())


def read_ternary(path: Path) -> Run:
    """A run out of what `write_ternary` wrote; it can be rendered, but not trained on.

    Its kernels are whole numbers with a scale beside them, which `BitDense` takes as they are.

    Raises:
      InputError: if the file is missing, damaged or something else.
    """
    try:
        return _parse(path, _read_arrays(path))
    except FileNotFoundError as error:
        raise InputError(
            f"There is no file {path}: name one that jaxrf export wrote, or a run's folder."
        ) from error
    except NUMPY_LOAD_ERRORS as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"{path} is damaged, or no file of jaxrf export ({reason}): export the run again."
        ) from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as file:
        # Before anything is read: a damaged header may ask for more memory than there is.
        if broken := file.testzip():
            raise ValueError(f"its part {broken} has another checksum")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _parse(path: Path, arrays: dict[str, np.ndarray]) -> Run:
    meta = json.loads(arrays["meta"].tobytes())
    config = configs.from_json(meta["config"])
    scene, stage, seconds = runs.parse_metadata(meta)
    boxes: dict[str, Any] = {
        name: jnp.asarray(arrays[name]) for name in ("aabb", "bounds") if name in arrays
    }
    grid = _make_grid(config, stage, arrays["occupied"], boxes)
    shapes = jax.eval_shape(lambda: methods.init_params(config.field, stage, jax.random.key(0)))
    packing = PACKINGS[meta["format"]]
    layers = _unpack_layers(_layers(shapes), arrays, packing)
    params = jax.tree.unflatten(jax.tree.structure(shapes, is_leaf=_is_layer), layers)
    state = TrainState(params, None, jnp.asarray(meta["step"], jnp.int32), grid)
    return Run(path, config, scene, stage, state, seconds)


def _unpack_layers(
    shapes: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray], packing: Packing
) -> list[dict[str, Float[Array, "..."]]]:
    """The parameters of layers of these shapes; ValueError if there are more or fewer."""
    sizes = [math.prod(layer["kernel"].shape) for layer in shapes]
    widths = [layer["bias"].shape[0] for layer in shapes]
    trits = unpack_trits(arrays["weights"], sum(sizes), packing)
    if (len(arrays["scales"]), len(arrays["biases"])) != (len(shapes), sum(widths)):
        raise ValueError("its layers are not those of its configuration")
    kernels = np.split(trits.astype(np.float32), np.cumsum(sizes)[:-1])
    biases = np.split(arrays["biases"], np.cumsum(widths)[:-1])
    return [
        {
            "kernel": jnp.asarray(kernel.reshape(layer["kernel"].shape)),
            "scale": jnp.asarray(scale),
            "bias": jnp.asarray(bias),
        }
        for layer, kernel, scale, bias in zip(
            shapes, kernels, arrays["scales"], biases, strict=True
        )
    ]


def _make_grid(
    config: TrainConfig,
    stage: Stage,
    bits: UInt8[np.ndarray, "bytes"],
    boxes: dict[str, Any],
) -> OccupancyGrid:
    """An occupancy grid to render with."""
    count = math.prod(stage.cells)
    if len(bits) != math.ceil(count / 8):
        raise ValueError("its occupancy grid is not that of its stage")
    occupied = np.unpackbits(bits, count=count).astype(bool).reshape(stage.cells)
    grid = OccupancyGrid(jnp.asarray(occupied), **boxes)
    return occupancy.init_density_ema(grid, stage.reach) if methods.marches(config.field) else grid
