"""NeRF: one multilayer perceptron of encoded positions and directions.

Mildenhall et al.: NeRF (ECCV 2020), section 5 and appendix A.
"""

import dataclasses
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.core import encodings
from jaxrf.core.rays import ConicalFrusta
from jaxrf.fields.bitnerf import BitDense
from jaxrf.fields.mlp import ComputeType, linear

Params = Any


class _Network(nn.Module):
    """Trunk with one skip, a density head and a view-dependent colour head, called by parts."""

    width: int
    layers: int
    skip: int
    color_width: int
    use_directions: bool
    ternary: bool
    norm_gain: bool
    norm_epsilon: float
    full_precision_io: bool
    project: bool
    compute: ComputeType

    def setup(self) -> None:
        dense: Any = partial(linear, compute=self.compute)
        head: Any = partial(linear, compute=self.compute, last=True)
        if self.ternary:
            norm = {"gain": self.norm_gain, "epsilon": self.norm_epsilon}
            dense = partial(BitDense, **norm, compute=self.compute)
            head = head if self.full_precision_io else dense
        if self.project:
            self.projection = head(self.width)
        self.trunk = [dense(self.width) for _ in range(self.layers)]
        self.density_head = head(1)
        if self.use_directions:
            self.bottleneck = dense(self.width)
            self.view = dense(self.color_width)
        self.rgb_head = head(3)

    def latent(self, encoded: Float[Array, "m e"]) -> Float[Array, "m width"]:
        x = self.projection(encoded) if self.project else encoded
        for index, layer in enumerate(self.trunk):
            if index == self.skip:
                x = jnp.concatenate([encoded, x], axis=-1)
            x = nn.relu(layer(x))
        return x

    def raw_density(self, latent: Float[Array, "m width"]) -> Float[Array, "m"]:
        return self.density_head(latent)[..., 0]

    def features(self, latent: Float[Array, "m width"]) -> Float[Array, "m width"]:
        return self.bottleneck(latent) if self.use_directions else latent

    def raw_rgb(
        self, features: Float[Array, "m width"], encoded: Float[Array, "m e"]
    ) -> Float[Array, "m 3"]:
        if self.use_directions:
            features = nn.relu(self.view(jnp.concatenate([features, encoded], axis=-1)))
        return self.rgb_head(features)

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
      num_position_frequencies, num_direction_frequencies: of the Fourier encodings.
      density_bias: added to the raw density.
      encoding: "fourier" of positions, or "integrated" over the part of the cone that a sample
        stands for (Mip-NeRF).
      use_directions: whether colour depends on the view direction.
      activation: of the raw density; "softplus" instead of the paper's "relu", because a field that
        starts at zero everywhere gets no gradient from a ReLU.
      density_noise: standard deviation of the noise on the raw density, while training.
      ternary: layers of ternary weights and 8-bit activations (`bitnerf`).
      encode_input: whether the encodings hold what they encode too.
      frequency: the lowest of the encodings' (`encodings.fourier`).
      project: a linear layer, without activation, before the trunk.
      norm_gain, norm_epsilon: of ternary layers (`bitnerf.BitDense`).
      full_precision_io: the projection and the heads are not ternary.
      compute: type that layers are computed in.
    """

    layers: int = 8
    width: int = 256
    skip: int = 5
    color_width: int = 128
    num_position_frequencies: int = 10
    num_direction_frequencies: int = 4
    density_bias: float = 0.0
    encoding: Literal["fourier", "integrated"] = "fourier"
    use_directions: bool = True
    activation: Literal["softplus", "relu"] = "softplus"
    density_noise: float = 0.0
    ternary: bool = False
    encode_input: bool = True
    frequency: float = 1.0
    project: bool = False
    norm_gain: bool = False
    norm_epsilon: float = 1e-6
    full_precision_io: bool = False
    compute: ComputeType = "float32"

    def _network(self) -> _Network:
        sizes = (self.width, self.layers, self.skip, self.color_width)
        kinds = (self.use_directions, self.ternary)
        norm = (self.norm_gain, self.norm_epsilon, self.full_precision_io)
        return _Network(*sizes, *kinds, *norm, self.project, self.compute)

    def _encode_direction(self, directions: Float[Array, "m 3"]) -> Float[Array, "m e"]:
        shape = (self.num_direction_frequencies, self.encode_input, self.frequency)
        return encodings.fourier(directions, *shape)

    @property
    def uses_gaussians(self) -> bool:
        """Whether densities are asked for with the whole parts of cones."""
        return self.encoding == "integrated"

    def _encode(
        self, positions: Float[Array, "m 3"], cones: ConicalFrusta | Float[Array, "m"]
    ) -> Float[Array, "m e"]:
        if self.encoding == "fourier":
            shape = (self.num_position_frequencies, self.encode_input, self.frequency)
            return encodings.fourier(positions, *shape)
        if isinstance(cones, ConicalFrusta):
            positions, variance = encodings.conical_frustum_to_gaussian(positions, cones)
        else:
            # A disc of radius r has a variance of r^2 / 4 along each of its two axes.
            variance = jnp.broadcast_to(0.25 * jnp.square(cones)[:, None], positions.shape)
        return encodings.integrated_fourier(positions, variance, self.num_position_frequencies)

    def init(self, key: jax.Array) -> Params:
        """Parameters of one network."""
        zero = jnp.zeros((1, 3))
        return self._network().init(
            key,
            self._encode(zero, zero[:, 0]),
            self._encode_direction(zero),
        )

    def density(
        self,
        params: Params,
        positions: Float[Array, "m 3"],
        radii: ConicalFrusta | Float[Array, "m"],
    ) -> tuple[Float[Array, "m"], Float[Array, "m width"]]:
        """The activated density head; the latent is the trunk's output.

        Noise is added if `params` holds standard normal numbers as "noise". The radii matter to the
        integrated encoding alone, which takes the whole parts of cones in their place, and else
        balls.
        """
        network, weights = self._network(), {"params": params["params"]}
        encoded = self._encode(positions, radii)
        latent: Array = network.apply(weights, encoded, method="latent")
        raw: Array = network.apply(weights, latent, method="raw_density") + self.density_bias
        if "noise" in params:
            raw = raw + self.density_noise * params["noise"]
        activate = jax.nn.softplus if self.activation == "softplus" else jax.nn.relu
        return activate(raw), latent

    def debug_outputs(
        self, params: Params, positions: Float[Array, "m 3"], directions: Float[Array, "m 3"]
    ) -> dict[str, Array]:
        """What the network gives before activations, part by part, to compare it with others.

        Returns:
          "encoding" of positions, "trunk", raw "density" (m,) and raw "color" (m, 3).
        """
        network, weights = self._network(), {"params": params["params"]}
        encoded = self._encode(positions, jnp.zeros(positions.shape[:1]))
        latent = network.apply(weights, encoded, method="latent")
        features = network.apply(weights, latent, method="features")
        seen = self._encode_direction(directions)
        return {
            "encoding": encoded,
            "trunk": latent,
            "density": network.apply(weights, latent, method="raw_density"),
            "color": network.apply(weights, features, seen, method="raw_rgb"),
        }

    def features(self, params: Params, latent: Float[Array, "m width"]) -> Float[Array, "m width"]:
        """The bottleneck before the direction joins."""
        weights = {"params": params["params"]}
        return self._network().apply(weights, latent, method="features")

    def color(
        self, params: Params, features: Float[Array, "m width"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Sigmoid of the colour head."""
        encoded = self._encode_direction(directions)
        weights = {"params": params["params"]}
        return jax.nn.sigmoid(self._network().apply(weights, features, encoded, method="raw_rgb"))
