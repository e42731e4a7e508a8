"""Reads TensoRF's checkpoints (.th): VM and CP factors, the color network, and the alpha mask."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxrf.convert import ray_conventions
from jaxrf.convert.files.arrays import read_number
from jaxrf.convert.files.read import Content
from jaxrf.convert.networks import (
    Converted,
    Linear,
    float32,
    from_mlp_params,
    permute_rows,
    read_linear,
    to_mlp_params,
)
from jaxrf.convert.row_order import Label, find_permutation
from jaxrf.convert.tensorf_mask import MAX_RESOLUTION, read_aabb, read_grid
from jaxrf.core.errors import InputError
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
    except KeyError as error:
        raise InputError(
            f"{content.path} looks like {FORMAT}, but is incomplete: it has no {error}."
        ) from error


def _convert(content: Content, state: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Converted:
    _check_supported(kwargs, content)
    numbers = {key: read_number(kwargs, key, *ends, content.path) for key, ends in LIMITS.items()}
    resolution = tuple(int(n) for n in kwargs["gridSize"])
    aabb = read_aabb(kwargs["aabb"], "aabb", content)
    if len(resolution) != 3 or not all(2 <= n <= MAX_RESOLUTION for n in resolution):
        raise InputError(
            f"gridSize in {content.path} is {str(resolution)[:40]}, not three numbers from 2 to "
            f"{MAX_RESOLUTION}: the file is damaged."
        )
    if kwargs["shadingMode"] != "MLP_Fea":
        numbers["fea_pe"] = 0.0
    params = make_field_params(state, int(numbers["fea_pe"]), int(numbers["view_pe"]))
    _check_line_sizes(params, resolution, content)
    grid = read_grid(content, aabb, resolution)
    assert grid.occupied is not None
    near, far = (float(v) for v in kwargs["near_far"])
    if not 0.0 <= near < far < np.inf:
        raise InputError(
            f"near_far in {content.path} is {near:g} to {far:g}, no range of distances: the file "
            "is damaged."
        )
    activation = str(kwargs["fea2denseAct"])
    x, y, z = resolution
    config = make_config(params, numbers, activation, (x, y, z), grid.occupied.shape)
    if grid.alpha_mask is not None:
        shape = grid.alpha_mask.points.shape
        field = dataclasses.replace(config.field, pruned=True, mask_shape=shape)  # type: ignore[call-arg]
        config = dataclasses.replace(config, field=field)
    return Converted(
        FORMAT,
        config,
        ModelParams(params),
        near=near,
        far=far,
        grid=grid,
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
    coloring, activation = (str(kwargs[key])[:40] for key in ("shadingMode", "fea2denseAct"))
    if coloring not in ("MLP_Fea", "MLP"):
        raise InputError(
            f"shadingMode in {content.path} is {coloring}, and jaxrf has TensoRF's MLP_Fea and "
            "MLP: train with one of these."
        )
    if activation not in ("softplus", "relu"):
        raise InputError(
            f"fea2denseAct in {content.path} is {activation!r}, and jaxrf has softplus and relu: "
            "train with one of these."
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
