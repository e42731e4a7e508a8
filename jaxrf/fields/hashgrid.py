"""Hash grid: a multiresolution table of features and two small networks.

Müller, Evans, Schied, Keller: Instant neural graphics primitives with a multiresolution hash
encoding (SIGGRAPH 2022).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrf.core import encodings
from jaxrf.core.activations import clamped_exp, leaky_sigmoid
from jaxrf.core.checks import require_non_negative, require_positive
from jaxrf.core.grids import TableDtype, to_unit_box
from jaxrf.core.hash_grids import (
    HashLayout,
    HashLevels,
    hash_level_scales,
    level_downweights,
    mean_squares,
    plan_hash_levels,
    plan_scaled_hash_levels,
    sample_hash_grid,
)
from jaxrf.fields import base
from jaxrf.fields.base import FieldContext, SampleCost
from jaxrf.fields.mlp import MLP
from jaxrf.sampling.occupancy import OccupancyGrid

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class HashedField(base.Field):
    """The numbers that fields on a hashed table share."""

    num_levels: int = 16
    """Levels of the grid."""
    features_per_level: int = 2
    """Channels of a level."""
    base_resolution: int = 16
    """Cells along a side of the coarsest level."""
    max_resolution: int = 2048
    """Cells along a side of the finest level."""
    log2_hashmap_size: int = 19
    """A level has at most 2 to the power of this rows."""
    table_dtype: TableDtype = "float32"
    """Type that the table is read in: bfloat16 halves the traffic of lookups where memory bounds
    them. It is trained and summed up in float32."""
    width: int = 64
    """Width of the MLPs."""
    feature_dim: int = 15
    """Channels that the density MLP hands on to the color MLP."""
    color_layers: int = 2
    """Hidden layers of the color MLP."""
    num_sh_bands: int = 4
    """Bands of the direction's spherical harmonics."""
    density_shift: float = -1.0
    """Added to the raw density before its exponential: lower starts emptier."""
    multisamples: int = 1
    """Points of each sample's cone whose features are averaged, 6 in Zip-NeRF; 1 is its middle."""
    downweight_levels: bool = False
    """Weigh down levels with finer cells than a sample's cone is wide (Zip-NeRF)."""
    featurize_scale: bool = False
    """Give the density MLP the weight of each level beside its features (Zip-NeRF)."""
    table_decay: float = 0.0
    """Weight of the sum over levels of the mean square of their rows (Zip-NeRF's normalized weight
    decay, there 0.1)."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_positive(
            self, "num_levels", "features_per_level", "base_resolution", "max_resolution", "width",
            "multisamples", prefix="field.",
        )  # fmt: skip
        require_non_negative(self, "table_decay", prefix="field.")

    def param_groups(self, params: Params) -> Params:
        """The table is a grid."""
        return {**super().param_groups(params), "table": "grid"}

    def multisamples_per_sample(self) -> int:
        """As many as asked for."""
        return self.multisamples

    def encode(
        self,
        table: Float[Array, "rows c"],
        positions: Float[Array, "m 3"],
        plan: HashLevels,
        context: FieldContext,
    ) -> tuple[Float[Array, "m e"], Bool[Array, "m"]]:
        """Features of the parts of cones at positions, and whether those are inside the box.

        Means over the multisamples, each level weighed by `level_downweights`; with
        `featurize_scale` followed by one channel per level, (2 weight - 1) times the root mean
        square of its rows (Zip-NeRF, section 2).
        """
        unit, inside = to_unit_box(positions, context.aabb)
        points, stds = unit, 0.5 * context.radii
        if context.multisamples is not None:
            points, _ = to_unit_box(context.multisamples.positions.reshape(-1, 3), context.aabb)
            stds = context.multisamples.stds.ravel()
        encoded = sample_hash_grid(table, points, plan, self.table_dtype)
        if self.downweight_levels or self.featurize_scale:
            side = jnp.max(context.aabb[1] - context.aabb[0])
            level_weights = level_downweights(stds / side, plan)
            if self.downweight_levels:
                encoded *= jnp.repeat(level_weights, self.features_per_level, axis=-1)
            if self.featurize_scale:
                size = jnp.sqrt(jax.lax.stop_gradient(mean_squares(table, plan)) + 1e-8)
                encoded = jnp.concatenate(
                    [encoded, (2.0 * level_weights - 1.0) * size[None]], axis=-1
                )
        if context.multisamples is not None:
            encoded = jnp.mean(encoded.reshape(len(unit), -1, encoded.shape[-1]), axis=1)
        return encoded, inside

    def num_encoded(self) -> int:
        """Channels of the encoding."""
        return self.num_levels * (self.features_per_level + int(self.featurize_scale))

    def _table_loss(
        self, table: Float[Array, "rows c"], plans: Sequence[HashLevels]
    ) -> Float[Array, ""]:
        """Sum over levels of the mean square of their rows, weighted (Zip-NeRF, section 4)."""
        if not self.table_decay:
            return jnp.zeros(())
        ends = np.cumsum([plan.starts[-1] for plan in plans])
        tables = jnp.split(table, ends[:-1])
        sums = [jnp.sum(mean_squares(t, p)) for t, p in zip(tables, plans, strict=True)]
        return self.table_decay * sum(sums, jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class HashGrid(HashedField):
    """Instant-NGP's hash grid with two small MLPs."""

    density_layers: int = 1
    """Hidden layers of the density MLP."""
    density_scale: float = 1.0
    """Factor of the density; that of a box of side 1 is (side of the box)^-1."""
    hash_layout: HashLayout = "dense_coarse"
    """Corners on the box's faces and a row for each where they fit (dense_coarse); all of them
    hashed, as nerfstudio's PyTorch code has it (all_hashed); or as tiny-cuda-nn has it (tcnn)."""
    level_growth: float | None = None
    """Ratio of a level's resolution to that of the level before; by default what leads from
    base-resolution to max-resolution. Not with dense_coarse."""
    axis_order: tuple[int, int, int] = (0, 1, 2)
    """Axes of the scene that are x, y and z of the grid. Not with dense_coarse."""
    bias: bool = False
    """Whether the MLPs' layers add one."""
    normalize_dirs_01: bool = False
    """Harmonics are taken at (direction + 1) / 2, as nerfstudio's PyTorch code does."""

    def plan(self) -> HashLevels:
        """The layout of the levels in the table."""
        sizes = (self.num_levels, self.base_resolution, self.max_resolution)
        rows = 1 << self.log2_hashmap_size
        if self.hash_layout != "dense_coarse":
            scales = hash_level_scales(*sizes, self.hash_layout, self.level_growth)
            plan = plan_scaled_hash_levels(scales, rows, self.hash_layout)
            return plan._replace(axis_order=self.axis_order)
        return plan_hash_levels(*sizes, rows)

    def _density_mlp(self) -> MLP:
        outputs = 1 + self.feature_dim
        return MLP(
            self.width, self.density_layers, outputs, bias=self.bias, compute=self.compute_dtype
        )

    def _color_mlp(self) -> MLP:
        return MLP(self.width, self.color_layers, 3, bias=self.bias, compute=self.compute_dtype)

    def init(self, key: jax.Array) -> Params:
        """Features uniform in +-1e-4 (section 4), networks as usual for layers with ReLU.

        Returns:
          {"table": (rows, features_per_level), "density_mlp", "color_mlp"}.
        """
        key_table, key_density, key_color = jax.random.split(key, 3)
        shape = (self.plan().starts[-1], self.features_per_level)
        encoded = jnp.zeros((1, self.num_encoded()))
        inputs = jnp.zeros((1, self.feature_dim + self.num_sh_bands**2))
        return {
            "table": jax.random.uniform(key_table, shape, minval=-1e-4, maxval=1e-4),
            "density_mlp": self._density_mlp().init(key_density, encoded),
            "color_mlp": self._color_mlp().init(key_color, inputs),
        }

    def density(
        self, params: Params, positions: Float[Array, "m 3"], context: FieldContext
    ) -> tuple[Float[Array, "m"], Float[Array, "m c"]]:
        """Exponential of the density network's first output, zero outside the box.

        The latent is the remaining outputs.
        """
        encoded, inside = self.encode(params["table"], positions, self.plan(), context)
        out = self._density_mlp().apply(params["density_mlp"], encoded)
        density = self.density_scale * clamped_exp(out[:, 0] + self.density_shift)
        return jnp.where(inside, density, 0.0), out[:, 1:]

    def color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Sigmoid of the color network, which sees features and spherical harmonics."""
        return leaky_sigmoid(self._raw_color(params, features, directions))

    def _raw_color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        if self.normalize_dirs_01:
            directions = 0.5 * (directions + 1.0)
        harmonics = encodings.spherical_harmonics(directions, self.num_sh_bands)
        inputs = jnp.concatenate([features, harmonics], axis=-1)
        raw: Array = self._color_mlp().apply(params["color_mlp"], inputs)
        return raw

    def regularization(
        self, params: Params, grid: OccupancyGrid, key: jax.Array, tv_decay: Float[Array, ""]
    ) -> Float[Array, ""]:
        """Normalized weight decay of the table."""
        del grid, key, tv_decay
        return self._table_loss(params["table"], [self.plan()])

    def appearance_channels(self) -> int:
        """All features."""
        return self.feature_dim

    def sample_cost(self, colored_fraction: float = 1.0) -> SampleCost:
        """Eight rows a level, and the dense layers three times: the value and both gradients."""
        del colored_fraction
        encoded = self.num_levels * self.features_per_level * self.multisamples
        layers = self.num_encoded() + (self.density_layers - 1) * self.width + 1 + self.feature_dim
        inputs = self.feature_dim + self.num_sh_bands**2
        layers += inputs + (self.color_layers - 1) * self.width + 3
        return SampleCost(6.0 * self.width * layers, 8 * encoded / base.ROW_CHANNELS)

    def debug_outputs(
        self,
        params: Params,
        positions: Float[Array, "m 3"],
        directions: Float[Array, "m 3"],
        aabb: Float[Array, "2 3"],
    ) -> dict[str, Array]:
        """The "encoding" of positions, raw "density" (m,), "features", and raw "color" (m, 3)."""
        unit, _ = to_unit_box(positions, aabb)
        encoded = sample_hash_grid(params["table"], unit, self.plan(), self.table_dtype)
        out = self._density_mlp().apply(params["density_mlp"], encoded)
        color = self._raw_color(params, out[:, 1:], directions)
        return {"encoding": encoded, "density": out[:, 0], "features": out[:, 1:], "color": color}
