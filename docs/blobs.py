"""A field of your own in one file: a cloud of coloured Gaussian blobs."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Blobs:
    """Density is a sum of blobs; a sample's colour is the mean of theirs, by their density there.

    Attributes:
      count: number of blobs.
      needs_aabb: asks for the scene's box among the parameters.
    """

    count: int = 384
    needs_aabb = True

    def init(self, key: jax.Array) -> dict[str, Array]:
        key_centre, key_color = jax.random.split(key)
        return {
            "centre": jax.random.uniform(key_centre, (self.count, 3)),
            "log_size": jnp.full((self.count,), jnp.log(0.06)),
            "log_density": jnp.full((self.count,), 1.0),
            "raw_rgb": 0.5 * jax.random.normal(key_color, (self.count, 3)),
        }

    def density(
        self, params: dict[str, Array], positions: Float[Array, "m 3"], radii: Float[Array, "m"]
    ) -> tuple[Float[Array, "m"], Float[Array, "m count"]]:
        low, high = params["aabb"][:1], params["aabb"][1:]
        unit, centre = (positions - low) / (high - low), params["centre"]
        squared = (
            jnp.sum(jnp.square(unit), axis=1)[:, None]
            - 2.0 * unit @ centre.T
            + jnp.sum(jnp.square(centre), axis=1)[None]
        )
        exponent = -0.5 * squared * jnp.exp(-2.0 * params["log_size"])[None]
        each = jnp.exp(exponent + params["log_density"][None])
        return jnp.sum(each, axis=1), each

    def features(
        self, params: dict[str, Array], latent: Float[Array, "m count"]
    ) -> Float[Array, "m 3"]:
        share = latent / (jnp.sum(latent, axis=1)[:, None] + 1e-6)
        return share @ params["raw_rgb"]

    def color(
        self,
        params: dict[str, Array],
        features: Float[Array, "m 3"],
        directions: Float[Array, "m 3"],
    ) -> Float[Array, "m 3"]:
        return jax.nn.sigmoid(features)
