"""Small NeRFs: NeRF-from-scratch's, and the two of Jiayi Pan's course project."""

import dataclasses
import math
import re

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.convert.files import Content, find_states, require_keys
from jaxrf.convert.networks import (
    Arrays,
    Converted,
    Linear,
    Network,
    count_octaves,
    find_order,
    input_labels,
    label_by_coordinate,
    make_config,
    permute_rows,
    take_linear,
    to_params,
)
from jaxrf.training.config import TrainConfig

# Nothing there is of unit length, and near and far are along the axis.
CONVENTION = RayConvention(
    pixel_center=0.0, range_along="axis", lengths_along="axis", view_directions="axis"
)
SCRATCH_SAMPLES, BASIC_SAMPLES, TINY_SAMPLES = 64, 64, 32


def convert(content: Content) -> Converted | None:
    """The weights of such a file; None if it is of another program."""
    readers = (_convert_basic, _convert_tiny, _convert_scratch)
    found = [c for arrays in list_states(content) for read in readers if (c := read(arrays))]
    return require_keys(found, content.path)


def list_states(content: Content) -> list[Arrays]:
    """All state dicts of a file; a layer that begins a sequence is called as the sequence is."""
    return [
        {
            re.sub(r"^(fc_\w+|layer\d+|sigma|rgb)\.0\.", r"\1.", name): a
            for name, a in arrays.items()
        }
        for _, arrays in find_states(content.tree)
    ]


def _has(arrays: Arrays, *names: str) -> bool:
    return {f"{name}.weight" for name in names} <= set(arrays)


def _convert_basic(arrays: Arrays) -> Converted | None:
    """Four layers, a skip into the third, and a head that sees directions."""
    if not _has(arrays, "fc_1", "fc_2", "fc_3", "fc_4", "sigma", "fc_noact", "fc_dir", "rgb"):
        return None
    trunk = [take_linear(arrays, f"fc_{index}") for index in range(1, 5)]
    encoded, width = trunk[0].kernel.shape
    bottleneck, view = take_linear(arrays, "fc_noact"), take_linear(arrays, "fc_dir")
    sizes = count_octaves(encoded), count_octaves(view.kernel.shape[0] - width)
    if not all(sizes) or trunk[2].kernel.shape[0] != encoded + width:
        return None
    (position, _), (direction, _) = sizes  # type: ignore[misc]
    order = find_order(label_by_coordinate(position), input_labels(position))
    seen = find_order(label_by_coordinate(direction), input_labels(direction), start=width)
    trunk[0] = permute_rows(trunk[0], order)
    trunk[2] = permute_rows(trunk[2], [*order, *range(encoded, encoded + width)])
    network = Network(
        trunk=tuple(trunk),
        skip=2,
        density=take_linear(arrays, "sigma"),
        rgb=take_linear(arrays, "rgb"),
        bottleneck=bottleneck,
        view=permute_rows(view, [*range(width), *seen]),
    )
    config = make_config(
        network, (position, True), direction, coarse=BASIC_SAMPLES, fine=0, convention=CONVENTION
    )
    return _before_black("Jiayi Pan's NeRF", config, network, order)


def _convert_tiny(arrays: Arrays) -> Converted | None:
    """Two layers and one head."""
    if not _has(arrays, "layer1", "layer2", "layer3"):
        return None
    trunk = [take_linear(arrays, f"layer{index}") for index in (1, 2)]
    output, sizes = take_linear(arrays, "layer3"), count_octaves(trunk[0].kernel.shape[0])
    if sizes is None or output.kernel.shape[1] != 4:
        return None
    order = find_order(label_by_coordinate(sizes[0]), input_labels(sizes[0]))
    trunk[0] = permute_rows(trunk[0], order)
    network = _split_output(trunk, output)
    config = make_config(
        network, (sizes[0], True), 0, coarse=TINY_SAMPLES, fine=0, convention=CONVENTION
    )
    return _before_black("Jiayi Pan's tiny NeRF", config, network, order)


def _convert_scratch(arrays: Arrays) -> Converted | None:
    """Linear layers with ReLUs between, numbered 0, 2, 4, ...; the encoding has a factor pi."""
    numbers = sorted(
        int(name.split(".")[1])
        for name in arrays
        if name.startswith("layers.") and name.endswith(".weight") and name.count(".") == 2
    )
    if len(numbers) < 2 or numbers != list(range(0, 2 * len(numbers), 2)):
        return None
    *trunk, output = (take_linear(arrays, f"layers.{number}") for number in numbers)
    sizes = count_octaves(trunk[0].kernel.shape[0])
    if sizes is None or output.kernel.shape[1] != 4:
        return None
    network = _split_output(trunk, output)
    config = make_config(
        network,
        sizes,
        0,
        coarse=SCRATCH_SAMPLES,
        fine=0,
        convention=CONVENTION,
        frequency=math.pi,
    )
    return Converted("NeRF-from-scratch", config, {"coarse": to_params(network)})


def _split_output(trunk: list[Linear], output: Linear) -> Network:
    """A network whose last layer gives rgb and density."""
    return Network(
        tuple(trunk),
        skip=len(trunk),
        density=Linear(output.kernel[:, 3:], output.bias[3:]),
        rgb=Linear(output.kernel[:, :3], output.bias[:3]),
    )


def _before_black(form: str, config: TrainConfig, network: Network, order: list[int]) -> Converted:
    black = dataclasses.replace(config, background="black")
    return Converted(form, black, {"coarse": to_params(network)}, encoding=tuple(order))
