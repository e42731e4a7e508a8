"""A field in one file: a cloud of colored Gaussian blobs."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.fields.base import Field, FieldContext


@dataclasses.dataclass(frozen=True)
class Blobs(Field):
    """A sum of Gaussian blobs; a sample's color is the mean of theirs, weighted by density.

    Positions are scaled to the unit cube of the scene's box, where the blobs' centers live.
    """

    num_blobs: int = 384
    """Number of blobs."""
    initial_size: float = 0.06
    """Standard deviation of a blob before training, as a fraction of the box."""

    def init(self, key: jax.Array) -> dict[str, Array]:
        center_key, color_key = jax.random.split(key)
        return {
            "center": jax.random.uniform(center_key, (self.num_blobs, 3)),
            "log_size": jnp.full((self.num_blobs,), jnp.log(self.initial_size)),
            "log_density": jnp.full((self.num_blobs,), 1.0),
            "raw_rgb": 0.5 * jax.random.normal(color_key, (self.num_blobs, 3)),
        }

    def density(
        self, params: dict[str, Array], positions: Float[Array, "m 3"], context: FieldContext
    ) -> tuple[Float[Array, "m"], Float[Array, "m b"]]:
        low, high = context.aabb[:1], context.aabb[1:]
        unit, center = (positions - low) / (high - low), params["center"]
        # |a - b|^2 = |a|^2 - 2 a.b + |b|^2 needs one matrix product and no (m, b, 3) array.
        squared_distance = (
            jnp.sum(jnp.square(unit), axis=1)[:, None]
            - 2.0 * unit @ center.T
            + jnp.sum(jnp.square(center), axis=1)[None]
        )
        exponent = -0.5 * squared_distance * jnp.exp(-2.0 * params["log_size"])[None]
        blob_density = jnp.exp(exponent + params["log_density"][None])
        return jnp.sum(blob_density, axis=1), blob_density

    def features(
        self, params: dict[str, Array], latent: Float[Array, "m b"]
    ) -> Float[Array, "m 3"]:
        weights = latent / (jnp.sum(latent, axis=1)[:, None] + 1e-6)
        return weights @ params["raw_rgb"]

    def color(
        self,
        params: dict[str, Array],
        features: Float[Array, "m 3"],
        directions: Float[Array, "m 3"],
    ) -> Float[Array, "m 3"]:
        return jax.nn.sigmoid(features)
