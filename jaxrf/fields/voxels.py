"""Voxels: density and features at the corners of the cells worth keeping, in packed rows.

A grid whose trilinear values are density and features is that of Sun, Sun, Chen: Direct voxel grid
optimization (CVPR 2022) and of Fridovich-Keil et al.: Plenoxels (CVPR 2022); here its features may
be composited along the ray and colored once per ray.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, Float, Int

from jaxrf.core import encodings
from jaxrf.core.checks import require_positive
from jaxrf.core.errors import InputError
from jaxrf.core.kernels import calls
from jaxrf.core.rays import Rays
from jaxrf.fields import base
from jaxrf.fields.base import FieldContext, SampleCost, SceneInfo, StageTransition, Transitioned
from jaxrf.fields.mlp import MLP
from jaxrf.fields.voxel_grid import (
    VoxelGrid,
    index_cells,
    pad_grid,
    subdivide,
)
from jaxrf.fields.voxel_lookup import look_up
from jaxrf.rendering.volume import RaySums
from jaxrf.sampling.marching import block_dilation
from jaxrf.sampling.occupancy import OccupancyGrid, count_cells, dilate
from jaxrf.sampling.weight_tracking import (
    decayed_max_weights,
)

Params = dict[str, Any]

# Unused rows of the table that are not worth a compilation.
CAPACITY_SLACK = 300_000
# Rays that must meet a voxel before it may be dropped for having had no weight.
MIN_RAYS_PER_VOXEL = 16


@dataclasses.dataclass(frozen=True)
class Voxels(base.Field):
    """Packed voxels, subdivided and pruned while training. Times are fractions of all steps."""

    feature_dim: int = 7
    """Channels of the features that the color MLP sees. With the density they make a row; rows of
    8 numbers are several times faster on a CPU than rows of 9."""
    width: int = 64
    """Width of the color MLP's hidden layers."""
    layers: int = 1
    """Number of the color MLP's hidden layers."""
    num_direction_frequencies: int = 2
    """Fourier frequencies of the view direction."""
    density_shift: float = -4.0
    """Added to the raw density before its softplus: lower starts emptier."""
    density_scale: float = 25.0
    """Factor of the density."""
    density_gain: float = 6.0
    """Factor of the raw density, which then learns so much faster than the features."""
    initial_resolution: int = 64
    """Voxels along the longest side of the box at the start."""
    num_subdivisions: int | None = None
    """How often voxels are divided into eight. Default: until they are about as small as
    finest-pixels says, as far as upsample_at allows."""
    finest_pixels: float = 1.0
    """Side of the smallest voxels, in pixels at the scene's distance."""
    upsample_at: tuple[float, ...] = (0.1, 0.2)
    """When voxels are divided, the first `num_subdivisions` of these."""
    prune_at: tuple[float, ...] = (0.04, 0.1, 0.2, 0.3)
    """When cells to which no ray gave weight are pruned. Pixels whose rays then hit no cell are not
    sampled any more (--filter-rays)."""
    min_steps_before_refine: int = 60
    """Steps before the first of these at least: density takes some to form, however short the
    training is."""
    min_steps_before_prune: tuple[int, ...] = ()
    """Steps that voxels of each size are trained before any are dropped. Default: until each was
    met by about 16 rays, which depends on the size of the images."""
    prune_threshold: float | None = None
    """A cell is kept if a ray gave this weight to it or to a cell next to it. Default: 0.05, or
    0.01 in normalized device coordinates, where surfaces take longer to become opaque."""
    step_ratio: float = 1.0
    """Length of a step in voxels."""
    density_tv_weight: float = 0.0
    """Weight of the density's total variation; it falls as the learning rates do."""
    feature_tv_weight: float = 0.0
    """The same of the features."""
    tv_cells: int = 8192
    """Cells drawn per step for the total variation."""
    pixel_size: Annotated[float, tyro.conf.Suppress] = 0.0
    """Size of a pixel at the scene, in scene units; 0 before training."""
    table_rows: Annotated[int, tyro.conf.Suppress] = 0
    """Rows of the table, in use or not; set while training."""
    table_cells: Annotated[int, tyro.conf.Suppress] = 0
    """Ids of the grid's cells, in use or not; set while training."""

    prunes_grid: ClassVar[bool] = True
    default_coloring: ClassVar[Literal["per_sample", "per_ray"]] = "per_ray"

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_positive(
            self, "width", "feature_dim", "density_scale", "initial_resolution", "step_ratio",
            "finest_pixels", prefix="field.",
        )  # fmt: skip
        times = len(self.upsample_at)
        if self.num_subdivisions is not None and not 0 <= self.num_subdivisions <= times:
            raise InputError(
                f"--field.num-subdivisions is {self.num_subdivisions}: give 0 to {times}, or more "
                "times in --field.upsample-at."
            )

    def _mlp(self) -> MLP:
        return MLP(self.width, self.layers, 3, compute=self.compute_dtype)

    def init(self, key: jax.Array) -> Params:
        """Uniform density, and small random features.

        Returns:
          {"table": (rows, 1 + feature_dim) raw density and features, "mlp"}.
        """
        key_features, key_mlp = jax.random.split(key)
        features = 0.1 * jax.random.normal(key_features, (self.table_rows, self.feature_dim))
        inputs = jnp.zeros((1, self.feature_dim))
        return {
            "table": jnp.pad(features, ((0, 0), (1, 0))),
            "mlp": self._mlp().init(key_mlp, self._encode(inputs, inputs[:, :3])),
        }

    def param_groups(self, params: Params) -> Params:
        """The table is a grid."""
        return {**super().param_groups(params), "table": "grid"}

    def density(
        self, params: Params, positions: Float[Array, "m 3"], context: FieldContext
    ) -> tuple[Float[Array, "m"], Float[Array, "m c"]]:
        """Softplus of the interpolated raw density; zero where no cell is. The latent: features.

        Takes its cells from `context.grid`, a `VoxelGrid`.
        """
        grid = cast(VoxelGrid, context.grid)
        cells, first, features = look_up(grid, params["table"], positions)
        raw = self.density_gain * first + self.density_shift
        density = self.density_scale * jax.nn.softplus(raw)
        return jnp.where(cells > 0, density, 0.0), features

    def color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Color MLP of features and encoded direction."""
        return jax.nn.sigmoid(self._mlp().apply(params["mlp"], self._encode(features, directions)))

    def _encode(
        self, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m e"]:
        return jnp.concatenate(
            [features, encodings.fourier(directions, self.num_direction_frequencies)], axis=-1
        )

    def appearance_channels(self) -> int:
        """All features."""
        return self.feature_dim

    def regularization(
        self, params: Params, grid: OccupancyGrid, key: jax.Array, tv_decay: Float[Array, ""]
    ) -> Float[Array, ""]:
        """Total variation within randomly drawn cells."""
        if not (self.density_tv_weight or self.feature_tv_weight):
            return jnp.zeros(())
        rows = self._draw_rows(grid, key)
        return tv_decay * self._weighted_variation(params["table"][rows])

    def add_regularization(
        self,
        params: Params,
        grads: Params,
        grid: OccupancyGrid,
        key: jax.Array,
        tv_decay: Float[Array, ""],
    ) -> tuple[Float[Array, ""], Params]:
        """Adds to the rows of the drawn cells alone; see `regularization`."""
        if not (self.density_tv_weight or self.feature_tv_weight):
            return jnp.zeros(()), grads
        rows = self._draw_rows(grid, key)
        values = params["table"][rows]
        penalty, added = jax.value_and_grad(self._weighted_variation)(values)
        table = grads["table"].at[rows].add(tv_decay * added)
        return tv_decay * penalty, grads | {"table": table}

    def _draw_rows(self, grid: OccupancyGrid, key: jax.Array) -> Int[Array, "m 8"]:
        """Rows at the corners of randomly drawn cells."""
        voxel_grid = cast(VoxelGrid, grid)
        cells = jax.random.randint(key, (self.tv_cells,), 1, voxel_grid.num_cells)
        return voxel_grid.corner_rows[cells]

    def _weighted_variation(self, values: Float[Array, "m 8 c"]) -> Float[Array, ""]:
        density, features = total_variation(values)
        return self.density_tv_weight * density + self.feature_tv_weight * features

    def ray_compositor(
        self, params: Params, grid: OccupancyGrid, crop_aabb: Float[Array, "2 3"] | None = None
    ) -> Callable[[Rays, Float[Array, ""], int, float], RaySums] | None:
        """One kernel for all of a ray, where it can read the rows of the table."""
        voxel_grid, table = cast(VoxelGrid, grid), params["table"]
        if table.shape[1] % calls.LANES or not calls.can_call(table, voxel_grid.aabb):
            return None

        def composite(rays: Rays, step: Array, max_blocks: int, threshold: float) -> RaySums:
            arrays = calls.VoxelArrays(
                table,
                voxel_grid.corner_rows,
                voxel_grid.cell_ids,
                voxel_grid.aabb,
                voxel_grid.block_grid.occupied,
                voxel_grid.block_grid.aabb,
            )
            density = self.density_gain, self.density_shift, self.density_scale
            settings = *density, step, threshold, float(max_blocks)
            lines = rays.origins, rays.directions, rays.near, rays.far
            return RaySums(*calls.render_voxels(arrays, lines, settings, crop_aabb))

        return composite

    # -- the grid and how it grows ------------------------------------------------------------

    def _subdivisions(self) -> int:
        times = len(self.upsample_at)
        return times if self.num_subdivisions is None else min(self.num_subdivisions, times)

    def _final_resolution(self) -> int:
        """Cells along each side of the grid, most of them unused until the last subdivision."""
        return self.initial_resolution * 2 ** self._subdivisions()

    def step_size(self, aabb: Float[Array | np.ndarray, "2 3"]) -> Float[Array, ""]:
        """`step_ratio` voxels."""
        cells = np.array((self._final_resolution(),) * 3, np.float32)
        return self.step_ratio * jnp.mean((aabb[1] - aabb[0]) / cells)

    def min_voxel_size(self, aabb: Float[np.ndarray, "2 3"]) -> float:
        """Side of a voxel after the last subdivision."""
        return self._initial_voxel_size(aabb) / 2 ** self._subdivisions()

    def _initial_voxel_size(self, aabb: Float[np.ndarray, "2 3"]) -> float:
        return float(np.max(np.diff(aabb, axis=0))) / self.initial_resolution

    def resolve(self, scene: SceneInfo) -> "Voxels":
        """Settles the subdivisions, the pruning threshold and the steps before pruning."""
        voxel = self._initial_voxel_size(scene.aabb)
        subdivisions = self.num_subdivisions
        if subdivisions is None:
            finest = self.finest_pixels * scene.pixel_size
            halvings = round(math.log2(max(voxel / finest, 1.0)))
            # In NDC, surfaces fill the whole box.
            limit = 1 if scene.is_ndc else len(self.upsample_at)
            subdivisions = min(halvings, limit, len(self.upsample_at))
        threshold = self.prune_threshold
        if threshold is None:
            threshold = 0.01 if scene.is_ndc else 0.05
        steps = _steps_before_prune(subdivisions, voxel, scene.pixel_size, scene.rays_per_image)
        return dataclasses.replace(
            self,
            num_subdivisions=subdivisions,
            prune_threshold=threshold,
            pixel_size=scene.pixel_size,
            min_steps_before_prune=self.min_steps_before_prune or steps,
        )

    def begin(self, aabb: Float[np.ndarray, "2 3"]) -> "Voxels":
        """Capacity for all cells of the first size in the box."""
        shape = count_cells(self.initial_resolution, aabb)
        return dataclasses.replace(
            self,
            table_rows=math.prod(n + 1 for n in shape) + 1,
            table_cells=math.prod(shape) + 1,
        )

    def grid_aabb(self, aabb: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 3"]:
        """The box of side^3 cells of the first size from the low corner on."""
        length = (aabb[1] - aabb[0]).max() / self.initial_resolution * self._final_resolution()
        return np.stack([aabb[0], aabb[0] + length])

    def grid_resolution(self, aabb: Float[np.ndarray, "2 3"]) -> tuple[int, int, int]:
        """As many cells as the finest grid needs."""
        del aabb
        return (self._final_resolution(),) * 3

    def init_grid(
        self,
        aabb: Float[np.ndarray, "2 3"],
        resolution: tuple[int, int, int],
        dilation_cells: float,
        bounds: Float[Array, "2 3"] | None,
    ) -> VoxelGrid:
        """All cells of the first size that the box holds."""
        occupied = np.zeros(resolution, bool)
        x, y, z = count_cells(self.initial_resolution, aabb)
        occupied[:x, :y, :z] = True
        grid = index_cells(occupied, self.grid_aabb(aabb), dilation_cells, bounds)
        return pad_grid(grid, self.table_cells)

    def plan_transitions(self, step_at: Callable[[float], int]) -> list[StageTransition]:
        """Subdivisions and prunings; two subdivisions never fall on one step."""
        counts = [self.initial_resolution**3 * 8**i for i in range(self._subdivisions() + 1)]
        upsample = {
            max(step_at(fraction), self.min_steps_before_refine + index): count
            for index, (fraction, count) in enumerate(
                zip(sorted(self.upsample_at), counts[1:], strict=False)
            )
        }
        prune = {max(step_at(fraction), self.min_steps_before_refine) for fraction in self.prune_at}
        return [
            StageTransition(step, step in prune, upsample.get(step))
            for step in sorted(upsample.keys() | prune)
        ]

    def delay_transitions(self, transitions: Sequence[StageTransition]) -> list[StageTransition]:
        """Transitions late enough that voxels of each size were trained before any are dropped."""
        return _delay_pruning(transitions, self.min_steps_before_prune)

    def apply_transition(
        self, transition: StageTransition, params: Params, grid: OccupancyGrid
    ) -> Transitioned:
        """Drops and subdivides cells; capacity grows only where it does not suffice."""
        del params
        if not transition.prune and transition.num_voxels is None:
            return Transitioned(self, grid, base.keep_params)
        voxel_grid = cast(VoxelGrid, grid)
        keep = np.asarray(voxel_grid.occupied)
        if transition.prune:
            keep = self._cells_with_weight(voxel_grid, keep)
        factor = 1 if transition.num_voxels is None else 2
        aabb = np.asarray(voxel_grid.aabb)
        contracted = voxel_grid.bounds is not None
        dilation = block_dilation(
            self.step_size(aabb), aabb, (self._final_resolution(),) * 3, contracted
        )
        subdivided, parents, weights = subdivide(voxel_grid, keep, factor, dilation)
        rows = len(parents)
        field = dataclasses.replace(
            self,
            table_rows=_capacity(rows, self.table_rows),
            table_cells=_capacity(int(subdivided.num_cells), self.table_cells),
        )
        unused = ((0, field.table_rows - rows), (0, 0))
        source, weight = jnp.asarray(np.pad(parents, unused)), jnp.asarray(np.pad(weights, unused))

        def carry_over(tree: Params) -> Params:
            return tree | {"table": _interpolate_rows(tree["table"], source, weight)}

        return Transitioned(field, pad_grid(subdivided, field.table_cells), carry_over)

    def _cells_with_weight(
        self, grid: VoxelGrid, keep: Bool[np.ndarray, "n n n"]
    ) -> Bool[np.ndarray, "n n n"]:
        """The occupied cells in or next to which a ray gave enough weight; all if there is none.

        Weights fade with every step, and the fewer rays meet a voxel, the longer ago was the last:
        where voxels are smaller than pixels, what shows in few images would be lost.
        """
        assert self.prune_threshold is not None, "resolve settles the threshold"
        voxel = float(grid.aabb[1, 0] - grid.aabb[0, 0]) / keep.shape[0]
        threshold = self.prune_threshold ** max(1.0, 0.5 * (self.pixel_size / voxel) ** 2)
        above_threshold = np.asarray(decayed_max_weights(grid)) > threshold
        above_threshold = above_threshold[np.asarray(grid.cell_ids)].reshape(keep.shape)
        remaining = np.asarray(jax.jit(dilate)(jnp.asarray(above_threshold & keep))) & keep
        return remaining if remaining.any() else keep

    def shape_key(self) -> tuple[Any, ...]:
        """Capacity of table and grid."""
        return self.table_rows, self.table_cells

    def describe_grid(self, grid: OccupancyGrid) -> str:
        """Number and size of the voxels."""
        size = float(grid.aabb[1, 0] - grid.aabb[0, 0]) / grid.occupied.shape[0]
        return f"{int(jnp.sum(grid.occupied))} voxels of {size:.3g}"

    def sample_cost(self, colored_fraction: float = 1.0) -> SampleCost:
        """Eight rows; the MLP is evaluated once per ray."""
        del colored_fraction
        return SampleCost(0.0, 8 * (1 + self.feature_dim) / base.ROW_CHANNELS)


def total_variation(
    corners: Float[Array, "m 8 c"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Squared differences of cells' corners along the edges, for density and for features.

    Means over cells; sums over the 12 edges and over channels.
    """
    values = corners.reshape(-1, 2, 2, 2, corners.shape[-1])
    squares = [jnp.square(jnp.diff(values, axis=axis)) for axis in (1, 2, 3)]
    channels = jnp.stack([jnp.mean(jnp.sum(s, axis=(1, 2, 3)), axis=0) for s in squares]).sum(0)
    return channels[0], jnp.sum(channels[1:])


@jax.jit
def _interpolate_rows(
    table: Float[Array, "old c"], source: Int[Array, "rows 8"], weight: Float[Array, "rows 8"]
) -> Float[Array, "rows c"]:
    return jnp.einsum("rk,rkc->rc", weight, table[source])


def _capacity(needed: int, present: int) -> int:
    """Capacity for a number of entries: the present one unless it is too small or far too large.

    Another shape has to be compiled, and the optimizer updates every row, in use or not.
    """
    enough = -(-needed * 5 // 4 // 4096) * 4096
    return present if needed <= present < enough + CAPACITY_SLACK else enough


def _steps_before_prune(
    subdivisions: int, voxel: float, pixel: float, rays_per_image: float
) -> tuple[int, ...]:
    """Steps until a visible voxel was met by `MIN_RAYS_PER_VOXEL` rays, for each size of voxels.

    Args:
      subdivisions: how often voxels are divided.
      voxel: side of the largest, in scene units.
      pixel: size of a pixel at the scene, in scene units.
      rays_per_image: rays of a step as a share of the pixels of an image.
    """
    sides = [voxel / 2**subdivision / pixel for subdivision in range(subdivisions + 1)]
    # A voxel covers so many pixels of each image that shows it.
    return tuple(math.ceil(MIN_RAYS_PER_VOXEL / (rays_per_image * side**2)) for side in sides)


def _delay_pruning(
    transitions: Sequence[StageTransition], min_steps: Sequence[int]
) -> list[StageTransition]:
    """Transitions late enough that voxels were trained before any are dropped.

    `min_steps` is the number of steps with voxels of each size.
    """
    delayed: list[StageTransition] = []
    last = size = 0
    for transition in transitions:
        wait = min_steps[min(size, len(min_steps) - 1)] if transition.prune and min_steps else 0
        # Transitions due on one step become one, but for subdivisions: there is one at a time.
        wait = max(wait, int(transition.num_voxels is not None))
        last = max(transition.step, last + wait)
        size += transition.num_voxels is not None
        transition = transition._replace(step=last)
        if delayed and delayed[-1].step == last:
            before = delayed.pop()
            transition = StageTransition(
                last,
                before.prune or transition.prune,
                before.num_voxels,
                max(before.supersample, transition.supersample),
            )
        delayed.append(transition)
    return delayed
