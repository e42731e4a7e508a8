"""The contract of a radiance field."""

import functools
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from jaxrf.core import user_code
from jaxrf.core.errors import InputError

Params = Any


@runtime_checkable
class Field(Protocol):
    """A frozen, hashable spec of numbers; the parameters are an explicit pytree.

    `density` hands on a latent, from which `features` makes what may be composited along a ray, and
    `color` gives the colour of features seen from a direction. So colour can be computed only for
    the samples that matter, once per sample or once per ray.

    A field with `uses_gaussians = True` gets the parts of cones that samples stand for, `rays.ConicalFrusta`,
    in place of radii where space is not contracted and no grid is probed.

    A field whose class has `needs_aabb = True` finds the scene's box (2, 3) as "aabb" among its
    parameters, which then have to be a dict. Parameters under the name "table", "planes" or "lines"
    learn at the rate of grids, all others at that of networks.
    """

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        ...

    def density(
        self, params: Params, positions: Float[Array, "m 3"], radii: Any
    ) -> tuple[Float[Array, "m"], Any]:
        """Density (>= 0, per scene unit) at positions, for cones of these radii, and a latent."""
        ...

    def features(self, params: Params, latent: Any) -> Float[Array, "m c"]:
        """Features of the samples that a latent stands for."""
        ...

    def color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Colour in [0, 1] of features seen along unit directions."""
        ...


@functools.cache
def load_field(source: str) -> Field:
    """The field of a class in a Python file, made without arguments.

    Args:
      source: path/to/file.py:ClassName.

    Raises:
      InputError: if there is no such file or class, or if it is no field.
    """
    made = user_code.load(source, "--field.source")
    path, _, name = source.rpartition(":")
    if not callable(made):
        raise InputError(f"{name} in {path} is no class: name one in --field.source.")
    try:
        field = made()
        hash(field)
    except Exception as error:
        raise InputError(
            f"{name} in {path} cannot be made without arguments, as a frozen dataclass of numbers "
            f"can ({user_code.describe(error, path)}): correct it."
        ) from error
    missing = [
        part for part in ("init", "density", "features", "color") if not hasattr(field, part)
    ]
    if missing:
        raise InputError(
            f"{name} in {path} is no field, it has no {missing[0]!r}: see jaxrf.fields.base.Field."
        )
    return field
