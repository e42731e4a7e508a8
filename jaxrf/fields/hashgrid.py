"""Hash grid: a multiresolution table of features and two small networks.

Mueller, Evans, Schied, Keller: Instant neural graphics primitives with a multiresolution hash
encoding (SIGGRAPH 2022).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.core import encodings, grids, hash_grids
from jaxrf.fields.mlp import MLP, ComputeType

Params = dict[str, Any]


@jax.custom_jvp
def clamped_exp(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The exponential, of at most e^80, whose gradient is that at x clamped to [-15, 15]."""
    return jnp.exp(jnp.minimum(x, 80.0))


@clamped_exp.defjvp
def _clamped_exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return clamped_exp(x), jnp.exp(jnp.clip(x, -15.0, 15.0)) * tangent


@dataclasses.dataclass(frozen=True)
class HashGrid:
    """Spec of a hash grid.

    Attributes:
      levels, channels: of the table; channels are those of one level.
      coarsest, finest: cells along the box's sides at the first and the last level.
      log2_hashmap_size: of the most rows that a level has.
      table_dtype: type of the table as it is read; it is trained and summed up in float32.
      width: of both networks.
      density_layers, color_layers: hidden layers of the two.
      feature_dim: channels that the density network hands on to the colour network.
      num_sh_bands: of the direction's spherical harmonics.
      density_shift: added to the raw density before its exponential.
      density_scale: factor of the density; that of a box of side 1 is (side of the box)^-1.
      hash_layout: how levels lie in the table (`hash_grids.HashLevels`).
      bias: whether the networks' layers add one.
      normalize_dirs_01: harmonics are taken at (direction + 1) / 2, as nerfstudio's PyTorch code
        does.
      compute: type that networks are computed in.
    """

    levels: int = 16
    channels: int = 2
    coarsest: int = 16
    finest: int = 2048
    log2_hashmap_size: int = 19
    table_dtype: grids.TableDtype = "float32"
    width: int = 64
    density_layers: int = 1
    color_layers: int = 2
    feature_dim: int = 15
    num_sh_bands: int = 4
    density_shift: float = -1.0
    density_scale: float = 1.0
    hash_layout: hash_grids.HashLayout = "dense_coarse"
    bias: bool = False
    normalize_dirs_01: bool = False
    compute: ComputeType = "float32"
    needs_aabb: ClassVar[bool] = True

    def plan(self) -> hash_grids.HashLevels:
        """Where the levels lie in the table."""
        if self.hash_layout != "dense_coarse":
            scales = hash_grids.hash_level_scales(self.levels, self.coarsest, self.finest, self.hash_layout)
            return hash_grids.plan_scaled_hash_levels(scales, 1 << self.log2_hashmap_size, self.hash_layout)
        return hash_grids.plan_hash_levels(
            self.levels, self.coarsest, self.finest, 1 << self.log2_hashmap_size
        )

    def _density_mlp(self) -> MLP:
        return MLP(
            self.width,
            self.density_layers,
            1 + self.feature_dim,
            bias=self.bias,
            compute=self.compute,
        )

    def _color_mlp(self) -> MLP:
        return MLP(self.width, self.color_layers, 3, bias=self.bias, compute=self.compute)

    def init(self, key: jax.Array) -> Params:
        """Features uniform in +-1e-4 (section 4), networks as usual for layers with ReLU.

        Returns:
          {"table": (rows, channels), "density_mlp", "color_mlp"}.
        """
        key_table, key_density, key_color = jax.random.split(key, 3)
        rows = self.plan().starts[-1]
        encoded = jnp.zeros((1, self.levels * self.channels))
        seen = jnp.zeros((1, self.feature_dim + self.num_sh_bands**2))
        return {
            "table": jax.random.uniform(
                key_table, (rows, self.channels), minval=-1e-4, maxval=1e-4
            ),
            "density_mlp": self._density_mlp().init(key_density, encoded),
            "color_mlp": self._color_mlp().init(key_color, seen),
        }

    def density(
        self, params: Params, positions: Float[Array, "m 3"], radii: Float[Array, "m"]
    ) -> tuple[Float[Array, "m"], Float[Array, "m c"]]:
        """Exponential of the density network's first output, zero outside the box.

        `params` holds, besides what is trained, the box (2, 3) as "aabb". The latent is the rest of
        the network's output. The radii are not used.
        """
        del radii
        unit, inside = grids.to_unit_box(positions, params["aabb"])
        plan = self.plan()
        encoded = hash_grids.sample_hash_grid(params["table"], unit, plan, self.table_dtype)
        out = self._density_mlp().apply(params["density_mlp"], encoded)
        density = self.density_scale * clamped_exp(out[:, 0] + self.density_shift)
        return jnp.where(inside, density, 0.0), out[:, 1:]

    def features(self, params: Params, latent: Float[Array, "m c"]) -> Float[Array, "m c"]:
        """The density network's other outputs themselves."""
        del params
        return latent

    def color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Sigmoid of the colour network, which sees features and spherical harmonics."""
        return jax.nn.sigmoid(self._raw_color(params, features, directions))

    def _raw_color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        if self.normalize_dirs_01:
            directions = 0.5 * (directions + 1.0)
        seen = encodings.spherical_harmonics(directions, self.num_sh_bands)
        inputs = jnp.concatenate([features, seen], axis=-1)
        raw: Array = self._color_mlp().apply(params["color_mlp"], inputs)
        return raw

    def debug_outputs(
        self, params: Params, positions: Float[Array, "m 3"], directions: Float[Array, "m 3"]
    ) -> dict[str, Array]:
        """What the field gives before activations, part by part, to compare it with others.

        Returns:
          "encoding" of positions, raw "density" (m,), "features", and raw "color" (m, 3).
        """
        unit, _ = grids.to_unit_box(positions, params["aabb"])
        encoded = hash_grids.sample_hash_grid(params["table"], unit, self.plan(), self.table_dtype)
        out = self._density_mlp().apply(params["density_mlp"], encoded)
        color = self._raw_color(params, out[:, 1:], directions)
        return {"encoding": encoded, "density": out[:, 0], "features": out[:, 1:], "color": color}
