"""NeRF: one multilayer perceptron of encoded positions and directions.

Mildenhall et al.: NeRF (ECCV 2020), section 5 and appendix A.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf import encodings

Params = Any


class _Network(nn.Module):
    """Trunk with one skip, a density head and a view-dependent colour head, called by parts."""

    width: int
    layers: int
    skip: int
    color_width: int

    def setup(self) -> None:
        self.trunk = [nn.Dense(self.width) for _ in range(self.layers)]
        self.density_head = nn.Dense(1)
        self.bottleneck = nn.Dense(self.width)
        self.view = nn.Dense(self.color_width)
        self.rgb_head = nn.Dense(3)

    def latent(self, encoded: Float[Array, "m e"]) -> Float[Array, "m width"]:
        x = encoded
        for index, layer in enumerate(self.trunk):
            if index == self.skip:
                x = jnp.concatenate([encoded, x], axis=-1)
            x = nn.relu(layer(x))
        return x

    def raw_density(self, latent: Float[Array, "m width"]) -> Float[Array, "m"]:
        return self.density_head(latent)[..., 0]

    def features(self, latent: Float[Array, "m width"]) -> Float[Array, "m width"]:
        return self.bottleneck(latent)

    def raw_rgb(
        self, features: Float[Array, "m width"], encoded: Float[Array, "m e"]
    ) -> Float[Array, "m 3"]:
        hidden = nn.relu(self.view(jnp.concatenate([features, encoded], axis=-1)))
        return self.rgb_head(hidden)

    def __call__(
        self, position: Float[Array, "m e"], direction: Float[Array, "m d"]
    ) -> tuple[Float[Array, "m"], Float[Array, "m 3"]]:
        latent = self.latent(position)
        return self.raw_density(latent), self.raw_rgb(self.features(latent), direction)


@dataclasses.dataclass(frozen=True)
class NeRF:
    """Spec of a NeRF network.

    Attributes:
      layers, width: of the trunk.
      skip: index of the layer that takes the encoded position again (5: after five layers).
      color_width: of the colour head's hidden layer.
      position_octaves, direction_octaves: of the Fourier encodings.
      density_bias: added to the raw density before the softplus; softplus instead of the paper's
        ReLU, because a field that starts at zero everywhere gets no gradient from a ReLU.
    """

    layers: int = 8
    width: int = 256
    skip: int = 5
    color_width: int = 128
    position_octaves: int = 10
    direction_octaves: int = 4
    density_bias: float = 0.0

    def _network(self) -> _Network:
        return _Network(self.width, self.layers, self.skip, self.color_width)

    def init(self, key: jax.Array) -> Params:
        """Parameters of one network."""
        zero = jnp.zeros((1, 3))
        return self._network().init(
            key,
            encodings.fourier(zero, self.position_octaves),
            encodings.fourier(zero, self.direction_octaves),
        )

    def density(
        self, params: Params, positions: Float[Array, "m 3"], radii: Float[Array, "m"]
    ) -> tuple[Float[Array, "m"], Float[Array, "m width"]]:
        """Softplus of the density head; the latent is the trunk's output. Radii are not used."""
        del radii
        network = self._network()
        encoded = encodings.fourier(positions, self.position_octaves)
        latent: Array = network.apply(params, encoded, method="latent")
        raw: Array = network.apply(params, latent, method="raw_density")
        return jax.nn.softplus(raw + self.density_bias), latent

    def features(self, params: Params, latent: Float[Array, "m width"]) -> Float[Array, "m width"]:
        """The bottleneck before the direction joins."""
        return self._network().apply(params, latent, method="features")

    def color(
        self, params: Params, features: Float[Array, "m width"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Sigmoid of the colour head."""
        encoded = encodings.fourier(directions, self.direction_octaves)
        return jax.nn.sigmoid(self._network().apply(params, features, encoded, method="raw_rgb"))
