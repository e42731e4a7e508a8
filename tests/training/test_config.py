"""Configurations: presets, and the text that a run keeps of its own."""

import dataclasses
import glob
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxrf.core.errors import InputError
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.training import config
from jaxrf.training.config import NeRFConfig, ScheduleKnot, TensoRFConfig, TrainConfig


@pytest.mark.parametrize("preset", config.PRESETS, ids=config.preset_name)
def test_every_preset_survives_json(preset: Callable[[], TrainConfig]) -> None:
    original = preset()
    text = config.to_json(original)
    again = config.from_json(text)
    assert again == original
    assert type(again.field) is type(original.field)
    assert config.to_json(again) == text
    assert hash(again) == hash(original)


def test_settings_that_are_not_the_defaults_survive_json() -> None:
    original = dataclasses.replace(
        config.tensorf_small(),
        data=Path("a/b"),
        run_dir=Path("/c"),
        resume=True,
        background="random",
        seed=2**32 - 1,
        bricks=SyntheticSceneConfig(size=7),
        knots=(ScheduleKnot(3, 1e-3), ScheduleKnot(1000, 0.1 + 0.2)),
        field=TensoRFConfig(upsample_at=(), shading="per_ray", prune_threshold=1e-300),
    )
    again = config.from_json(config.to_json(original))
    assert again == original
    assert isinstance(again.data, Path)


def test_every_preset_has_a_name_and_is_explained() -> None:
    names = [config.preset_name(preset) for preset in config.PRESETS]
    assert names == [
        "voxels-small",
        "tensorf-small",
        "tensorf-cp-small",
        "tensorf-vm48",
        "tensorf-vm192",
        "tensorf-cp384",
        "hashgrid-small",
        "hashgrid-ngp",
        "hashgrid-f4",
        "pynerf-small",
        "pynerf-paper",
        "pynerf-growing",
        "nerf-small",
        "nerf-tiny",
        "nerf-original",
        "bitnerf-small",
        "bitnerf-tiny",
        "study-base",
        "study-mixed",
        "study-mixed-large",
        "study-bitnerf",
        "study-parallel",
        "study-bitnerf-parallel",
        "custom",
    ]
    assert all(preset.__doc__ for preset in config.PRESETS)
    for name, preset in zip(names, config.PRESETS, strict=True):
        assert config.make_preset(name) == preset()


def test_an_unknown_preset_is_an_input_error_with_the_known_names() -> None:
    for name in ("nope", "tensorf_small", ""):
        with pytest.raises(InputError, match=r"voxels-small, tensorf-small.*nerf-original"):
            config.make_preset(name)


def change(path: str, value: Any) -> str:
    """The JSON of a preset with one value changed, named with dots."""
    tree = json.loads(config.to_json(config.tensorf_small()))
    *parents, name = path.split(".")
    node = tree
    for parent in parents:
        node = node[parent]
    node[name] = value
    return json.dumps(tree)


@pytest.mark.parametrize(
    "path", ["nonsense", "field.nonsense", "optimizer.x", "field.num_coarse_samples"]
)
def test_an_unknown_key_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key '{path.split('.')[-1]}'"):
        config.from_json(change(path, 1))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("steps", "1500"),
        ("steps", 1.5),
        ("steps", True),
        ("steps", None),
        ("resume", 1),
        ("resume", "yes"),
        ("background", "green"),
        ("background", 3),
        ("background", ["white"]),
        ("validate_every", "0.1"),
        ("validate_every", True),
        ("validate_every", None),
        ("data", 5),
        ("data", ["a"]),
        ("field.upsample_at", 0.5),
        ("field.upsample_at", ["half"]),
        ("field.upsample_at", "0.5"),
        ("field.width", [64]),
        ("field.shading", "per_pixel"),
        ("optimizer", 3),
        ("optimizer", None),
        ("optimizer.beta1", {}),
        ("knots", 3),
        ("knots", [[3, 0.5]]),
        ("knots", [{"step": 3.5, "progress": 0.5}]),
        ("knots", [{"step": 3}]),
        ("field.prune_by", "density"),
        ("bricks.size", "128"),
        ("video", []),
    ],
)
def test_a_value_of_the_wrong_type_is_named(path: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"config\.{path}\b"):
        config.from_json(change(path, value))


@pytest.mark.parametrize("kind", ["gaussians", None, 3, ["tensorf"]])
def test_an_unknown_kind_of_field_is_named(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"config\.field\.kind"):
        config.from_json(change("field.kind", kind))


@pytest.mark.parametrize("field", [None, 3, "tensorf", []])
def test_a_field_that_is_no_object_is_named(field: Any) -> None:
    with pytest.raises(ValueError, match=r"config\.field"):
        config.from_json(change("field", field))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"text"'])
def test_text_that_is_no_configuration_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        config.from_json(text)


def test_a_configuration_without_a_field_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="field"):
        config.from_json("{}")


def test_whole_numbers_will_do_for_floats_and_keep_their_type() -> None:
    again = config.from_json(change("checkpoint_seconds", 30))
    assert isinstance(again.checkpoint_seconds, float) and again.checkpoint_seconds == 30.0


def test_the_kind_tells_the_fields_apart() -> None:
    text = json.dumps({"field": {"kind": "nerf", "layers": 3}})
    assert config.from_json(text) == TrainConfig(field=NeRFConfig(layers=3))


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [("cpu", False), ("cuda", True), ("cuda,cpu", True), ("tpu", True), ("cpu,cuda", False)],
)
def test_jax_platforms_decides_whether_there_is_an_accelerator(
    monkeypatch: pytest.MonkeyPatch, platforms: str, expected: bool
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert config.expects_accelerator() is expected
    assert config.default_preset() == ("tensorf-vm192" if expected else "voxels-small")


@pytest.mark.parametrize(
    ("files", "modules", "visible", "expected"),
    [
        ([], [], None, False),
        (["/dev/nvidia0"], ["jax_cuda12_plugin"], None, True),
        (["/dev/nvidia0"], ["jax_cuda13_plugin"], "0,1", True),
        (["/dev/nvidia0"], [], None, False),
        ([], ["jax_cuda12_plugin"], None, False),
        (["/dev/nvidia0"], ["jax_cuda12_plugin"], "", False),
        (["/dev/nvidia0"], ["jax_cuda12_plugin"], "-1", False),
        (["/dev/nvidia0"], ["libtpu"], None, False),
        (["/dev/kfd"], ["jax_rocm7_plugin"], None, True),
        (["/dev/accel0"], ["libtpu"], None, True),
        (["/dev/accel0"], ["jax_cuda12_plugin"], None, False),
    ],
)
def test_an_accelerator_needs_a_device_and_its_plugin(
    monkeypatch: pytest.MonkeyPatch,
    files: list[str],
    modules: list[str],
    visible: str | None,
    expected: bool,
) -> None:
    import fnmatch

    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(glob, "glob", lambda pattern: fnmatch.filter(files, pattern))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in modules else None)
    assert config.expects_accelerator() is expected


def constants(name: str, *paths: str) -> list[Any]:
    """Numbers of a preset, named with dots."""
    found = []
    for path in paths:
        value: Any = config.make_preset(name)
        for part in path.split("."):
            value = getattr(value, part)
        found.append(value)
    return found


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
                "field.density_scale": 25.0, "field.color_threshold": 1e-4,
                "optimizer.grid_lr": 0.02, "optimizer.mlp_lr": 1e-3,
                "optimizer.beta2": 0.99, "steps": 30_000, "batch_rays": 4096,
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
                "field.levels": 16, "field.channels": 2, "field.log2_hashmap_size": 19,
                "field.coarsest": 16, "field.finest": 4096, "field.max_steps": 1024,
                "field.occupancy_resolution": 128, "field.occupancy_warmup_steps": 256,
                "field.occupancy_update_interval": 16, "field.occupancy_threshold": 0.01,
                "optimizer.grid_lr": 0.01, "optimizer.epsilon": 1e-15, "optimizer.l2": 1e-6,
                "optimizer.skip_zero_gradients": True, "optimizer.average": 0.95,
                "loss.error": "huber", "background": "random", "batch_samples": 2**18,
            },
        ),
        ("hashgrid-f4", {"field.levels": 8, "field.channels": 4}),
        (
            "pynerf-paper",
            {
                "field.heads": 8, "field.factor": 2.0, "field.levels": 16, "field.channels": 4,
                "field.log2_hashmap_size": 20, "field.tables": "separate", "scales": 4,
                "batch_rays": 8192, "steps": 50_000,
            },
        ),
        (
            "pynerf-growing",
            {
                "train_scale_schedule": ((0.0, 8), (2000.0, 4), (5000.0, 2), (10_000.0, 1)),
                "field.consistency_weight": 0.1, "steps": 30_000,
            },
        ),
        (
            "nerf-original",
            {
                "field.layers": 8, "field.width": 256, "field.skip": 5, "field.color_width": 128,
                "field.num_position_frequencies": 10, "field.num_direction_frequencies": 4,
                "field.num_coarse_samples": 64, "field.num_fine_samples": 128,
                "field.quadrature": "points", "optimizer.mlp_lr": 5e-4, "steps": 200_000,
                "batch_rays": 4096,
            },
        ),
        (
            "nerf-tiny",
            {
                "field.layers": 8, "field.width": 64, "field.skip": 5,
                "field.num_position_frequencies": 16, "field.use_directions": False,
                "field.num_coarse_samples": 32, "field.num_fine_samples": 0,
            },
        ),
        (
            "bitnerf-tiny",
            {
                "field.width": 256, "field.num_position_frequencies": 16, "field.use_directions": False,
                "optimizer.mlp_lr": 5e-5, "optimizer.weight_decay": 0.05,
            },
        ),
    ],
)  # fmt: skip
def test_published_presets_have_the_published_numbers(name: str, numbers: dict[str, Any]) -> None:
    assert constants(name, *numbers) == list(numbers.values())
