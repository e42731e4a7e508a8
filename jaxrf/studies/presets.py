"""The six experiments of the seed study: NeRF and BitNeRF, mixed precision, data-parallel."""

import dataclasses
from typing import Any

from jaxrf.fields.bitnerf import BitNeRF
from jaxrf.fields.nerf import NeRF
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.training.config import OptimizerConfig, TrainConfig

# The network of all six.
NETWORK: dict[str, Any] = {
    "layers": 8,
    "width": 256,
    "skip": 4,
    "project": True,
    "num_position_frequencies": 16,
    "use_directions": False,
}


def study_base() -> TrainConfig:
    """Seed study, base: 8 layers of 256, 32 samples, Adam, 4 images' worth of rays a step."""
    return TrainConfig(
        field=NeRF(**NETWORK),
        model=HierarchicalModel(num_coarse_samples=32, num_fine_samples=0),
        background="black",
        num_steps=1250,
        batch_rays=40_000,
        devices=1,
        optimizer=OptimizerConfig(mlp_lr=1e-3, beta2=0.999, lr_final_mult=1.0),
    )


def study_mixed() -> TrainConfig:
    """Seed study, mixed precision: the base with its network computed in bfloat16."""
    return dataclasses.replace(study_base(), field=NeRF(**NETWORK, compute_dtype="bfloat16"))


def study_mixed_large() -> TrainConfig:
    """Seed study, mixed precision and 8 images' worth of rays a step, AdamW."""
    mixed = study_mixed()
    optimizer = dataclasses.replace(mixed.optimizer, weight_decay=0.05)
    return dataclasses.replace(mixed, num_steps=625, batch_rays=80_000, optimizer=optimizer)


def study_bitnerf() -> TrainConfig:
    """Seed study, BitNeRF: ternary weights between the projection and the heads, AdamW at 5e-5."""
    base = study_base()
    field = BitNeRF(**NETWORK, norm_gain=True, full_precision_io=True)
    optimizer = dataclasses.replace(base.optimizer, mlp_lr=5e-5, weight_decay=0.05)
    return dataclasses.replace(base, field=field, optimizer=optimizer)


def study_parallel() -> TrainConfig:
    """Seed study, data-parallel: the base with its rays shared by two devices."""
    return dataclasses.replace(study_base(), devices=2)


def study_bitnerf_parallel() -> TrainConfig:
    """Seed study, data-parallel BitNeRF: its rays shared by two devices."""
    return dataclasses.replace(study_bitnerf(), devices=2)


STUDY = (
    study_base,
    study_mixed,
    study_mixed_large,
    study_bitnerf,
    study_parallel,
    study_bitnerf_parallel,
)
