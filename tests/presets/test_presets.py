"""Presets: they build, have names and descriptions, and hold the published numbers."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from scenes import tiny_nerf

from jaxrf import presets
from jaxrf.core.errors import InputError
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.models.packed import PackedModel
from jaxrf.studies.presets import STUDY
from jaxrf.training import transitions
from jaxrf.training.config import TrainConfig

NAMES = [
    "voxels-small",
    "voxels-large",
    "tensorf-small",
    "tensorf-cp-small",
    "tensorf-vm48",
    "tensorf-vm192",
    "tensorf-cp384",
    "hashgrid-small",
    "multiscale-small",
    "hashgrid-ngp",
    "hashgrid-f4",
    "capture-small",
    "capture",
    "pynerf-small",
    "pynerf-paper",
    "pynerf-growing",
    "nerf-small",
    "nerf-tiny",
    "nerf-original",
    "bitnerf-small",
    "bitnerf-tiny",
]
STUDY_NAMES = [
    "study-base",
    "study-mixed",
    "study-mixed-large",
    "study-bitnerf",
    "study-parallel",
    "study-bitnerf-parallel",
]
ALL = (*presets.PRESETS, *STUDY)


def test_every_preset_has_a_name_and_a_description() -> None:
    assert [presets.preset_name(preset) for preset in presets.PRESETS] == NAMES
    assert [presets.preset_name(preset) for preset in STUDY] == STUDY_NAMES
    assert all(preset.__doc__ for preset in ALL)
    for name, preset in zip(NAMES + STUDY_NAMES, ALL, strict=True):
        assert presets.make_preset(name, ALL) == preset()
    for name, preset in zip(NAMES, presets.PRESETS, strict=True):
        assert presets.make_preset(name) == preset()


@pytest.mark.parametrize("preset", ALL, ids=presets.preset_name)
def test_every_preset_begins_with_a_stage_of_its_field(preset: presets.Preset) -> None:
    config = preset()
    assert isinstance(config, TrainConfig)
    aabb = np.array([[-1.5] * 3, [1.5] * 3], np.float32)
    stage = transitions.first_stage(config, aabb)
    assert type(stage.field) is type(config.field)
    assert 0 < stage.num_rays <= config.batch_rays


@pytest.mark.parametrize("name", ["nope", "tensorf_small", ""])
def test_make_preset_lists_the_known_presets_if_there_is_none_of_the_name(name: str) -> None:
    with pytest.raises(InputError, match=r"voxels-small, voxels-large.*nerf-original"):
        presets.make_preset(name)


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [("cpu", False), ("cuda", True), ("cuda,cpu", True), ("tpu", True), ("cpu,cuda", False)],
)
def test_default_preset_is_the_full_recipe_on_an_accelerator(
    monkeypatch: pytest.MonkeyPatch, platforms: str, expected: bool
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert presets.default_preset() == ("tensorf-vm192" if expected else "voxels-small")
    captures = presets.default_preset(is_capture=True)
    assert captures == ("capture" if expected else "capture-small")


def test_for_field_trains_the_field_on_an_occupancy_grid() -> None:
    field = HashGrid(num_levels=2)
    config = presets.for_field(field)
    assert config.field == field and isinstance(config.model, PackedModel)
    # The field decides how samples are colored.
    assert config.model.coloring is None
    small = presets.hashgrid_small()
    assert dataclasses.replace(config, field=small.field, model=small.model) == small
    assert presets.for_field(tiny_nerf().field).field == tiny_nerf().field


def numbers_of(name: str, *paths: str) -> list[Any]:
    """Numbers of a preset, by dotted names."""
    numbers = []
    for path in paths:
        value: Any = presets.make_preset(name)
        for part in path.split("."):
            value = getattr(value, part)
        numbers.append(value)
    return numbers


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        (
            "tensorf-vm192",
            {
                "field.factors": "vm", "field.density_components": 16,
                "field.feature_components": 48, "field.initial_voxels": 128**3,
                "field.final_voxels": 300**3, "field.occupancy_voxels": 256**3,
                "field.prune_by": "alpha", "field.prune_threshold": 1e-4,
                "field.l1_weight": 8e-5, "field.l1_weight_pruned": 4e-5,
                "field.reset_lr": True, "field.density_shift": -10.0,
                "field.density_scale": 25.0, "model.color_threshold": 1e-4,
                "optimizer.grid_lr": 0.02, "optimizer.mlp_lr": 1e-3,
                "optimizer.beta2": 0.99, "num_steps": 30_000, "batch_rays": 4096,
            },
        ),
        ("tensorf-vm48", {"field.density_components": 8, "field.reset_lr": True}),
        (
            "tensorf-cp384",
            {
                "field.factors": "cp", "field.density_components": 96,
                "field.feature_components": 288, "field.final_voxels": 500**3,
                "field.l1_weight": 1e-5, "field.reset_lr": True, "field.init_scale": 0.2,
            },
        ),
        (
            "hashgrid-ngp",
            {
                "field.num_levels": 16, "field.features_per_level": 2,
                "field.log2_hashmap_size": 19, "field.base_resolution": 16,
                "field.max_resolution": 4096, "model.steps_per_diagonal": 1024,
                "model.occupancy_resolution": 128, "model.occupancy_warmup_steps": 256,
                "model.occupancy_update_interval": 16, "model.occupancy_threshold": 0.01,
                "optimizer.grid_lr": 0.01, "optimizer.epsilon": 1e-15, "optimizer.l2": 1e-6,
                "optimizer.skip_zero_gradients": True, "optimizer.ema_decay": 0.95,
                "loss.rgb_loss": "huber", "background": "random", "batch_samples": 2**18,
            },
        ),
        ("hashgrid-f4", {"field.num_levels": 8, "field.features_per_level": 4}),
        (
            "capture",
            {
                "field.num_levels": 16, "field.max_resolution": 2048, "num_steps": 30_000,
                "model.num_proposal_samples": (256, 96), "model.num_nerf_samples": 48,
                "model.proposal_resolutions": (128, 256), "loss.distortion_weight": 0.002,
            },
        ),
        (
            "pynerf-paper",
            {
                "field.num_pyramid_levels": 8, "field.factor": 2.0, "field.num_levels": 16,
                "field.features_per_level": 4, "field.log2_hashmap_size": 20,
                "field.tables": "separate", "num_train_scales": 4, "batch_rays": 8192,
                "num_steps": 50_000,
            },
        ),
        (
            "pynerf-growing",
            {
                "train_scale_schedule": ((0.0, 8), (2000.0, 4), (5000.0, 2), (10_000.0, 1)),
                "field.consistency_weight": 0.1, "num_steps": 30_000,
            },
        ),
        (
            "nerf-original",
            {
                "field.layers": 8, "field.width": 256, "field.skip": 5, "field.color_width": 128,
                "field.num_position_frequencies": 10, "field.num_direction_frequencies": 4,
                "model.num_coarse_samples": 64, "model.num_fine_samples": 128,
                "model.quadrature": "points", "optimizer.mlp_lr": 5e-4, "num_steps": 200_000,
                "batch_rays": 4096,
            },
        ),
        (
            "nerf-tiny",
            {
                "field.layers": 8, "field.width": 64, "field.skip": 5,
                "field.num_position_frequencies": 16, "field.use_directions": False,
                "model.num_coarse_samples": 32, "model.num_fine_samples": 0,
            },
        ),
        (
            "bitnerf-tiny",
            {
                "field.width": 256, "field.num_position_frequencies": 16,
                "field.use_directions": False, "optimizer.mlp_lr": 5e-5,
                "optimizer.weight_decay": 0.05,
            },
        ),
    ],
)  # fmt: skip
def test_published_presets_have_the_published_numbers(name: str, numbers: dict[str, Any]) -> None:
    assert numbers_of(name, *numbers) == list(numbers.values())
