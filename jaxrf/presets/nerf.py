"""Presets of NeRF and BitNeRF."""

import dataclasses
from typing import Any

from jaxrf.fields.bitnerf import BitNeRF
from jaxrf.fields.nerf import NeRF
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.models.packed import PackedModel
from jaxrf.training.config import OptimizerConfig, TrainConfig

# The network of the small presets.
SMALL: dict[str, Any] = {
    "layers": 4,
    "width": 64,
    "skip": 2,
    "color_width": 64,
    "num_position_frequencies": 8,
    "num_direction_frequencies": 2,
    "density_bias": -2.0,
}
# The network of the tiny_nerf experiments.
TINY: dict[str, Any] = {
    "layers": 8,
    "width": 64,
    "skip": 5,
    "num_position_frequencies": 16,
    "use_directions": False,
}


def nerf_small() -> TrainConfig:
    """A small NeRF (4 layers of 64) on an occupancy grid, for a CPU."""
    return TrainConfig(
        field=NeRF(**SMALL),
        model=PackedModel(
            occupancy_resolution=64, occupancy_warmup_steps=0, steps_per_diagonal=192
        ),
        background="random",
        num_steps=4000,
        batch_samples=1 << 14,
        batch_rays=2048,
        render_samples=1 << 15,
        validate_every=0.5,
        optimizer=OptimizerConfig(mlp_lr=4e-3, lr_final_mult=0.05, warmup=0.02),
    )


def bitnerf_small() -> TrainConfig:
    """The small NeRF with ternary weights and 8-bit activations."""
    return dataclasses.replace(nerf_small(), field=BitNeRF(**SMALL))


def nerf_tiny() -> TrainConfig:
    """The NeRF of the tiny_nerf experiments: 16 frequencies, 8 layers of 64, no directions."""
    return TrainConfig(
        field=NeRF(**TINY),
        model=HierarchicalModel(num_coarse_samples=32, num_fine_samples=0),
        num_steps=10_000,
        optimizer=OptimizerConfig(mlp_lr=1e-3, beta2=0.999),
    )


def bitnerf_tiny() -> TrainConfig:
    """The BitNeRF of the same experiments: 16 frequencies, 8 layers of 256, AdamW."""
    tiny = nerf_tiny()
    optimizer = dataclasses.replace(tiny.optimizer, mlp_lr=5e-5, weight_decay=0.05)
    return dataclasses.replace(tiny, field=BitNeRF(**TINY | {"width": 256}), optimizer=optimizer)


def nerf_original() -> TrainConfig:
    """The NeRF of the paper: 8 layers of 256, 64 + 128 samples, 200,000 steps of 4096 rays.

    As in its original code, the first 500 steps see the center of the images only, or everything
    might become background. The density is made by softplus instead of ReLU, as in Mip-NeRF: a ray
    along which every raw density is negative would never learn.
    """
    return TrainConfig(
        field=NeRF(),
        model=HierarchicalModel(quadrature="points"),
        num_steps=200_000,
        precrop_fraction=0.0025,
        optimizer=OptimizerConfig(mlp_lr=5e-4, beta2=0.999),
    )
