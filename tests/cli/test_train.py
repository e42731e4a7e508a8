"""Options of training: presets, ranges, contradictions, and what --resume accepts."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from programs import error_line
from scenes import make_scene, tiny_nerf, write_scene

from jaxrf import presets
from jaxrf.cli import main as cli
from jaxrf.cli.train import parse_training
from jaxrf.core.errors import InputError
from jaxrf.data import sources
from jaxrf.fields.nerf import NeRF
from jaxrf.models.base import Model
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.models.packed import PackedModel
from jaxrf.models.proposal import ProposalModel
from jaxrf.training import runs
from jaxrf.training.config import TrainConfig


@pytest.mark.parametrize("arguments", [["--preset", "nope"], ["--preset=nope"]])
def test_an_unknown_preset_is_refused_with_a_list_of_presets(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command("train", arguments) == 2
    line = error_line(capsys)
    assert "--preset nope" in line
    assert all(presets.preset_name(preset) in line for preset in presets.PRESETS)


def test_preset_without_a_name_is_one_error_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command("train", ["--preset"]) == 2
    assert "--preset" in error_line(capsys)


NOT_POSITIVE = [
    "downscale", "num-steps", "batch-samples", "batch-rays", "render-samples", "steps-per-dispatch",
    "validation-views", "checkpoint-seconds", "keep-checkpoints", "video.size",
    "synthetic-scene.size", "synthetic-scene.train-views", "synthetic-scene.test-views",
]  # fmt: skip


@pytest.mark.parametrize("name", NOT_POSITIVE)
@pytest.mark.parametrize("value", ["0", "-3"])
def test_train_refuses_numbers_that_are_not_positive(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command("train", [f"--{name}", value]) == 2
    assert f"--{name} is {value}" in error_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--checkpoint-seconds", "nan"],
        ["--video.frames", "-1"],
        ["--video.every", "-0.1"],
        ["--seed", "-1"],
        ["--seed", str(2**32)],
        ["--validate-every", "-0.1"],
        ["--model.appearance-dim", "-1"],
        ["--optimizer.grid-lr", "-0.1"],
        ["--optimizer.mlp-lr", "nan"],
        ["--optimizer.lr-final-mult", "0"],
        ["--field.width", "0"],
        ["--field.initial-resolution", "0"],
        ["--field.step-ratio", "0"],
        ["--supersample", "0"],
        ["--budget", "-3"],
        ["--field.density-components", "0", "--preset", "tensorf-small"],
        ["--field.initial-voxels", "0", "--preset", "tensorf-small"],
        ["--model.num-coarse-samples", "0", "--preset", "nerf-original"],
        ["--model.num-coarse-samples", "0", "--preset", "nerf-small", "--model", "hierarchical"],
        ["--model.steps-per-diagonal", "0", "--preset", "nerf-small"],
        ["--model.max-colored-fraction", "0", "--preset", "nerf-small"],
        ["--model.occupancy-resolution", "0", "--preset", "nerf-small"],
        ["--model.occupancy-update-interval", "0", "--preset", "nerf-small"],
        ["--model.num-nerf-samples", "0", "--preset", "nerf-small", "--model", "proposal"],
        ["--model.proposal-resolutions", "0", "0", "--preset", "nerf-small", "--model", "proposal"],
        ["--field.num-levels", "0", "--preset", "hashgrid-small"],
        ["--field.max-resolution", "0", "--preset", "pynerf-small"],
        ["--field.color-width", "0", "--preset", "nerf-small"],
        ["--viewer.port", "0"],
    ],
    ids=" ".join,
)
def test_parse_training_refuses_numbers_out_of_range(arguments: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_training(arguments, "train_lego.py")
    assert caught.value.for_command_line.startswith(f"{arguments[0]} is ")


def test_options_override_the_preset_in_both_spellings() -> None:
    parsed, preset = parse_training(
        [
            "--preset",
            "nerf-original",
            "--num-steps",
            "7",
            "--field.width",
            "9",
            "--model.num-fine-samples",
            "3",
            "--run_dir",
            "x",
        ],
        "train_lego.py",
    )
    assert preset == "nerf-original"
    expected = dataclasses.replace(
        presets.nerf_original(),
        num_steps=7,
        run_dir=Path("x"),
        field=NeRF(width=9),
        model=HierarchicalModel(quadrature="points", num_fine_samples=3),
    )
    assert parsed == expected


def test_the_default_preset_depends_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert parse_training([], "") == (presets.tensorf_vm192(), "tensorf-vm192")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert parse_training([], "") == (presets.voxels_small(), "voxels-small")


def test_the_default_preset_depends_on_the_budget_for_a_pixel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # 24 images of 32x32 pixels.
    data = ["--data", str(write_scene(tmp_path / "ball", size=32))]
    count = sources.preview(tmp_path / "ball").num_pixels
    assert count == len(make_scene().splits["train"]) * 32**2
    # As if there were more of them.
    monkeypatch.setattr(presets, "SECONDS_PER_PIXEL", 1000.0 / count)
    seconds = 1000.0
    for options, name in (
        (["--budget", str(0.9 * seconds)], "voxels-small"),
        ([f"--budget={1.1 * seconds}"], "voxels-large"),
        (["--budget", str(0.3 * seconds), "--downscale", "2"], "voxels-large"),
        (["--budget", str(0.2 * seconds), "--downscale", "2"], "voxels-small"),
        ([], "voxels-small"),
        # Too short for any number of pixels.
        (["--budget", "239", "--downscale", "8"], "voxels-small"),
    ):
        assert parse_training([*data, *options], "").preset == name
    assert parse_training(["--budget", "600", "--preset", "nerf-tiny"], "").preset == "nerf-tiny"
    assert parse_training(["--budget", "600"], "").preset == "voxels-small"
    for option in ("budget", "downscale"):
        with pytest.raises(InputError, match=option):
            parse_training([f"--{option}", "soon"], "")


def test_the_default_preset_depends_on_the_data(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.jpg")
    arguments = ["--data", str(tmp_path)]
    assert parse_training(arguments, "").preset == "capture-small"
    assert parse_training([*arguments, "--preset", "nerf-small"], "").preset == "nerf-small"
    bounded = parse_training([*arguments, "--box", *["-1", "-1", "-1", "1", "1", "1"]], "")
    assert bounded.preset == presets.default_preset()
    assert parse_training(["--data", "nowhere"], "").preset == presets.default_preset()


@pytest.fixture
def stored(tmp_path: Path) -> TrainConfig:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    stored = tiny_nerf(run_dir=folder, background="black", seed=4)
    runs.write_config(folder, stored)
    return stored


def test_resume_takes_the_config_of_the_run(stored: TrainConfig) -> None:
    arguments = ["--resume", "--run-dir", str(stored.run_dir), "--checkpoint-seconds", "5"]
    parsed, _ = parse_training(arguments, "")
    assert parsed == dataclasses.replace(stored, resume=True, checkpoint_seconds=5.0)


def test_resume_takes_the_newest_run(stored: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored.run_dir is not None
    monkeypatch.chdir(stored.run_dir.parent.parent)
    parsed, _ = parse_training(["--resume"], "")
    assert parsed.run_dir == Path("runs/one") and parsed.seed == 4


def test_resume_accepts_options_that_equal_the_config(stored: TrainConfig) -> None:
    arguments = ["--resume", "--run-dir", str(stored.run_dir), "--seed", "4", "--num-steps", "12"]
    parsed, _ = parse_training(arguments, "")
    assert parsed.num_steps == 12


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--num-steps", "99"),
        ("--seed", "5"),
        ("--background", "white"),
        ("--batch-rays", "65"),
        ("--downscale", "2"),
        ("--matmul-precision", "default"),
        ("--field.width", "25"),
        ("--model.num-fine-samples", "9"),
        ("--ray-convention.pixel-center", "0.25"),
        ("--optimizer.mlp-lr", "0.1"),
    ],
)
def test_resume_names_an_option_that_contradicts_the_config(
    stored: TrainConfig, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert (
        cli.run_command("train", ["--resume", "--run-dir", str(stored.run_dir), option, value]) == 2
    )
    line = error_line(capsys)
    assert f"{option} {value} contradicts" in line
    assert str(stored.run_dir) in line


def test_resume_with_processes_needs_a_coordinator(stored: TrainConfig) -> None:
    with pytest.raises(InputError) as caught:
        parse_training(["--resume", "--run-dir", str(stored.run_dir), "--processes", "2"], "prog")
    assert "add --coordinator host:port" in caught.value.for_command_line


@pytest.mark.parametrize(
    ("option", "value"),
    [("--preset", "nerf-small"), ("--field", "docs/blobs.py:Blobs"), ("--model", "packed")],
)
def test_resume_refuses_another_preset_field_or_model(
    stored: TrainConfig, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    arguments = ["--resume", "--run-dir", str(stored.run_dir), option, value]
    assert cli.run_command("train", arguments) == 2
    assert f"{option} and --resume exclude each other" in error_line(capsys)


def test_resume_without_a_run_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run_command("train", ["--resume"]) == 2
    assert str(tmp_path / "runs") in error_line(capsys)
    assert cli.run_command("train", ["--resume", "--run-dir", "nowhere"]) == 2
    assert "nowhere" in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--preset pynerf-small --field.blend results", "set --model.coloring to per_sample"),
        ("--shards 6", "--shards is 6: give a power of two"),
        ("--shards 2 --model.color-correction affine", "--model.color-correction does not"),
        ("--devices 0", "--devices is 0"),
        ("--model.checkpoint-chunks 0", "--model.checkpoint-chunks is 0"),
        ("--coordinator host", "--coordinator is host: give host:port, or auto"),
        ("--processes 2", "add --coordinator host:port"),
        ("--train-scale-schedule 5 2", "ascending steps from 0"),
        ("--train-scale-schedule 0 4 100 2 50 1", "ascending steps from 0"),
        ("--train-scale-schedule 0 0", "a factor of 1 or more"),
        ("--num-steps 100 --train-scale-schedule 0 4 100 1", "training ends at 100"),
        ("--loss.charbonnier-epsilon 0", "--loss.charbonnier-epsilon is 0"),
        ("--loss.huber-delta -1", "--loss.huber-delta is -1"),
        ("--preset nerf-original --model.num-coarse-samples 2", "points need 3 or more"),
        (
            "--preset nerf-original --field.encoding integrated",
            "set --model.quadrature to intervals",
        ),
        ("--preset nerf-small --model cubes", "choose one of packed, hierarchical, proposal."),
        ("--preset voxels-small --model hierarchical", "voxels drops cells by what rays see in"),
        ("--preset tensorf-small --model proposal", "rays see in them: leave --model out."),
        (
            "--preset nerf-small --model proposal --model.num-proposal-samples 4 4 4",
            "--model.num-proposal-samples has 3 numbers: give one for each proposal, and as many",
        ),
        ("--ray-convention.transmittance inclusive", "use --model hierarchical."),
        (
            "--preset hashgrid-small --model proposal --ray-convention.transmittance inclusive",
            "use --model hierarchical.",
        ),
        (
            "--preset nerf-original --ray-convention.lengths-along axis",
            "set --ray-convention.range-along to axis.",
        ),
        (
            "--preset tensorf-small --field.color-head harmonics --field.feature-dim 5",
            "--field.feature-dim is 5: harmonics need one of 3, 12, 27, 48.",
        ),
        ("--field.num-subdivisions 3", "--field.num-subdivisions is 3: give 0 to 2, or more"),
        ("--field docs/blobs.py:Blobs --preset nerf-small", "--field and --preset exclude"),
    ],
)
def test_train_refuses_options_that_contradict_each_other(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command("train", arguments.split()) == 2
    assert complaint in capsys.readouterr().err


def test_train_scale_schedule_is_parsed_as_pairs() -> None:
    config, _ = parse_training(
        ["--train-scale-schedule", *["0", "8", "2000", "4", "0.9", "1"][:4]], "prog"
    )
    assert config.train_scale_schedule == ((0.0, 8), (2000.0, 4))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "packed",
            PackedModel(occupancy_resolution=64, occupancy_warmup_steps=0, steps_per_diagonal=192),
        ),
        ("hierarchical", HierarchicalModel(num_fine_samples=3)),
        ("proposal", ProposalModel(num_nerf_samples=3)),
    ],
)
def test_model_renders_the_field_of_the_preset_with_its_options(name: str, expected: Model) -> None:
    numbers = {
        "packed": [],
        "hierarchical": ["--model.num-fine-samples", "3"],
        "proposal": ["--model.num-nerf-samples", "3"],
    }
    for spelling in (["--model", name], [f"--model={name}"]):
        arguments = ["--preset", "nerf-small", *spelling, *numbers[name]]
        parsed, preset = parse_training(arguments, "prog")
        assert parsed == dataclasses.replace(presets.nerf_small(), model=expected)
        assert preset == "nerf-small"


def test_model_keeps_the_numbers_that_all_models_have() -> None:
    shared = ["--model.appearance-dim", "4", "--model.coloring", "per_ray"]
    parsed, _ = parse_training(["--preset", "hashgrid-small", "--model", "hierarchical"], "prog")
    assert parsed.model == HierarchicalModel(coloring="per_ray")
    parsed, _ = parse_training(["--preset", "nerf-small", "--model", "proposal", *shared], "prog")
    assert parsed.model == ProposalModel(appearance_dim=4, coloring="per_ray")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset", "nerf-small", "--model.num-fine-samples", "3"],
        ["--preset", "nerf-original", "--model.steps-per-diagonal", "3"],
        ["--preset", "voxels-small", "--field.density-components", "3"],
        ["--preset", "nerf-small", "--field.sampler", "hierarchical"],
    ],
    ids=" ".join,
)
def test_options_of_another_field_or_model_are_unknown(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run_command("train", arguments)
    assert end.value.code == 2
    assert arguments[2].removeprefix("--") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_steps": 0}, "num_steps is 0: give a number above 0."),
        ({"seed": 2**32}, "seed is 4294967296: give a number from 0 to 2^32 - 1."),
        ({"shards": 6}, "shards is 6: give a power of two."),
        ({"validate_every": -0.1}, "validate_every is -0.1: give 0 or more."),
        ({"coordinator": "host"}, "coordinator is host: give host:port, or auto."),
        ({"process_id": 0}, "add coordinator host:port."),
        ({"train_scale_schedule": ((5.0, 2),)}, "train_scale_schedule is 5 2: give ascending"),
        (
            {"num_steps": 100, "train_scale_schedule": ((0.0, 4), (100.0, 1))},
            "train_scale_schedule reaches step 100, but training ends at 100: give earlier",
        ),
    ],
)
def test_train_config_checks_itself_in_python(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=re.escape(complaint)):
        dataclasses.replace(presets.nerf_small(), **changes)
