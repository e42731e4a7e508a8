"""The original NeRF's weights: model_NNNNNN.npy and model_fine_NNNNNN.npy, 24 arrays each."""

import re

from jaxrf.convert.files import Content, check_numbers, read_file
from jaxrf.convert.nerf_pytorch import COARSE, CONVENTION, FINE
from jaxrf.convert.networks import (
    Converted,
    Linear,
    Network,
    count_octaves,
    find_skip,
    float32,
    make_config,
    name_networks,
)
from jaxrf.core.errors import InputError

# Layers of the trunk; then bottleneck, view, rgb and density; a kernel and a bias of each.
TRUNK = 8
ARRAYS = 2 * (TRUNK + 4)
NAME = re.compile(r"model_(fine_)?(\d+)\.npy")


def convert(content: Content) -> Converted | None:
    """The weights of such a file and of the one beside it; None if it is of another program."""
    if content.form != "pickled arrays" or len(content.tree) != ARRAYS:
        return None
    contents, notes = find_contents(content)
    networks = [_read_network(each) for each in contents]
    position = count_octaves(networks[-1].trunk[0].kernel.shape[0])
    view, bottleneck = networks[-1].view, networks[-1].bottleneck
    assert view is not None and bottleneck is not None
    direction = count_octaves(view.kernel.shape[0] - bottleneck.kernel.shape[1])
    if position is None or direction is None or direction[1] != position[1]:
        raise InputError(f"{content.path} has layers that take no encodings: it is no NeRF.")
    config = make_config(
        networks[-1],
        position,
        direction[0],
        coarse=COARSE,
        fine=FINE if len(networks) == 2 else 0,
        convention=CONVENTION,
    )
    params = name_networks(networks)
    number = NAME.fullmatch(content.path.name)
    step = int(number[2]) if number else 0
    return Converted("TensorFlow NeRF", config, params, step, notes=notes)


def find_contents(content: Content) -> tuple[list[Content], tuple[str, ...]]:
    """The coarse network's file, and the fine one's if it is beside it; notes if it is not."""
    name = NAME.fullmatch(content.path.name)
    if name is None:
        return [content], ()
    sibling = f"model_{name[2]}.npy" if name[1] else f"model_fine_{name[2]}.npy"
    other = content.path.with_name(sibling)
    if not other.exists():
        return [content], (f"There is no {other} beside it: one network takes all samples.",)
    beside = read_file(other)
    return ([beside, content] if name[1] else [content, beside]), ()


def _read_network(content: Content) -> Network:
    arrays = [float32(array) for array in content.tree]
    check_numbers({f"array {i}": array for i, array in enumerate(arrays)}, content.path)
    shapes = [array.ndim for array in arrays]
    if len(arrays) != ARRAYS or shapes != [2, 1] * (TRUNK + 4):
        raise InputError(
            f"{content.path} holds {len(arrays)} arrays, which are not kernels and biases in turn."
        )
    layers = [Linear(arrays[i], arrays[i + 1]) for i in range(0, ARRAYS, 2)]
    sizes_fit = all(layer.kernel.shape[1] == len(layer.bias) for layer in layers)
    trunk, (bottleneck, view, rgb, density) = tuple(layers[:TRUNK]), layers[TRUNK:]
    if not sizes_fit or (rgb.kernel.shape[1], density.kernel.shape[1]) != (3, 1):
        raise InputError(f"{content.path} holds layers that do not follow on each other.")
    return Network(
        trunk, find_skip(trunk, trunk[0].kernel.shape[0]), density, rgb, bottleneck, view
    )
