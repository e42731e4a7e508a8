"""jaxnerf's checkpoints: flax msgpack with a coarse and a fine network."""

from typing import Any

import numpy as np

from jaxrf.convert import ray_conventions
from jaxrf.convert.files.read import Content
from jaxrf.convert.networks import (
    Converted,
    Linear,
    Network,
    find_skip,
    float32,
    make_config,
    make_model_params,
    permute_rows,
)
from jaxrf.convert.row_order import (
    find_permutation,
    infer_frequencies,
    input_labels,
    label_sines_first,
    move_encoding_first,
)
from jaxrf.core.errors import InputError

NUM_COARSE_SAMPLES, NUM_FINE_SAMPLES = 64, 128
# The heads come after the trunk.
HEADS = ("density", "bottleneck", "view", "rgb")
# Optimizer states have the same tree as the networks.
OPTIMIZER_STATE_KEYS = ("opt_state", "param_states", "mu", "nu")


def convert(content: Content, legacy_order: bool = False) -> Converted | None:
    """Returns the weights of a file of jaxnerf; None if it is of another program.

    `legacy_order` is jaxnerf's option of that name for encodings, which files do not record.
    """
    layers_of = find_networks(content.tree)
    if layers_of is None:
        return None
    networks_and_frequencies = [
        _read_network(layers_of[name], f"{name} of {content.path}", legacy_order)
        for name in sorted(layers_of)
    ]
    networks = [network for network, *_ in networks_and_frequencies]
    _, num_position_frequencies, num_direction_frequencies = networks_and_frequencies[-1]
    config = make_config(
        networks[-1],
        (num_position_frequencies, True),
        num_direction_frequencies,
        num_coarse_samples=NUM_COARSE_SAMPLES,
        num_fine_samples=NUM_FINE_SAMPLES if len(networks) == 2 else 0,
        ray_convention=ray_conventions.JAXNERF,
    )
    note = "Encodings are taken to be in jaxnerf's legacy order."
    if not legacy_order:
        note = (
            "Encodings are taken to be in jaxnerf's default order, all sines before all cosines; "
            "--legacy-order is the other."
        )
    label = input_labels if legacy_order else label_sines_first
    encoding_order = find_permutation(
        label(num_position_frequencies), input_labels(num_position_frequencies)
    )
    return Converted(
        "jaxnerf",
        config,
        make_model_params(networks),
        _find_step(content.tree),
        notes=(note,),
        encoding_order=tuple(encoding_order),
    )


def find_networks(tree: Any) -> dict[str, Any] | None:
    """Returns the dict of MLP_0 and MLP_1, without the optimizer's moments of it."""
    if not isinstance(tree, dict):
        return None
    if "target" in tree:
        return find_networks(tree["target"])
    networks = {
        name: part
        for name, part in tree.items()
        if name in ("MLP_0", "MLP_1") and isinstance(part, dict) and "Dense_0" in part
    }
    if networks:
        return networks
    for name, part in tree.items():
        if name in OPTIMIZER_STATE_KEYS:
            continue
        if nested := find_networks(part):
            return nested
    return None


def _find_step(tree: dict[str, Any]) -> int:
    optimizer = tree.get("optimizer")
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    return int(np.asarray(state.get("step", 0) if isinstance(state, dict) else 0))


def _read_network(
    layers: dict[str, Any], name: str, legacy_order: bool
) -> tuple[Network, int, int]:
    """Returns a network and the octaves of position and direction; errors name it by `name`."""
    dense = _read_layers(layers, name)
    trunk = dense[: -len(HEADS)]
    density, bottleneck, view, rgb = dense[-len(HEADS) :]
    position = infer_frequencies(trunk[0].kernel.shape[0])
    direction = infer_frequencies(view.kernel.shape[0] - bottleneck.kernel.shape[1])
    if not (position and direction and position[1] and direction[1]):
        raise InputError(
            f"{name} takes no encodings of positions and directions as jaxnerf makes them: "
            "convert a network that sees directions."
        )
    num_position_frequencies, num_direction_frequencies = position[0], direction[0]
    label = input_labels if legacy_order else label_sines_first

    def encoding_rows(num_frequencies: int, start: int) -> list[int]:
        return find_permutation(label(num_frequencies), input_labels(num_frequencies), start)

    trunk[0] = permute_rows(trunk[0], encoding_rows(num_position_frequencies, 0))
    skip = find_skip(trunk, trunk[0].kernel.shape[0])
    if skip < len(trunk):
        width = trunk[skip - 1].kernel.shape[1]
        rows = encoding_rows(num_position_frequencies, start=width)
        trunk[skip] = permute_rows(trunk[skip], move_encoding_first(width, rows))
    width = bottleneck.kernel.shape[1]
    direction_rows = encoding_rows(num_direction_frequencies, start=width)
    view = permute_rows(view, [*range(width), *direction_rows])
    network = Network(tuple(trunk), skip, density, rgb, bottleneck, view)
    return network, num_position_frequencies, num_direction_frequencies


def _read_layers(layers: dict[str, Any], name: str) -> list[Linear]:
    try:
        dense = [
            Linear(float32(layers[f"Dense_{i}"]["kernel"]), float32(layers[f"Dense_{i}"]["bias"]))
            for i in range(len(layers))
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"{name} is incomplete: it has no {error}.") from error
    if len(dense) < len(HEADS) + 1:
        raise InputError(
            f"{name} has {len(dense)} layers, too few for a NeRF with directions: convert a "
            "checkpoint of jaxnerf's full model."
        )
    return dense
