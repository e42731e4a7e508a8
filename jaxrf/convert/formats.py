"""Detects the program that wrote a file by its content, never by its name, and converts it."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxrf.convert import (
    instant_ngp,
    jaxnerf,
    nerf_experiments,
    nerf_plain,
    nerf_pytorch,
    nerf_tensorflow,
    nerfstudio,
    tensorf,
)
from jaxrf.convert.files.arrays import check_finite
from jaxrf.convert.files.read import Content
from jaxrf.convert.files.unreadable import READ_PROGRAMS, name_tree
from jaxrf.convert.networks import Converted, list_arrays
from jaxrf.convert.to_run import DEFAULT_AABB, init_stage
from jaxrf.core.errors import InputError


class FormatOptions(NamedTuple):
    """Facts about weights that files do not record.

    legacy_order: jaxnerf's encodings are in its legacy order.
    inclusive: render with the transmittance of NeRF-experiments, which includes a sample's own
      absorption.
    bounded: nerfstudio's space was not contracted.
    density_factor: nerfstudio's factor of the density.
    """

    legacy_order: bool = False
    inclusive: bool = False
    bounded: bool = False
    density_factor: float = 1.0


Converter = Callable[[Content, FormatOptions], Converted | None]
CONVERTERS: tuple[Converter, ...] = (
    lambda content, _: nerf_pytorch.convert(content),
    lambda content, _: nerf_tensorflow.convert(content),
    lambda content, options: jaxnerf.convert(content, options.legacy_order),
    lambda content, options: nerf_experiments.convert(content, options.inclusive),
    lambda content, _: nerf_plain.convert(content),
    lambda content, _: tensorf.convert(content),
    lambda content, options: nerfstudio.convert(
        content, not options.bounded, options.density_factor
    ),
    lambda content, _: instant_ngp.convert(content),
)
# The formats that each option is for.
OPTION_FORMATS = {
    "legacy_order": ("jaxnerf",),
    "inclusive": nerf_experiments.FORMATS,
    "bounded": nerfstudio.FORMATS,
    "density_factor": nerfstudio.FORMATS,
}
# Networks of fields have far fewer.
MAX_LAYERS = 64


def convert(content: Content, options: FormatOptions) -> Converted:
    """Returns the weights of a file of any known program.

    Raises:
      InputError: if no program or several may have written it, if it is incomplete, or if an option
        is for another program.
    """
    candidates = [
        converted
        for converter in CONVERTERS
        if (converted := _try_converter(converter, content, options)) is not None
    ]
    converted = detect_format(candidates, content)
    for name, formats in OPTION_FORMATS.items():
        is_default = getattr(options, name) == FormatOptions._field_defaults[name]
        if not is_default and converted.format not in formats:
            raise InputError(
                f"--{name.replace('_', '-')} is for files of {' or '.join(formats)}, and "
                f"{content.path} is of {converted.format}: leave it out."
            )
    return converted


def detect_format(candidates: Sequence[Converted], content: Content) -> Converted:
    """Returns the only candidate; InputError if no format or several fit the file."""
    if not candidates:
        description = name_tree(content.tree) or "of no known program"
        raise InputError(
            f"{content.path} is {description}; its content is listed above: name weights of "
            f"{READ_PROGRAMS}."
        )
    if len(candidates) > 1:
        names = ", ".join(converted.format for converted in candidates)
        raise InputError(
            f"{content.path} may be of several programs ({names}); its content is listed above: "
            "save only the weights to convert."
        )
    return candidates[0]


def _try_converter(
    converter: Converter, content: Content, options: FormatOptions
) -> Converted | None:
    """Returns a converter's result; its errors become an InputError about the file."""
    try:
        converted = converter(content, options)
        if converted is not None:
            check_finite(list_arrays(converted.params), content.path)
            _check_same_networks(converted, content)
            _check_shapes(converted, content)
        return converted
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = str(error).strip().split("\n", 1)[0][:100]
        raise InputError(
            f"{content.path} looks like weights of a known program, but is incomplete ({reason}): "
            "copy it again."
        ) from error


def _check_same_networks(converted: Converted, content: Content) -> None:
    """InputError that says how the coarse network differs in shape from the fine one, if it does.

    A field of jaxrf has one shape, which both of its networks are of.
    """
    fine, coarse = (
        {name: np.shape(leaf) for name, leaf in list_arrays(params).items()}
        for params in (converted.params.field, converted.params.coarse)
    )
    if not coarse or coarse == fine:
        return
    name = next(n for n in sorted(coarse | fine) if coarse.get(n) != fine.get(n))
    raise InputError(
        f"{content.path} cannot be loaded, as its coarse network ({_describe_layers(coarse)}) and "
        f"its fine one ({_describe_layers(fine)}) differ in shape, first in {name}, and jaxrf has "
        "one shape for both: save one of the two networks, and convert it alone."
    )


def _describe_layers(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the number and the width of a network's layers before its heads, in words."""
    biases = [shape for name, shape in shapes.items() if re.search(r"trunk_\d+\.bias$", name)]
    return f"{len(biases)} layers of {max(biases, default=(0,))[0]}"


def _check_shapes(converted: Converted, content: Content) -> None:
    """InputError unless the parameters are those of the configured field."""
    field = converted.config.field
    numbers = dataclasses.asdict(field)
    depths = (numbers.get(name, 0) for name in ("layers", "density_layers", "color_layers"))
    if (depth := max(depths)) > MAX_LAYERS:
        raise InputError(
            f"{content.path} has a network of {depth} layers, more than any field: name another "
            "file."
        )
    stage, _ = init_stage(converted, converted.config, DEFAULT_AABB)
    model = converted.config.model
    initial = jax.eval_shape(lambda: model.init_params(stage.field, jax.random.key(0)))
    expected_shapes = {name: leaf.shape for name, leaf in list_arrays(initial).items()}
    file_shapes = {name: np.shape(leaf) for name, leaf in list_arrays(converted.params).items()}
    for name in sorted(expected_shapes | file_shapes):
        if expected_shapes.get(name) != file_shapes.get(name):
            raise InputError(
                f"{content.path} looks like {converted.format}, but its {name} is of shape "
                f"{file_shapes.get(name)}, not {expected_shapes.get(name)}: the file is damaged."
            )
