"""Reads TensoRF's checkpoints (.th): VM and CP factors, the color network, and the alpha mask."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxrf.convert import ray_conventions
from jaxrf.convert.files.arrays import read_number
from jaxrf.convert.files.read import Content
from jaxrf.convert.networks import (
    Converted,
    ConvertedGrid,
    Linear,
    float32,
    from_mlp_params,
    permute_rows,
    read_linear,
    to_mlp_params,
)
from jaxrf.convert.row_order import Label, find_permutation
from jaxrf.core.errors import InputError
from jaxrf.fields.tensor_factors import fit_resolution
from jaxrf.fields.tensorf import TensoRF
from jaxrf.models.base import ModelParams
from jaxrf.models.packed import PackedModel
from jaxrf.training.config import TrainConfig

FORMAT = "TensoRF"
# The numbers of published runs that files do not hold.
PUBLISHED = TensoRF(reset_lr=True)
# The range of each number in kwargs.
LIMITS: dict[str, tuple[float, float]] = {
    "fea_pe": (0, 16),
    "view_pe": (0, 16),
    "density_shift": (-100, 100),
    "distance_scale": (1e-3, 1e5),
    "step_ratio": (1e-2, 10),
    "alphaMask_thres": (0, 1),
    "rayMarch_weight_thres": (0, 1),
}
# Points along a side of a grid; cells of the occupancy grid for a file without a mask.
MAX_RESOLUTION, MAX_DEFAULT_CELLS = 4096, 256**3


def convert(content: Content) -> Converted | None:
    """Returns the weights of a file of TensoRF; None if it is of another program.

    Raises:
      InputError: if the file is incomplete, or its shading or activation is not supported.
    """
    tree = content.tree
    if not isinstance(tree, Mapping) or not {"kwargs", "state_dict"} <= set(tree):
        return None
    state, kwargs = tree["state_dict"], tree["kwargs"]
    if not isinstance(state, Mapping) or "density_line.0" not in state:
        return None
    try:
        return _convert(content, state, kwargs)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{content.path} looks like {FORMAT}, but is incomplete: it has no {error}."
        ) from error


def _convert(content: Content, state: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Converted:
    _check_supported(kwargs, content)
    numbers = {key: read_number(kwargs, key, *ends, content.path) for key, ends in LIMITS.items()}
    resolution = tuple(int(n) for n in kwargs["gridSize"])
    aabb = _read_aabb(kwargs["aabb"], "aabb", content)
    if len(resolution) != 3 or not all(2 <= n <= MAX_RESOLUTION for n in resolution):
        raise InputError(
            f"gridSize in {content.path} is {resolution}, not three numbers from 2 to "
            f"{MAX_RESOLUTION}: the file is damaged."
        )
    if kwargs["shadingMode"] != "MLP_Fea":
        numbers["fea_pe"] = 0.0
    params = make_field_params(state, int(numbers["fea_pe"]), int(numbers["view_pe"]))
    _check_line_sizes(params, resolution, content)
    occupied, notes = _read_mask(content, aabb, resolution)
    near, far = (float(v) for v in kwargs["near_far"])
    if not 0.0 <= near < far < np.inf:
        raise InputError(
            f"near_far in {content.path} is {near:g} to {far:g}, no range of distances: the file "
            "is damaged."
        )
    activation = str(kwargs["fea2denseAct"])
    x, y, z = resolution
    config = make_config(params, numbers, activation, (x, y, z), occupied.shape)
    if "alphaMask.mask" in content.tree:
        field = dataclasses.replace(config.field, pruned=True)  # type: ignore[call-arg]
        config = dataclasses.replace(config, field=field)
    return Converted(
        FORMAT,
        config,
        ModelParams(params),
        near=near,
        far=far,
        notes=notes,
        grid=ConvertedGrid(aabb, occupied),
    )


def make_field_params(
    state: Mapping[str, Any], num_feature_frequencies: int, num_direction_frequencies: int
) -> dict[str, Any]:
    """Returns the parameters of the field of a state dict, which are those of its model."""
    density, features = _read_factors(state, "density"), _read_factors(state, "app")
    basis = _read_basis(state, features, is_vm=bool(density["planes"]))
    layers = _read_mlp(state, basis.shape[1], num_feature_frequencies, num_direction_frequencies)
    mlp = to_mlp_params(layers)
    return {"density": density, "features": features, "basis": basis, "mlp": mlp}


def make_config(
    params: Mapping[str, Any],
    numbers: Mapping[str, float],
    activation: Any,
    resolution: tuple[int, int, int],
    cells: Any,
) -> TrainConfig:
    """Returns the configuration that renders a field as TensoRF does.

    Args:
      params: of the field.
      numbers: of the file's kwargs, by the keys of `LIMITS`.
      activation: of the density.
      resolution: points along the sides of the field's grid.
      cells: of its occupancy grid.
    """
    layers = from_mlp_params(params["mlp"])
    num_voxels = math.prod(resolution)
    field = dataclasses.replace(
        PUBLISHED,
        factors="vm" if params["density"]["planes"] else "cp",
        density_components=params["density"]["lines"][0].shape[1],
        feature_components=params["features"]["lines"][0].shape[1],
        feature_dim=params["basis"].shape[1],
        width=layers[0].kernel.shape[1],
        layers=len(layers) - 1,
        num_feature_frequencies=int(numbers["fea_pe"]),
        num_direction_frequencies=int(numbers["view_pe"]),
        density_shift=numbers["density_shift"],
        density_scale=numbers["distance_scale"],
        activation=activation,
        step_ratio=numbers["step_ratio"],
        prune_threshold=numbers["alphaMask_thres"],
        initial_voxels=num_voxels,
        final_voxels=num_voxels,
        occupancy_voxels=math.prod(cells),
        upsample_at=(),
        prune_at=(),
        resolution=resolution,
        cells=cells,
    )
    model = PackedModel(
        max_colored_fraction=0.5,
        color_threshold=numbers["rayMarch_weight_thres"],
        contract=False,
    )
    return TrainConfig(
        field=field, model=model, ray_convention=ray_conventions.TENSORF, supersample=1
    )


def _check_supported(kwargs: Mapping[str, Any], content: Content) -> None:
    """InputError if the field's shading or activation has no counterpart in jaxrf."""
    shading_mode = str(kwargs["shadingMode"])
    if shading_mode not in ("MLP_Fea", "MLP"):
        raise InputError(
            f"shadingMode in {content.path} is {shading_mode}, and jaxrf has TensoRF's MLP_Fea and "
            "MLP: train with one of these."
        )
    if kwargs["fea2denseAct"] not in ("softplus", "relu"):
        raise InputError(
            f"fea2denseAct in {content.path} is {kwargs['fea2denseAct']!r}, and jaxrf has softplus "
            "and relu: train with one of these."
        )


def _read_factors(state: Mapping[str, Any], name: str) -> dict[str, tuple[np.ndarray, ...]]:
    """Returns planes (height, width, c) and lines (size, c).

    The three axes may have different numbers of components; all are padded to the largest.
    """
    lines = [np.asarray(state[f"{name}_line.{i}"])[0, :, :, 0].T for i in range(3)]
    num_components = max(line.shape[1] for line in lines)
    planes: list[np.ndarray] = []
    if f"{name}_plane.0" in state:
        planes = [np.asarray(state[f"{name}_plane.{i}"])[0].transpose(1, 2, 0) for i in range(3)]

    def pad(array: np.ndarray) -> np.ndarray:
        # Components of zeros add nothing.
        missing = num_components - array.shape[-1]
        return float32(np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]))

    return {"planes": tuple(map(pad, planes)), "lines": tuple(map(pad, lines))}


def _read_basis(
    state: Mapping[str, Any], factors: dict[str, tuple[np.ndarray, ...]], is_vm: bool
) -> Float[np.ndarray, "c features"]:
    """Returns the basis matrix, with rows of zeros for padded components."""
    basis = np.asarray(state["basis_mat.weight"]).T
    if not is_vm:
        return float32(basis)
    counts = [np.asarray(state[f"app_line.{i}"]).shape[1] for i in range(3)]
    num_components = factors["lines"][0].shape[1]
    parts = np.split(basis, np.cumsum(counts)[:-1])
    padded = [np.pad(part, [(0, num_components - len(part)), (0, 0)]) for part in parts]
    return float32(np.concatenate(padded))


def label_jaxrf_inputs(
    num_features: int, num_feature_frequencies: int, num_direction_frequencies: int
) -> list[Label]:
    """Returns the inputs of jaxrf's color network: features, their encoding, the direction's.

    Coordinates 0 to num_features - 1 are the features; the direction's three follow them.
    """
    labels: list[Label] = []
    for coordinates, num_frequencies in (
        (range(num_features), num_feature_frequencies),
        (range(num_features, num_features + 3), num_direction_frequencies),
    ):
        labels += [("x", 0, c) for c in coordinates]
        for octave in range(num_frequencies):
            labels += [(wave, octave, c) for wave in ("sin", "cos") for c in coordinates]
    return labels


def label_tensorf_inputs(
    num_features: int, num_feature_frequencies: int, num_direction_frequencies: int
) -> list[Label]:
    """Returns the inputs of TensoRF's color network, with coordinates as in `label_jaxrf_inputs`.

    Features and direction come first. An encoding is all sines, then all cosines, coordinate by
    coordinate.
    """
    labels: list[Label] = [("x", 0, c) for c in range(num_features + 3)]
    for coordinates, num_frequencies in (
        (range(num_features), num_feature_frequencies),
        (range(num_features, num_features + 3), num_direction_frequencies),
    ):
        for wave in ("sin", "cos"):
            labels += [(wave, octave, c) for c in coordinates for octave in range(num_frequencies)]
    return labels


def _read_mlp(
    state: Mapping[str, Any],
    num_features: int,
    num_feature_frequencies: int,
    num_direction_frequencies: int,
) -> list[Linear]:
    numbers = sorted(
        int(name.split(".")[2])
        for name in state
        if name.startswith("renderModule.mlp.") and name.endswith(".weight")
    )
    layers = [read_linear(state, f"renderModule.mlp.{number}") for number in numbers]
    sizes = (num_features, num_feature_frequencies, num_direction_frequencies)
    tensorf_labels = label_tensorf_inputs(*sizes)
    if len(tensorf_labels) != layers[0].kernel.shape[0]:
        raise KeyError(f"color network of {len(tensorf_labels)} inputs")
    order = find_permutation(tensorf_labels, label_jaxrf_inputs(*sizes))
    return [permute_rows(layers[0], order), *layers[1:]]


def _check_line_sizes(params: dict[str, Any], resolution: Sequence[int], content: Content) -> None:
    line_sizes = [len(line) for line in params["density"]["lines"]]
    if line_sizes != [resolution[2], resolution[1], resolution[0]]:
        raise InputError(
            f"The lines in {content.path} have {line_sizes} points (z, y, x), but gridSize is "
            f"{list(resolution)} (x, y, z): the file is damaged."
        )


def _read_aabb(value: Any, key: str, content: Content) -> Float[np.ndarray, "2 3"]:
    """Returns a box of a file; InputError if it is none."""
    aabb = float32(np.asarray(value, np.float64).reshape(-1))
    if aabb.size != 6 or not np.all(np.isfinite(aabb)) or not np.all(aabb[:3] < aabb[3:]):
        raise InputError(f"{key} in {content.path} is no box: the file is damaged.")
    return aabb.reshape(2, 3)


def _read_mask(
    content: Content, aabb: Float[np.ndarray, "2 3"], resolution: Sequence[int]
) -> tuple[Bool[np.ndarray, "x y z"], tuple[str, ...]]:
    """Returns the occupied cells between the mask's points, and notes for the user.

    TensoRF interpolates the mask and takes what is above 0 as occupied. That is the case if any of
    the eight points around a position is set, so all positions in a cell agree.
    """
    tree = content.tree
    if "alphaMask.mask" not in tree:
        num_cells = min(math.prod(resolution), MAX_DEFAULT_CELLS)
        return np.ones(fit_resolution(num_cells, aabb), bool), ()
    shape = [int(n) for n in tree["alphaMask.shape"]][-3:]
    count = math.prod(shape)
    bits = np.unpackbits(np.asarray(tree["alphaMask.mask"], np.uint8).ravel())[:count]
    if len(bits) != count or min(shape) < 2:
        raise KeyError("alpha mask of its shape")
    points = bits.astype(bool).reshape(shape).transpose(2, 1, 0)
    sides = [slice(None, -1), slice(1, None)]
    occupied = np.zeros([n - 1 for n in points.shape], bool)
    for x in sides:
        for y in sides:
            for z in sides:
                occupied |= points[x, y, z]
    mask_aabb = _read_aabb(tree["alphaMask.aabb"], "alphaMask.aabb", content)
    cells_per_side = (aabb[1] - aabb[0]) / (mask_aabb[1] - mask_aabb[0]) * occupied.shape
    if np.any(cells_per_side > MAX_RESOLUTION):
        raise InputError(
            f"alphaMask.aabb in {content.path} is far smaller than the field's box: the file is "
            "damaged."
        )
    if np.allclose(mask_aabb, aabb, rtol=0.0, atol=1e-5 * float(np.max(aabb[1] - aabb[0]))):
        return occupied, ()
    note = "The alpha mask and the field have different boxes; cells at its borders may differ."
    return _resample_mask(occupied, mask_aabb, aabb), (note,)


def _resample_mask(
    occupied: Bool[np.ndarray, "x y z"],
    source_aabb: Float[np.ndarray, "2 3"],
    target_aabb: Float[np.ndarray, "2 3"],
) -> Bool[np.ndarray, "mx my mz"]:
    """Returns the cells of another box, of at most the same size, that touch an occupied cell."""
    for axis in range(3):
        num_cells = occupied.shape[axis]
        cell_size = (source_aabb[1, axis] - source_aabb[0, axis]) / num_cells
        length = float(target_aabb[1, axis] - target_aabb[0, axis])
        count = max(math.ceil(length / cell_size), 1)
        positions = target_aabb[0, axis] + np.arange(count + 1) * length / count
        # In cells of the source.
        edges = (positions - source_aabb[0, axis]) / cell_size
        first = np.clip(np.floor(edges[:-1] + 1e-6).astype(int), 0, num_cells - 1)
        last = np.clip(np.ceil(edges[1:] - 1e-6).astype(int) - 1, 0, num_cells - 1)
        outside = (edges[1:] <= 0) | (edges[:-1] >= num_cells)
        resampled = np.take(occupied, first, axis) | np.take(occupied, last, axis)
        shape = [1, 1, 1]
        shape[axis] = -1
        occupied = resampled & ~outside.reshape(shape)
    return occupied
