"""What converters of multilayer perceptrons share: layers, and the order of encodings.

The rows of a layer's kernel stand for its inputs. Programs that encode in another order, or join
the skip connection the other way round, so differ from ours by a permutation of rows alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.training import config as configs
from jaxrf.training.config import BitNeRFConfig, NeRFConfig, TrainConfig

# What a number of an encoding is: "x", "sin" or "cos", of which octave and of which coordinate.
Label = tuple[str, int, int]
Arrays = Mapping[str, np.ndarray]


class Linear(NamedTuple):
    """A linear layer, y = x kernel + bias; of a ternary one also the gain of its inputs."""

    kernel: Float[np.ndarray, "i o"]
    bias: Float[np.ndarray, "o"]
    gain: Float[np.ndarray, "i"] | None = None


class Network(NamedTuple):
    """A NeRF's layers, the rows of their kernels in our order.

    projection: without activation, before the trunk, if there is one.
    trunk: with ReLUs; of these the layer `skip` takes the encoded position first, then what the
      layer before gives.
    density, rgb: the heads.
    bottleneck, view: before the rgb head, if colour depends on the direction.
    """

    trunk: tuple[Linear, ...]
    skip: int
    density: Linear
    rgb: Linear
    bottleneck: Linear | None = None
    view: Linear | None = None
    projection: Linear | None = None


class ConvertedGrid(NamedTuple):
    """A grid that a file holds.

    aabb: its box.
    occupied: which cells may hold anything.
    resolution: points along sides.
    pruned: whether cells were dropped.
    """

    aabb: Float[np.ndarray, "2 3"]
    occupied: Bool[np.ndarray, "x y z"]
    resolution: tuple[int, int, int]
    pruned: bool = False


class Converted(NamedTuple):
    """Weights of another program, ready to become a run.

    form: what wrote them.
    config: that renders as that program does.
    params: of the field.
    step: how long they were trained, as far as the file says.
    near, far: between which that program looks if no data set says otherwise.
    notes: what the user should know, a sentence each.
    grid: of the field, if it has one.
    encoding: for each number of our encoding of a position which it is of that program's.
    """

    form: str
    config: TrainConfig
    params: Any
    step: int = 0
    near: float = 2.0
    far: float = 6.0
    notes: tuple[str, ...] = ()
    grid: ConvertedGrid | None = None
    encoding: tuple[int, ...] = ()


def take_linear(arrays: Arrays, name: str) -> Linear:
    """A layer of PyTorch's, whose weight is (out, in)."""
    return Linear(float32(arrays[f"{name}.weight"].T), float32(arrays[f"{name}.bias"]))


def stack_layers(layers: Sequence[Linear]) -> dict[str, Any]:
    """Layers as the parameters of an `MLP`."""
    named = {
        f"Dense_{index}": {"kernel": float32(layer.kernel), "bias": float32(layer.bias)}
        for index, layer in enumerate(layers)
    }
    return {"params": named}


def name_networks(networks: Sequence[Network]) -> dict[str, Any]:
    """Parameters of one network, or of a coarse and a fine one."""
    names = ("coarse", "fine")[: len(networks)]
    return {name: to_params(network) for name, network in zip(names, networks, strict=True)}


def read_step(value: Any) -> int:
    """How many steps a file says it was trained for; 0 if it says nothing that is a number."""
    return int(value) if isinstance(value, int | float | np.number) else 0


def float32(array: Any) -> np.ndarray:
    """A copy in float32, rows one after the other."""
    return np.ascontiguousarray(array, np.float32)


def input_labels(octaves: int, include_input: bool = True) -> list[Label]:
    """The order of `encodings.fourier`: x, then sines and cosines of one octave after the other."""
    labels = [("x", 0, axis) for axis in range(3)] if include_input else []
    for octave in range(octaves):
        labels += [(what, octave, axis) for what in ("sin", "cos") for axis in range(3)]
    return labels


def label_by_coordinate(octaves: int) -> list[Label]:
    """All of x, then all of y, then all of z."""
    labels: list[Label] = []
    for axis in range(3):
        labels.append(("x", 0, axis))
        for octave in range(octaves):
            labels += [("sin", octave, axis), ("cos", octave, axis)]
    return labels


def label_sines_first(octaves: int) -> list[Label]:
    """x, then the sines of all octaves, then the cosines (jaxnerf)."""
    labels = [("x", 0, axis) for axis in range(3)]
    for what in ("sin", "cos"):
        labels += [(what, octave, axis) for octave in range(octaves) for axis in range(3)]
    return labels


def permute_rows(layer: Linear, order: Sequence[int]) -> Linear:
    """The layer for inputs in another order: its row i is row order[i] of the given one."""
    gain = None if layer.gain is None else layer.gain[list(order)]
    return layer._replace(kernel=float32(layer.kernel[list(order)]), gain=gain)


def find_order(theirs: Sequence[Label], ours: Sequence[Label], start: int = 0) -> list[int]:
    """Where each of our numbers is among theirs, which begin at row `start`."""
    place = {label: start + index for index, label in enumerate(theirs)}
    return [place[label] for label in ours]


def join_encoded_first(width: int, encoded: Sequence[int]) -> list[int]:
    """Rows of [encoded, hidden] out of [hidden, encoded], the encoded ones being at `encoded`."""
    return [*encoded, *range(width)]


def count_octaves(inputs: int) -> tuple[int, bool] | None:
    """Octaves of an encoding of three coordinates by its size, and whether it holds them too."""
    if inputs >= 3 and (inputs - 3) % 6 == 0:
        return (inputs - 3) // 6, True
    return (inputs // 6, False) if inputs > 0 and inputs % 6 == 0 else None


def find_skip(trunk: Sequence[Linear], encoded: int) -> int:
    """Which layer takes the encoded position again; the number of layers if none does."""
    for index, layer in enumerate(trunk):
        if index and layer.kernel.shape[0] == trunk[index - 1].kernel.shape[1] + encoded:
            return index
    return len(trunk)


def to_params(network: Network) -> dict[str, Any]:
    """A network's parameters as `fields.nerf` has them."""

    def layer(linear: Linear) -> dict[str, np.ndarray]:
        found = {"kernel": float32(linear.kernel), "bias": float32(linear.bias)}
        return found if linear.gain is None else found | {"gain": float32(linear.gain)}

    params = {f"trunk_{index}": layer(linear) for index, linear in enumerate(network.trunk)}
    params |= {"density_head": layer(network.density), "rgb_head": layer(network.rgb)}
    named = {
        "bottleneck": network.bottleneck,
        "view": network.view,
        "projection": network.projection,
    }
    return {"params": params | {name: layer(part) for name, part in named.items() if part}}


def from_params(params: Mapping[str, Any], skip: int) -> Network:
    """The network that `to_params` was given."""
    layers = params["params"]

    def layer(name: str) -> Linear:
        found = layers[name]
        gain = found.get("gain")
        return Linear(
            np.asarray(found["kernel"]),
            np.asarray(found["bias"]),
            None if gain is None else np.asarray(gain),
        )

    count = sum(name.startswith("trunk_") for name in layers)
    optional = {
        name: layer(name) for name in ("bottleneck", "view", "projection") if name in layers
    }
    return Network(
        trunk=tuple(layer(f"trunk_{index}") for index in range(count)),
        skip=skip,
        density=layer("density_head"),
        rgb=layer("rgb_head"),
        **optional,
    )


def make_config(
    network: Network,
    position: tuple[int, bool],
    direction: int,
    *,
    coarse: int,
    fine: int,
    convention: RayConvention,
    frequency: float = 1.0,
    ternary: bool = False,
    norm_epsilon: float = 1e-6,
) -> TrainConfig:
    """The configuration of a network, sampled at points as NeRF's code does, with a ReLU density.

    Args:
      network: its sizes are taken.
      position: octaves of the position's encoding, and whether it holds the position too.
      direction: octaves of the direction's.
      coarse, fine: samples.
      convention: of the program.
      frequency: the lowest of the encodings'.
      ternary: as a BitNeRF whose projection and heads are plain.
      norm_epsilon: of its normalisation.
    """
    octaves, include_input = position
    shared: dict[str, Any] = {
        "layers": len(network.trunk),
        "width": network.trunk[0].kernel.shape[1],
        "skip": network.skip,
        "color_width": 1 if network.view is None else network.view.kernel.shape[1],
        "use_directions": network.view is not None,
        "num_position_frequencies": octaves,
        "num_direction_frequencies": direction,
        "encode_input": include_input,
        "frequency": frequency,
        "project": network.projection is not None,
        "activation": "relu",
        "num_coarse_samples": coarse,
        "num_fine_samples": fine,
        "quadrature": "points",
        "contract": False,
        "convention": convention,
    }
    field: NeRFConfig | BitNeRFConfig = NeRFConfig(**shared)
    if ternary:
        norm: dict[str, Any] = {
            "norm_gain": True,
            "norm_epsilon": norm_epsilon,
            "full_precision_io": True,
        }
        field = BitNeRFConfig(**shared, **norm)
    original = configs.nerf_original()
    return dataclasses.replace(original, field=field, precrop_fraction=0.0, supersample=1)
