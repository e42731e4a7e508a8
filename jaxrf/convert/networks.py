"""Layers of converted networks, and the configuration and parameters that jaxrf has for them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from jaxrf import presets
from jaxrf.cameras.base import Cameras
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.fields.bitnerf import BitNeRF
from jaxrf.fields.nerf import NeRF
from jaxrf.models.base import ModelParams
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.training.config import TrainConfig

Arrays = Mapping[str, np.ndarray]


class Linear(NamedTuple):
    """A linear layer, y = x kernel + bias; a ternary one has a gain of its inputs as well."""

    kernel: Float[np.ndarray, "i o"]
    bias: Float[np.ndarray, "o"]
    gain: Float[np.ndarray, "i"] | None = None


class Network(NamedTuple):
    """The layers of a NeRF, the rows of their kernels in the order of `jaxrf.fields.nerf`.

    trunk: with ReLUs; the layer `skip` takes [encoded position, output of the layer before].
    skip: len(trunk) if no layer takes the encoded position again.
    density, rgb: the heads.
    bottleneck, view: before the rgb head, if color depends on the direction.
    projection: before the trunk, without activation.
    """

    trunk: tuple[Linear, ...]
    skip: int
    density: Linear
    rgb: Linear
    bottleneck: Linear | None = None
    view: Linear | None = None
    projection: Linear | None = None


class AlphaMask(NamedTuple):
    """The mask of TensoRF (`jaxrf.sampling.alpha_mask`).

    points: the first and last ones lie on the faces of its box.
    aabb: its box.
    """

    points: Bool[np.ndarray, "px py pz"]
    aabb: Float[np.ndarray, "2 3"]


class ConvertedGrid(NamedTuple):
    """The grid of a file.

    aabb: its box.
    occupied: False in cells that are known to be empty; None if the file has no cells.
    alpha_mask: by which images are rendered instead of by cells, if the file has one.
    """

    aabb: Float[np.ndarray, "2 3"]
    occupied: Bool[np.ndarray, "x y z"] | None = None
    alpha_mask: AlphaMask | None = None


class Converted(NamedTuple):
    """Weights of another program, ready to become a run.

    format: the program, and its variant.
    config: renders as that program does.
    params: of the model.
    step: steps they were trained for; 0 if the file does not say.
    near, far: the program's range of distances, for use without a data set.
    notes: sentences for the user.
    grid: of the field, if the file has one.
    encoding_order: the program's index of each element of our encoding of a position; empty if the
      orders are the same.
    in_file_coordinates: the field is in the coordinates of the data set's files, and not where
      training has placed the scene.
    cameras: of the training images, if the file lists them.
    """

    format: str
    config: TrainConfig
    params: ModelParams
    step: int = 0
    near: float = 2.0
    far: float = 6.0
    notes: tuple[str, ...] = ()
    grid: ConvertedGrid | None = None
    encoding_order: tuple[int, ...] = ()
    in_file_coordinates: bool = False
    cameras: Cameras | None = None


def list_arrays(params: Any) -> dict[str, Any]:
    """Returns the arrays of a model's or a field's parameters, or their shapes, by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def float32(array: Any) -> np.ndarray:
    """Returns a contiguous copy in float32."""
    return np.ascontiguousarray(array, np.float32)


def read_linear(arrays: Arrays, name: str) -> Linear:
    """Returns a layer of PyTorch, whose weight is (out, in)."""
    return Linear(float32(arrays[f"{name}.weight"].T), float32(arrays[f"{name}.bias"]))


def permute_rows(layer: Linear, order: Sequence[int]) -> Linear:
    """Returns the layer with its row i taken from row order[i]."""
    gain = None if layer.gain is None else layer.gain[list(order)]
    return layer._replace(kernel=float32(layer.kernel[list(order)]), gain=gain)


def slice_outputs(layer: Linear, start: int, stop: int | None = None) -> Linear:
    """Returns the layer with the outputs from `start` to `stop` alone."""
    return Linear(layer.kernel[:, start:stop], layer.bias[start:stop])


def find_skip(trunk: Sequence[Linear], encoding_size: int) -> int:
    """Returns the index of the layer that takes the encoded position again; else len(trunk)."""
    for index, layer in enumerate(trunk):
        if index and layer.kernel.shape[0] == trunk[index - 1].kernel.shape[1] + encoding_size:
            return index
    return len(trunk)


def make_model_params(networks: Sequence[Network]) -> ModelParams:
    """Returns the parameters of a model of one network, or of a coarse and a fine one."""
    params = [to_params(network) for network in networks]
    return ModelParams(params[-1], coarse=params[0] if len(params) > 1 else None)


def to_params(network: Network) -> dict[str, Any]:
    """Returns the parameters of a network as `jaxrf.fields.nerf` names them."""

    def layer_params(linear: Linear) -> dict[str, np.ndarray]:
        params = {"kernel": float32(linear.kernel), "bias": float32(linear.bias)}
        return params if linear.gain is None else params | {"gain": float32(linear.gain)}

    layers = {f"trunk_{index}": layer for index, layer in enumerate(network.trunk)}
    layers |= {"density_head": network.density, "rgb_head": network.rgb}
    optional = {
        "bottleneck": network.bottleneck,
        "view": network.view,
        "projection": network.projection,
    }
    layers |= {name: layer for name, layer in optional.items() if layer is not None}
    return {"params": {name: layer_params(layer) for name, layer in layers.items()}}


def from_params(params: Mapping[str, Any], skip: int) -> Network:
    """Returns the network of such parameters, the inverse of `to_params`."""
    layers = params["params"]

    def layer(name: str) -> Linear:
        gain = layers[name].get("gain")
        return Linear(
            np.asarray(layers[name]["kernel"]),
            np.asarray(layers[name]["bias"]),
            None if gain is None else np.asarray(gain),
        )

    depth = sum(name.startswith("trunk_") for name in layers)
    optional = {
        name: layer(name) for name in ("bottleneck", "view", "projection") if name in layers
    }
    return Network(
        trunk=tuple(layer(f"trunk_{index}") for index in range(depth)),
        skip=skip,
        density=layer("density_head"),
        rgb=layer("rgb_head"),
        **optional,
    )


def to_mlp_params(layers: Sequence[Linear]) -> dict[str, Any]:
    """Returns layers as the parameters of a `jaxrf.fields.mlp.MLP`."""
    named = {
        f"Dense_{index}": {"kernel": float32(layer.kernel), "bias": float32(layer.bias)}
        for index, layer in enumerate(layers)
    }
    return {"params": named}


def from_mlp_params(params: Mapping[str, Any]) -> list[Linear]:
    """Returns the layers of an MLP's parameters; a layer without bias gets one of zeros."""
    layers = []
    for index in range(len(params["params"])):
        layer = params["params"][f"Dense_{index}"]
        kernel, bias = np.asarray(layer["kernel"]), layer.get("bias")
        if bias is None:
            bias = np.zeros(kernel.shape[1], np.float32)
        layers.append(Linear(kernel, np.asarray(bias)))
    return layers


def make_config(
    network: Network,
    position_frequencies: tuple[int, bool],
    num_direction_frequencies: int,
    *,
    num_coarse_samples: int,
    num_fine_samples: int,
    ray_convention: RayConvention,
    frequency: float = 1.0,
    ternary: bool = False,
    norm_epsilon: float = 1e-6,
) -> TrainConfig:
    """Returns the configuration that renders a network as its program does.

    Samples are points, as in NeRF's code, and density is activated by a ReLU.

    Args:
      network: the sizes of its layers are used.
      position_frequencies: octaves of the position's encoding, and whether it includes the
        position.
      num_direction_frequencies: octaves of the direction's encoding.
      num_coarse_samples, num_fine_samples: per ray.
      ray_convention: of the program.
      frequency: the lowest of both encodings.
      ternary: makes a BitNeRF whose projection and heads are of full precision.
      norm_epsilon: of its normalization.
    """
    num_position_frequencies, encode_input = position_frequencies
    shared: dict[str, Any] = {
        "layers": len(network.trunk),
        "width": network.trunk[0].kernel.shape[1],
        "skip": network.skip,
        "color_width": 1 if network.view is None else network.view.kernel.shape[1],
        "use_directions": network.view is not None,
        "num_position_frequencies": num_position_frequencies,
        "num_direction_frequencies": num_direction_frequencies,
        "encode_input": encode_input,
        "frequency": frequency,
        "project": network.projection is not None,
        "activation": "relu",
    }
    field = NeRF(**shared)
    if ternary:
        norm: dict[str, Any] = {
            "norm_gain": True,
            "norm_epsilon": norm_epsilon,
            "full_precision_io": True,
        }
        field = BitNeRF(**shared, **norm)
    model = HierarchicalModel(
        num_coarse_samples=num_coarse_samples,
        num_fine_samples=num_fine_samples,
        quadrature="points",
        contract=False,
    )
    return dataclasses.replace(
        presets.nerf_original(),
        field=field,
        model=model,
        ray_convention=ray_convention,
        precrop_fraction=0.0,
        supersample=1,
    )
