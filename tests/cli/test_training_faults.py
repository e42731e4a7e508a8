"""Faulty data, run folders and checkpoints: each ends in one sentence, and nothing is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import assert_one_sentence, training_arguments
from scenes import write_scene

from jaxrf.cli import main as cli

pytestmark = pytest.mark.as_used


def change_frames(folder: Path, split: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / f"transforms_{split}.json"
    transforms = json.loads(path.read_text())
    change(transforms)
    path.write_text(json.dumps(transforms))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def spoil_pose(transforms: dict[str, Any]) -> None:
    transforms["frames"][1]["transform_matrix"][0][3] = float("nan")


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing folder": (shutil.rmtree, ""),
    "missing split": (lambda f: (f / "transforms_train.json").unlink(), " transforms_train.json"),
    "empty split": (
        lambda f: change_frames(f, "train", lambda t: t["frames"].clear()),
        "transforms_train.json",
    ),
    "pose that is no number": (
        lambda f: change_frames(f, "train", spoil_pose),
        "transforms_train.json",
    ),
    "JSON cut off": (lambda f: truncate(f / "transforms_train.json"), "transforms_train.json"),
    "missing picture": (lambda f: (f / "train/r_3.png").unlink(), "train/r_3.png"),
    "truncated picture": (lambda f: truncate(f / "train/r_3.png"), "train/r_3.png"),
    "truncated picture of val": (lambda f: truncate(f / "val/r_1.png"), "val/r_1.png"),
    "empty test split": (
        lambda f: change_frames(f, "test", lambda t: t["frames"].clear()),
        "transforms_test.json",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_data_end_in_one_sentence_before_a_run_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    spoil, name = FAULTS[fault]
    folder = write_scene(tmp_path / "ball")
    spoil(folder)
    run = tmp_path / "run"
    assert (
        cli.run_command(
            "train", training_arguments(folder, run, "--num-steps", "1", "--validate-every", "0.5")
        )
        == 2
    )
    # A missing file is named after its folder, with a space in between.
    words = [str(folder), name] if name.startswith(" ") else [str(folder / name)]
    assert_one_sentence(capsys, *words)
    assert not run.exists()
    assert {p.name for p in tmp_path.iterdir()} <= {"ball"}


def test_a_run_folder_that_is_not_empty_is_not_changed(
    tmp_path: Path, scene_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("mine")
    assert cli.run_command("train", training_arguments(scene_folder, tmp_path)) == 2
    assert_one_sentence(capsys, str(tmp_path), "--run-dir", "--resume")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "mine"


@pytest.mark.parametrize("below", ["file/run", "/proc/run"])
def test_a_run_folder_that_cannot_be_written_is_named(
    tmp_path: Path, scene_folder: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    (tmp_path / "file").write_text("a file")
    assert cli.run_command("train", training_arguments(scene_folder, tmp_path / below)) == 2
    assert_one_sentence(capsys, str(tmp_path / below), "--run-dir")


@pytest.mark.parametrize(
    ("key", "value"),
    [("density_components", 3), ("feature_dim", 5), ("width", 9), ("layers", 3)],
)
@pytest.mark.parametrize("command", ["resume", "render", "eval"])
def test_a_checkpoint_of_another_config_is_refused(
    run_copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    key: str,
    value: int,
) -> None:
    config = json.loads((run_copy / "config.json").read_text())
    assert config["field"][key] != value
    config["field"][key] = value
    (run_copy / "config.json").write_text(json.dumps(config))
    metrics = (run_copy / "metrics.json").read_bytes()
    steps = sorted(p.name for p in (run_copy / "checkpoints").iterdir())
    if command == "resume":
        code = cli.run_command("train", ["--resume", "--run-dir", str(run_copy)])
    elif command == "render":
        code = cli.run_command("render", [str(run_copy), "--output", str(tmp_path / "out")])
    else:
        code = cli.run_command("eval", [str(run_copy)])
    assert code == 2
    assert_one_sentence(capsys, str(run_copy / "checkpoints"), "step 24")
    assert not (tmp_path / "out").exists()
    assert (run_copy / "metrics.json").read_bytes() == metrics
    assert sorted(p.name for p in (run_copy / "checkpoints").iterdir()) == steps


def test_a_config_with_an_unknown_key_is_named(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_copy / "config.json"
    path.write_text(path.read_text().replace('"batch_rays"', '"batch_arrays"'))
    assert cli.run_command("render", [str(run_copy)]) == 2
    assert_one_sentence(capsys, str(path), "batch_arrays")


# The configuration of a run before fields held their own numbers, shortened.
OLDER_CONFIG = {
    "field": {"kind": "tensorf", "contract": False, "compute": "float32", "width": 8},
    "data": None,
    "steps": 24,
    "bricks": {"size": 128, "train_views": 100, "test_views": 25},
    "stream": None,
}


@pytest.mark.parametrize("command", ["resume", "render", "eval", "export", "view"])
def test_a_run_of_an_older_version_is_refused_in_one_sentence(
    run_copy: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = run_copy / "config.json"
    path.write_text(json.dumps(OLDER_CONFIG))
    files = {p: p.read_bytes() for p in run_copy.rglob("*") if p.is_file()}
    if command == "resume":
        code = cli.run_command("train", ["--resume", "--run-dir", str(run_copy)])
    else:
        code = cli.run_command(command, [str(run_copy)])
    assert code == 2
    assert_one_sentence(capsys, str(path), "it is of an older version of jaxrf")
    assert {p: p.read_bytes() for p in run_copy.rglob("*") if p.is_file()} == files
