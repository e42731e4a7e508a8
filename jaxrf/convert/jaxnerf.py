"""jaxnerf's checkpoints: flax msgpack with a coarse and a fine network."""

from typing import Any

import numpy as np

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.convert.files import Content
from jaxrf.convert.networks import (
    Converted,
    Linear,
    Network,
    count_octaves,
    find_order,
    find_skip,
    float32,
    input_labels,
    join_encoded_first,
    label_sines_first,
    make_config,
    name_networks,
    permute_rows,
)
from jaxrf.core.errors import InputError

CONVENTION = RayConvention(pixel_center=0.0, range_along="axis")
COARSE, FINE = 64, 128
# The heads come after the trunk.
HEADS = ("density", "bottleneck", "view", "rgb")
# What optimisers keep has the shape of networks, too.
MOMENTS = ("opt_state", "param_states", "mu", "nu")


def convert(content: Content, legacy_order: bool = False) -> Converted | None:
    """The weights of such a file; None if it is of another program.

    `legacy_order` is jaxnerf's option of that name for encodings, of which weights tell nothing.
    """
    found = find_networks(content.tree)
    if found is None:
        return None
    read = [
        _read_network(found[name], f"{name} of {content.path}", legacy_order)
        for name in sorted(found)
    ]
    networks, sizes = [network for network, *_ in read], read[-1][1:]
    config = make_config(
        networks[-1],
        (sizes[0], True),
        sizes[1],
        coarse=COARSE,
        fine=FINE if len(networks) == 2 else 0,
        convention=CONVENTION,
    )
    params = name_networks(networks)
    note = "Encodings are taken to be in jaxnerf's legacy order."
    if not legacy_order:
        note = (
            "Encodings are taken to be in jaxnerf's default order, all sines before all cosines; "
            "--legacy-order is the other."
        )
    optimizer = content.tree.get("optimizer")
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    step = state.get("step", 0) if isinstance(state, dict) else 0
    label = input_labels if legacy_order else label_sines_first
    order = find_order(label(sizes[0]), input_labels(sizes[0]))
    step = int(np.asarray(step))
    return Converted("jaxnerf", config, params, step, notes=(note,), encoding=tuple(order))


def find_networks(tree: Any) -> dict[str, Any] | None:
    """The dict that holds MLP_0 and MLP_1, wherever it is; not the optimiser's moments of it."""
    if not isinstance(tree, dict):
        return None
    if "target" in tree:
        return find_networks(tree["target"])
    found = {
        name: part
        for name, part in tree.items()
        if name in ("MLP_0", "MLP_1") and isinstance(part, dict) and "Dense_0" in part
    }
    if found:
        return found
    for name, part in tree.items():
        if name in MOMENTS:
            continue
        if below := find_networks(part):
            return below
    return None


def _read_network(
    layers: dict[str, Any], where: str, legacy_order: bool
) -> tuple[Network, int, int]:
    """A network, and the octaves of position and direction."""
    count = len(layers)
    try:
        dense = [
            Linear(float32(layers[f"Dense_{i}"]["kernel"]), float32(layers[f"Dense_{i}"]["bias"]))
            for i in range(count)
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"{where} is not whole: it has no {error}.") from error
    if count < len(HEADS) + 1:
        raise InputError(f"{where} has {count} layers, too few for a NeRF with directions.")
    trunk = dense[: -len(HEADS)]
    density, bottleneck, view, rgb = dense[-len(HEADS) :]
    position = count_octaves(trunk[0].kernel.shape[0])
    direction = count_octaves(view.kernel.shape[0] - bottleneck.kernel.shape[1])
    if not (position and direction and position[1] and direction[1]):
        raise InputError(
            f"{where} has layers that take no encodings of jaxnerf, or no directions, which jaxrf "
            "takes of jaxnerf alone."
        )
    label = input_labels if legacy_order else label_sines_first
    octaves, across = position[0], direction[0]
    trunk[0] = permute_rows(trunk[0], find_order(label(octaves), input_labels(octaves)))
    skip = find_skip(trunk, trunk[0].kernel.shape[0])
    if skip < len(trunk):
        width = trunk[skip - 1].kernel.shape[1]
        encoded = find_order(label(octaves), input_labels(octaves), start=width)
        trunk[skip] = permute_rows(trunk[skip], join_encoded_first(width, encoded))
    width = bottleneck.kernel.shape[1]
    seen = find_order(label(across), input_labels(across), start=width)
    view = permute_rows(view, [*range(width), *seen])
    return Network(tuple(trunk), skip, density, rgb, bottleneck, view), octaves, across
