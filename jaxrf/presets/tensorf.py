"""Presets of TensoRF: as published, and small ones for a CPU."""

import dataclasses

from jaxrf.fields.tensorf import TensoRF
from jaxrf.models.packed import PackedModel
from jaxrf.training.config import OptimizerConfig, TrainConfig

SMALL = TensoRF(
    density_components=8,
    feature_components=16,
    feature_dim=24,
    width=64,
    layers=1,
    density_shift=-4.0,
    initial_voxels=64**3,
    final_voxels=128**3,
    upsample_at=(0.15, 0.35),
    prune_at=(0.05, 0.15, 0.35),
    min_steps_before_refine=60,
    prune_by="weight",
    prune_threshold=0.05,
    step_ratio=1.0,
    l1_weight=0.0,
    l1_weight_pruned=0.0,
)


def tensorf_small() -> TrainConfig:
    """TensoRF-VM for a CPU: few components, a grid up to 128^3, one color per ray.

    Random backgrounds keep the empty space empty, so that the box soon fits the object.
    """
    return TrainConfig(
        field=SMALL,
        model=PackedModel(coloring="per_ray", color_threshold=1e-3, max_colored_fraction=0.5),
        background="random",
        num_steps=1500,
        supersample_from=0.35,
        batch_samples=1 << 16,
        render_samples=1 << 15,
        validate_every=0.5,
        optimizer=OptimizerConfig(grid_lr=0.06, mlp_lr=4e-3, lr_final_mult=0.05),
    )


def tensorf_cp_small() -> TrainConfig:
    """TensoRF-CP for a CPU: 24 + 48 components, a grid up to 128^3, one color per ray."""
    field = dataclasses.replace(
        SMALL, factors="cp", density_components=24, feature_components=48, init_scale=0.2
    )
    return dataclasses.replace(tensorf_small(), field=field)


def tensorf_vm48() -> TrainConfig:
    """TensoRF VM-48 as published: 30,000 steps, final grid 300^3 (32.39 dB mean, V100 14 min)."""
    return _published(TensoRF(density_components=8, feature_components=8))


def tensorf_vm192() -> TrainConfig:
    """TensoRF VM-192 as published: 30,000 steps, final grid 300^3 (33.14 dB mean, V100 17 min)."""
    return _published(TensoRF())


def tensorf_cp384() -> TrainConfig:
    """TensoRF CP-384 as published: 30,000 steps, final grid 500^3 (31.56 dB mean, V100 25 min)."""
    return _published(
        TensoRF(
            factors="cp",
            density_components=96,
            feature_components=288,
            final_voxels=500**3,
            init_scale=0.2,
            l1_weight=1e-5,
            l1_weight_pruned=1e-5,
        )
    )


def _published(field: TensoRF) -> TrainConfig:
    field = dataclasses.replace(field, occupancy_voxels=256**3, reset_lr=True)
    return TrainConfig(field=field, model=PackedModel(max_colored_fraction=0.5))
