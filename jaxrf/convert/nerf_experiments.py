"""State dicts of NeRF-experiments: NeRF and BitNeRF of positions alone."""

import numpy as np

from jaxrf.convert import ray_conventions
from jaxrf.convert.files.arrays import find_state_dicts, single_or_none
from jaxrf.convert.files.read import Content
from jaxrf.convert.networks import (
    Arrays,
    Converted,
    Linear,
    Network,
    float32,
    make_config,
    make_model_params,
    permute_rows,
    read_linear,
    slice_outputs,
)
from jaxrf.convert.row_order import infer_frequencies, move_encoding_first
from jaxrf.core.errors import InputError

FORMATS = FULL_PRECISION, TERNARY = ("NeRF-experiments NeRF", "NeRF-experiments BitNeRF")
NUM_SAMPLES = 32
# The default of torch's RMSNorm.
NORM_EPSILON = float(np.finfo(np.float32).eps)


def find_network(content: Content) -> Arrays | None:
    """Returns the state dict of a file of NeRF-experiments; None if it is of another program."""
    required = {"input_layer.weight", "output_layer.weight"}
    first_layers = {"layers.0.weight", "layers.0.linear.weight"}
    matches = [
        arrays
        for _, arrays in find_state_dicts(content.tree)
        if required <= set(arrays) and first_layers & set(arrays)
    ]
    return single_or_none(matches, content.path)


def convert(content: Content, inclusive: bool = False) -> Converted | None:
    """Returns the weights of a file of NeRF-experiments; None if it is of another program.

    `inclusive` renders with the transmittance that the program trained with.
    """
    arrays = find_network(content)
    if arrays is None:
        return None
    ternary = "layers.0.linear.weight" in arrays
    network, position_frequencies = _read_network(arrays, content, ternary)
    convention = ray_conventions.NERF_EXPERIMENTS
    if inclusive:
        convention = ray_conventions.NERF_EXPERIMENTS_INCLUSIVE
    config = make_config(
        network,
        position_frequencies,
        0,
        num_coarse_samples=NUM_SAMPLES,
        num_fine_samples=0,
        ray_convention=convention,
        ternary=ternary,
        norm_epsilon=NORM_EPSILON,
    )
    note = (
        "The weights were trained with a transmittance that includes each sample's own "
        "absorption; --inclusive renders with it."
    )
    return Converted(
        TERNARY if ternary else FULL_PRECISION,
        config,
        make_model_params([network]),
        notes=() if inclusive else (note,),
    )


def _read_network(
    arrays: Arrays, content: Content, ternary: bool
) -> tuple[Network, tuple[int, bool]]:
    """Returns a network, the octaves of the position and whether its encoding includes it."""
    projection = read_linear(arrays, "input_layer")
    encoding_size, width = projection.kernel.shape
    position_frequencies = infer_frequencies(encoding_size)
    output = read_linear(arrays, "output_layer")
    if position_frequencies is None or output.kernel.shape[1] != 4:
        raise InputError(
            f"input_layer and output_layer in {content.path} have {encoding_size} inputs and "
            f"{output.kernel.shape[1]} outputs, which no NeRF of positions has: convert another "
            "file."
        )
    trunk = _read_trunk(arrays, ternary)
    skips = [i for i, layer in enumerate(trunk) if layer.kernel.shape[0] == width + encoding_size]
    if len(skips) > 1:
        raise InputError(
            f"The network in {content.path} takes the encoded position again at layers {skips}, "
            "but a NeRF of jaxrf has one skip connection: convert another file."
        )
    skip = skips[0] if skips else len(trunk)
    if skips:
        order = move_encoding_first(width, range(width, width + encoding_size))
        trunk[skip] = permute_rows(trunk[skip], order)
    network = Network(
        tuple(trunk),
        skip,
        density=slice_outputs(output, 3),
        rgb=slice_outputs(output, 0, 3),
        projection=projection,
    )
    return network, position_frequencies


def _read_trunk(arrays: Arrays, ternary: bool) -> list[Linear]:
    trunk: list[Linear] = []
    while f"layers.{len(trunk)}.{'linear.' * ternary}weight" in arrays:
        name = f"layers.{len(trunk)}"
        layer = read_linear(arrays, f"{name}{'.linear' * ternary}")
        if ternary:
            layer = layer._replace(gain=float32(arrays[f"{name}.norm.weight"]))
        trunk.append(layer)
    return trunk
