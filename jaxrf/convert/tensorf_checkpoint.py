"""Writes TensoRF's checkpoints (.th)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxrf.convert.networks import float32, from_mlp_params, permute_rows
from jaxrf.convert.row_order import find_permutation
from jaxrf.convert.tensorf import label_jaxrf_inputs, label_tensorf_inputs
from jaxrf.fields.tensorf import TensoRF


def to_checkpoint(
    params: Mapping[str, Any],
    field: TensoRF,
    aabb: Float[np.ndarray, "2 3"],
    near_far: tuple[float, float],
    color_threshold: float,
) -> dict[str, Any]:
    """Returns a field as TensoRF's checkpoint of arrays, without an alpha mask.

    `color_threshold` is the weight below which samples are not colored.
    """
    return {
        "kwargs": _make_kwargs(field, aabb, near_far, color_threshold),
        "state_dict": _make_state_dict(params, field),
    }


def _make_state_dict(params: Mapping[str, Any], field: TensoRF) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = {}
    for part, name in (("density", "density"), ("features", "app")):
        for index, plane in enumerate(params[part]["planes"]):
            state[f"{name}_plane.{index}"] = float32(np.asarray(plane).transpose(2, 0, 1)[None])
        for index, line in enumerate(params[part]["lines"]):
            state[f"{name}_line.{index}"] = float32(np.asarray(line).T[None, :, :, None])
    state["basis_mat.weight"] = float32(np.asarray(params["basis"]).T)
    sizes = (field.feature_dim, field.num_feature_frequencies, field.num_direction_frequencies)
    order = find_permutation(label_jaxrf_inputs(*sizes), label_tensorf_inputs(*sizes))
    layers = from_mlp_params(params["mlp"])
    layers[0] = permute_rows(layers[0], order)
    for index, layer in enumerate(layers):
        state[f"renderModule.mlp.{2 * index}.weight"] = float32(layer.kernel.T)
        state[f"renderModule.mlp.{2 * index}.bias"] = float32(layer.bias)
    return state


def _make_kwargs(
    field: TensoRF,
    aabb: Float[np.ndarray, "2 3"],
    near_far: tuple[float, float],
    color_threshold: float,
) -> dict[str, Any]:
    num_axes = 1 if field.factors == "cp" else 3
    return {
        "aabb": float32(aabb),
        "gridSize": list(field.resolution),
        "density_n_comp": [field.density_components] * num_axes,
        "appearance_n_comp": [field.feature_components] * num_axes,
        "app_dim": field.feature_dim,
        "density_shift": field.density_shift,
        "alphaMask_thres": field.prune_threshold,
        "distance_scale": field.density_scale,
        "rayMarch_weight_thres": color_threshold,
        "fea2denseAct": field.activation,
        "near_far": list(near_far),
        "step_ratio": field.step_ratio,
        "shadingMode": "MLP_Fea",
        "pos_pe": 6,
        "view_pe": field.num_direction_frequencies,
        "fea_pe": field.num_feature_frequencies,
        "featureC": field.width,
    }
