"""The contract of a radiance field."""

import functools
import importlib.util
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from jaxrf.errors import InputError

Params = Any


@runtime_checkable
class Field(Protocol):
    """A frozen, hashable spec of numbers; the parameters are an explicit pytree.

    `density` hands on a latent, from which `features` makes what may be composited along a ray, and
    `color` gives the colour of features seen from a direction. So colour can be computed only for
    the samples that matter, once per sample or once per ray.

    A field whose class has `in_box = True` finds the scene's box (2, 3) as "aabb" among its
    parameters, which then have to be a dict. Parameters under the name "table", "planes" or "lines"
    learn at the rate of grids, all others at that of networks.
    """

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        ...

    def density(
        self, params: Params, positions: Float[Array, "m 3"], radii: Float[Array, "m"]
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
    path, _, name = source.rpartition(":")
    if not path or not Path(path).is_file():
        raise InputError(
            f"--field.source is {source!r}: name a Python file and a class in it, such as "
            "my_field.py:MyField."
        )
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = getattr(module, name, None)
    if not callable(made):
        raise InputError(f"{path} has no class {name!r}: name one that it has in --field.source.")
    field = made()
    missing = [
        part for part in ("init", "density", "features", "color") if not hasattr(field, part)
    ]
    if missing:
        raise InputError(
            f"{name} in {path} is no field, it has no {missing[0]!r}: see jaxrf.fields.base.Field."
        )
    return field
