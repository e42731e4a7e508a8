"""State dicts of NeRF-experiments: NeRF and BitNeRF of positions alone."""

import dataclasses

import numpy as np

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.convert.files import Content, find_states, require_keys
from jaxrf.convert.networks import (
    Arrays,
    Converted,
    Linear,
    Network,
    count_octaves,
    float32,
    join_encoded_first,
    make_config,
    permute_rows,
    take_linear,
    to_params,
)
from jaxrf.core.errors import InputError

FORMS = ("NeRF-experiments NeRF", "NeRF-experiments BitNeRF")
# Of positions and lengths alike: directions are not of unit length there.
CONVENTION = RayConvention(pixel_center=0.0, range_along="axis", lengths_along="axis")
SAMPLES = 32
# What torch's RMSNorm adds where nothing else is said.
EPSILON = float(np.finfo(np.float32).eps)


def find_network(content: Content) -> Arrays | None:
    """The state dict of such a file."""
    first, ends = {"layers.0.weight", "layers.0.linear.weight"}, {"input_layer", "output_layer"}
    found = [
        arrays
        for _, arrays in find_states(content.tree)
        if {f"{end}.weight" for end in ends} <= set(arrays) and first & set(arrays)
    ]
    return require_keys(found, content.path)


def convert(content: Content, inclusive: bool = False) -> Converted | None:
    """The weights of such a file; None if it is of another program.

    `inclusive` renders with that program's own transmittance, by which it was trained.
    """
    arrays = find_network(content)
    if arrays is None:
        return None
    ternary = "layers.0.linear.weight" in arrays
    network, position = _read_network(arrays, content, ternary)
    convention = CONVENTION
    if inclusive:
        convention = dataclasses.replace(convention, transmittance="inclusive")
    config = make_config(
        network,
        position,
        0,
        coarse=SAMPLES,
        fine=0,
        convention=convention,
        ternary=ternary,
        norm_epsilon=EPSILON,
    )
    note = (
        "It was trained with a transmittance that includes each sample's own absorption; "
        "--inclusive renders with that."
    )
    return Converted(
        FORMS[ternary], config, {"coarse": to_params(network)}, notes=() if inclusive else (note,)
    )


def _read_network(
    arrays: Arrays, content: Content, ternary: bool
) -> tuple[Network, tuple[int, bool]]:
    projection = take_linear(arrays, "input_layer")
    encoded, width = projection.kernel.shape
    position = count_octaves(encoded)
    output = take_linear(arrays, "output_layer")
    if position is None or output.kernel.shape[1] != 4:
        raise InputError(f"{content.path} has layers that no NeRF of positions has.")
    trunk, index = [], 0
    while f"layers.{index}.{'linear.' * ternary}weight" in arrays:
        layer = take_linear(arrays, f"layers.{index}{'.linear' * ternary}")
        if ternary:
            layer = layer._replace(gain=float32(arrays[f"layers.{index}.norm.weight"]))
        trunk.append(layer)
        index += 1
    wide = [i for i, layer in enumerate(trunk) if layer.kernel.shape[0] == width + encoded]
    if len(wide) > 1:
        raise InputError(
            f"{content.path} joins the encoded position at layers {wide}; jaxrf has one such skip."
        )
    skip = wide[0] if wide else len(trunk)
    if wide:
        order = join_encoded_first(width, range(width, width + encoded))
        trunk[skip] = permute_rows(trunk[skip], order)
    rgb = Linear(output.kernel[:, :3], output.bias[:3])
    density = Linear(output.kernel[:, 3:], output.bias[3:])
    return Network(tuple(trunk), skip, density, rgb, projection=projection), position
