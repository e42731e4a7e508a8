"""Presets of PyNeRF, trained on several sizes of the images."""

import dataclasses

from jaxrf.fields.pynerf import PyNeRF
from jaxrf.models.packed import PackedModel
from jaxrf.presets.hashgrid import hashgrid_small
from jaxrf.training.config import OptimizerConfig, TrainConfig


def pynerf_small() -> TrainConfig:
    """A PyNeRF of 4 levels on one hash grid, trained on 4 sizes of the images, for a CPU."""
    return dataclasses.replace(
        hashgrid_small(),
        field=PyNeRF(
            num_pyramid_levels=4,
            num_levels=8,
            features_per_level=4,
            max_resolution=128,
            log2_hashmap_size=15,
            color_width=64,
            color_layers=1,
        ),
        num_train_scales=4,
    )


def pynerf_paper() -> TrainConfig:
    """PyNeRF on multi-scale Blender: 8 levels, grids of 16 levels of 4 channels, 50,000 steps."""
    return _published(PAPER)


def pynerf_growing() -> TrainConfig:
    """PyNeRF on images of growing size, neighboring levels held consistent: 30,000 steps."""
    field = dataclasses.replace(PAPER, tables="shared", consistency_weight=0.1)
    schedule = ((0.0, 8), (2000.0, 4), (5000.0, 2), (10_000.0, 1))
    return dataclasses.replace(_published(field), num_steps=30_000, train_scale_schedule=schedule)


PAPER = PyNeRF(
    tables="separate",
    features_per_level=4,
    max_resolution=4096,
    log2_hashmap_size=20,
    color_layers=3,
)


def _published(field: PyNeRF) -> TrainConfig:
    return TrainConfig(
        field=field,
        model=PackedModel(),
        num_steps=50_000,
        batch_samples=1 << 18,
        batch_rays=8192,
        num_train_scales=4,
        optimizer=OptimizerConfig(grid_lr=5e-3, mlp_lr=5e-3, lr_final_mult=0.02, epsilon=1e-15),
    )
