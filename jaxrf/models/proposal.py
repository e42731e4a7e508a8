"""The proposal model: small hash grids propose where a field's samples are placed.

Barron et al.: Mip-NeRF 360 (CVPR 2022), section 3, with hash grids as in nerfstudio's nerfacto.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core import rngs
from jaxrf.core.checks import require_non_negative, require_positive
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.fields.base import Field, Params
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.models.base import DepthTarget, ModelParams, StageSpec, TrainRendering
from jaxrf.models.fixed import FixedSamplesModel, SamplingLevel, to_train_rendering
from jaxrf.models.networks import bind_network, close_over_params, draw_noise, mask_outside_aabb
from jaxrf.rendering.ray_losses import interlevel_loss
from jaxrf.rendering.volume import Rendering, compute_proposal_weights, render_samples
from jaxrf.sampling import intervals
from jaxrf.sampling.occupancy import OccupancyGrid, s_to_t, to_s_rays

# Edges of one proposal's intervals, s distances, and their weights.
Proposed = tuple[Float[Array, "r k_plus_1"], Float[Array, "r k"]]


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
    spacing: Literal["linear", "disparity"] | None = None
    """Quantity that the first samples are spread evenly in: distance or its inverse. Default: its
    inverse where space is contracted."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        super().__post_init__()
        require_positive(
            self, "num_proposal_samples", "num_nerf_samples", "proposal_resolutions",
            "proposal_levels", prefix="model.",
        )  # fmt: skip
        require_non_negative(self, "interlevel_weight", prefix="model.")
        if not 0 < len(self.num_proposal_samples) <= len(self.proposal_resolutions):
            raise InputError(
                f"--model.num-proposal-samples has {len(self.num_proposal_samples)} numbers: give "
                "one for each proposal, and as many in --model.proposal-resolutions."
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
        losses = (
            interlevel_loss(level.sdist, level.weights, sdist, weights)
            for sdist, weights in proposed
        )
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
        aabb: Float[Array, "2 3"] | None = None,
        crop_aabb: Float[Array, "2 3"] | None = None,
    ) -> Rendering:
        """Renders the field's samples; see `Model.render_eval`."""
        del convention, num_samples, aabb
        return self._render(stage, params, grid, None, rays, background, crop_aabb)[0].rendering

    def _render(
        self,
        stage: StageSpec,
        params: ModelParams,
        grid: OccupancyGrid,
        key: jax.Array | None,
        rays: Rays,
        background: Float[Array, "r 3"],
        crop_aabb: Float[Array, "2 3"] | None,
    ) -> tuple[SamplingLevel, list[Proposed]]:
        """The field's pass over the rays, and the proposals that led to its samples."""
        field, count = stage.field, len(self.num_proposal_samples)
        keys = [None if key is None else rngs.fold_in(key, 2 + i) for i in range(1 + count)]
        # For gradients the distances of samples are constants, which the rays do not change.
        fixed_rays = jax.lax.stop_gradient(rays)
        s_rays = to_s_rays(grid, fixed_rays)
        spacing = self.spacing or ("linear" if grid.bounds is None else "disparity")
        sdist = intervals.stratified(keys[0], s_rays, self.num_proposal_samples[0], spacing)
        proposed: list[Proposed] = []
        next_counts = (*self.num_proposal_samples[1:], self.num_nerf_samples)
        for proposal, network, samples, key_draw in zip(
            self.proposal_fields(), params.proposals, next_counts, keys[1:], strict=True
        ):
            tdist = s_to_t(grid, sdist, fixed_rays.origins)
            fns = mask_outside_aabb(close_over_params(proposal, network, grid), crop_aabb)
            weights = compute_proposal_weights(fns, rays, tdist)
            proposed.append((sdist, weights))
            sdist = intervals.resample_intervals(key_draw, sdist, weights, samples)
        noise = draw_noise(field, keys[-1], *sdist[:, 1:].shape)
        fns = bind_network(
            self, field, params.field, params, grid,
            trains=key is not None, noise=noise, crop_aabb=crop_aabb,
        )  # fmt: skip
        tdist = s_to_t(grid, sdist, fixed_rays.origins)
        rendering, weights = render_samples(
            fns, rays, tdist, background, color_per_ray=self.colors_per_ray(field)
        )
        return SamplingLevel(rendering, sdist, weights), proposed
