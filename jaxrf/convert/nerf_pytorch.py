"""nerf-pytorch's checkpoints (.tar), and nerfmlp's state dicts, which have other names."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrf.convert import ray_conventions
from jaxrf.convert.files.arrays import find_state_dicts, read_step
from jaxrf.convert.files.read import Content
from jaxrf.convert.networks import (
    Arrays,
    Converted,
    Linear,
    Network,
    find_skip,
    float32,
    make_config,
    make_model_params,
    read_linear,
    slice_outputs,
)
from jaxrf.convert.row_order import infer_frequencies
from jaxrf.core.errors import InputError

NUM_COARSE_SAMPLES, NUM_FINE_SAMPLES = 64, 128


class HeadNames(NamedTuple):
    """The names of layers in which the programs differ."""

    density: str
    bottleneck: str
    view: str


NERF_PYTORCH, NERFMLP, OLDER_NERFMLP = "nerf-pytorch", "nerfmlp", "nerfmlp (older)"
HEAD_NAMES = {
    NERF_PYTORCH: HeadNames("alpha_linear", "feature_linear", "views_linears.0"),
    NERFMLP: HeadNames("sigma_linear", "bottleneck_linear", "view_linear"),
    OLDER_NERFMLP: HeadNames("sigma_linear", "feature_linear", "view_linear"),
}
# The lowest frequency of the encodings.
FREQUENCY = {NERF_PYTORCH: 1.0, NERFMLP: 1.0, OLDER_NERFMLP: math.pi}


def find_networks(content: Content) -> tuple[str, list[tuple[str, Arrays]]] | None:
    """Returns the program that wrote a file, and (name, arrays) of its networks, coarse first."""
    states = find_state_dicts(content.tree)
    for program, heads in HEAD_NAMES.items():
        required = {"pts_linears.0.weight", "rgb_linear.weight", *(f"{n}.weight" for n in heads)}
        matches = [(name, arrays) for name, arrays in states if required <= set(arrays)]
        if matches:
            return program, _sort_coarse_first(matches, content)
    # Without directions, networks of all programs have the same names.
    matches = [
        (name, arrays)
        for name, arrays in states
        if {"pts_linears.0.weight", "output_linear.weight"} <= set(arrays)
        and "rgb_linear.weight" not in arrays
    ]
    if not matches:
        return None
    program = NERFMLP
    if any("network_f" in name for name, _ in matches):
        program = NERF_PYTORCH
    elif _skips_into_layer_4(matches[0][1]):
        program = OLDER_NERFMLP
    return program, _sort_coarse_first(matches, content)


def _skips_into_layer_4(arrays: Arrays) -> bool:
    """Whether the encoded position joins at layer 4; the programs' later versions have it at 5."""
    width, encoding_size = arrays["pts_linears.0.weight"].shape
    layer = arrays.get("pts_linears.4.weight", np.zeros((0, 0)))
    return bool(layer.shape[1] == encoding_size + width)


def _sort_coarse_first(
    networks: Sequence[tuple[str, Arrays]], content: Content
) -> list[tuple[str, Arrays]]:
    """Returns the only network, or the coarse before the fine one; InputError for other sets."""
    num_fine = sum("fine" in name for name, _ in networks)
    if len(networks) == 1 or (len(networks) == 2 and num_fine == 1):
        return sorted(networks, key=lambda state: "fine" in state[0])
    names = ", ".join(name or "its outermost dict" for name, _ in networks)
    raise InputError(
        f"{content.path} holds {len(networks)} networks ({names}), which are not one coarse and "
        "one fine network: save only the ones to convert."
    )


def convert(content: Content) -> Converted | None:
    """Returns the weights of a file of one of these programs; None if it is of another one."""
    match = find_networks(content)
    if match is None:
        return None
    program, states = match
    networks = [read_network(program, arrays, content) for _, arrays in states]
    position, num_direction_frequencies = infer_encodings(program, states[-1][1], content)
    config = make_config(
        networks[-1],
        position,
        num_direction_frequencies,
        num_coarse_samples=NUM_COARSE_SAMPLES,
        num_fine_samples=NUM_FINE_SAMPLES if len(networks) == 2 else 0,
        ray_convention=ray_conventions.NERF,
        frequency=FREQUENCY[program],
    )
    step = content.tree.get("global_step", 0) if isinstance(content.tree, dict) else 0
    return Converted(program, config, make_model_params(networks), read_step(step))


def infer_encodings(program: str, arrays: Arrays, content: Content) -> tuple[tuple[int, bool], int]:
    """Returns the octaves of the position, whether its encoding includes it, and the direction's.

    Raises:
      InputError: if layers take inputs that are no encodings.
    """
    encoding_size = arrays["pts_linears.0.weight"].shape[1]
    position = infer_frequencies(encoding_size)
    if position is None:
        raise InputError(
            f"pts_linears.0 in {content.path} takes {encoding_size} numbers, which is no encoding "
            "of a position: convert another file."
        )
    # A network without directions may have an unused view layer.
    if "rgb_linear.weight" not in arrays:
        return position, 0
    heads = HEAD_NAMES[program]
    bottleneck_width = arrays[f"{heads.bottleneck}.weight"].shape[0]
    encoding_size = arrays[f"{heads.view}.weight"].shape[1] - bottleneck_width
    direction = infer_frequencies(encoding_size)
    if direction is None or direction[1] != position[1]:
        raise InputError(
            f"{heads.view} in {content.path} takes {encoding_size} numbers of the direction, which "
            "is no encoding like that of the position: convert another file."
        )
    return position, direction[0]


def read_network(program: str, arrays: Arrays, content: Content) -> Network:
    """Returns a network; the rows of its kernels are in our order already."""
    depth = sum(name.startswith("pts_linears.") and name.endswith(".weight") for name in arrays)
    heads = HEAD_NAMES[program]
    try:
        trunk = tuple(read_linear(arrays, f"pts_linears.{index}") for index in range(depth))
        skip = find_skip(trunk, trunk[0].kernel.shape[0])
        if "rgb_linear.weight" not in arrays:
            output = read_linear(arrays, "output_linear")
            return Network(
                trunk, skip, density=slice_outputs(output, 3, 4), rgb=slice_outputs(output, 0, 3)
            )
        return Network(
            trunk,
            skip,
            density=read_linear(arrays, heads.density),
            rgb=read_linear(arrays, "rgb_linear"),
            bottleneck=read_linear(arrays, heads.bottleneck),
            view=read_linear(arrays, heads.view),
        )
    except KeyError as error:
        raise InputError(f"{content.path} is incomplete: it has no {error}.") from error


def to_state_dict(network: Network, has_fine_network: bool) -> dict[str, Any]:
    """Returns a network as nerf-pytorch's state dict of arrays.

    Without directions, nerf-pytorch's networks have a fifth output if there is a fine network.
    Nothing uses it, so it is zero.
    """
    heads = HEAD_NAMES[NERF_PYTORCH]
    layers = {f"pts_linears.{index}": layer for index, layer in enumerate(network.trunk)}
    if network.view is None or network.bottleneck is None:
        outputs = [network.rgb, network.density]
        if has_fine_network:
            fifth = np.zeros_like(network.density.kernel), np.zeros_like(network.density.bias)
            outputs.append(Linear(*fifth))
        layers["output_linear"] = Linear(
            np.concatenate([output.kernel for output in outputs], axis=1),
            np.concatenate([output.bias for output in outputs]),
        )
        # nerf-pytorch creates the view layer in any case.
        width = network.trunk[-1].kernel.shape[1]
        unused = np.zeros((width, width // 2))
        layers[heads.view] = Linear(float32(unused), np.zeros(width // 2, np.float32))
    else:
        layers |= {
            heads.view: network.view,
            heads.bottleneck: network.bottleneck,
            heads.density: network.density,
            "rgb_linear": network.rgb,
        }
    state = {}
    for name, layer in layers.items():
        state[f"{name}.weight"] = np.ascontiguousarray(layer.kernel.T)
        state[f"{name}.bias"] = np.asarray(layer.bias)
    return state
