"""Small NeRFs: NeRF-from-scratch's, and the two of Jiayi Pan's course project."""

import dataclasses
import math
import re

from jaxrf.convert import ray_conventions
from jaxrf.convert.files.arrays import find_state_dicts, single_or_none
from jaxrf.convert.files.read import Content
from jaxrf.convert.networks import (
    Arrays,
    Converted,
    Linear,
    Network,
    make_config,
    make_model_params,
    permute_rows,
    read_linear,
    slice_outputs,
)
from jaxrf.convert.row_order import (
    find_permutation,
    infer_frequencies,
    input_labels,
    label_by_coordinate,
)
from jaxrf.training.config import TrainConfig

SCRATCH, BASIC, TINY = "NeRF-from-scratch", "Jiayi Pan's NeRF", "Jiayi Pan's tiny NeRF"
NUM_SAMPLES = {SCRATCH: 64, BASIC: 64, TINY: 32}
# NeRF-from-scratch multiplies positions by this before it encodes them.
SCRATCH_FREQUENCY = math.pi


def convert(content: Content) -> Converted | None:
    """Returns the weights of a file of one of these programs; None if it is of another one."""
    readers = (_convert_basic, _convert_tiny, _convert_scratch)
    matches = [
        converted
        for arrays in list_states(content)
        for read in readers
        if (converted := read(arrays))
    ]
    return single_or_none(matches, content.path)


def list_states(content: Content) -> list[Arrays]:
    """Returns all state dicts of a file, with "fc_1.0.weight" renamed to "fc_1.weight".

    Some networks wrap a layer and its activation in a sequence, in which the layer is element 0.
    """
    pattern = re.compile(r"^(fc_\w+|layer\d+|sigma|rgb)\.0\.")
    return [
        {pattern.sub(r"\1.", name): array for name, array in arrays.items()}
        for _, arrays in find_state_dicts(content.tree)
    ]


def _has(arrays: Arrays, *names: str) -> bool:
    return {f"{name}.weight" for name in names} <= set(arrays)


def _convert_basic(arrays: Arrays) -> Converted | None:
    """Four layers, a skip into the third, and a head that sees directions."""
    if not _has(arrays, "fc_1", "fc_2", "fc_3", "fc_4", "sigma", "fc_noact", "fc_dir", "rgb"):
        return None
    trunk = [read_linear(arrays, f"fc_{index}") for index in range(1, 5)]
    encoding_size, width = trunk[0].kernel.shape
    bottleneck, view = read_linear(arrays, "fc_noact"), read_linear(arrays, "fc_dir")
    position = infer_frequencies(encoding_size)
    direction = infer_frequencies(view.kernel.shape[0] - width)
    if not position or not direction or trunk[2].kernel.shape[0] != encoding_size + width:
        return None
    position_order = _encoding_order(position[0])
    direction_order = _encoding_order(direction[0], start=width)
    trunk[0] = permute_rows(trunk[0], position_order)
    hidden_rows = range(encoding_size, encoding_size + width)
    trunk[2] = permute_rows(trunk[2], [*position_order, *hidden_rows])
    network = Network(
        trunk=tuple(trunk),
        skip=2,
        density=read_linear(arrays, "sigma"),
        rgb=read_linear(arrays, "rgb"),
        bottleneck=bottleneck,
        view=permute_rows(view, [*range(width), *direction_order]),
    )
    config = _make_config(BASIC, network, (position[0], True), direction[0])
    return _make_converted(BASIC, _on_black(config), network, position_order)


def _convert_tiny(arrays: Arrays) -> Converted | None:
    """Two layers, and one head of color and density."""
    if not _has(arrays, "layer1", "layer2", "layer3"):
        return None
    trunk = [read_linear(arrays, f"layer{index}") for index in (1, 2)]
    output, position = read_linear(arrays, "layer3"), infer_frequencies(trunk[0].kernel.shape[0])
    if position is None or output.kernel.shape[1] != 4:
        return None
    position_order = _encoding_order(position[0])
    trunk[0] = permute_rows(trunk[0], position_order)
    network = _make_network(trunk, output)
    config = _make_config(TINY, network, (position[0], True), 0)
    return _make_converted(TINY, _on_black(config), network, position_order)


def _convert_scratch(arrays: Arrays) -> Converted | None:
    """Linear layers numbered 0, 2, 4, ..., with ReLUs between them."""
    numbers = sorted(
        int(name.split(".")[1])
        for name in arrays
        if name.startswith("layers.") and name.endswith(".weight") and name.count(".") == 2
    )
    if len(numbers) < 2 or numbers != list(range(0, 2 * len(numbers), 2)):
        return None
    *trunk, output = (read_linear(arrays, f"layers.{number}") for number in numbers)
    position = infer_frequencies(trunk[0].kernel.shape[0])
    if position is None or output.kernel.shape[1] != 4:
        return None
    network = _make_network(trunk, output)
    config = _make_config(SCRATCH, network, position, 0, SCRATCH_FREQUENCY)
    return _make_converted(SCRATCH, config, network, [])


def _encoding_order(num_frequencies: int, start: int = 0) -> list[int]:
    return find_permutation(
        label_by_coordinate(num_frequencies), input_labels(num_frequencies), start
    )


def _make_network(trunk: list[Linear], output: Linear) -> Network:
    """Returns a network whose last layer has the outputs r, g, b and density."""
    return Network(
        tuple(trunk),
        skip=len(trunk),
        density=slice_outputs(output, 3),
        rgb=slice_outputs(output, 0, 3),
    )


def _make_config(
    program: str,
    network: Network,
    position_frequencies: tuple[int, bool],
    num_direction_frequencies: int,
    frequency: float = 1.0,
) -> TrainConfig:
    return make_config(
        network,
        position_frequencies,
        num_direction_frequencies,
        num_coarse_samples=NUM_SAMPLES[program],
        num_fine_samples=0,
        ray_convention=ray_conventions.SMALL_NERFS,
        frequency=frequency,
    )


def _on_black(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, background="black")


def _make_converted(
    program: str, config: TrainConfig, network: Network, encoding_order: list[int]
) -> Converted:
    params = make_model_params([network])
    return Converted(program, config, params, encoding_order=tuple(encoding_order))
