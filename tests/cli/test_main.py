"""The command line: help, options, and what is said to a mistake."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scenes import tiny_nerf

from jaxrf.cli import main as cli
from jaxrf.cli.options import EvalOptions, ExportOptions, RenderOptions
from jaxrf.core.errors import InputError
from jaxrf.training import config, runs
from jaxrf.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]


def run_program(program: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a script or module; code 99 if it has imported jax."""
    how = "run_module" if program == "jaxrf" else "run_path"
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{program!r}, *{list(arguments)!r}]\n"
        f"try: runpy.{how}({program!r}, run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "else: code = 0\n"
        "sys.exit(99 if 'jax' in sys.modules else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"COLUMNS": "300", "PATH": "", "JAX_PLATFORMS": "cpu", "HOME": "/nowhere"},
    )
    return done.returncode, done.stdout, done.stderr


def option_names(options: Any, default: Any, prefix: str = "") -> list[str]:
    """All options of a dataclass as they are given on the command line."""
    names = []
    for field in dataclasses.fields(options):
        value = getattr(default, field.name)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            names += option_names(value, value, f"{name}.")
        elif field.name not in ("kind", "knots", "num_appearances"):
            names.append("--" + name)
    return names


TRAIN_OPTIONS = ["--preset", *option_names(TrainConfig, config.voxels_small())]
TENSORF_OPTIONS = option_names(TrainConfig, config.tensorf_small())
NERF_OPTIONS = option_names(TrainConfig, config.nerf_small())


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("train_lego.py", [], TRAIN_OPTIONS),
        ("train_lego.py", ["--preset", "nerf-small"], NERF_OPTIONS),
        ("train_lego.py", ["--preset", "tensorf-small"], TENSORF_OPTIONS),
        ("render_360.py", [], option_names(RenderOptions, RenderOptions())),
        ("jaxrf", [], ["train", "eval", "render", "export"]),
        ("jaxrf", ["train"], TRAIN_OPTIONS),
        ("jaxrf", ["eval"], option_names(EvalOptions, EvalOptions())),
        ("jaxrf", ["render"], option_names(RenderOptions, RenderOptions())),
        ("jaxrf", ["export"], option_names(ExportOptions, ExportOptions())),
    ],
)
def test_help_mentions_every_option_and_needs_no_jax(
    program: str, arguments: list[str], expected: list[str]
) -> None:
    code, output, errors = run_program(program, *arguments, "--help")
    assert (code, errors) == (0, "")
    words = set(re.findall(r"[\w.-]+", output))
    assert [name for name in expected if name not in words] == []
    assert len(expected) >= 3


def test_help_of_training_describes_every_preset() -> None:
    _, output, _ = run_program("train_lego.py", "--help")
    for preset in config.PRESETS:
        assert config.preset_name(preset) in output
        assert (preset.__doc__ or "").split(":")[0].split(",")[0][:30] in output


def test_jaxrf_without_a_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "train" in capsys.readouterr().err
    assert cli.main(["paint"]) == 2
    assert "'paint' is no command" in capsys.readouterr().err
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == cli.USAGE


@pytest.mark.parametrize("command", [cli.train, cli.evaluate, cli.render, cli.export])
def test_an_unknown_option_ends_with_code_2(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command(["--no-such-option", "3"])
    assert end.value.code == 2
    assert "no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--steps", "many"], ["--background", "green"], ["--data"], ["--seed", "1.5"]]
)
def test_a_value_of_the_wrong_type_ends_with_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.train(arguments)
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("error: ") and line.endswith(".")
    assert output.out == ""
    return line


@pytest.mark.parametrize("arguments", [["--preset", "nope"], ["--preset=nope"]])
def test_an_unknown_preset_is_answered_with_the_known_ones(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.train(arguments) == 2
    line = error_line(capsys)
    assert "--preset nope" in line
    assert all(config.preset_name(preset) in line for preset in config.PRESETS)


def test_a_preset_without_a_name_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.train(["--preset"]) == 2
    assert "--preset" in error_line(capsys)


NOT_POSITIVE = [
    "downscale", "steps", "batch-samples", "batch-rays", "render-samples", "steps-per-dispatch",
    "validation-views", "checkpoint-seconds", "keep-checkpoints", "bricks.size",
    "bricks.train-views", "bricks.test-views", "video.size",
]  # fmt: skip


@pytest.mark.parametrize("name", NOT_POSITIVE)
@pytest.mark.parametrize("value", ["0", "-3"])
def test_numbers_that_are_not_positive_are_refused(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.train([f"--{name}", value]) == 2
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
def test_numbers_out_of_range_are_refused(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=arguments[0]):
        cli.parse_training(arguments, "train_lego.py")


@pytest.mark.parametrize("name", ["frames", "fps", "size", "radius", "supersample"])
def test_numbers_of_render_must_be_positive(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.render([f"--{name}", "0"]) == 2
    assert f"--{name} is 0" in error_line(capsys)


def test_options_override_the_preset_and_both_spellings_are_known() -> None:
    parsed, preset = cli.parse_training(
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


def test_without_a_preset_the_machine_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert cli.parse_training([], "") == (config.tensorf_vm192(), "tensorf-vm192")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert cli.parse_training([], "") == (config.voxels_small(), "voxels-small")


# ---------------------------------------------------------------------------------------------
# --resume
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> TrainConfig:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    stored = tiny_nerf(run_dir=folder, background="black", seed=4)
    (folder / runs.CONFIG_FILE).write_text(config.to_json(stored))
    return stored


def test_resume_takes_the_settings_of_the_run(stored: TrainConfig) -> None:
    arguments = ["--resume", "--run-dir", str(stored.run_dir), "--checkpoint-seconds", "5"]
    parsed, _ = cli.parse_training(arguments, "")
    assert parsed == dataclasses.replace(stored, resume=True, checkpoint_seconds=5.0)


def test_resume_takes_the_newest_run(stored: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stored.run_dir is not None
    monkeypatch.chdir(stored.run_dir.parent.parent)
    parsed, _ = cli.parse_training(["--resume"], "")
    assert parsed.run_dir == Path("runs/one") and parsed.seed == 4


def test_resume_with_the_same_settings_again_is_no_contradiction(stored: TrainConfig) -> None:
    arguments = ["--resume", "--run-dir", str(stored.run_dir), "--seed", "4", "--steps", "12"]
    parsed, _ = cli.parse_training(arguments, "")
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
def test_resume_refuses_a_contradicting_option_by_its_name(
    stored: TrainConfig, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert cli.train(["--resume", "--run-dir", str(stored.run_dir), option, value]) == 2
    line = error_line(capsys)
    assert f"{option} {value} contradicts" in line
    assert str(stored.run_dir) in line


def test_a_resumed_run_is_not_begun_twice_for_want_of_a_coordinator(stored: TrainConfig) -> None:
    with pytest.raises(InputError, match="add --coordinator host:port"):
        cli.parse_training(
            ["--resume", "--run-dir", str(stored.run_dir), "--processes", "2"], "prog"
        )


def test_resume_and_preset_exclude_each_other(
    stored: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--resume", "--run-dir", str(stored.run_dir), "--preset", "nerf-small"]
    assert cli.train(arguments) == 2
    assert "--preset and --resume" in error_line(capsys)


def test_resume_without_a_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.train(["--resume"]) == 2
    assert str(tmp_path / "runs") in error_line(capsys)
    assert cli.train(["--resume", "--run-dir", "nowhere"]) == 2
    assert "nowhere" in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_eval_render_and_export_without_a_run_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (cli.evaluate, cli.render, cli.export):
        assert command([]) == 2
        assert str(tmp_path / "runs") in error_line(capsys)
        assert command(["nowhere"]) == 2
        assert "nowhere" in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------
# Failures on the way
# ---------------------------------------------------------------------------------------------


def test_memory_that_runs_out_is_advice_and_other_faults_are_tracebacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(error: BaseException) -> Any:
        def command() -> int:
            raise error

        return command

    assert cli._guard(fail(RuntimeError("RESOURCE_EXHAUSTED: 3 GiB"))) == 1
    assert "--batch-samples" in error_line(capsys)
    assert cli._guard(fail(MemoryError())) == 1
    assert "--render-samples" in error_line(capsys)
    assert cli._guard(fail(KeyboardInterrupt())) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(ZeroDivisionError):
        cli._guard(fail(ZeroDivisionError()))


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
        ("--steps 100 --train-scale-schedule 0 4 100 1", "training only to 100"),
        ("--loss.charbonnier-epsilon 0", "--loss.charbonnier-epsilon is 0"),
        ("--loss.huber-delta -1", "--loss.huber-delta is -1"),
        ("--preset nerf-original --field.num-coarse-samples 2", "points need 3 or more"),
        ("--preset nerf-original --field.encoding integrated", "--field.quadrature intervals"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.train(arguments.split()) == 2
    assert complaint in capsys.readouterr().err


def test_a_schedule_of_sizes_is_read_as_pairs() -> None:
    config, _ = cli.parse_training(
        ["--train-scale-schedule", *["0", "8", "2000", "4", "0.9", "1"][:4]], "prog"
    )
    assert config.train_scale_schedule == ((0.0, 8), (2000.0, 4))
