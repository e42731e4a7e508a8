"""PyNeRF: a pyramid of heads on hash grids, the level of a sample being as fine as its size.

Turki, Zollhoefer, Richardt, Ramanan: PyNeRF, pyramidal neural radiance fields (NeurIPS 2023).
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.core import encodings, grids, hash_grids
from jaxrf.fields.hashgrid import clamped_exp
from jaxrf.fields.mlp import MLP, ComputeType, read_as

Params = dict[str, Any]


def create_pyramid_hierarchy(levels: int, finest: int, factor: float = 2.0) -> tuple[float, ...]:
    """Cells along the box's longest side that each level stands for, the coarsest first.

    N_l = finest / factor^(levels - 1 - l) (section 3.2).
    """
    return tuple(finest / factor ** (levels - 1 - level) for level in range(levels))


def compute_sample_area(
    radii: Float[Array, "*batch"], distances: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Area of a pixel's cone at some distances along its ray, in squared scene units.

    Args:
      radii: of the cones at distance 1, as `Rays` hold them: the distance to the neighbouring
        pixel's ray times 2 / sqrt(12).
      distances: along the ray.
    """
    return jnp.square(radii * distances * math.sqrt(3.0))


def get_pyramid_level(
    area: Float[Array, "*batch"],
    extent: Float[Array, ""] | float,
    coarsest: float,
    factor: float = 2.0,
) -> Float[Array, "*batch"]:
    """The level, counted from the coarsest and fractional, whose cells are as wide as a sample.

    l = log_s(extent / width) - log_s(N_0), the width being the root of the area (eq. 3). Below 0
    where a sample is wider than the coarsest cells. A sample without area is infinitely fine.
    """
    width = jnp.sqrt(jnp.maximum(area, 1e-24))
    return (jnp.log(extent / width) - math.log(coarsest)) / math.log(factor)


def blend_levels(level: Float[Array, "*batch"], levels: int) -> Float[Array, "*batch levels"]:
    """How much each level counts: the two neighbours of a fractional level, linearly.

    Beyond the ends the first or the last alone. Sums to one.
    """
    clamped = jnp.clip(level, 0.0, levels - 1.0)[..., None]
    numbers = jnp.arange(levels, dtype=clamped.dtype).reshape((1,) * level.ndim + (levels,))
    return jnp.maximum(1.0 - jnp.abs(clamped - numbers), 0.0)


@dataclasses.dataclass(frozen=True)
class PyNeRF:
    """Spec of a PyNeRF.

    Attributes:
      heads: levels of the pyramid, each with a density network.
      factor: ratio of two levels' cells.
      levels, channels, coarsest, finest, log2_hashmap_size, table_dtype: of the hash grid, as `hashgrid.HashGrid`.
      tables: "shared" by all heads, or "separate": each its own, up to its own finest cells.
      blend: "features", the heads' outputs before they become density and colour, or "results",
        density and colour of the heads, each having a colour network.
      width: of all networks.
      feature_dim: channels that a head hands on to the colour network.
      color_layers: hidden layers of the colour network.
      num_sh_bands: of the direction's spherical harmonics.
      density_shift: added to the raw density before its exponential.
      compute: type that networks are computed in.
    """

    heads: int = 8
    factor: float = 2.0
    levels: int = 16
    channels: int = 4
    coarsest: int = 16
    finest: int = 4096
    log2_hashmap_size: int = 20
    table_dtype: grids.TableDtype = "float32"
    tables: Literal["shared", "separate"] = "separate"
    blend: Literal["features", "results"] = "features"
    width: int = 64
    feature_dim: int = 15
    color_width: int = 128
    color_layers: int = 3
    num_sh_bands: int = 4
    density_shift: float = -1.0
    compute: ComputeType = "float32"
    needs_aabb: ClassVar[bool] = True

    def plans(self) -> tuple[hash_grids.HashLevels, ...]:
        """The levels of each table: one for all heads, or one for each."""
        if self.tables == "shared":
            finest: tuple[float, ...] = (self.finest,)
        else:
            finest = create_pyramid_hierarchy(self.heads, self.finest, self.factor)
        rows = 1 << self.log2_hashmap_size
        return tuple(
            hash_grids.plan_hash_levels(
                self.levels, self.coarsest, max(round(cells), self.coarsest), rows
            )
            for cells in finest
        )

    def _color_mlp(self) -> MLP:
        return MLP(self.color_width, self.color_layers, 3, bias=False, compute=self.compute)

    def init(self, key: jax.Array) -> Params:
        """Features uniform in +-1e-4, networks as usual for layers with ReLU.

        Returns:
          {"table": (rows, channels), of all heads' grids one after the other if they are separate,
          "hidden": (heads, inputs, width),
          "out": (heads, width, 1 + feature_dim), "color_mlp": one or one for each head}.
        """
        key_table, key_hidden, key_out, key_color = jax.random.split(key, 4)
        rows = sum(plan.starts[-1] for plan in self.plans())
        inputs = self.levels * self.channels
        bounds = math.sqrt(6.0 / inputs), math.sqrt(3.0 / self.width)
        seen = jnp.zeros((1, self.feature_dim + self.num_sh_bands**2))
        count = self.heads if self.blend == "results" else 1
        return {
            "table": jax.random.uniform(
                key_table, (rows, self.channels), minval=-1e-4, maxval=1e-4
            ),
            "hidden": bounds[0]
            * jax.random.uniform(key_hidden, (self.heads, inputs, self.width), minval=-1.0),
            "out": bounds[1]
            * jax.random.uniform(
                key_out, (self.heads, self.width, 1 + self.feature_dim), minval=-1.0
            ),
            "color_mlp": tuple(
                self._color_mlp().init(k, seen) for k in jax.random.split(key_color, count)
            ),
        }

    def encode_all(self, params: Params, unit: Float[Array, "m 3"]) -> list[Float[Array, "m e"]]:
        """What each head sees at positions in the unit box."""
        plans = self.plans()
        ends = np.cumsum([plan.starts[-1] for plan in plans])
        tables = jnp.split(params["table"], ends[:-1])
        encoded = [
            hash_grids.sample_hash_grid(table, unit, plan, self.table_dtype)
            for table, plan in zip(tables, plans, strict=True)
        ]
        return encoded * (self.heads // len(encoded))

    def encode_nearest(
        self, params: Params, unit: Float[Array, "m 3"], level: Float[Array, "m"]
    ) -> list[Float[Array, "m e"]]:
        """What each head sees where it counts, next to a level; zeros elsewhere."""
        if self.tables == "shared":
            return self.encode_all(params, unit)
        last = self.heads - 1
        lower = jnp.clip(jnp.floor(level), 0.0, max(last - 1, 0)).astype(jnp.int32)
        seen = [jnp.zeros((), unit.dtype)] * self.heads
        for nearest in (lower, jnp.minimum(lower + 1, last)):
            encoded = hash_grids.sample_hash_grids(
                params["table"], unit, self.plans(), nearest, self.table_dtype
            )
            seen = [
                jnp.where((nearest == head)[:, None], encoded, other)
                for head, other in enumerate(seen)
            ]
        return seen

    def run_heads(
        self, params: Params, encoded: list[Float[Array, "m e"]], share: Float[Array, "m heads"]
    ) -> tuple[Float[Array, "m heads c"], Float[Array, "m c"]]:
        """The outputs of all heads for what they see, and their blend.

        Args:
          params: as `init` made them.
          encoded: for each head.
          share: how much each head counts.
        """
        first, last = (read_as(params[name], self.compute) for name in ("hidden", "out"))
        hidden = [
            jax.nn.relu(read_as(seen, self.compute) @ first[index])
            for index, seen in enumerate(encoded)
        ]
        wide = jnp.promote_types(share.dtype, jnp.float32)
        outputs = [
            jnp.matmul(h, last[index], preferred_element_type=wide)
            for index, h in enumerate(hidden)
        ]
        stacked = jnp.stack(outputs, axis=1)
        return stacked, jnp.sum(share[..., None] * stacked, axis=1)

    def density(
        self, params: Params, positions: Float[Array, "m 3"], radii: Float[Array, "m"]
    ) -> tuple[Float[Array, "m"], Any]:
        """Blended density at the levels that cones of these radii ask for; zero outside the box.

        `params` holds, besides what is trained, the box (2, 3) as "aabb". The latent is what the
        heads hand on, and how much each counts.
        """
        unit, inside = grids.to_unit_box(positions, params["aabb"])
        extent = jnp.max(params["aabb"][1] - params["aabb"][0])
        # The radii are those at the samples already.
        area = compute_sample_area(radii, jnp.ones_like(radii))
        coarsest = create_pyramid_hierarchy(self.heads, self.finest, self.factor)[0]
        level = get_pyramid_level(area, extent, coarsest, self.factor)
        share = blend_levels(level, self.heads)
        encoded = self.encode_nearest(params, unit, level)
        outputs, blended = self.run_heads(params, encoded, share)
        if self.blend == "features":
            density = clamped_exp(blended[:, 0] + self.density_shift)
            latent: Any = blended[:, 1:]
        else:
            each = clamped_exp(outputs[..., 0] + self.density_shift)
            density = jnp.sum(share * each, axis=-1)
            flat = outputs[..., 1:].reshape(-1, self.heads * self.feature_dim)
            latent = jnp.concatenate([flat, share], axis=-1)
        return jnp.where(inside, density, 0.0), latent

    def features(self, params: Params, latent: Float[Array, "m c"]) -> Float[Array, "m c"]:
        """The latent itself."""
        del params
        return latent

    def color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Sigmoid of the colour network, or of each head's, blended."""
        seen = encodings.spherical_harmonics(directions, self.num_sh_bands)

        def shade(mlp: Params, features: Array) -> Array:
            inputs = jnp.concatenate([features, seen], axis=-1)
            return jax.nn.sigmoid(self._color_mlp().apply(mlp, inputs))

        if self.blend == "features":
            return shade(params["color_mlp"][0], features)
        share = features[:, self.heads * self.feature_dim :]
        parts = jnp.split(features[:, : self.heads * self.feature_dim], self.heads, axis=-1)
        colors = [shade(mlp, part) for mlp, part in zip(params["color_mlp"], parts, strict=True)]
        return jnp.sum(share[..., None] * jnp.stack(colors, axis=1), axis=1)


def level_consistency_loss(
    field: PyNeRF, params: Params, unit: Float[Array, "m 3"]
) -> Float[Array, ""]:
    """Mean squared difference of neighbouring heads' outputs at positions in the unit box."""
    share = jnp.full((unit.shape[0], field.heads), 1.0 / field.heads)
    outputs, _ = field.run_heads(params, field.encode_all(params, unit), share)
    return jnp.mean(jnp.square(jnp.diff(outputs, axis=1)))
