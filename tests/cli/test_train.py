"""Options of training: presets, ranges, contradictions, and what --resume accepts."""

import dataclasses
from pathlib import Path

import pytest
from programs import error_line
from scenes import tiny_nerf

from jaxrf.cli import main as cli
from jaxrf.cli.train import parse_training
from jaxrf.core.errors import InputError
from jaxrf.training import config, runs
from jaxrf.training.config import TrainConfig


@pytest.mark.parametrize("arguments", [["--preset", "nope"], ["--preset=nope"]])
def test_an_unknown_preset_is_refused_with_a_list_of_presets(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run_command("train", arguments) == 2
    line = error_line(capsys)
    assert "--preset nope" in line
    assert all(config.preset_name(preset) in line for preset in config.PRESETS)


def test_preset_without_a_name_is_one_error_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command("train", ["--preset"]) == 2
    assert "--preset" in error_line(capsys)


NOT_POSITIVE = [
    "downscale", "steps", "batch-samples", "batch-rays", "render-samples", "steps-per-dispatch",
    "validation-views", "checkpoint-seconds", "keep-checkpoints", "bricks.size",
    "bricks.train-views", "bricks.test-views", "video.size",
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
        ["--field.appearance-dim", "-1"],
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
        ["--field.num-coarse-samples", "0", "--preset", "nerf-small"],
    ],
    ids=" ".join,
)
def test_parse_training_refuses_numbers_out_of_range(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=arguments[0]):
        parse_training(arguments, "train_lego.py")


def test_options_override_the_preset_in_both_spellings() -> None:
    parsed, preset = parse_training(
        [
            "--preset",
            "nerf-small",
            "--steps",
            "7",
            "--field.num-fine-samples",
            "3",
            "--run_dir",
            "x",
        ],
        "train_lego.py",
    )
    assert preset == "nerf-small"
    expected = dataclasses.replace(
        config.nerf_small(),
        steps=7,
        run_dir=Path("x"),
        field=dataclasses.replace(config.nerf_small().field, num_fine_samples=3),
    )
    assert parsed == expected


def test_the_default_preset_depends_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert parse_training([], "") == (config.tensorf_vm192(), "tensorf-vm192")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert parse_training([], "") == (config.voxels_small(), "voxels-small")


@pytest.fixture
def stored(tmp_path: Path) -> TrainConfig:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    stored = tiny_nerf(run_dir=folder, background="black", seed=4)
    (folder / runs.CONFIG_FILE).write_text(config.to_json(stored))
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
    arguments = ["--resume", "--run-dir", str(stored.run_dir), "--seed", "4", "--steps", "12"]
    parsed, _ = parse_training(arguments, "")
    assert parsed.steps == 12


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--steps", "99"),
        ("--seed", "5"),
        ("--background", "white"),
        ("--batch-rays", "65"),
        ("--downscale", "2"),
        ("--matmul-precision", "default"),
        ("--field.width", "25"),
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
    with pytest.raises(InputError, match="add --coordinator host:port"):
        parse_training(["--resume", "--run-dir", str(stored.run_dir), "--processes", "2"], "prog")


def test_resume_refuses_a_preset(stored: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--resume", "--run-dir", str(stored.run_dir), "--preset", "nerf-small"]
    assert cli.run_command("train", arguments) == 2
    assert "--preset and --resume" in error_line(capsys)


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
        ("--preset pynerf-small --field.blend results", "add --field.shading per_sample"),
        ("--shards 6", "--shards is 6: give a power of two"),
        ("--devices 0", "--devices is 0"),
        ("--field.checkpoint-in-chunks 0", "--field.checkpoint-in-chunks is 0"),
        ("--coordinator host", "--coordinator is host: give host:port, or auto"),
        ("--processes 2", "add --coordinator host:port"),
        ("--train-scale-schedule 5 2", "ascending steps from 0"),
        ("--train-scale-schedule 0 4 100 2 50 1", "ascending steps from 0"),
        ("--train-scale-schedule 0 0", "a factor of 1 or more"),
        ("--steps 100 --train-scale-schedule 0 4 100 1", "training ends at 100"),
        ("--loss.charbonnier-epsilon 0", "--loss.charbonnier-epsilon is 0"),
        ("--loss.huber-delta -1", "--loss.huber-delta is -1"),
        ("--preset nerf-original --field.num-coarse-samples 2", "points need 3 or more"),
        ("--preset nerf-original --field.encoding integrated", "--field.quadrature intervals"),
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
