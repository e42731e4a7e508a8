"""The proposal model: small hash grids propose where a field's samples are placed.

Barron et al.: Mip-NeRF 360 (CVPR 2022), section 3, with hash grids as in nerfstudio's nerfacto.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core import rngs
from jaxrf.core.checks import option_name, require_non_negative, require_positive
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays, mean_rays
from jaxrf.core.stepfun import midpoints
from jaxrf.fields.base import Field, Params
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.models.base import DepthTarget, ModelParams, StageSpec, TrainRendering
from jaxrf.models.fixed import FixedSamplesModel, SamplingLevel, to_train_rendering
from jaxrf.models.networks import bind_network, close_over_params, draw_noise, mask_outside_aabb
from jaxrf.rendering.ray_losses import antialiased_interlevel_loss, interlevel_loss
from jaxrf.rendering.volume import (
    Rendering,
    compute_proposal_weights,
    near_gradient_scale,
    render_samples,
)
from jaxrf.sampling import intervals
from jaxrf.sampling.occupancy import OccupancyGrid, s_to_t, to_s_rays

# Edges of one proposal's intervals, s distances, and their weights; p rays, or groups of them.
Proposed = tuple[Float[Array, "p k_plus_1"], Float[Array, "p k"]]


@dataclasses.dataclass(frozen=True)
class ProposalModel(FixedSamplesModel):
    """Samples each ray where proposal networks predict density."""

    num_proposal_samples: tuple[int, ...] = (128, 64)
    """Samples of each proposal."""
    num_nerf_samples: int = 32
    """Samples of the field."""
    proposal_resolutions: tuple[int, ...] = (64, 128)
    """Finest cells along a side of each proposal's hash grid."""
    proposal_levels: int = 5
    """Levels of each proposal's hash grid: fewer are faster."""
    interlevel_weight: float = 1.0
    """Weight of the field's weights that exceed those of the proposals."""
    pulse_widths: tuple[float, ...] = ()
    """Half the width of the box that blurs the field's weights for the loss of each proposal, as
    Zip-NeRF's 0.03 0.003, in a ray's length as the first samples are spread. Default: no blur, the
    loss of Mip-NeRF 360."""
    proposal_block: int = 1
    """Pixels along each side of the blocks of an image that share a pass of the first proposal; the
    blocks of each further one are half as wide. A power of two; 1: a pass for each ray."""
    spacing: Literal["linear", "disparity", "power"] | None = None
    """Quantity that the first samples are spread evenly in: distance, its inverse, or Zip-NeRF's
    power of it, in between. Default: its inverse where space is contracted."""
    gradient_radius: float = 0.0
    """In contracted space, the distance from a camera, in half sides of the box, within which the
    field learns with the square of the distance, so that no fog forms before cameras (Floaters no
    more). 0: everywhere alike."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        super().__post_init__()
        require_positive(
            self, "num_proposal_samples", "num_nerf_samples", "proposal_resolutions",
            "proposal_levels", "pulse_widths", "proposal_block", prefix="model.",
        )  # fmt: skip
        require_non_negative(self, "interlevel_weight", "gradient_radius", prefix="model.")
        if self.proposal_block & (self.proposal_block - 1):
            raise InputError(
                f"{option_name('proposal_block', 'model.')} is {self.proposal_block}: give a power "
                "of two."
            )
        if not 0 < len(self.num_proposal_samples) <= len(self.proposal_resolutions):
            raise InputError(
                f"--model.num-proposal-samples has {len(self.num_proposal_samples)} numbers: give "
                "one for each proposal, and as many in --model.proposal-resolutions."
            )
        if self.pulse_widths and len(self.pulse_widths) != len(self.num_proposal_samples):
            raise InputError(
                f"--model.pulse-widths has {len(self.pulse_widths)} numbers: give one for each of "
                f"the {len(self.num_proposal_samples)} proposals, or leave it out."
            )

    def check(self, field: Field, convention: RayConvention) -> None:
        """Refuses conventions that only the hierarchical model knows."""
        super().check(field, convention)
        if convention.along_axis() or convention.transmittance != "exclusive":
            raise InputError(
                "--ray-convention has lengths or directions along the axis, or an inclusive "
                "transmittance, which only the hierarchical model knows: leave them out, or use "
                "--model hierarchical."
            )

    def proposal_fields(self) -> list[HashGrid]:
        """The small fields of which only the density is used."""
        return [
            HashGrid(
                num_levels=self.proposal_levels,
                base_resolution=16,
                max_resolution=max(resolution, 16),
                log2_hashmap_size=17,
                width=16,
                feature_dim=1,
                color_layers=0,
            )
            for resolution in self.proposal_resolutions[: len(self.num_proposal_samples)]
        ]

    def init_networks(self, field: Field, key: jax.Array) -> ModelParams:
        """Parameters of the field and of the proposals."""
        key_field, *keys = jax.random.split(key, 1 + len(self.num_proposal_samples))
        proposals = zip(self.proposal_fields(), keys, strict=True)
        return ModelParams(field.init(key_field), proposals=tuple(p.init(k) for p, k in proposals))

    def proposal_groups(self, proposals: tuple[Params, ...]) -> tuple[Params, ...]:
        """Groups of the proposals' parameters: their tables are grids."""
        pairs = zip(self.proposal_fields(), proposals, strict=True)
        return tuple(proposal.param_groups(params) for proposal, params in pairs)

    def samples_per_ray(self) -> int:
        """The samples of the proposals and of the field together."""
        return sum(self.num_proposal_samples) + self.num_nerf_samples

    def pixel_block(self) -> int:
        """The block whose rays share a pass of the proposals."""
        return self.proposal_block

    def rays_per_chunk(self, num_samples: int) -> int:
        """The rays of whole blocks; the samples of a pass that rays share count once."""
        size, samples = self.proposal_block**2, 0
        for i, count in enumerate(self.num_proposal_samples):
            samples += min(4**i, size) * count
        samples += size * self.num_nerf_samples
        return size * max(math.ceil(64 / size), num_samples // samples)

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
        """Renders a training batch, with the loss of the proposals; see `Model.render_train`."""
        del convention
        level, proposed = self._render(stage, params, grid, key, rays, background, None)
        losses = self._interlevel_losses(to_s_rays(grid, rays), grid, level, proposed)
        total = self.interlevel_weight * sum(losses, jnp.zeros(rays.near.shape))
        return to_train_rendering([level], rays, grid, self.samples_per_ray(), depth_target, total)

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
        """Renders the field's samples; see `Model.render_eval`."""
        del convention, num_samples, aabb
        options = (background, crop_aabb, group_size)
        return self._render(stage, params, grid, None, rays, *options)[0].rendering

    def _interlevel_losses(
        self, s_rays: Rays, grid: OccupancyGrid, level: SamplingLevel, proposed: list[Proposed]
    ) -> list[Float[Array, "r"]]:
        """The loss of each proposal."""
        if not self.pulse_widths:
            return [interlevel_loss(level.sdist, level.weights, s, w) for s, w in proposed]
        spread = self.first_spacing(grid), box_radius(grid)
        edges = intervals.undo_spacing(s_rays, level.sdist, *spread)
        return [
            antialiased_interlevel_loss(
                edges, level.weights, intervals.undo_spacing(s_rays, sdist, *spread), weights, width
            )
            for (sdist, weights), width in zip(proposed, self.pulse_widths, strict=True)
        ]

    def first_spacing(self, grid: OccupancyGrid) -> intervals.Spacing:
        """Quantity that the first samples are spread evenly in."""
        return self.spacing or ("linear" if grid.bounds is None else "disparity")

    def _render(
        self,
        stage: StageSpec,
        params: ModelParams,
        grid: OccupancyGrid,
        key: jax.Array | None,
        rays: Rays,
        background: Float[Array, "r 3"],
        crop_aabb: Float[Array, "2 3"] | None,
        group_size: int = 1,
    ) -> tuple[SamplingLevel, list[Proposed]]:
        """The field's pass over the rays, and the proposals that led to its samples."""
        field, count = stage.field, len(self.num_proposal_samples)
        keys = [None if key is None else rngs.fold_in(key, 2 + i) for i in range(1 + count)]
        # For gradients the distances of samples are constants, which the rays do not change.
        fixed_rays = jax.lax.stop_gradient(rays)
        sdist, proposed = self._propose(params, grid, keys, fixed_rays, crop_aabb, group_size)
        noise = draw_noise(field, keys[-1], *sdist[:, 1:].shape)
        fns = bind_network(
            self, field, params.field, params, grid,
            trains=key is not None, noise=noise, crop_aabb=crop_aabb,
        )  # fmt: skip
        tdist = s_to_t(grid, sdist, fixed_rays.origins)
        scales = key is not None and grid.bounds is not None and self.gradient_radius > 0.0
        radius = self.gradient_radius * box_radius(grid)
        rendering, weights = render_samples(
            fns, rays, tdist, background,
            color_per_ray=self.colors_per_ray(field),
            gradient_scale=near_gradient_scale(midpoints(tdist), radius) if scales else None,
        )  # fmt: skip
        return SamplingLevel(rendering, sdist, weights), proposed

    def _propose(
        self,
        params: ModelParams,
        grid: OccupancyGrid,
        keys: Sequence[jax.Array | None],
        rays: Rays,
        crop_aabb: Float[Array, "2 3"] | None,
        group_size: int,
    ) -> tuple[Float[Array, "r n_plus_1"], list[Proposed]]:
        """Edges of the field's intervals, s distances, and the proposals that led to them.

        The rays of a group share a pass of the first proposal along their mean, those of a quarter
        of the group one of the second, and so on: proposals are too coarse to tell them apart.
        """
        s_rays = to_s_rays(grid, rays)
        counts = (*self.num_proposal_samples, self.num_nerf_samples)
        sizes = [max(group_size // 4**i, 1) for i in range(len(counts) - 1)] + [1]
        spread = self.first_spacing(grid), box_radius(grid)
        means, s_means = mean_rays(rays, sizes[0]), mean_rays(s_rays, sizes[0])
        sdist = intervals.stratified(keys[0], s_means, counts[0], *spread)
        proposed: list[Proposed] = []
        networks = zip(self.proposal_fields(), params.proposals, strict=True)
        for i, (proposal, network) in enumerate(networks):
            tdist = s_to_t(grid, sdist, means.origins)
            fns = mask_outside_aabb(close_over_params(proposal, network, grid), crop_aabb)
            weights = compute_proposal_weights(fns, means, tdist)
            proposed.append((sdist, weights))
            sdist = intervals.resample_intervals(keys[i + 1], sdist, weights, counts[i + 1])
            if sizes[i] > 1:
                means, s_means = mean_rays(rays, sizes[i + 1]), mean_rays(s_rays, sizes[i + 1])
                sdist = jnp.repeat(sdist, sizes[i] // sizes[i + 1], axis=0)
                sdist = jnp.clip(sdist, s_means.near[:, None], s_means.far[:, None])
        return sdist, proposed


def box_radius(grid: OccupancyGrid) -> Float[Array, ""]:
    """Mean half of the sides of the scene's box, which is not contracted."""
    box = grid.aabb if grid.bounds is None else grid.bounds
    return 0.5 * jnp.mean(box[1] - box[0])
