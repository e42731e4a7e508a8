"""Presets of packed voxels."""

import dataclasses

from jaxrf.fields.voxels import Voxels
from jaxrf.models.packed import PackedModel
from jaxrf.training.config import OptimizerConfig, TrainConfig


def voxels_small() -> TrainConfig:
    """Packed voxels, colored once per ray: the quickest to a good image, made for a CPU."""
    return TrainConfig(
        field=Voxels(layers=2),
        model=PackedModel(),
        background="random",
        num_steps=2500,
        batch_samples=1 << 16,
        batch_rays=4096,
        render_samples=1 << 15,
        validate_every=0.25,
        optimizer=OptimizerConfig(
            grid_lr=0.05, mlp_lr=4e-3, lr_final_mult=0.05, skip_zero_gradients=True
        ),
    )


def voxels_large() -> TrainConfig:
    """Packed voxels of half the size, with twice the features: better with time for each pixel."""
    small = voxels_small()
    return dataclasses.replace(
        small,
        field=Voxels(
            layers=2,
            width=128,
            feature_dim=15,
            finest_pixels=0.5,
            density_tv_weight=1e-5,
            feature_tv_weight=1e-4,
        ),
        num_steps=6000,
    )
