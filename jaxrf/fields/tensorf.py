"""TensoRF: density and features as sums of products of planes and lines, or of three lines.

Chen, Xu, Geiger, Yu, Su: TensoRF, tensorial radiance fields (ECCV 2022), section 4.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from jaxrf.core import encodings, grids
from jaxrf.core.checks import require_positive
from jaxrf.core.errors import InputError
from jaxrf.fields import base
from jaxrf.fields.base import FieldContext, SampleCost, StageTransition, Transitioned
from jaxrf.fields.mlp import MLP
from jaxrf.fields.tensor_factors import (
    LINE_AXES,
    PLANE_AXES,
    fit_resolution,
    l1_norm,
    ortho_loss,
    resample,
    total_variation,
)
from jaxrf.sampling.alpha_mask import attach_mask
from jaxrf.sampling.marching import block_dilation
from jaxrf.sampling.occupancy import (
    OccupancyGrid,
    dilate,
    make_full_grid,
    occupied_aabb,
    prune_by_alpha,
    resample_grid,
)
from jaxrf.sampling.weight_tracking import WeightTrackedGrid, decayed_max_weights, track_weights

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TensoRF(base.Field):
    """TensoRF and how its grid grows. Times are fractions of all steps."""

    factors: Literal["vm", "cp"] = "vm"
    """A component is a plane times a line, for each axis (eq. 3), or the product of three lines
    (eq. 2)."""
    density_components: int = 16
    """Rank of the density, per axis."""
    feature_components: int = 48
    """Rank of the features, per axis."""
    feature_dim: int = 27
    """Channels of the features that the color MLP sees."""
    width: int = 128
    """Width of the color MLP's hidden layers."""
    layers: int = 2
    """Number of the color MLP's hidden layers."""
    color_head: Literal["mlp", "harmonics"] = "mlp"
    """Color by an MLP, or features as coefficients of spherical harmonics: their number is then 3
    times 1, 4, 9 or 16."""
    init_scale: float = 0.1
    """Standard deviation of planes and lines at the start."""
    num_feature_frequencies: int = 2
    """Fourier frequencies of the features."""
    num_direction_frequencies: int = 2
    """Fourier frequencies of the view direction."""
    density_shift: float = -10.0
    """Added to the raw density before its softplus: lower starts emptier."""
    density_scale: float = 25.0
    """Factor of the density (the paper's distance scale)."""
    activation: Literal["softplus", "relu"] = "softplus"
    """Of the raw density; relu leaves the shift out."""
    initial_voxels: int = 128**3
    """Number of voxels at the start."""
    final_voxels: int = 300**3
    """Number of voxels after the last upsampling."""
    upsample_at: tuple[float, ...] = (2 / 30, 3 / 30, 4 / 30, 5.5 / 30, 7 / 30)
    """When the grid is upsampled, log-spaced in the number of voxels."""
    prune_at: tuple[float, ...] = (2 / 30, 4 / 30)
    """When empty cells are dropped and rays that hit nothing are left out. The next upsampling
    shrinks the box to the occupied cells."""
    min_steps_before_refine: int = 0
    """Steps before the first of these, and between upsamplings, at least."""
    occupancy_voxels: int = 128**3
    """Cells of the occupancy grid at most; it has as many as there are voxels."""
    prune_by: Literal["alpha", "weight"] = "alpha"
    """Compared with the threshold: the alpha of one step through a cell, with a `density_scale` of
    1, or the weight that some ray gave it, which drops hidden cells too."""
    prune_threshold: float = 1e-4
    """A cell is kept if it, or a cell next to it, reaches this."""
    step_ratio: float = 0.5
    """Length of a step in voxels."""
    l1_weight: float = 8e-5
    """Weight of the density factors' L1 norm (section 4.3)."""
    l1_weight_pruned: float = 4e-5
    """The same after the first pruning."""
    density_tv_weight: float = 0.0
    """Weight of the total variation of the density's planes, or of its lines in cp; it falls as the
    learning rates do."""
    feature_tv_weight: float = 0.0
    """The same of the features."""
    orthogonality_weight: float = 0.0
    """Weight of the inner products of different components' lines."""
    reset_lr: bool = False
    """Learning rates start anew at every upsampling, and so do the moments of the optimizer."""
    resolution: Annotated[tuple[int, int, int], tyro.conf.Suppress] = (0, 0, 0)
    """Grid points along x, y, z; set while training."""
    cells: Annotated[tuple[int, int, int], tyro.conf.Suppress] = (0, 0, 0)
    """Cells of the occupancy grid; set while training."""
    pruned: Annotated[bool, tyro.conf.Suppress] = False
    """Whether empty cells have been dropped; set while training."""
    mask_shape: Annotated[tuple[int, int, int], tyro.conf.Suppress] = (0, 0, 0)
    """Points of the alpha mask of a converted field, up to its next pruning or upsampling."""

    prunes_grid: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_positive(
            self, "width", "density_components", "feature_components", "feature_dim",
            "density_scale", "initial_voxels", "final_voxels", "occupancy_voxels", "step_ratio",
            prefix="field.",
        )  # fmt: skip
        dims = [3 * bands**2 for bands in range(1, 5)]
        if self.color_head == "harmonics" and self.feature_dim not in dims:
            raise InputError(
                f"--field.feature-dim is {self.feature_dim}: harmonics need one of "
                f"{', '.join(str(n) for n in dims)}."
            )

    def _mlp(self) -> MLP:
        return MLP(self.width, self.layers, 3, compute=self.compute_dtype)

    def init(self, key: jax.Array) -> Params:
        """Factors from a normal distribution, the basis and the MLP as usual for linear layers.

        Returns:
          {"density", "features": {"planes": 3 x (height, width, c), "lines": 3 x (size, c)},
          "basis": (3 c, feature_dim), "mlp"}; without planes, a basis of (c, feature_dim), and
          without an MLP where it does not apply.
        """
        key_density, key_features, key_basis, key_mlp = jax.random.split(key, 4)
        inputs = jnp.zeros((1, self.feature_dim))
        components = self.feature_components * (3 if self.factors == "vm" else 1)
        bound = 1.0 / math.sqrt(components)
        params = {
            "density": self._init_factors(key_density, self.density_components),
            "features": self._init_factors(key_features, self.feature_components),
            "basis": jax.random.uniform(
                key_basis, (components, self.feature_dim), minval=-bound, maxval=bound
            ),
        }
        if self.color_head == "mlp":
            params["mlp"] = self._mlp().init(key_mlp, self._encode(inputs, inputs[:, :3]))
        return params

    def param_groups(self, params: Params) -> Params:
        """Planes and lines are grids."""
        factors = {part: params[part] for part in ("density", "features")}
        return {**super().param_groups(params), **base.label_params(factors, "grid")}

    def _init_factors(self, key: jax.Array, components: int) -> dict[str, tuple[Array, ...]]:
        keys = jax.random.split(key, 6)
        normal = jax.random.normal
        planes = zip(keys[:3], PLANE_AXES, strict=True) if self.factors == "vm" else ()
        return {
            "planes": tuple(
                self.init_scale
                * normal(k, (self.resolution[down], self.resolution[across], components))
                for k, (across, down) in planes
            ),
            "lines": tuple(
                self.init_scale * normal(k, (self.resolution[axis], components))
                for k, axis in zip(keys[3:], LINE_AXES, strict=True)
            ),
        }

    def _products(
        self, factors: dict[str, tuple[Array, ...]], unit: Float[Array, "m 3"]
    ) -> list[Float[Array, "m c"]]:
        lines = grids.sample_lines(factors["lines"], [unit[:, axis] for axis in LINE_AXES])
        if self.factors == "cp":
            return [lines[0] * lines[1] * lines[2]]
        planes = grids.sample_planes(
            factors["planes"],
            [unit[:, across] for across, _ in PLANE_AXES],
            [unit[:, down] for _, down in PLANE_AXES],
        )
        return [plane * line for plane, line in zip(planes, lines, strict=True)]

    def density(
        self, params: Params, positions: Float[Array, "m 3"], context: FieldContext
    ) -> tuple[Float[Array, "m"], Float[Array, "m 3"]]:
        """Softplus of the sum of all density components (eq. 5), zero outside the box.

        The latent is the position in the box's unit coordinates: features are looked up only for
        the samples that need them.
        """
        unit, inside = grids.to_unit_box(positions, context.aabb)
        raw = sum(jnp.sum(p, axis=-1) for p in self._products(params["density"], unit))
        if self.activation == "relu":
            density = self.density_scale * jax.nn.relu(raw)
        else:
            density = self.density_scale * jax.nn.softplus(raw + self.density_shift)
        return jnp.where(inside, density, 0.0), unit

    def debug_outputs(
        self,
        params: Params,
        positions: Float[Array, "m 3"],
        directions: Float[Array, "m 3"],
        aabb: Float[Array, "2 3"],
    ) -> dict[str, Array]:
        """Raw "density" (m,), "features" (m, c), and raw "color" (m, 3) by an MLP."""
        unit, _ = grids.to_unit_box(positions, aabb)
        raw = sum(jnp.sum(p, axis=-1) for p in self._products(params["density"], unit))
        features = self.features(params, unit)
        color = self._mlp().apply(params["mlp"], self._encode(features, directions))
        return {"density": raw, "features": features, "color": color}

    def features(self, params: Params, latent: Float[Array, "m 3"]) -> Float[Array, "m c"]:
        """The concatenated feature components times the basis matrix (eq. 7)."""
        products = self._products(params["features"], latent)
        return jnp.concatenate(products, axis=-1) @ params["basis"]

    def color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Color MLP of features, direction and their encodings, or harmonics of the direction."""
        if self.color_head == "harmonics":
            bands = math.isqrt(self.feature_dim // 3)
            basis = encodings.spherical_harmonics(directions, bands)
            coefficients = features.reshape(features.shape[0], 3, bands**2)
            return jax.nn.sigmoid(jnp.sum(coefficients * basis[:, None], axis=-1))
        return jax.nn.sigmoid(self._mlp().apply(params["mlp"], self._encode(features, directions)))

    def _encode(
        self, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m e"]:
        return jnp.concatenate(
            [
                encodings.fourier(features, self.num_feature_frequencies),
                encodings.fourier(directions, self.num_direction_frequencies),
            ],
            axis=-1,
        )

    def appearance_channels(self) -> int:
        """All features."""
        return self.feature_dim

    def regularization(
        self, params: Params, grid: OccupancyGrid, key: jax.Array, tv_decay: Float[Array, ""]
    ) -> Float[Array, ""]:
        """L1 norm, total variation and orthogonality of the factors (section 4.3)."""
        del grid, key
        total = jnp.zeros(())
        l1_weight = self.l1_weight_pruned if self.pruned else self.l1_weight
        if l1_weight:
            total += l1_weight * l1_norm(params)
        for weight, part in (
            (self.density_tv_weight, "density"),
            (self.feature_tv_weight, "features"),
        ):
            if weight:
                total += weight * tv_decay * total_variation(params[part])
        if self.orthogonality_weight:
            total += self.orthogonality_weight * ortho_loss(params)
        return total

    # -- the grid and how it grows ------------------------------------------------------------

    def step_size(self, aabb: Float[Array | np.ndarray, "2 3"]) -> Float[Array, ""]:
        """`step_ratio` voxels."""
        intervals = np.array(self.resolution, np.float32) - 1
        return self.step_ratio * jnp.mean((aabb[1] - aabb[0]) / intervals)

    def min_voxel_size(self, aabb: Float[np.ndarray, "2 3"]) -> float:
        """Side of a voxel after the last upsampling."""
        return float(np.cbrt(np.prod(aabb[1] - aabb[0]) / self.final_voxels))

    def begin(self, aabb: Float[np.ndarray, "2 3"]) -> "TensoRF":
        """The first number of voxels."""
        return self._with_voxels(self.initial_voxels, aabb)

    def _with_voxels(self, count: int, aabb: Float[np.ndarray, "2 3"]) -> "TensoRF":
        cells = min(count, self.occupancy_voxels)
        return dataclasses.replace(
            self,
            resolution=fit_resolution(count, aabb),
            cells=fit_resolution(cells, aabb),
            mask_shape=(0, 0, 0),
        )

    def grid_resolution(self, aabb: Float[np.ndarray, "2 3"]) -> tuple[int, int, int]:
        """The cells of the present stage."""
        del aabb
        return self.cells

    def init_grid(
        self,
        aabb: Float[np.ndarray, "2 3"],
        resolution: tuple[int, int, int],
        dilation_cells: float,
        bounds: Float[Array, "2 3"] | None,
    ) -> WeightTrackedGrid:
        """All cells of the box, no weights recorded."""
        full = make_full_grid(resolution, jnp.asarray(aabb), bounds)
        tracked = _track_weights(full, dilation_cells)
        if not any(self.mask_shape):
            return tracked
        return attach_mask(tracked, np.ones(self.mask_shape, bool), aabb)

    def plan_transitions(self, step_at: Callable[[float], int]) -> list[StageTransition]:
        """Upsamplings, far enough apart to compile each ahead of time, and prunings."""
        counts = np.geomspace(self.initial_voxels, self.final_voxels, len(self.upsample_at) + 1)
        settle = self.min_steps_before_refine
        # A grid of another shape can be compiled ahead only once the first pruning has placed it.
        upsample = {
            max(step_at(fraction), settle + settle * (2 * index + 1) + index): round(count)
            for index, (fraction, count) in enumerate(
                zip(sorted(self.upsample_at), counts[1:], strict=False)
            )
        }
        prune = {max(step_at(fraction), settle) for fraction in self.prune_at}
        return [
            StageTransition(step, step in prune, upsample.get(step))
            for step in sorted(upsample.keys() | prune)
        ]

    def predict_transition(
        self, transition: StageTransition, grid: OccupancyGrid
    ) -> tuple["TensoRF", Float[np.ndarray, "2 3"]] | None:
        """Unknown for an upsampling before the first pruning, which shrinks the box."""
        if transition.num_voxels is not None and not self.pruned:
            return None
        return self._reshape(transition, grid)

    def _reshape(
        self, transition: StageTransition, grid: OccupancyGrid
    ) -> tuple["TensoRF", Float[np.ndarray, "2 3"]]:
        """Field and box after a transition: upsampling shrinks the box to the occupied cells."""
        if not transition.prune and transition.num_voxels is None:
            return self, np.asarray(grid.aabb)
        field = dataclasses.replace(
            self, pruned=self.pruned or transition.prune, mask_shape=(0, 0, 0)
        )
        if transition.num_voxels is None:
            return field, np.asarray(grid.aabb)
        # All of contracted space is one box, which does not shrink.
        aabb = np.asarray(grid.aabb)
        if grid.bounds is None:
            aabb = occupied_aabb(grid).astype(np.float32)
        return field._with_voxels(transition.num_voxels, aabb), aabb

    def apply_transition(
        self, transition: StageTransition, params: Params, grid: OccupancyGrid
    ) -> Transitioned:
        """Prunes, then resamples planes and lines in the box of the occupied cells."""
        if not transition.prune and transition.num_voxels is None:
            return Transitioned(self, grid, base.keep_params)
        pruned = self._prune(params, grid) if transition.prune else grid
        # After the first pruning the box is that of the one before, which is known beforehand.
        field, aabb = self._reshape(transition, grid if self.pruned else pruned)
        if transition.num_voxels is not None:
            pruned = jax.jit(resample_grid, static_argnums=1)(pruned, field.cells, aabb)
        contracted = grid.bounds is not None
        dilation = block_dilation(field.step_size(aabb), aabb, field.cells, contracted)
        tracked = _track_weights(pruned, dilation)
        if transition.num_voxels is None:
            return Transitioned(field, tracked, base.keep_params)

        def carry_over(tree: Params) -> Params:
            return _resample(tree, field.resolution, grid.aabb, jnp.asarray(aabb))

        return Transitioned(field, tracked, carry_over)

    def _prune(self, params: Params, grid: Any) -> OccupancyGrid:
        """The grid without cells that have too little weight, or too little alpha."""
        if self.prune_by == "weight":
            heavy = decayed_max_weights(grid).reshape(self.cells) > self.prune_threshold
            occupied = jax.jit(dilate)(heavy & grid.occupied) & grid.occupied
            return dataclasses.replace(grid, occupied=occupied) if bool(occupied.any()) else grid
        # The published threshold is for the density before its factor.
        unscaled = dataclasses.replace(self, density_scale=1.0)

        def density(positions: Array) -> Array:
            context = FieldContext(jnp.zeros(positions.shape[:-1]), grid.aabb)
            return unscaled.density(params, positions, context)[0]

        step = self.step_size(grid.aabb)
        return prune_by_alpha(grid, jax.jit(density), step, self.prune_threshold)

    def resets_lr(self, transition: StageTransition) -> bool:
        """At upsamplings, if asked for."""
        return self.reset_lr and transition.num_voxels is not None

    def canonical(self) -> "TensoRF":
        """Whether cells were pruned matters to the weight of the L1 norm alone."""
        if self.l1_weight != self.l1_weight_pruned:
            return self
        return dataclasses.replace(self, pruned=False)

    def for_rendering(self) -> "TensoRF":
        """Whether cells were pruned does not matter to images."""
        return dataclasses.replace(self, pruned=False)

    def shape_key(self) -> tuple[Any, ...]:
        """Grid points, cells, and points of an alpha mask."""
        return self.resolution, self.cells, self.mask_shape

    def describe_grid(self, grid: OccupancyGrid) -> str:
        """Grid points and the share of occupied cells."""
        share = float(jnp.mean(grid.occupied * 1.0))
        return f"grid {'x'.join(str(n) for n in self.resolution)}, {share:.1%} occupied"

    def sample_cost(self, colored_fraction: float = 1.0) -> SampleCost:
        """Rows of planes and lines, and the basis matrix."""
        channels = self.density_components + colored_fraction * self.feature_components
        planes = 3 if self.factors == "vm" else 0
        rows = (4 * planes + 2 * 3) * channels / base.ROW_CHANNELS
        products = max(planes, 1) * self.feature_components
        return SampleCost(3.0 * 2 * products * self.feature_dim * colored_fraction, rows)


_track_weights = jax.jit(track_weights, static_argnums=1)
_resample = jax.jit(resample, static_argnums=1)
