"""Presets of captures: rooms, gardens and all that has no box, photographed by hand.

nerfacto's ingredients (Tancik et al.: Nerfstudio, SIGGRAPH 2023): a hash grid in contracted space
whose samples are proposed by smaller ones, with Mip-NeRF 360's interlevel loss. Its distortion loss
keeps fog before cameras on a CPU's few steps (docs/fields/hashgrid.md).
"""

from jaxrf.fields.hashgrid import HashGrid
from jaxrf.models.proposal import ProposalModel
from jaxrf.training.config import LossConfig, OptimizerConfig, TrainConfig


def capture_small() -> TrainConfig:
    """A hash grid with proposals for captures, on a CPU."""
    return TrainConfig(
        field=HashGrid(
            num_levels=8,
            features_per_level=4,
            max_resolution=1024,
            log2_hashmap_size=16,
            color_layers=1,
        ),
        model=ProposalModel(
            num_proposal_samples=(64, 32),
            num_nerf_samples=16,
            proposal_levels=3,
            proposal_block=4,
            coloring="per_ray",
            gradient_radius=0.5,
        ),
        background="random",
        num_steps=4000,
        batch_rays=1024,
        render_samples=1 << 16,
        validate_every=0.5,
        validation_views=2,
        optimizer=OptimizerConfig(grid_lr=0.04, mlp_lr=0.01, lr_final_mult=0.05, epsilon=1e-15),
    )


def capture() -> TrainConfig:
    """nerfacto's size: 16 levels to 2048^3, proposals of 256 and 96 samples, 30,000 steps."""
    return TrainConfig(
        field=HashGrid(max_resolution=2048),
        model=ProposalModel(
            num_proposal_samples=(256, 96),
            num_nerf_samples=48,
            proposal_resolutions=(128, 256),
            proposal_block=4,
        ),
        background="random",
        num_steps=30_000,
        batch_rays=4096,
        optimizer=OptimizerConfig(grid_lr=0.01, mlp_lr=0.01, lr_final_mult=0.01, epsilon=1e-15),
        loss=LossConfig(distortion_weight=0.002),
    )
