"""TensoRF's checkpoints (.th): VM and CP factors, the MLP that colours, and the alpha mask."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.convert.files import Content, take_number
from jaxrf.convert.networks import (
    Converted,
    ConvertedGrid,
    Label,
    Linear,
    find_order,
    float32,
    permute_rows,
    stack_layers,
    take_linear,
)
from jaxrf.core.errors import InputError
from jaxrf.fields.tensorf import fit_resolution
from jaxrf.training import config as configs
from jaxrf.training.config import TrainConfig

FORM = "TensoRF"
# The field is evaluated where steps start, and rays go on until nothing passes.
CONVENTION = RayConvention(samples_at="start", stop=0.0)
# Of what says what a field is like.
LIMITS: dict[str, tuple[float, float]] = {
    "fea_pe": (0, 16),
    "view_pe": (0, 16),
    "density_shift": (-100, 100),
    "distance_scale": (1e-3, 1e5),
    "step_ratio": (1e-2, 10),
    "alphaMask_thres": (0, 1),
    "rayMarch_weight_thres": (0, 1),
}
# Along a side of a grid, and of a mask that the file does not have.
MOST_POINTS, MOST_CELLS = 4096, 256**3


def convert(content: Content) -> Converted | None:
    """The weights of such a file; None if it is of another program."""
    tree = content.tree
    if not isinstance(tree, Mapping) or not {"kwargs", "state_dict"} <= set(tree):
        return None
    state, kwargs = tree["state_dict"], tree["kwargs"]
    if not isinstance(state, Mapping) or "density_line.0" not in state:
        return None
    try:
        return _convert(content, state, kwargs)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{content.path} looks like {FORM}, but has no {error}.") from error


def _convert(content: Content, state: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Converted:
    shading = str(kwargs["shadingMode"])
    if shading not in ("MLP_Fea", "MLP"):
        raise InputError(
            f"{content.path} is shaded by {shading}; jaxrf takes TensoRF's MLP_Fea and MLP."
        )
    if kwargs["fea2denseAct"] not in ("softplus", "relu"):
        raise InputError(
            f"{content.path} makes its density by {kwargs['fea2denseAct']!r}; jaxrf takes softplus "
            "and relu."
        )
    numbers = {key: take_number(kwargs, key, *ends, content.path) for key, ends in LIMITS.items()}
    resolution = tuple(int(n) for n in kwargs["gridSize"])
    aabb = _take_box(kwargs["aabb"], "aabb", content)
    sides_fit = len(resolution) == 3 and all(2 <= n <= MOST_POINTS for n in resolution)
    if not sides_fit:
        raise InputError(f"gridSize in {content.path} is {resolution}: it is no grid of a field.")
    params: dict[str, Any] = {}
    for name, ours in (("density", "density"), ("app", "features")):
        params[ours] = _read_factors(state, name)
    vm = bool(params["density"]["planes"])
    params["basis"] = _read_basis(state, params["features"], vm)
    num_feature_frequencies = int(numbers["fea_pe"]) if shading == "MLP_Fea" else 0
    num_direction_frequencies = int(numbers["view_pe"])
    layers = _read_mlp(
        state, params["basis"].shape[1], num_feature_frequencies, num_direction_frequencies
    )
    params["mlp"] = stack_layers(layers)
    _check_resolution(params, resolution, content)
    occupied, notes = _read_mask(content, aabb, resolution)
    voxels, cells = math.prod(resolution), math.prod(occupied.shape)
    preset = configs.tensorf_vm192()
    base: Any = preset.field
    field = dataclasses.replace(
        base,
        factors="vm" if vm else "cp",
        density_components=params["density"]["lines"][0].shape[1],
        feature_components=params["features"]["lines"][0].shape[1],
        feature_dim=params["basis"].shape[1],
        width=layers[0].kernel.shape[1],
        layers=len(layers) - 1,
        num_feature_frequencies=num_feature_frequencies,
        num_direction_frequencies=num_direction_frequencies,
        density_shift=numbers["density_shift"],
        density_scale=numbers["distance_scale"],
        activation=str(kwargs["fea2denseAct"]),
        step_ratio=numbers["step_ratio"],
        color_threshold=numbers["rayMarch_weight_thres"],
        prune_threshold=numbers["alphaMask_thres"],
        initial_voxels=voxels,
        final_voxels=voxels,
        occupancy_voxels=cells,
        upsample_at=(),
        prune_at=(),
        contract=False,
        convention=CONVENTION,
    )
    near, far = (float(v) for v in kwargs["near_far"])
    if not 0.0 <= near < far < np.inf:
        raise InputError(f"near_far in {content.path} is {near:g} to {far:g}: it is damaged.")
    config: TrainConfig = dataclasses.replace(preset, field=field, supersample=1)
    grid = ConvertedGrid(
        aabb,
        occupied,
        (resolution[0], resolution[1], resolution[2]),
        pruned="alphaMask.mask" in content.tree,
    )
    return Converted(FORM, config, params, near=near, far=far, notes=notes, grid=grid)


def _read_factors(state: Mapping[str, Any], name: str) -> dict[str, tuple[np.ndarray, ...]]:
    """Planes (height, width, c) and lines (size, c), as wide as the widest of the three."""
    lines = [np.asarray(state[f"{name}_line.{i}"])[0, :, :, 0].T for i in range(3)]
    widest = max(line.shape[1] for line in lines)
    planes: list[np.ndarray] = []
    if f"{name}_plane.0" in state:
        planes = [np.asarray(state[f"{name}_plane.{i}"])[0].transpose(1, 2, 0) for i in range(3)]

    def widen(array: np.ndarray) -> np.ndarray:
        # Components of nothing add nothing.
        missing = widest - array.shape[-1]
        return float32(np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]))

    return {"planes": tuple(map(widen, planes)), "lines": tuple(map(widen, lines))}


def _read_basis(
    state: Mapping[str, Any], factors: dict[str, tuple[np.ndarray, ...]], vm: bool
) -> Float[np.ndarray, "c features"]:
    """The basis matrix, with rows of zeros for the components that were added."""
    basis = np.asarray(state["basis_mat.weight"]).T
    if not vm:
        return float32(basis)
    counts = [np.asarray(state[f"app_line.{i}"]).shape[1] for i in range(3)]
    widest = factors["lines"][0].shape[1]
    parts = np.split(basis, np.cumsum(counts)[:-1])
    padded = [np.pad(part, [(0, widest - len(part)), (0, 0)]) for part in parts]
    return float32(np.concatenate(padded))


def label_inputs(
    features: int, num_feature_frequencies: int, num_direction_frequencies: int, ours: bool
) -> list[Label]:
    """What the colour network's inputs are, in our order or in TensoRF's.

    Coordinates 0 to features - 1 are features, the three after them the direction. TensoRF's
    encodings are all sines, then all cosines, of one coordinate after the other.
    """
    parts = (
        (range(features), num_feature_frequencies),
        (range(features, features + 3), num_direction_frequencies),
    )
    labels: list[Label] = []
    if ours:
        for coordinates, octaves in parts:
            labels += [("x", 0, c) for c in coordinates]
            for octave in range(octaves):
                labels += [(what, octave, c) for what in ("sin", "cos") for c in coordinates]
        return labels
    labels += [("x", 0, c) for coordinates, _ in parts for c in coordinates]
    for coordinates, octaves in parts:
        for what in ("sin", "cos"):
            labels += [(what, octave, c) for c in coordinates for octave in range(octaves)]
    return labels


def _read_mlp(
    state: Mapping[str, Any],
    features: int,
    num_feature_frequencies: int,
    num_direction_frequencies: int,
) -> list[Linear]:
    numbers = sorted(
        int(name.split(".")[2])
        for name in state
        if name.startswith("renderModule.mlp.") and name.endswith(".weight")
    )
    layers = [take_linear(state, f"renderModule.mlp.{number}") for number in numbers]
    sizes = (features, num_feature_frequencies, num_direction_frequencies)
    theirs, ours = (label_inputs(*sizes, ours=mine) for mine in (False, True))
    if len(theirs) != layers[0].kernel.shape[0]:
        raise KeyError(f"colour network of {len(theirs)} inputs")
    layers[0] = permute_rows(layers[0], find_order(theirs, ours))
    return layers


def _check_resolution(params: dict[str, Any], resolution: Sequence[int], content: Content) -> None:
    found = [len(line) for line in params["density"]["lines"]]
    if found != [resolution[2], resolution[1], resolution[0]]:
        raise InputError(
            f"{content.path} has lines of {found} points, but a grid of {list(resolution)}."
        )


def _take_box(value: Any, key: str, content: Content) -> Float[np.ndarray, "2 3"]:
    """A box out of a file; InputError if it is none."""
    box = float32(np.asarray(value, np.float64).reshape(-1))
    if box.size != 6 or not np.all(np.isfinite(box)) or not np.all(box[:3] < box[3:]):
        raise InputError(f"{key} in {content.path} is no box: the file is damaged.")
    return box.reshape(2, 3)


def _read_mask(
    content: Content, aabb: Float[np.ndarray, "2 3"], resolution: Sequence[int]
) -> tuple[Bool[np.ndarray, "x y z"], tuple[str, ...]]:
    """Which cells between the mask's points may hold anything, and what to say of it.

    The mask is interpolated and held against 0: a point is occupied if any of the eight around it
    is, which is the same for all points of a cell.
    """
    tree = content.tree
    if "alphaMask.mask" not in tree:
        cells = min(math.prod(resolution), MOST_CELLS)
        return np.ones(fit_resolution(cells, aabb), bool), ()
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
    box = _take_box(tree["alphaMask.aabb"], "alphaMask.aabb", content)
    if np.any((aabb[1] - aabb[0]) / (box[1] - box[0]) * occupied.shape > MOST_POINTS):
        raise InputError(
            f"alphaMask.aabb in {content.path} is far smaller than the field's box: it is damaged."
        )
    if np.allclose(box, aabb, rtol=0.0, atol=1e-5 * float(np.max(aabb[1] - aabb[0]))):
        return occupied, ()
    note = "The alpha mask is of another box than the field; cells at its borders may differ."
    return _move_mask(occupied, box, aabb), (note,)


def _move_mask(
    occupied: Bool[np.ndarray, "x y z"],
    box: Float[np.ndarray, "2 3"],
    aabb: Float[np.ndarray, "2 3"],
) -> Bool[np.ndarray, "mx my mz"]:
    """Cells of another box, as small, that touch an occupied one."""
    for axis in range(3):
        size = (box[1, axis] - box[0, axis]) / occupied.shape[axis]
        length = float(aabb[1, axis] - aabb[0, axis])
        count = max(math.ceil(length / size), 1)
        edges = (aabb[0, axis] + np.arange(count + 1) * length / count - box[0, axis]) / size
        first = np.clip(np.floor(edges[:-1] + 1e-6).astype(int), 0, occupied.shape[axis] - 1)
        last = np.clip(np.ceil(edges[1:] - 1e-6).astype(int) - 1, 0, occupied.shape[axis] - 1)
        outside = (edges[1:] <= 0) | (edges[:-1] >= occupied.shape[axis])
        moved = np.take(occupied, first, axis) | np.take(occupied, last, axis)
        shape = [1, 1, 1]
        shape[axis] = -1
        occupied = moved & ~outside.reshape(shape)
    return occupied


def write(
    params: Mapping[str, Any],
    field: configs.TensoRFConfig,
    aabb: Float[np.ndarray, "2 3"],
    resolution: Sequence[int],
    near_far: tuple[float, float],
) -> dict[str, Any]:
    """A field as TensoRF's checkpoint, as arrays, without an alpha mask."""
    state: dict[str, np.ndarray] = {}
    for ours, name in (("density", "density"), ("features", "app")):
        for index, plane in enumerate(params[ours]["planes"]):
            state[f"{name}_plane.{index}"] = float32(np.asarray(plane).transpose(2, 0, 1)[None])
        for index, line in enumerate(params[ours]["lines"]):
            state[f"{name}_line.{index}"] = float32(np.asarray(line).T[None, :, :, None])
    state["basis_mat.weight"] = float32(np.asarray(params["basis"]).T)
    sizes = (field.feature_dim, field.num_feature_frequencies, field.num_direction_frequencies)
    theirs, ours_labels = (label_inputs(*sizes, ours=mine) for mine in (False, True))
    layers = params["mlp"]["params"]
    for index in range(len(layers)):
        kernel = np.asarray(layers[f"Dense_{index}"]["kernel"])
        if index == 0:
            kernel = kernel[find_order(ours_labels, theirs)]
        state[f"renderModule.mlp.{2 * index}.weight"] = float32(kernel.T)
        state[f"renderModule.mlp.{2 * index}.bias"] = float32(layers[f"Dense_{index}"]["bias"])
    kwargs = {
        "aabb": float32(aabb),
        "gridSize": [int(n) for n in resolution],
        "density_n_comp": [field.density_components] * 3,
        "appearance_n_comp": [field.feature_components] * 3,
        "app_dim": field.feature_dim,
        "density_shift": field.density_shift,
        "alphaMask_thres": field.prune_threshold,
        "distance_scale": field.density_scale,
        "rayMarch_weight_thres": field.color_threshold,
        "fea2denseAct": field.activation,
        "near_far": list(near_far),
        "step_ratio": field.step_ratio,
        "shadingMode": "MLP_Fea",
        "pos_pe": 6,
        "view_pe": field.num_direction_frequencies,
        "fea_pe": field.num_feature_frequencies,
        "featureC": field.width,
    }
    if field.factors == "cp":
        kwargs["density_n_comp"] = [field.density_components]
        kwargs["appearance_n_comp"] = [field.feature_components]
    return {"kwargs": kwargs, "state_dict": state}
