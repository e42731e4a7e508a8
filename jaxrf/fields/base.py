"""The contract of a radiance field."""

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

Params = Any


@runtime_checkable
class Field(Protocol):
    """A frozen, hashable spec of numbers; the parameters are an explicit pytree.

    `density` hands on a latent, from which `features` makes what may be composited along a ray, and
    `color` gives the colour of features seen from a direction. So colour can be computed only for
    the samples that matter, once per sample or once per ray.
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
