"""A ternary run as one small file: weights of 2 or 1.6 bits, and everything that rendering needs.

The file is an .npz of numbers and text, without pickles. It renders the same images as the run.
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
from jaxrf.fields.bitnerf import BitNeRF, quantize_weights
from jaxrf.models.base import StageSpec
from jaxrf.sampling.density_tracking import track_density
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training import config_json, runs
from jaxrf.training.config import TrainConfig
from jaxrf.training.runs import Run
from jaxrf.training.state import TrainState

TernaryFormat = Literal["ternary-2bit", "ternary-1.6bit"]


class Packing(NamedTuple):
    """Trits packed as the digits of a byte: `digits` digits in base `base`, lowest first."""

    base: int
    digits: int

    @property
    def digit_values(self) -> UInt8[np.ndarray, "digits"]:
        """The value of a 1 in each digit."""
        return self.base ** np.arange(self.digits, dtype=np.uint8)


# Four trits of two bits each, or all 3^5 = 243 values of five trits: 1.6 bits per trit.
PACKINGS: dict[TernaryFormat, Packing] = {
    "ternary-2bit": Packing(4, 4),
    "ternary-1.6bit": Packing(3, 5),
}


def pack_trits(trits: Int8[np.ndarray, "n"], packing: Packing) -> UInt8[np.ndarray, "bytes"]:
    """Packs the numbers -1, 0 and 1 into bytes."""
    padded = np.pad((trits + 1).astype(np.uint8), (0, -len(trits) % packing.digits))
    packed = padded.reshape(-1, packing.digits) @ packing.digit_values
    return packed.astype(np.uint8)


def unpack_trits(
    packed: UInt8[np.ndarray, "bytes"], count: int, packing: Packing
) -> Int8[np.ndarray, "count"]:
    """Unpacks `count` trits from bytes that `pack_trits` made.

    Raises:
      ValueError: there are too few or too many bytes, or a digit is no trit.
    """
    if len(packed) != math.ceil(count / packing.digits):
        raise ValueError(f"{len(packed)} bytes do not hold exactly {count} weights")
    digits = (packed[:, None] // packing.digit_values % packing.base).reshape(-1)[:count]
    if np.any(digits > 2) or (len(packed) and packed.max() >= packing.base**packing.digits):
        raise ValueError("a weight is not ternary")
    return digits.astype(np.int8) - 1


def _is_layer(node: Any) -> bool:
    return isinstance(node, dict) and "kernel" in node


def _layers(params: Params) -> list[dict[str, Any]]:
    """The layers of all networks, in the order of the tree."""
    return jax.tree.leaves(params, is_leaf=_is_layer)


def count_weights(params: Params) -> int:
    """The number of parameters in all kernels and biases."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@jax.jit
def quantize(kernel: Float[Array, "i o"]) -> tuple[Float[Array, "i o"], Float[Array, ""]]:
    """The trits of a kernel and their scale.

    Jitted, because rendering is: the mean that gives the scale is then summed in the same order.
    """
    return quantize_weights(kernel)


def quantize_layers(layers: Sequence[dict[str, Any]]) -> tuple[list[np.ndarray], list[Any]]:
    """The trits of the kernels, flat and as int8, and the scales of the kernels."""
    quantized = [quantize(jnp.asarray(layer["kernel"])) for layer in layers]
    trits = [np.asarray(kernel).astype(np.int8).reshape(-1) for kernel, _ in quantized]
    return trits, [scale for _, scale in quantized]


def check_ternary(run: Run) -> None:
    """Raises InputError unless all weights of a run are ternary."""
    field, model = BitNeRF.match(run.config.field), run.config.model
    if field is None:
        raise InputError(
            f"The run {run.folder} has the field {run.config.field.name}, whose weights are not "
            "ternary: name a run of a bitnerf."
        )
    if run.state.eval_params.proposals:
        raise InputError(
            f"The run {run.folder} has proposal networks, whose hash grids are not ternary: train "
            "with --model packed or hierarchical to export it."
        )
    if model.appearance_dim:
        raise InputError(
            f"The run {run.folder} has appearance embeddings, which are not ternary: train with "
            "--model.appearance-dim 0 to export it."
        )
    if field.norm_gain or field.full_precision_io or field.project:
        raise InputError(
            f"The run {run.folder} has gains or full-precision layers, like runs of "
            "NeRF-experiments, so its weights are not all ternary: export another run."
        )


def write_ternary(run: Run, path: Path, format_name: TernaryFormat) -> None:
    """Writes the parameters that a run renders with, and everything else that rendering needs.

    Args:
      run: of a BitNeRF.
      path: of the file.
      format_name: how the weights are packed.

    Raises:
      InputError: the weights are not ternary, or the file cannot be written.
    """
    check_ternary(run)
    layers = _layers(run.state.eval_params)
    trits, scales = quantize_layers(layers)
    meta = {
        "format": format_name,
        "config": config_json.to_json(run.config),
        "step": int(run.state.step),
        # Without the poses of the training images, which would take more space than the weights.
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
        weights=pack_trits(np.concatenate(trits), PACKINGS[format_name]),
        scales=np.array(scales, np.float32),
        biases=np.concatenate([np.asarray(layer["bias"], np.float32) for layer in layers]),
        occupied=np.packbits(np.asarray(grid.occupied)),
        **boxes,
    )
    runs.make_writable(path.absolute().parent, "--output")
    with runs.atomic_path(path) as temporary:
        temporary.write_bytes(file.getvalue())


def read_ternary(path: Path) -> Run:
    """The run in a file that `write_ternary` wrote; it can be rendered, but not trained.

    Its kernels are trits with separate scales, which `BitDense` uses without quantizing again.

    Raises:
      InputError: the file is missing, damaged or of another kind.
    """
    try:
        return _parse(path, _read_arrays(path))
    except FileNotFoundError as error:
        raise InputError(
            f"There is no file {path}: name a file that jaxrf export wrote, or a run's folder."
        ) from error
    except NUMPY_LOAD_ERRORS as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"{path} is damaged, or is no file of jaxrf export ({reason}): export the run again."
        ) from error


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as file:
        # Check before reading: a damaged header may ask for more memory than there is.
        if damaged := file.testzip():
            raise ValueError(f"the checksum of its part {damaged} is wrong")
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _parse(path: Path, arrays: dict[str, np.ndarray]) -> Run:
    meta = json.loads(arrays["meta"].tobytes())
    config = config_json.from_json(meta["config"])
    scene, stage, seconds = runs.parse_metadata(meta, type(config.field))
    boxes: dict[str, Any] = {
        name: jnp.asarray(arrays[name]) for name in ("aabb", "bounds") if name in arrays
    }
    grid = _make_grid(config, stage, arrays["occupied"], boxes)
    shapes = jax.eval_shape(lambda: config.model.init_params(stage.field, jax.random.key(0)))
    layers = _unpack_layers(_layers(shapes), arrays, PACKINGS[meta["format"]])
    params = jax.tree.unflatten(jax.tree.structure(shapes, is_leaf=_is_layer), layers)
    state = TrainState(params, None, jnp.asarray(meta["step"], jnp.int32), grid)
    return Run(path, config, scene, stage, state, seconds)


def _unpack_layers(
    shapes: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray], packing: Packing
) -> list[dict[str, Float[Array, "..."]]]:
    """The parameters of layers of these shapes; ValueError if the arrays do not match them."""
    sizes = [math.prod(layer["kernel"].shape) for layer in shapes]
    widths = [layer["bias"].shape[0] for layer in shapes]
    trits = unpack_trits(arrays["weights"], sum(sizes), packing)
    if (len(arrays["scales"]), len(arrays["biases"])) != (len(shapes), sum(widths)):
        raise ValueError("its layers do not match its configuration")
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
    stage: StageSpec,
    bits: UInt8[np.ndarray, "bytes"],
    boxes: dict[str, Any],
) -> OccupancyGrid:
    """The occupancy grid of packed bits; ValueError if it does not match its stage."""
    count = math.prod(stage.grid_resolution)
    if len(bits) != math.ceil(count / 8):
        raise ValueError("its occupancy grid does not match its stage")
    occupied = np.unpackbits(bits, count=count).astype(bool).reshape(stage.grid_resolution)
    norm = config.model.contraction_norm
    grid = OccupancyGrid(jnp.asarray(occupied), **boxes, contraction_norm=norm)
    marches = config.model.samples_per_ray() is None
    return track_density(grid, stage.dilation_cells) if marches else grid
