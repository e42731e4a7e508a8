"""The configuration checks itself: every number and combination that cannot be used is named."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from scenes import change, tiny_hashgrid, tiny_nerf, tiny_pynerf, tiny_tensorf, tiny_voxels

from jaxrf import presets
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core.errors import InputError
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.models.packed import PackedModel
from jaxrf.models.proposal import ProposalModel
from jaxrf.training.config import (
    LossConfig,
    OptimizerConfig,
    TrainConfig,
    VideoConfig,
    ViewerConfig,
)


def replace_at(config: TrainConfig, path: str, value: Any) -> TrainConfig:
    """The configuration with another value of the attribute with this dotted name."""
    name, _, below = path.partition(".")
    if below:
        value = replace_at(getattr(config, name), below, value)
    return dataclasses.replace(config, **{name: value})


def in_type_of(config: Any, path: str, value: int) -> int | float:
    """The value as a float where the attribute with this dotted name is one."""
    attribute = config
    for name in path.split("."):
        attribute = getattr(attribute, name)
    return float(value) if isinstance(attribute, float) else value


POSITIVE = [
    "downscale", "num_steps", "batch_samples", "batch_rays", "render_samples",
    "steps_per_dispatch", "validation_views", "checkpoint_seconds", "keep_checkpoints",
    "supersample", "budget", "test_every", "microbatch_samples", "devices", "processes", "shards",
    "num_train_scales", "synthetic_scene.size", "synthetic_scene.train_views",
    "synthetic_scene.test_views", "video.size", "optimizer.grid_lr", "optimizer.mlp_lr",
    "optimizer.lr_final_mult", "optimizer.epsilon", "optimizer.clip_norm", "loss.huber_delta",
    "loss.charbonnier_epsilon", "model.checkpoint_chunks", "model.steps_per_diagonal",
    "model.max_colored_fraction", "model.occupancy_resolution", "model.occupancy_update_interval",
]  # fmt: skip


@pytest.mark.parametrize("path", POSITIVE)
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_that_must_be_positive_are_named(path: str, value: int) -> None:
    config = tiny_voxels(video=VideoConfig(), budget=60.0)
    number = in_type_of(config, path, value)
    with pytest.raises(InputError, match=f"^{re.escape(path)} is {number}: give a"):
        replace_at(config, path, number)


VOXELS = ["width", "feature_dim", "density_scale", "initial_resolution", "step_ratio"]
TENSORF = [
    "width", "density_components", "feature_components", "feature_dim", "density_scale",
    "initial_voxels", "final_voxels", "occupancy_voxels", "step_ratio",
]  # fmt: skip
HASHED = ["width", "num_levels", "features_per_level", "base_resolution", "max_resolution"]
FIELD_NUMBERS = [
    *((tiny_voxels, name) for name in VOXELS),
    *((tiny_tensorf, name) for name in TENSORF),
    *((tiny_hashgrid, name) for name in HASHED),
    *((tiny_pynerf, name) for name in [*HASHED, "color_width", "num_pyramid_levels"]),
    *((tiny_nerf, name) for name in ["layers", "width", "color_width"]),
]


@pytest.mark.parametrize(("tiny", "name"), FIELD_NUMBERS)
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_of_fields_that_must_be_positive_are_named(
    tiny: Callable[[], TrainConfig], name: str, value: int
) -> None:
    field = tiny().field
    option, number = re.escape(f"field.{name}"), in_type_of(field, name, value)
    with pytest.raises(InputError, match=f"^{option} is {number}: give a number above 0"):
        dataclasses.replace(field, **{name: number})


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (HierarchicalModel, "num_coarse_samples"),
        (ProposalModel, "num_nerf_samples"),
    ],
)
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_of_models_that_must_be_positive_are_named(
    model: Any, name: str, value: int
) -> None:
    with pytest.raises(InputError, match=f"^model.{name} is {value}: give a"):
        model(**{name: value})


@pytest.mark.parametrize("name", ["num_proposal_samples", "proposal_resolutions"])
def test_every_number_of_a_proposal_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match=f"^model.{name} is 0: give a"):
        ProposalModel(**{name: (16, 0)})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("checkpoint_seconds", math.nan, "checkpoint_seconds is nan: give a number above 0"),
        ("video", {"frames": -1}, "video.frames is -1: give a number above 0"),
        ("video", {"every": -0.1}, "video.every is -0.1: give 0 or more"),
        ("video", {"every": math.nan}, "video.every is nan: give 0 or more"),
        ("seed", -1, "seed is -1: give a number from 0 to 2^32 - 1"),
        ("seed", 2**32, f"seed is {2**32}: give a number from 0 to 2^32 - 1"),
        ("validate_every", -0.1, "validate_every is -0.1: give 0 or more"),
        ("model.appearance_dim", -1, "model.appearance_dim is -1: give 0 or more"),
        ("optimizer.grid_lr", -0.1, "optimizer.grid_lr is -0.1"),
        ("optimizer.mlp_lr", math.nan, "optimizer.mlp_lr is nan"),
        ("budget", -3.0, "budget is -3.0"),
        ("viewer.port", 0, "viewer.port is 0: give a number from 1 to 65535"),
        ("viewer.port", 2**16, "viewer.port is 65536: give a number from 1 to 65535"),
        ("shards", 6, "shards is 6: give a power of two"),
        ("coordinator", "host", "coordinator is host: give host:port, or auto"),
        ("coordinator", "host:port", "coordinator is host:port: give host:port, or auto"),
        ("processes", 2, "add coordinator host:port"),
        ("process_id", 0, "add coordinator host:port"),
        ("train_scale_schedule", ((5.0, 2),), "ascending steps from 0"),
        ("train_scale_schedule", ((0.0, 4), (100.0, 2), (50.0, 1)), "ascending steps from 0"),
        ("train_scale_schedule", ((0.0, 4), (0.0, 2)), "ascending steps from 0"),
        ("train_scale_schedule", ((0.0, 0),), "a factor of 1 or more"),
        ("train_scale_schedule", ((0.0, 4), (24.0, 1)), " 24: give earlier steps, or fractions"),
        ("loss.charbonnier_epsilon", 0.0, "loss.charbonnier_epsilon is 0"),
        ("loss.huber_delta", -1.0, "loss.huber_delta is -1"),
        ("field.num_subdivisions", 2, "field.num_subdivisions is 2: give 0 to 1"),
        ("field.num_subdivisions", -1, "field.num_subdivisions is -1: give 0 to 1"),
    ],
)
def test_numbers_out_of_range_are_named(path: str, value: Any, message: str) -> None:
    config = tiny_voxels()
    with pytest.raises(InputError, match=re.escape(message)):
        if isinstance(value, dict):
            replace_at(config, path, VideoConfig(**value))
        else:
            replace_at(config, path, value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: tiny_pynerf(blend="results", coloring="per_ray"),
            "set model.coloring to per_sample",
        ),
        (
            lambda: change(presets.pynerf_small(), blend="results"),
            "set model.coloring to per_sample",
        ),
        (
            lambda: change(presets.nerf_original(), num_coarse_samples=2),
            "model.num_coarse_samples is 2: points need 3 or more",
        ),
        (
            lambda: change(presets.nerf_original(), encoding="integrated"),
            "set model.quadrature to intervals",
        ),
        (
            lambda: tiny_tensorf(color_head="harmonics", feature_dim=13),
            "field.feature_dim is 13: harmonics need one of 3, 12, 27, 48",
        ),
        (
            lambda: ProposalModel(num_proposal_samples=()),
            "model.num_proposal_samples has 0 numbers",
        ),
        (
            lambda: ProposalModel(num_proposal_samples=(8, 8), proposal_resolutions=(16,)),
            "model.num_proposal_samples has 2 numbers",
        ),
        (
            lambda: ProposalModel(interlevel_weight=-1.0),
            "model.interlevel_weight is -1.0: give 0 or more",
        ),
        (
            lambda: tiny_tensorf(model=HierarchicalModel()),
            "model hierarchical does not march, and tensorf drops cells",
        ),
        (
            lambda: tiny_voxels(model=ProposalModel()),
            "model proposal does not march, and voxels drops cells",
        ),
    ],
)
def test_fields_and_models_that_do_not_fit_together_are_refused(
    make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("name", ["optimizer", "loss", "ray_convention"])
def test_parts_that_are_no_dataclass_are_refused(name: str) -> None:
    config = tiny_nerf()
    # The tests check the types of arguments themselves.
    object.__setattr__(config, name, {"grid_lr": 1})
    with pytest.raises(
        InputError, match=rf"^{name} is {{'grid_lr': 1}}: give .* as jaxrf\.\w+\(\)"
    ):
        config.__post_init__()


@pytest.mark.parametrize("name", ["lengths_along", "view_directions"])
def test_lengths_along_the_axis_need_a_range_along_the_axis(name: str) -> None:
    with pytest.raises(InputError, match=r"set ray_convention\.range_along to axis"):
        tiny_nerf(ray_convention=RayConvention(**{name: "axis"}))


@pytest.mark.parametrize("model", [PackedModel(), ProposalModel()])
@pytest.mark.parametrize(
    "convention",
    [
        RayConvention(range_along="axis", lengths_along="axis"),
        RayConvention(range_along="axis", view_directions="axis"),
        RayConvention(transmittance="inclusive"),
    ],
)
def test_conventions_of_samples_need_the_hierarchical_model(
    model: Any, convention: RayConvention
) -> None:
    assert tiny_nerf(ray_convention=convention).ray_convention == convention
    with pytest.raises(InputError, match="only the hierarchical model knows"):
        tiny_nerf(model=model, ray_convention=convention)


def test_values_that_switch_something_off_are_accepted() -> None:
    config = tiny_voxels(
        validate_every=0.0,
        video=VideoConfig(frames=0, size=0),
        seed=2**32 - 1,
        coordinator="auto",
        processes=2,
        process_id=0,
        shards=8,
        supersample=None,
        budget=None,
        train_scale_schedule=((0.0, 8), (2.0, 4), (0.5 + 2.0, 1)),
        loss=LossConfig(distortion_weight=0.0),
        optimizer=OptimizerConfig(warmup=0.0, l2=0.0),
        viewer=ViewerConfig(port=2**16 - 1),
        synthetic_scene=SyntheticSceneConfig(size=1),
    )
    assert config.image_scales() == (1, 4, 8)
    assert tiny_voxels(coordinator="[::1]:1234").coordinator == "[::1]:1234"


def test_image_scales_are_those_of_sizes_and_of_the_schedule() -> None:
    assert tiny_nerf().image_scales() == (1,)
    assert tiny_nerf(num_train_scales=4).image_scales() == (1, 2, 4, 8)
    schedule = ((0.0, 5), (0.5, 2))
    assert tiny_nerf(train_scale_schedule=schedule).image_scales() == (1, 2, 5)
    both = tiny_nerf(num_train_scales=2, train_scale_schedule=schedule)
    assert both.image_scales() == (1, 2, 5)
