"""The packed model: rays march through an occupancy grid, and the samples of all are packed.

Müller, Evans, Schied, Keller: Instant neural graphics primitives (SIGGRAPH 2022), appendix C and
E.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.cameras import contraction
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core import rngs
from jaxrf.core.checks import require_positive
from jaxrf.core.errors import InputError
from jaxrf.core.kernels import calls
from jaxrf.core.rays import ConicalFrusta, Rays, clip_to_aabb, normalize_distances
from jaxrf.fields.base import Field, FieldContext
from jaxrf.models.base import DepthTarget, Model, ModelParams, StageSpec, TrainRendering
from jaxrf.models.networks import AABB_EPS, bind_network, clamp_to_aabb, in_aabb
from jaxrf.rendering.march import MarchRenderConfig, color_sums, march_and_render
from jaxrf.rendering.packed import render_packed_samples, sample_points
from jaxrf.rendering.ray_losses import packed_depth_loss, packed_distortion_loss
from jaxrf.rendering.volume import Rendering
from jaxrf.sampling.marching import (
    STEPS_PER_BLOCK,
    MarchConfig,
    block_dilation,
    march_to_samples,
    max_blocks_per_ray,
    occupied_blocks,
)
from jaxrf.sampling.occupancy import (
    OccupancyGrid,
    OccupancySchedule,
    contract_positions,
    count_cells,
    occupied_aabb,
    s_to_t,
    to_s_rays,
)
from jaxrf.sampling.packed import PackedSamples

# Of a ray without an end: a distance that no scene reaches, in scene units.
UNBOUNDED_FAR = 1e9


@dataclasses.dataclass(frozen=True)
class PackedModel(Model):
    """Ray marching through an occupancy grid, with packed samples (Instant-NGP, nerfacc)."""

    steps_per_diagonal: int = 1024
    """Steps along the box's diagonal, which set the step length of fields that set none themselves
    (voxels and TensoRF do: --field.step-ratio)."""
    color_threshold: float = 1e-4
    """Samples of less weight get no color, if max-colored-fraction is below 1."""
    max_colored_fraction: float = 1.0
    """Fraction of the sample budget that can get a color; 1 evaluates the color of all samples."""
    occupancy_resolution: int = 128
    """Cells of the occupancy grid along the longest side of the box. This and the following options
    do not concern voxels and TensoRF, whose grids are pruned by weights or alpha instead."""
    occupancy_update_interval: int = 16
    """Steps between two updates of the occupancy grid."""
    occupancy_warmup_steps: int = 256
    """Steps during which an update evaluates all cells; later it evaluates a quarter of them and as
    many that are occupied."""
    occupancy_decay: float = 0.95
    """Factor by which a cell's optical depth shrinks in an update, before the maximum with a new
    one is taken."""
    occupancy_threshold: float = 0.01
    """Optical depth of a step above which a cell is occupied, or the mean, if that is less."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        super().__post_init__()
        require_positive(
            self, "steps_per_diagonal", "max_colored_fraction", "occupancy_resolution",
            "occupancy_update_interval", prefix="model.",
        )  # fmt: skip

    def check(self, field: Field, convention: RayConvention) -> None:
        """Refuses conventions that only fixed samples know."""
        super().check(field, convention)
        if convention.along_axis() or convention.transmittance != "exclusive":
            raise InputError(
                "--ray-convention has lengths or directions along the axis, or an inclusive "
                "transmittance, which only the hierarchical model knows: leave them out, or use "
                "--model hierarchical."
            )

    def init_networks(self, field: Field, key: jax.Array) -> ModelParams:
        """Parameters of one network."""
        return ModelParams(field.init(key))

    def grid_resolution(self, aabb: Float[np.ndarray, "2 3"]) -> tuple[int, int, int]:
        """Cubic cells, `occupancy_resolution` along the longest side."""
        return count_cells(self.occupancy_resolution, aabb)

    def step_size(self, field: Field, aabb: Float[Array | np.ndarray, "2 3"]) -> Float[Array, ""]:
        """Length of a marching step in scene units: the field's, or a share of the diagonal."""
        step = field.step_size(aabb)
        if step is not None:
            return step
        return jnp.linalg.norm(jnp.asarray(aabb[1] - aabb[0])) / self.steps_per_diagonal

    def dilation_cells(self, stage: StageSpec, aabb: Float[np.ndarray, "2 3"]) -> float:
        """Half a block of steps, in cells of the stage's grid in this box."""
        step = self.step_size(stage.field, aabb)
        return block_dilation(step, aabb, stage.grid_resolution, bool(self.contract))

    def init_grid(
        self,
        stage: StageSpec,
        aabb: Float[np.ndarray, "2 3"],
        bounds: Float[Array, "2 3"] | None,
    ) -> OccupancyGrid:
        """All cells of the box, in the kind of grid that the field uses."""
        dilation = self.dilation_cells(stage, stage.field.grid_aabb(aabb))
        return stage.field.init_grid(aabb, stage.grid_resolution, dilation, bounds)

    def set_budgets(
        self,
        stage: StageSpec,
        batch_samples: int,
        microbatch_samples: int | None,
        aabb: Float[np.ndarray, "2 3"],
        bounds: Float[np.ndarray | Array, "2 3"] | None,
    ) -> StageSpec:
        """Budgets of blocks and samples. Rays that do not fit into one are dropped."""
        del microbatch_samples
        step = self.step_size(stage.field, aabb)
        # Steps to look up for each that is kept. A grid that follows the density has cells of
        # several steps, of which fewer are occupied.
        steps_per_sample = 3 if stage.field.prunes_grid else 6
        share = self.max_colored_fraction
        return dataclasses.replace(
            stage,
            max_blocks=max_blocks_per_ray(aabb, step, bounds),
            block_budget=max(steps_per_sample * batch_samples // STEPS_PER_BLOCK, 1),
            sample_budget=batch_samples,
            color_budget=math.ceil(share * batch_samples) if share < 1.0 else 0,
            dilation_cells=0.0 if stage.field.prunes_grid else self.dilation_cells(stage, aabb),
        )

    def update_grid(
        self,
        stage: StageSpec,
        params: ModelParams,
        grid: OccupancyGrid,
        key: jax.Array,
        cone_scales: tuple[int, ...],
    ) -> OccupancyGrid:
        """The grid after a training step: a grid that follows the density is updated if due."""

        def density(positions: Array, radii: Array) -> Array:
            # Cells are evaluated at their positions in the grid.
            context = FieldContext(radii, grid.aabb, None, grid)
            return stage.field.density(params.field, positions, context)[0]

        schedule = OccupancySchedule(
            update_interval=self.occupancy_update_interval,
            warmup_steps=self.occupancy_warmup_steps,
            decay=self.occupancy_decay,
            threshold=self.occupancy_threshold,
            dilation_cells=stage.dilation_cells,
            cone_scales=cone_scales,
        )
        return grid.maybe_update(key, density, self.step_size(stage.field, grid.aabb), schedule)

    def describe_grid(self, stage: StageSpec, grid: OccupancyGrid) -> str:
        """As the field describes it."""
        return stage.field.describe_grid(grid)

    def eval_stage(
        self, stage: StageSpec, grid: OccupancyGrid, convention: RayConvention, crop: bool
    ) -> tuple[StageSpec, Float[np.ndarray, "2 3"]]:
        """See `Model.eval_stage`."""
        bare, aabb = super().eval_stage(stage, grid, convention, crop)
        # Steps that are counted from the box have to begin at the same box.
        if not crop or convention.samples_at == "start" or grid.bounds is not None:
            return bare, aabb
        step = self.step_size(stage.field, grid.aabb)
        aabb = occupied_aabb(grid).astype(np.float32)
        return dataclasses.replace(bare, max_blocks=max_blocks_per_ray(aabb, step)), aabb

    def render_train(
        self,
        stage: StageSpec,
        params: ModelParams,
        grid: OccupancyGrid,
        key: jax.Array,
        rays: Rays,
        background: Float[Array, "r 3"],
        convention: RayConvention,
        depth_target: DepthTarget | None = None,
    ) -> TrainRendering:
        """Renders a training batch from packed samples; see `Model.render_train`."""
        del convention
        field = stage.field
        # For gradients the distances of samples are constants, which the rays do not change.
        fixed_rays = jax.lax.stop_gradient(rays)
        samples, num_marched_rays = march_to_samples(
            grid,
            grid.block_grid,
            to_s_rays(grid, fixed_rays),
            rngs.uniform(key, rays.near.shape),
            self.step_size(field, grid.aabb),
            MarchConfig(
                max_blocks=stage.max_blocks,
                steps_per_block=STEPS_PER_BLOCK,
                block_budget=stage.block_budget,
                sample_budget=stage.sample_budget,
            ),
        )
        noise = draw_packed_noise(key, samples) if field.noise_std() else None
        rendering = render_packed_samples(
            bind_network(self, field, params.field, params, grid, trains=True, noise=noise),
            rays,
            samples,
            background,
            color_per_ray=self.colors_per_ray(field),
            color_budget=stage.color_budget or None,
            color_threshold=self.color_threshold,
        )
        positions, _ = sample_points(rays, samples)
        num_complete_rays = jnp.minimum(num_marched_rays, rendering.num_complete_rays)
        return TrainRendering(
            rgb=(rendering.rgb,),
            opacities=(rendering.opacity,),
            overflowed=jnp.arange(rays.near.size) >= num_complete_rays,
            num_samples=jnp.sum(samples.mask),
            distortion_loss=_distortion_loss(fixed_rays, grid, samples, rendering.weights),
            interlevel_loss=None,
            depth_loss=(
                None
                if depth_target is None
                else _depth_loss(depth_target, samples, rendering.weights)
            ),
            grid=grid.record(positions, rendering.weights),
        )

    def render_eval(
        self,
        stage: StageSpec,
        params: ModelParams,
        grid: OccupancyGrid,
        rays: Rays,
        background: Float[Array, "r 3"],
        convention: RayConvention,
        *,
        num_samples: int,
        group_size: int = 1,
        aabb: Float[Array, "2 3"] | None = None,
        crop_aabb: Float[Array, "2 3"] | None = None,
    ) -> Rendering:
        """Renders rays front to back in waves of blocks; see `Model.render_eval`."""
        del group_size
        field = stage.field
        step = self.step_size(field, grid.aabb)
        at_start = convention.samples_at == "start"
        if at_start:
            s_rays = _march_from_start(rays, grid, aabb, step)
        else:
            s_rays = _march_within(rays, grid, aabb)
        fns = bind_network(
            self, field, params.field, params, grid, trains=False, crop_aabb=crop_aabb
        )

        def density_at_border(positions: Array, frusta: ConicalFrusta) -> tuple[Array, Any]:
            return fns.density(clamp_to_aabb(positions, grid.aabb), frusta)

        def occupied(positions: Array) -> Array:
            if at_start:
                # The border itself is in no cell.
                positions = clamp_to_aabb(positions, grid.aabb, AABB_EPS)
            inside = grid.lookup_for_images(contract_positions(grid, positions))
            return inside if crop_aabb is None else inside & in_aabb(positions, crop_aabb)

        samples_per_wave = max(3 * num_samples // 8, STEPS_PER_BLOCK)

        def march(s_rays: Rays, background: Array, far: Array) -> Rendering:
            return march_and_render(
                fns._replace(density=density_at_border) if at_start else fns,
                s_rays,
                occupied_blocks(grid.block_grid, s_rays, STEPS_PER_BLOCK * step, stage.max_blocks),
                step,
                occupied,
                background,
                far,
                config=MarchRenderConfig(
                    steps_per_block=STEPS_PER_BLOCK,
                    rays_per_wave=max(num_samples // 8, 1),
                    samples_per_wave=samples_per_wave,
                    color_per_ray=self.colors_per_ray(field),
                    color_budget=max(samples_per_wave // 3, 1) if stage.color_budget else None,
                    color_threshold=self.color_threshold,
                    transmittance_threshold=convention.transmittance_threshold,
                ),
                s_to_t=lambda sdist, origins: s_to_t(grid, sdist, origins),
            )

        composite = None
        if self.colors_per_ray(field) and not at_start:
            is_plain = grid.bounds is None and not stage.color_budget
            composite = field.ray_compositor(params.field, grid, crop_aabb) if is_plain else None
        if composite is None or not calls.can_call(rays.origins):
            return march(s_rays, background, rays.far)

        def with_kernel(s_rays: Rays, background: Array, far: Array) -> Rendering:
            sums = composite(s_rays, step, stage.max_blocks, convention.transmittance_threshold)
            return color_sums(fns.color, sums, s_rays, background, far)

        rendering: Rendering = jax.lax.platform_dependent(
            s_rays, background, rays.far, cpu=with_kernel, default=march
        )
        return rendering


def _march_within(rays: Rays, grid: OccupancyGrid, aabb: Float[Array, "2 3"] | None) -> Rays:
    """Rays with near and far as s distances: clipped to the box to render, or contracted."""
    if grid.bounds is None and aabb is not None:
        return clip_to_aabb(rays, aabb)
    return to_s_rays(grid, rays)


def _march_from_start(
    rays: Rays, grid: OccupancyGrid, aabb: Float[Array, "2 3"] | None, step: Float[Array, ""]
) -> Rays:
    """Rays as `_march_within` clips them, shifted by half a step towards the camera.

    The middle of a step is then where the step of the other program starts: its first sample is
    the point where the ray enters the box.
    """
    unbounded = dataclasses.replace(rays, far=jnp.full_like(rays.far, UNBOUNDED_FAR))
    s_rays = _march_within(unbounded, grid, aabb)
    hit = s_rays.far > s_rays.near
    near, far = s_rays.near - 0.5 * step, s_rays.far + 0.5 * step
    return dataclasses.replace(
        s_rays,
        near=jnp.where(hit, near, s_rays.near),
        far=jnp.where(hit, far, s_rays.far),
    )


def _distortion_loss(
    rays: Rays, grid: OccupancyGrid, samples: PackedSamples, weights: Float[Array, "m"]
) -> Float[Array, "r"]:
    """Distortion of packed samples, s distances being 0 at near and 1 at far."""
    index = samples.ray_indices
    edges = jnp.stack([samples.t_starts, samples.t_ends], axis=-1)
    near_to_far = jax.tree.map(lambda x: x[index], rays)
    if grid.bounds is not None:
        edges = contraction.t_to_s(edges, near_to_far.origins, grid.bounds)
        near_to_far = to_s_rays(grid, near_to_far)
    starts, ends = jnp.moveaxis(normalize_distances(near_to_far, edges), -1, 0)
    return packed_distortion_loss(weights, starts, ends, index, rays.near.size)


def _depth_loss(
    target: DepthTarget, samples: PackedSamples, weights: Float[Array, "m"]
) -> Float[Array, "r"]:
    """Depth loss of packed samples; 0 for rays without a known depth."""
    known = jnp.isfinite(target.distance)
    distance = jnp.where(known, target.distance, 0.0)
    loss = packed_depth_loss(
        weights, samples.t_starts, samples.t_ends, samples.ray_indices, distance, target.std
    )
    return jnp.where(known, loss, 0.0)


def draw_packed_noise(key: jax.Array, samples: PackedSamples) -> Float[Array, "m"]:
    """Standard normal numbers for packed samples; with a key for each ray, by place in the ray."""
    key, count = rngs.fold_in(key, 1), samples.mask.size
    if key.ndim == 0:
        return jax.random.normal(key, (count,))
    number = jnp.arange(count, dtype=jnp.int32)
    first = jnp.searchsorted(samples.ray_indices, samples.ray_indices)
    keys = jax.vmap(jax.random.fold_in)(key[samples.ray_indices], number - first)
    return rngs.normal(keys, (count,))
