"""nerf-pytorch's checkpoints (.tar), and nerfmlp's state dicts, which have other names."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.convert.files import Content, find_states
from jaxrf.convert.networks import (
    Arrays,
    Converted,
    Linear,
    Network,
    count_octaves,
    find_skip,
    float32,
    make_config,
    name_networks,
    read_step,
    take_linear,
)
from jaxrf.core.errors import InputError

# Rays pass the pixels' corners; near and far are along the axis.
CONVENTION = RayConvention(pixel_center=0.0, range_along="axis")
COARSE, FINE = 64, 128
# Names of the layers: density, bottleneck, view.
NAMES = {
    "nerf-pytorch": ("alpha_linear", "feature_linear", "views_linears.0"),
    "nerfmlp": ("sigma_linear", "bottleneck_linear", "view_linear"),
    # It has a factor pi in its encoding.
    "nerfmlp (older)": ("sigma_linear", "feature_linear", "view_linear"),
}


def find_networks(content: Content) -> tuple[str, list[tuple[str, Arrays]]] | None:
    """Which of the programs wrote a file, and its networks, the coarse one first."""
    states = find_states(content.tree)
    for form, names in NAMES.items():
        wanted = {"pts_linears.0.weight", "rgb_linear.weight", *(f"{n}.weight" for n in names)}
        found = [(name, arrays) for name, arrays in states if wanted <= set(arrays)]
        if found:
            return form, _sort(found, content)
    # Without directions there is but one name more, which both have.
    plain = [
        (name, arrays)
        for name, arrays in states
        if {"pts_linears.0.weight", "output_linear.weight"} <= set(arrays)
        and "rgb_linear.weight" not in arrays
    ]
    if not plain:
        return None
    if any("network_f" in name for name, _ in plain):
        return "nerf-pytorch", _sort(plain, content)
    # The older form has its skip one layer earlier.
    encoded = plain[0][1]["pts_linears.0.weight"].shape[1]
    older = plain[0][1].get("pts_linears.4.weight", np.zeros((0, 0))).shape[1] > encoded
    width = plain[0][1]["pts_linears.0.weight"].shape[0]
    older = older and plain[0][1]["pts_linears.4.weight"].shape[1] == encoded + width
    return "nerfmlp (older)" if older else "nerfmlp", _sort(plain, content)


def _sort(found: Sequence[tuple[str, Arrays]], content: Content) -> list[tuple[str, Arrays]]:
    """The one network, or the coarse before the fine one."""
    ordered = sorted(found, key=lambda state: "fine" in state[0])
    fine = sum("fine" in name for name, _ in found)
    if len(found) == 1 or (len(found) == 2 and fine == 1):
        return ordered
    names = ", ".join(name or "its outermost dict" for name, _ in found)
    raise InputError(
        f"{content.path} holds {len(found)} networks ({names}), which are not a coarse and a fine "
        "one: save the one that is meant."
    )


def convert(content: Content) -> Converted | None:
    """The weights of a file of one of these programs; None if it is of another one."""
    found = find_networks(content)
    if found is None:
        return None
    form, states = found
    networks = [read_network(form, arrays, content) for _, arrays in states]
    network = networks[-1]
    position, direction = measure_encodings(form, states[-1][1], content)
    fine = FINE if len(networks) == 2 else 0
    config = make_config(
        network,
        position,
        direction,
        coarse=COARSE,
        fine=fine,
        convention=CONVENTION,
        frequency=math.pi if form == "nerfmlp (older)" else 1.0,
    )
    params = name_networks(networks)
    step = content.tree.get("global_step", 0) if isinstance(content.tree, dict) else 0
    return Converted(form, config, params, read_step(step))


def measure_encodings(form: str, arrays: Arrays, content: Content) -> tuple[tuple[int, bool], int]:
    """Octaves of the position, and whether it is there itself, and octaves of the direction."""
    position = count_octaves(arrays["pts_linears.0.weight"].shape[1])
    if position is None:
        raise InputError(
            f"pts_linears.0 in {content.path} takes {arrays['pts_linears.0.weight'].shape[1]} "
            "numbers, which is no encoding of a position."
        )
    _, bottleneck, view = NAMES[form]
    # Without directions there may be a layer for them nevertheless.
    if "rgb_linear.weight" not in arrays:
        return position, 0
    rest = arrays[f"{view}.weight"].shape[1] - arrays[f"{bottleneck}.weight"].shape[0]
    direction = count_octaves(rest)
    if direction is None or direction[1] != position[1]:
        raise InputError(
            f"{view} in {content.path} takes {rest} numbers of the direction, which is no encoding "
            "like that of the position."
        )
    return position, direction[0]


def read_network(form: str, arrays: Arrays, content: Content) -> Network:
    """A network; its kernels' rows are in our order already."""
    count = sum(name.startswith("pts_linears.") and name.endswith(".weight") for name in arrays)
    try:
        trunk = tuple(take_linear(arrays, f"pts_linears.{index}") for index in range(count))
        skip = find_skip(trunk, trunk[0].kernel.shape[0])
        if "rgb_linear.weight" not in arrays:
            output = take_linear(arrays, "output_linear")
            return Network(trunk, skip, density=_pick(output, 3, 4), rgb=_pick(output, 0, 3))
        density, bottleneck, view = (take_linear(arrays, name) for name in NAMES[form])
        rgb = take_linear(arrays, "rgb_linear")
    except KeyError as error:
        raise InputError(f"{content.path} has no {error}: it is not whole.") from error
    return Network(trunk, skip, density, rgb, bottleneck, view)


def _pick(layer: Linear, start: int, stop: int) -> Linear:
    """Some of a layer's outputs."""
    return Linear(layer.kernel[:, start:stop], layer.bias[start:stop])


def write(network: Network, paired: bool) -> dict[str, Any]:
    """A network as nerf-pytorch's state dict, as arrays.

    If there are two, those without directions have a fifth output there, which nothing reads.
    """
    density, bottleneck, view = NAMES["nerf-pytorch"]
    layers = {f"pts_linears.{index}": layer for index, layer in enumerate(network.trunk)}
    if network.view is None or network.bottleneck is None:
        outputs = [network.rgb, network.density]
        if paired:
            nothing = np.zeros_like(network.density.kernel), np.zeros_like(network.density.bias)
            outputs.append(Linear(*nothing))
        layers["output_linear"] = Linear(
            np.concatenate([output.kernel for output in outputs], axis=1),
            np.concatenate([output.bias for output in outputs]),
        )
        # It is made there in any case.
        half = np.zeros((network.trunk[-1].kernel.shape[1], network.trunk[-1].kernel.shape[1] // 2))
        layers[view] = Linear(float32(half), np.zeros(half.shape[1], np.float32))
    else:
        layers |= {
            view: network.view,
            bottleneck: network.bottleneck,
            density: network.density,
            "rgb_linear": network.rgb,
        }
    state = {}
    for name, layer in layers.items():
        state[f"{name}.weight"] = np.ascontiguousarray(layer.kernel.T)
        state[f"{name}.bias"] = np.asarray(layer.bias)
    return state
