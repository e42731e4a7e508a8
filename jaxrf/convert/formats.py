"""Which program wrote a file: by what it holds, never by its name."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxrf.convert import (
    jaxnerf,
    nerf_experiments,
    nerf_plain,
    nerf_pytorch,
    nerf_tensorflow,
    nerfstudio,
    tensorf_torch,
)
from jaxrf.convert import (
    runs as adopt,
)
from jaxrf.convert.files import Content, check_numbers, list_leaves
from jaxrf.convert.networks import Converted
from jaxrf.core.errors import InputError
from jaxrf.models import methods


class FormatOptions(NamedTuple):
    """What weights do not tell.

    legacy_order: jaxnerf's encodings are in its legacy order.
    inclusive: NeRF-experiments' own transmittance.
    bounded: nerfstudio's space was not contracted.
    density_factor: nerfstudio's, of the density.
    """

    legacy_order: bool = False
    inclusive: bool = False
    bounded: bool = False
    density_factor: float = 1.0


Converter = Callable[[Content, FormatOptions], Converted | None]
CONVERTERS: tuple[Converter, ...] = (
    lambda content, _: nerf_pytorch.convert(content),
    lambda content, _: nerf_tensorflow.convert(content),
    lambda content, wishes: jaxnerf.convert(content, wishes.legacy_order),
    lambda content, wishes: nerf_experiments.convert(content, wishes.inclusive),
    lambda content, _: nerf_plain.convert(content),
    lambda content, _: tensorf_torch.convert(content),
    lambda content, wishes: nerfstudio.convert(content, not wishes.bounded, wishes.density_factor),
)
# Whose forms a wish is for.
OPTION_FORMATS = {
    "legacy_order": ("jaxnerf",),
    "inclusive": nerf_experiments.FORMS,
    "bounded": nerfstudio.FORMS,
    "density_factor": nerfstudio.FORMS,
}
# Networks of fields have far fewer.
MOST_LAYERS = 64


def convert(content: Content, wishes: FormatOptions) -> Converted:
    """The weights of a file of any program that is known.

    Raises:
      InputError: if no program or several may have written it, or it is not whole.
    """
    found = [c for converter in CONVERTERS if (c := _try(converter, content, wishes)) is not None]
    if len(found) != 1:
        names = ", ".join(converted.form for converted in found)
        why = f"may be of several programs ({names})" if found else "is of no program that is known"
        raise InputError(f"{content.path} {why}; what it holds is above.")
    converted = found[0]
    for wish, forms in OPTION_FORMATS.items():
        if (
            getattr(wishes, wish) != FormatOptions._field_defaults[wish]
            and converted.form not in forms
        ):
            raise InputError(
                f"--{wish.replace('_', '-')} is for files of {' or '.join(forms)}, and "
                f"{content.path} is of {converted.form}: leave it out."
            )
    return converted


def _try(converter: Converter, content: Content, wishes: FormatOptions) -> Converted | None:
    """What a converter makes of a file; what it stumbles over is the file's fault."""
    try:
        converted = converter(content, wishes)
        if converted is not None:
            check_numbers(dict(list_leaves(converted.params)), content.path)
            _check_shapes(converted, content)
        return converted
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = str(error).strip().split("\n", 1)[0][:100]
        raise InputError(
            f"{content.path} looks like weights that are known, but is not whole ({reason})."
        ) from error


def _check_shapes(converted: Converted, content: Content) -> None:
    """InputError if the parameters are not those of the field that was recognised."""
    field = converted.config.field
    layers = max(getattr(field, name, 0) for name in ("layers", "density_layers", "color_layers"))
    if layers > MOST_LAYERS:
        raise InputError(f"{content.path} has a network of {layers} layers: it is no field.")
    stage, _ = adopt.place(converted, converted.config, adopt.BOX)
    wanted = jax.eval_shape(lambda: methods.init_params(field, stage, jax.random.key(0)))
    expected = {name: leaf.shape for name, leaf in list_leaves(wanted)}
    found = {name: np.shape(leaf) for name, leaf in list_leaves(converted.params)}
    for name in sorted(expected | found):
        if expected.get(name) != found.get(name):
            raise InputError(
                f"{content.path} looks like {converted.form}, but its {name} is of shape "
                f"{found.get(name)}, not {expected.get(name)}: it is not whole."
            )
