"""PyNeRF: a pyramid of heads on hash grids, the level of a sample being as fine as its size.

Turki, Zollhoefer, Richardt, Ramanan: PyNeRF, pyramidal neural radiance fields (NeurIPS 2023).
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.core import encodings
from jaxrf.core.activations import clamped_exp, leaky_sigmoid
from jaxrf.core.checks import require_positive
from jaxrf.core.errors import InputError
from jaxrf.core.grids import to_unit_box
from jaxrf.core.hash_grids import (
    HashLevels,
    plan_hash_levels,
    sample_hash_grid,
    sample_hash_grids,
)
from jaxrf.fields import base
from jaxrf.fields.base import FieldContext, SampleCost
from jaxrf.fields.hashgrid import HashedField
from jaxrf.fields.mlp import MLP, cast_for_compute
from jaxrf.sampling.occupancy import OccupancyGrid

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
      radii: of the cones at distance 1, as `Rays` hold them: the distance to the neighboring
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
class PyNeRF(HashedField):
    """PyNeRF: a pyramid of heads on hash grids, the head chosen by a sample's size."""

    num_pyramid_levels: int = 8
    """Levels of the pyramid, each a density MLP; the finest level of the grid is the last's."""
    factor: float = 2.0
    """Ratio of the cells of two pyramid levels."""
    tables: Literal["shared", "separate"] = "shared"
    """One hash grid for all levels, or one for each that ends at the level's own cells."""
    blend: Literal["features", "results"] = "features"
    """Blend the outputs of neighboring levels, or their densities and colors."""
    color_width: int = 128
    """Width of the color MLP."""
    consistency_weight: float = 0.0
    """Weight of the difference between neighboring levels' outputs."""
    consistency_points: int = 1024
    """Points drawn per step for it."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        super().__post_init__()
        require_positive(self, "color_width", "num_pyramid_levels", prefix="field.")
        if self.featurize_scale:
            raise InputError(
                "--field.featurize-scale is for the hash grid: PyNeRF has a head for each scale; "
                "leave it out."
            )
        if self.tables == "separate" and (self.multisamples > 1 or self.downweight_levels):
            raise InputError(
                "--field.multisamples and --field.downweight-levels are for one table that all "
                "heads share: leave them out, or set --field.tables to shared."
            )

    def plans(self) -> tuple[HashLevels, ...]:
        """The levels of each table: one for all pyramid levels, or one for each."""
        if self.tables == "shared":
            finest: tuple[float, ...] = (self.max_resolution,)
        else:
            finest = self._pyramid_cells()
        rows, base_resolution = 1 << self.log2_hashmap_size, self.base_resolution
        return tuple(
            plan_hash_levels(
                self.num_levels, base_resolution, max(round(cells), base_resolution), rows
            )
            for cells in finest
        )

    def _pyramid_cells(self) -> tuple[float, ...]:
        return create_pyramid_hierarchy(self.num_pyramid_levels, self.max_resolution, self.factor)

    def _color_mlp(self) -> MLP:
        return MLP(self.color_width, self.color_layers, 3, bias=False, compute=self.compute_dtype)

    def init(self, key: jax.Array) -> Params:
        """Features uniform in +-1e-4, networks as usual for layers with ReLU.

        Returns:
          {"table": (rows, features_per_level), of the grids of all levels one after the other if
          they are separate, "hidden": (levels, inputs, width), "out": (levels, width,
          1 + feature_dim), "color_mlp": one or one for each level}.
        """
        key_table, key_hidden, key_out, key_color = jax.random.split(key, 4)
        rows = sum(plan.starts[-1] for plan in self.plans())
        inputs, levels = self.num_encoded(), self.num_pyramid_levels
        table_shape = (rows, self.features_per_level)
        hidden_shape = (levels, inputs, self.width)
        out_shape = (levels, self.width, 1 + self.feature_dim)
        bounds = math.sqrt(6.0 / inputs), math.sqrt(3.0 / self.width)
        color_inputs = jnp.zeros((1, self.feature_dim + self.num_sh_bands**2))
        color_keys = jax.random.split(key_color, levels if self.blend == "results" else 1)
        return {
            "table": jax.random.uniform(key_table, table_shape, minval=-1e-4, maxval=1e-4),
            "hidden": bounds[0] * jax.random.uniform(key_hidden, hidden_shape, minval=-1.0),
            "out": bounds[1] * jax.random.uniform(key_out, out_shape, minval=-1.0),
            "color_mlp": tuple(self._color_mlp().init(k, color_inputs) for k in color_keys),
        }

    def encode_all(self, params: Params, unit: Float[Array, "m 3"]) -> list[Float[Array, "m e"]]:
        """The encoding of positions in the unit box for each pyramid level."""
        plans = self.plans()
        ends = np.cumsum([plan.starts[-1] for plan in plans])
        tables = jnp.split(params["table"], ends[:-1])
        encoded = [
            sample_hash_grid(table, unit, plan, self.table_dtype)
            for table, plan in zip(tables, plans, strict=True)
        ]
        return encoded * (self.num_pyramid_levels // len(encoded))

    def encode_nearest(
        self, params: Params, unit: Float[Array, "m 3"], level: Float[Array, "m"]
    ) -> list[Float[Array, "m e"]]:
        """The encoding for each pyramid level next to a fractional level; zeros for the others.

        Each level has a table of its own.
        """
        last = self.num_pyramid_levels - 1
        lower = jnp.clip(jnp.floor(level), 0.0, max(last - 1, 0)).astype(jnp.int32)
        encodings_by_level = [jnp.zeros((), unit.dtype)] * self.num_pyramid_levels
        for nearest in (lower, jnp.minimum(lower + 1, last)):
            encoded = sample_hash_grids(
                params["table"], unit, self.plans(), nearest, self.table_dtype
            )
            encodings_by_level = [
                jnp.where((nearest == index)[:, None], encoded, other)
                for index, other in enumerate(encodings_by_level)
            ]
        return encodings_by_level

    def run_levels(
        self,
        params: Params,
        encoded: list[Float[Array, "m e"]],
        level_weights: Float[Array, "m levels"],
    ) -> tuple[Float[Array, "m levels c"], Float[Array, "m c"]]:
        """The outputs of the density MLPs of all pyramid levels, and their blend.

        Args:
          params: as `init` made them.
          encoded: for each level.
          level_weights: of each level in the blend.
        """
        first, last = (
            cast_for_compute(params[name], self.compute_dtype) for name in ("hidden", "out")
        )
        hidden = [
            jax.nn.relu(cast_for_compute(x, self.compute_dtype) @ first[index])
            for index, x in enumerate(encoded)
        ]
        accumulated = jnp.promote_types(level_weights.dtype, jnp.float32)
        outputs = [
            jnp.matmul(h, last[index], preferred_element_type=accumulated)
            for index, h in enumerate(hidden)
        ]
        stacked = jnp.stack(outputs, axis=1)
        return stacked, jnp.sum(level_weights[..., None] * stacked, axis=1)

    def density(
        self, params: Params, positions: Float[Array, "m 3"], context: FieldContext
    ) -> tuple[Float[Array, "m"], Any]:
        """Blended density at the levels for cones of the context's radii; zero outside the box.

        The latent is the features of the pyramid levels and their weights.
        """
        extent = jnp.max(context.aabb[1] - context.aabb[0])
        # The radii are those at the samples already.
        area = compute_sample_area(context.radii, jnp.ones_like(context.radii))
        level = get_pyramid_level(area, extent, self._pyramid_cells()[0], self.factor)
        level_weights = blend_levels(level, self.num_pyramid_levels)
        if self.tables == "shared":
            shared, inside = self.encode(params["table"], positions, self.plans()[0], context)
            encoded = [shared] * self.num_pyramid_levels
        else:
            unit, inside = to_unit_box(positions, context.aabb)
            encoded = self.encode_nearest(params, unit, level)
        outputs, blended = self.run_levels(params, encoded, level_weights)
        if self.blend == "features":
            density = clamped_exp(blended[:, 0] + self.density_shift)
            latent: Any = blended[:, 1:]
        else:
            densities = clamped_exp(outputs[..., 0] + self.density_shift)
            density = jnp.sum(level_weights * densities, axis=-1)
            flat = outputs[..., 1:].reshape(-1, self.num_pyramid_levels * self.feature_dim)
            latent = jnp.concatenate([flat, level_weights], axis=-1)
        return jnp.where(inside, density, 0.0), latent

    def composites_features(self) -> bool:
        """Blended densities and colors leave no features to sum up."""
        return self.blend == "features"

    def appearance_channels(self) -> int:
        """The features of all levels whose colors are blended."""
        return self.feature_dim * (self.num_pyramid_levels if self.blend == "results" else 1)

    def regularization(
        self, params: Params, grid: OccupancyGrid, key: jax.Array, tv_decay: Float[Array, ""]
    ) -> Float[Array, ""]:
        """Difference of neighboring levels at random positions, and decay of the tables."""
        del grid, tv_decay
        decay = self._table_loss(params["table"], self.plans())
        if not self.consistency_weight:
            return decay
        unit = jax.random.uniform(key, (self.consistency_points, 3))
        return decay + self.consistency_weight * level_consistency_loss(self, params, unit)

    def sample_cost(self, colored_fraction: float = 1.0) -> SampleCost:
        """Rows of the tables, and the dense layers three times: the value and both gradients."""
        del colored_fraction
        tables = min(self.num_pyramid_levels, 2) if self.tables == "separate" else 1
        encoded = self.num_levels * self.features_per_level
        heads = self.num_pyramid_levels * self.width * (encoded + 1 + self.feature_dim)
        inputs = self.feature_dim + self.num_sh_bands**2
        color = self.color_width * (inputs + (self.color_layers - 1) * self.color_width + 3)
        color *= self.num_pyramid_levels if self.blend == "results" else 1
        return SampleCost(6.0 * (heads + color), 8 * encoded * tables / base.ROW_CHANNELS)

    def color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Sigmoid of the color network, or of each level's, blended."""
        harmonics = encodings.spherical_harmonics(directions, self.num_sh_bands)

        def run_mlp(mlp: Params, features: Array) -> Array:
            inputs = jnp.concatenate([features, harmonics], axis=-1)
            return leaky_sigmoid(self._color_mlp().apply(mlp, inputs))

        if self.blend == "features":
            return run_mlp(params["color_mlp"][0], features)
        count = self.num_pyramid_levels * self.feature_dim
        level_weights = features[:, count:]
        parts = jnp.split(features[:, :count], self.num_pyramid_levels, axis=-1)
        colors = [run_mlp(mlp, part) for mlp, part in zip(params["color_mlp"], parts, strict=True)]
        return jnp.sum(level_weights[..., None] * jnp.stack(colors, axis=1), axis=1)


def level_consistency_loss(
    field: PyNeRF, params: Params, unit: Float[Array, "m 3"]
) -> Float[Array, ""]:
    """Mean squared difference of neighboring levels' outputs at positions in the unit box."""
    uniform = jnp.full((unit.shape[0], field.num_pyramid_levels), 1.0 / field.num_pyramid_levels)
    outputs, _ = field.run_levels(params, field.encode_all(params, unit), uniform)
    return jnp.mean(jnp.square(jnp.diff(outputs, axis=1)))
