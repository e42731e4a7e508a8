"""Presets of Instant-NGP's hash grid."""

import dataclasses

from jaxrf.fields.hashgrid import HashGrid
from jaxrf.models.packed import PackedModel
from jaxrf.training.config import LossConfig, OptimizerConfig, TrainConfig


def hashgrid_small() -> TrainConfig:
    """A hash grid of 8 levels on an occupancy grid, for a CPU."""
    return TrainConfig(
        field=HashGrid(
            num_levels=8,
            features_per_level=4,
            max_resolution=256,
            log2_hashmap_size=15,
            color_layers=1,
        ),
        model=PackedModel(
            occupancy_resolution=64,
            occupancy_warmup_steps=0,
            steps_per_diagonal=256,
            coloring="per_ray",
        ),
        background="random",
        num_steps=4000,
        batch_samples=1 << 14,
        batch_rays=1024,
        render_samples=1 << 15,
        validate_every=0.5,
        optimizer=OptimizerConfig(grid_lr=0.04, mlp_lr=0.01, lr_final_mult=0.05, epsilon=1e-15),
    )


def multiscale_small() -> TrainConfig:
    """A hash grid that weighs down fine levels, 4 rays a pixel, on 4 sizes of the images."""
    small = hashgrid_small()
    assert isinstance(small.field, HashGrid)
    field = dataclasses.replace(small.field, downweight_levels=True, featurize_scale=True)
    return dataclasses.replace(small, field=field, num_train_scales=4, supersample=2)


def hashgrid_ngp() -> TrainConfig:
    """Instant-NGP: 16 levels of 2 channels, 2^19 rows, to 4096^3 (35.67 dB on lego, nerfacc)."""
    return _published(HashGrid(max_resolution=4096))


def hashgrid_f4() -> TrainConfig:
    """Instant-NGP's other shape: 8 levels of 4 channels."""
    return _published(HashGrid(num_levels=8, features_per_level=4, max_resolution=2048))


def _published(field: HashGrid) -> TrainConfig:
    return TrainConfig(
        field=field,
        model=PackedModel(),
        background="random",
        num_steps=20_000,
        batch_samples=1 << 18,
        batch_rays=16_384,
        optimizer=OptimizerConfig(
            grid_lr=0.01,
            mlp_lr=0.01,
            lr_final_mult=0.036,
            lr_schedule="steps",
            warmup=0.005,
            epsilon=1e-15,
            skip_zero_gradients=True,
            l2=1e-6,
            ema_decay=0.95,
        ),
        loss=LossConfig(rgb_loss="huber"),
    )
