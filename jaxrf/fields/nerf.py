"""NeRF: one multilayer perceptron of encoded positions and directions.

Mildenhall et al.: NeRF (ECCV 2020), section 5 and appendix A.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.core import encodings
from jaxrf.core.activations import leaky_sigmoid
from jaxrf.core.checks import require_positive
from jaxrf.fields import base
from jaxrf.fields.base import FieldContext, SampleCost
from jaxrf.fields.mlp import linear

Params = Any


class Network(nn.Module):
    """Trunk with one skip, a density head and a view-dependent color head, called by parts.

    Attributes:
      width, layers, skip, color_width, use_directions, project: as in `NeRF`.
      dense: makes the layers, given a number of channels.
      head: makes the projection and the heads.
    """

    width: int
    layers: int
    skip: int
    color_width: int
    use_directions: bool
    project: bool
    dense: Callable[[int], nn.Module]
    head: Callable[[int], nn.Module]

    def setup(self) -> None:
        dense: Any = self.dense
        head: Any = self.head
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
class NeRF(base.Field):
    """The original NeRF: an MLP of encoded positions and directions."""

    encoding: Literal["fourier", "integrated"] = "fourier"
    """Positions are encoded as points, or as the part of the cone that a sample stands for
    (Mip-NeRF), which fades out what is finer than a pixel or a step."""
    use_directions: bool = True
    """Whether color depends on the view direction."""
    activation: Literal["softplus", "relu"] = "softplus"
    """Of the raw density. The paper has relu; a field that starts at zero everywhere gets no
    gradient from it."""
    density_bias: float = 0.0
    """Added to the raw density: lower starts emptier."""
    density_noise: float = 0.0
    """Standard deviation of the noise added to the raw density while training."""
    layers: int = 8
    """Layers of the trunk."""
    width: int = 256
    """Width of the trunk."""
    skip: int = 5
    """Index of the layer that takes the encoded position again."""
    color_width: int = 128
    """Width of the color head."""
    num_position_frequencies: int = 10
    """Fourier frequencies of the position."""
    num_direction_frequencies: int = 4
    """Fourier frequencies of the view direction."""
    encode_input: bool = True
    """Whether the encodings hold their input too, besides sines and cosines."""
    frequency: float = 1.0
    """The lowest frequency of the encodings: 1, as in NeRF's code, or pi, as in its paper."""
    project: bool = False
    """A linear layer, without activation, before the trunk."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_positive(self, "layers", "width", "color_width", prefix="field.")

    def _network(self) -> Network:
        dense = partial(linear, compute=self.compute_dtype)
        return self._make_network(dense, partial(dense, last=True))

    def _make_network(
        self, dense: Callable[[int], nn.Module], head: Callable[[int], nn.Module]
    ) -> Network:
        sizes = (self.width, self.layers, self.skip, self.color_width)
        return Network(*sizes, self.use_directions, self.project, dense, head)

    def _encode_direction(self, directions: Float[Array, "m 3"]) -> Float[Array, "m e"]:
        shape = (self.num_direction_frequencies, self.encode_input, self.frequency)
        return encodings.fourier(directions, *shape)

    def _encode(self, positions: Float[Array, "m 3"], context: FieldContext) -> Float[Array, "m e"]:
        if self.encoding == "fourier":
            shape = (self.num_position_frequencies, self.encode_input, self.frequency)
            return encodings.fourier(positions, *shape)
        if context.frusta is not None:
            positions, variance = encodings.conical_frustum_to_gaussian(positions, context.frusta)
        else:
            # A disc of radius r has a variance of r^2 / 4 along each of its two axes.
            variance = jnp.broadcast_to(0.25 * jnp.square(context.radii)[:, None], positions.shape)
        return encodings.integrated_fourier(positions, variance, self.num_position_frequencies)

    def init(self, key: jax.Array) -> Params:
        """Parameters of one network."""
        zero = jnp.zeros((1, 3))
        context = FieldContext(zero[:, 0], jnp.zeros((2, 3)))
        return self._network().init(key, self._encode(zero, context), self._encode_direction(zero))

    def density(
        self, params: Params, positions: Float[Array, "m 3"], context: FieldContext
    ) -> tuple[Float[Array, "m"], Float[Array, "m width"]]:
        """The activated density head; the latent is the trunk's output.

        The integrated encoding uses the frusta of the context, or balls of its radii.
        """
        network = self._network()
        latent: Array = network.apply(params, self._encode(positions, context), method="latent")
        raw: Array = network.apply(params, latent, method="raw_density") + self.density_bias
        if context.noise is not None:
            raw = raw + self.density_noise * context.noise
        activate = jax.nn.softplus if self.activation == "softplus" else jax.nn.relu
        return activate(raw), latent

    def features(self, params: Params, latent: Float[Array, "m width"]) -> Float[Array, "m width"]:
        """The bottleneck before the direction joins."""
        return self._network().apply(params, latent, method="features")

    def color(
        self, params: Params, features: Float[Array, "m width"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Sigmoid of the color head."""
        encoded = self._encode_direction(directions)
        return leaky_sigmoid(self._network().apply(params, features, encoded, method="raw_rgb"))

    def noise_std(self) -> float:
        """Standard deviation of the noise on the raw density."""
        return self.density_noise

    def needs_intervals(self) -> bool:
        """The integrated encoding is over intervals."""
        return self.encoding == "integrated"

    def appearance_channels(self) -> int:
        """All features."""
        return self.width

    def sample_cost(self, colored_fraction: float = 1.0) -> SampleCost:
        """Dense layers, three times: the value and both gradients."""
        del colored_fraction
        position, direction = (
            3 + 6 * n for n in (self.num_position_frequencies, self.num_direction_frequencies)
        )
        trunk = (self.layers - 1) * self.width**2 + position * self.width
        trunk += position * self.width if self.skip < self.layers else 0
        head = self.width + self.width**2 + self.color_width * (self.width + direction)
        return SampleCost(6.0 * (trunk + head + 3 * self.color_width), 0.0)

    def debug_outputs(
        self,
        params: Params,
        positions: Float[Array, "m 3"],
        directions: Float[Array, "m 3"],
        aabb: Float[Array, "2 3"],
    ) -> dict[str, Array]:
        """The "encoding" of positions, "trunk", raw "density" (m,) and raw "color" (m, 3)."""
        network = self._network()
        context = FieldContext(jnp.zeros(positions.shape[:1]), aabb)
        encoded = self._encode(positions, context)
        latent = network.apply(params, encoded, method="latent")
        features = network.apply(params, latent, method="features")
        encoded_directions = self._encode_direction(directions)
        return {
            "encoding": encoded,
            "trunk": latent,
            "density": network.apply(params, latent, method="raw_density"),
            "color": network.apply(params, features, encoded_directions, method="raw_rgb"),
        }
