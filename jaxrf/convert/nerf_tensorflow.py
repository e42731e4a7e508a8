"""The original NeRF's weights: model_NNNNNN.npy and model_fine_NNNNNN.npy, 24 arrays each."""

import re

from jaxrf.convert import ray_conventions
from jaxrf.convert.files.arrays import check_finite
from jaxrf.convert.files.read import Content, read_file
from jaxrf.convert.nerf_pytorch import NUM_COARSE_SAMPLES, NUM_FINE_SAMPLES
from jaxrf.convert.networks import (
    Converted,
    Linear,
    Network,
    find_skip,
    float32,
    make_config,
    make_model_params,
)
from jaxrf.convert.row_order import infer_frequencies
from jaxrf.core.errors import InputError

FORMAT = "TensorFlow NeRF"
# Layers of the trunk; bottleneck, view, rgb and density follow. Each has a kernel and a bias.
TRUNK_DEPTH = 8
NUM_ARRAYS = 2 * (TRUNK_DEPTH + 4)
FILE_NAME = re.compile(r"model_(fine_)?(\d+)\.npy")


def convert(content: Content) -> Converted | None:
    """Returns the weights of a file and of its sibling; None if it is of another program."""
    if content.file_format != "npy" or len(content.tree) != NUM_ARRAYS:
        return None
    contents, notes = read_siblings(content)
    networks = [_read_network(file) for file in contents]
    position = infer_frequencies(networks[-1].trunk[0].kernel.shape[0])
    view, bottleneck = networks[-1].view, networks[-1].bottleneck
    assert view is not None and bottleneck is not None
    direction = infer_frequencies(view.kernel.shape[0] - bottleneck.kernel.shape[1])
    if position is None or direction is None or direction[1] != position[1]:
        raise InputError(
            f"The layers in {content.path} take no encodings of positions and directions, as those "
            "of a NeRF do: convert another file."
        )
    config = make_config(
        networks[-1],
        position,
        direction[0],
        num_coarse_samples=NUM_COARSE_SAMPLES,
        num_fine_samples=NUM_FINE_SAMPLES if len(networks) == 2 else 0,
        ray_convention=ray_conventions.NERF,
    )
    name = FILE_NAME.fullmatch(content.path.name)
    step = int(name[2]) if name else 0
    return Converted(FORMAT, config, make_model_params(networks), step, notes=notes)


def read_siblings(content: Content) -> tuple[list[Content], tuple[str, ...]]:
    """Returns the coarse network's file before the fine one's, and notes for the user.

    The other file is in the same folder; without it there is one network.
    """
    name = FILE_NAME.fullmatch(content.path.name)
    if name is None:
        return [content], ()
    sibling = f"model_{name[2]}.npy" if name[1] else f"model_fine_{name[2]}.npy"
    path = content.path.with_name(sibling)
    if not path.exists():
        return [content], (f"There is no {path}: one network takes all samples.",)
    other = read_file(path)
    return ([other, content] if name[1] else [content, other]), ()


def _read_network(content: Content) -> Network:
    arrays = [float32(array) for array in content.tree]
    check_finite({f"array {i}": array for i, array in enumerate(arrays)}, content.path)
    ranks = [array.ndim for array in arrays]
    if len(arrays) != NUM_ARRAYS or ranks != [2, 1] * (TRUNK_DEPTH + 4):
        raise InputError(
            f"{content.path} holds {len(arrays)} arrays, which do not alternate between "
            f"{NUM_ARRAYS // 2} kernels and their biases: it is damaged."
        )
    layers = [Linear(arrays[i], arrays[i + 1]) for i in range(0, NUM_ARRAYS, 2)]
    trunk, (bottleneck, view, rgb, density) = tuple(layers[:TRUNK_DEPTH]), layers[TRUNK_DEPTH:]
    biases_fit = all(layer.kernel.shape[1] == len(layer.bias) for layer in layers)
    if not biases_fit or (rgb.kernel.shape[1], density.kernel.shape[1]) != (3, 1):
        raise InputError(
            f"The shapes of kernels and biases in {content.path} do not fit: it is damaged."
        )
    skip = find_skip(trunk, trunk[0].kernel.shape[0])
    return Network(trunk, skip, density, rgb, bottleneck, view)
