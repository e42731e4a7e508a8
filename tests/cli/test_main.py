"""The dispatch of commands: --help, unknown commands and options, checks of options."""

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import tyro
from programs import error_line

from jaxrf import presets
from jaxrf.cli import main as cli
from jaxrf.cli.convert import ConvertOptions
from jaxrf.cli.data import DataInfoOptions
from jaxrf.cli.eval import EvalOptions
from jaxrf.cli.export import ExportOptions
from jaxrf.cli.view import ViewOptions
from jaxrf.core.errors import InputError
from jaxrf.export.render_options import RenderOptions
from jaxrf.studies.options import BenchOptions, ExperimentsOptions
from jaxrf.studies.presets import STUDY
from jaxrf.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]


def run_program(program: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a script or module; 99 in place of 0 if it imported jax."""
    how = "run_module" if program == "jaxrf" else "run_path"
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{program!r}, *{list(arguments)!r}]\n"
        f"try: runpy.{how}({program!r}, run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "else: code = 0\n"
        "sys.exit(99 if 'jax' in sys.modules and not code else code)\n"
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
    """Names of a dataclass's options on the command line; a run is a positional argument."""
    names = []
    hints = typing.get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        value = getattr(default, field.name)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            names += option_names(type(value), value, f"{name}.")
        elif field.name == "run":
            names.append("RUN")
        elif tyro.conf.Suppress not in getattr(hints[field.name], "__metadata__", ()):
            names.append("--" + name)
    return names


CHOICES = ["--preset", "--field", "--model"]
TRAIN_OPTIONS = [*CHOICES, *option_names(TrainConfig, presets.voxels_small())]
TENSORF_OPTIONS = option_names(TrainConfig, presets.tensorf_small())
NERF_OPTIONS = option_names(TrainConfig, presets.nerf_original())
BLOBS_OPTIONS = ["--field.num-blobs", "--field.initial-size", "--model.steps-per-diagonal"]
PROPOSAL_OPTIONS = ["--field.width", "--model.num-nerf-samples", "--model.interlevel-weight"]


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("train_lego.py", [], TRAIN_OPTIONS),
        ("train_lego.py", ["--preset", "nerf-original"], NERF_OPTIONS),
        ("train_lego.py", ["--preset", "nerf-small", "--model", "proposal"], PROPOSAL_OPTIONS),
        ("train_lego.py", ["--field", "docs/blobs.py:Blobs"], BLOBS_OPTIONS),
        ("train_lego.py", ["--preset", "tensorf-small"], TENSORF_OPTIONS),
        ("render_360.py", [], option_names(RenderOptions, RenderOptions())),
        ("jaxrf", [], ["train", "eval", "render", "export"]),
        ("jaxrf", ["train"], TRAIN_OPTIONS),
        ("jaxrf", ["eval"], option_names(EvalOptions, EvalOptions())),
        ("jaxrf", ["render"], option_names(RenderOptions, RenderOptions())),
        ("jaxrf", ["export"], option_names(ExportOptions, ExportOptions())),
        ("jaxrf", ["view"], option_names(ViewOptions, ViewOptions())),
        ("jaxrf", ["bench"], option_names(BenchOptions, BenchOptions())),
        ("jaxrf", ["experiments"], option_names(ExperimentsOptions, ExperimentsOptions())),
        ("jaxrf", ["convert"], ["FILE", "--run-dir", "--check"]),
        ("jaxrf", ["data", "info"], ["PATH", "--downscale", "--output"]),
        ("jaxrf", ["data", "fetch"], ["NAME", "--output", "--sha256"]),
    ],
)
def test_help_lists_every_option_and_imports_jax_for_training_alone(
    program: str, arguments: list[str], expected: list[str]
) -> None:
    code, output, errors = run_program(program, *arguments, "--help")
    trains = "train" in (program, *arguments) or program == "train_lego.py"
    # Fields hold their own configuration, so the help of training may import them and jax.
    assert code in ((0, 99) if trains else (0,)) and errors == ""
    words = set(re.findall(r"[\w.-]+", output))
    assert [name for name in expected if name not in words] == []
    assert len(expected) >= 3


def test_train_help_describes_every_preset() -> None:
    _, output, _ = run_program("train_lego.py", "--help")
    for preset in (*presets.PRESETS, *STUDY):
        assert presets.preset_name(preset) in output
        assert (preset.__doc__ or "").split(":")[0].split(",")[0][:30] in output


def test_main_without_a_command_prints_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "train" in capsys.readouterr().err
    assert cli.main(["paint"]) == 2
    assert "'paint' is no command" in capsys.readouterr().err
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == cli.usage()


def test_a_group_of_commands_lists_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for name in cli.COMMANDS if name.startswith("data ")]
    assert len(names) == 3
    for arguments, code in ([], 2), (["paint"], 2), (["--help"], 0):
        assert cli.main(["data", *arguments]) == code
        captured = capsys.readouterr()
        listed = captured.err if code else captured.out
        assert all(f"{name} " in listed for name in names) and "jaxrf train" not in listed


@pytest.mark.parametrize("command", ["train", "eval", "render", "export"])
def test_an_unknown_option_ends_with_code_2(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run_command(command, ["--no-such-option", "3"])
    assert end.value.code == 2
    assert "no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--num-steps", "many"], ["--background", "green"], ["--data"], ["--seed", "1.5"]]
)
def test_a_value_of_the_wrong_type_ends_with_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.run_command("train", arguments)
    assert end.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_commands_without_a_run_name_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("eval", "render", "export"):
        assert cli.run_command(command, []) == 2
        assert str(tmp_path / "runs") in error_line(capsys)
        assert cli.run_command(command, ["nowhere"]) == 2
        assert "nowhere" in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "changes", "complaint"),
    [
        (EvalOptions, {"supersample": 0}, "supersample is 0: give a number above 0."),
        (EvalOptions, {"every": -1}, "every is -1: give a number above 0."),
        (RenderOptions, {"fps": 0.0}, "fps is 0.0: give a number above 0."),
        (ViewOptions, {"port": 0}, "port is 0: give a number from 1 to 65535."),
        (ExportOptions, {"level": 1.0}, "level is 1: give a number between 0 and 1."),
        (ExportOptions, {"fragments": -0.5}, "fragments is -0.5: give a number between 0 and 1."),
        (ConvertOptions, {"file": Path("x"), "steps": 0}, "steps is 0: give a number above 0."),
        (DataInfoOptions, {"data": Path("x"), "downscale": 0}, "downscale is 0: give a number"),
        (BenchOptions, {"budget": (60.0, -1.0)}, "budget is -1.0: give a number above 0."),
    ],
)
def test_options_check_themselves_in_python(
    options: Any, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=re.escape(complaint)):
        options(**changes)


def test_a_run_is_a_positional_argument_before_or_after_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["nowhere", "--step", "3"], ["--step", "3", "nowhere"]):
        assert cli.run_command("eval", arguments) == 2
        assert "nowhere" in error_line(capsys)
