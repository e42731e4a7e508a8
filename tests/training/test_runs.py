"""Run folders: made, found, opened, and what is said of a broken one."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scenes import (
    DISTANCE,
    SIZE,
    differing_leaves,
    first_state,
    make_scene,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.core.errors import InputError
from jaxrf.training import runs
from jaxrf.training.scene_metadata import SceneMetadata, near_far_fn


def make_run(folder: Path, steps: tuple[int, ...] = (3,), make: Any = tiny_nerf) -> tuple[Any, Any]:
    """A run's folder with untrained checkpoints."""
    config = make(run_dir=folder, keep_checkpoints=5)
    runs.create_folder(folder)
    runs.write_config(folder, config)
    # Not a cube: what a checkpoint holds must not be taken for that of another box.
    stage, state = first_state(config, np.array([[-1, -2, 0], [1, 1, 1]], np.float32))
    manager = runs.open_checkpoints(folder, config)
    for step in steps:
        state = dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))
        scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
        runs.save(manager, scene, stage, state, 1.5 * step, None)
        manager.wait_until_finished()
    manager.close()
    return stage, state


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "run"
    make_run(folder, (3, 5))
    return folder


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "run"))


@pytest.mark.parametrize(
    "make", [tiny_tensorf, tiny_nerf, tiny_voxels], ids=["tensorf", "nerf", "voxels"]
)
def test_a_run_is_opened_as_it_was_saved(tmp_path: Path, make: Any) -> None:
    stage, state = make_run(tmp_path / "run", (3, 5), make)
    opened = runs.open_run(tmp_path / "run")
    assert opened.folder == tmp_path / "run"
    assert opened.config == make(run_dir=tmp_path / "run", keep_checkpoints=5)
    assert opened.stage == stage and hash(opened.stage) == hash(stage)
    assert int(opened.state.step) == 5 and opened.seconds == 7.5
    assert differing_leaves(opened.state, state) == []
    assert opened.scene == SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    assert int(runs.open_run(tmp_path / "run", 3).state.step) == 3


def test_checkpoints_are_opened_by_the_first_that_is_saved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage, state = make_run(run, ())
    shutil.rmtree(run / "checkpoints")
    config = runs.read_config(run)
    unused = runs.LazyCheckpointManager(run, config)
    unused.wait_until_finished()
    unused.close()
    assert not (run / "checkpoints").exists()
    late = runs.LazyCheckpointManager(run, config)
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    for step in (1, 4):
        state = dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))
        runs.save(late, scene, stage, state, 2.0 * step, 20.0 + step)
    late.wait_until_finished()
    assert int(runs.open_run(run).state.step) == 4
    late.close()
    assert differing_leaves(runs.open_run(run).state, state) == []
    assert int(runs.open_run(run, 1).state.step) == 1


def test_the_summary_describes_the_scene() -> None:
    scene = make_scene()
    summary = SceneMetadata.from_scene(scene, Path("ball"))
    assert summary.name == "ball" and Path(summary.data) == Path("ball").absolute()
    assert (summary.near, summary.far, summary.width, summary.height) == (2.0, 6.0, SIZE, SIZE)
    assert summary.focal == pytest.approx(0.5 * SIZE / np.tan(0.35), rel=1e-5)
    assert summary.radius == pytest.approx(DISTANCE, rel=1e-5)
    assert summary.train_views == 6
    assert json.loads(json.dumps(dataclasses.asdict(summary)))["checksum"] == summary.checksum
    images = scene.splits["train"].images.copy()
    images[2, 3, 4, 0] ^= 1
    split = dataclasses.replace(scene.splits["train"], images=images)
    other = dataclasses.replace(scene, splits={"train": split})
    assert SceneMetadata.from_scene(other, Path("ball")).checksum != summary.checksum


@pytest.mark.parametrize("step", [0, 4, 99])
def test_a_step_without_checkpoint_is_named_with_those_there_are(run: Path, step: int) -> None:
    with pytest.raises(InputError, match=rf"{run} .*of step {step}.*3, 5"):
        runs.open_run(run, step)


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=rf"{folder} is not a run"):
            runs.open_run(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=str(tmp_path / "file")):
        runs.open_run(tmp_path / "file")


def test_a_run_without_a_checkpoint_is_an_input_error_and_gets_no_folder(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError, match=f"{run} has no checkpoint"):
        runs.open_run(run)
    assert not (run / "checkpoints").exists()
    (run / "checkpoints").mkdir()
    with pytest.raises(InputError, match=f"{run} has no checkpoint"):
        runs.open_run(run)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def empty_files(folder: Path) -> None:
    for path in files_of(folder):
        path.write_bytes(b"")


def garble_files(folder: Path) -> None:
    for path in files_of(folder):
        path.write_bytes(b"\xff\x00garbage" * 20)


def halve_data(folder: Path) -> None:
    """Cuts the largest file, which is where the numbers are, in half."""
    path = max(files_of(folder), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no meta": lambda step: shutil.rmtree(step / "meta"),
    "empty meta": lambda step: empty_files(step / "meta"),
    "garbled meta": lambda step: garble_files(step / "meta"),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "empty state": lambda step: empty_files(step / "state"),
    "garbled state": lambda step: garble_files(step / "state"),
    "half a state": lambda step: halve_data(step / "state"),
    "nothing": lambda step: [shutil.rmtree(p) for p in step.iterdir() if p.is_dir()] and None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_an_input_error_and_the_one_before_still_works(
    run: Path, damage: str
) -> None:
    DAMAGES[damage](run / "checkpoints" / "5")
    with pytest.raises(InputError, match=r"step 5") as caught:
        runs.open_run(run)
    text = str(caught.value)
    assert "\n" not in text and str(run) in text
    assert int(runs.open_run(run, 3).state.step) == 3


def test_a_checkpoint_that_was_not_finished_is_not_there(run: Path) -> None:
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "5", checkpoints / "8.orbax-checkpoint-tmp-123")
    assert int(runs.open_run(run).state.step) == 5


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"steps": 3}', '{"field": {"kind": "nerf"}, "steps": "x"}', "\x00"]
)
def test_a_broken_config_is_named(run: Path, text: str) -> None:
    (run / "config.json").write_text(text)
    with pytest.raises(InputError, match=re.escape(str(run / "config.json"))) as caught:
        runs.read_config(run)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_text_is_named(run: Path) -> None:
    (run / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=re.escape(str(run / "config.json"))):
        runs.read_config(run)


def test_the_newest_run_is_that_whose_config_was_written_last(tmp_path: Path) -> None:
    for number, name in enumerate(["b", "c", "a", "d"]):
        (tmp_path / name).mkdir()
        if name != "d":
            (tmp_path / name / "config.json").write_text("{}")
            os.utime(tmp_path / name / "config.json", (1000 + number, 1000 + number))
    assert runs.find_newest(tmp_path) == tmp_path / "a"


@pytest.mark.parametrize("name", ["", "missing"])
def test_without_runs_there_is_no_newest(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"no run under {tmp_path / name}")):
        runs.find_newest(tmp_path / name)


def test_a_new_folder_may_exist_but_must_be_empty(tmp_path: Path) -> None:
    runs.create_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    runs.create_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "a" / "b" / ".hidden").write_text("")
    with pytest.raises(InputError, match=r"exists already.*--run-dir.*--resume"):
        runs.create_folder(tmp_path / "a" / "b")
    with pytest.raises(InputError, match="exists already"):
        runs.create_folder(tmp_path / "a" / "b" / ".hidden")


@pytest.mark.parametrize("below", ["file/run", "file/a/b"])
def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"{tmp_path / below}.*--output"):
        runs.make_writable(tmp_path / below, "--output")


def test_text_is_written_wholly_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    runs.write_text(path, "first ä\n")
    assert path.read_text(encoding="utf-8") == "first ä\n"
    with pytest.raises(UnicodeEncodeError):
        runs.write_text(path, "x" * 100_000 + "\ud800")
    assert path.read_text(encoding="utf-8") == "first ä\n"

    def stop(self: Path, *arguments: Any, **options: Any) -> None:
        with self.open("w") as file:
            file.write("half")
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", stop)
        with pytest.raises(OSError, match="no space"):
            runs.write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "first ä\n"
    runs.write_text(path, "third")
    assert path.read_text(encoding="utf-8") == "third"


def test_what_cameras_see_moves_with_those_that_leave_the_training_cameras() -> None:
    scene = make_scene()
    summary = SceneMetadata.from_scene(scene, Path("/data/ball"))
    _, state = first_state(tiny_nerf())
    find = near_far_fn(summary, state.grid)
    assert callable(find)
    cameras = scene.splits["test"].cameras
    # Cameras like those of training see exactly what these do.
    assert [find(cameras, i) for i in range(len(cameras))] == [(2.0, 6.0)] * len(cameras)
    poses = np.array(cameras.T_world_camera)
    poses[0, :3, 3] *= 3.0
    near, far = find(dataclasses.replace(cameras, T_world_camera=poses), 0)
    assert (near, far) == pytest.approx((10.0 - 0.05 * DISTANCE, 14.0 - 0.05 * DISTANCE), abs=0.1)
    # Without their poses the distance is known all the same.
    find = near_far_fn(dataclasses.replace(summary, poses=()), state.grid)
    assert callable(find) and find(cameras, 0) == (2.0, 6.0)
    # All of space is seen from wherever.
    assert near_far_fn(dataclasses.replace(summary, ndc=(1.0, 1.0, 1.0)), state.grid) == (2, 6)
    unbounded = dataclasses.replace(state.grid, bounds=state.grid.aabb)
    assert near_far_fn(summary, unbounded) == (2.0, 6.0)


def test_a_curve_is_read_out_of_what_killed_and_resumed_processes_left(tmp_path: Path) -> None:
    assert runs.read_curve(tmp_path, "a") == []
    lines = [
        '{"step": 2, "a": 0.5, "b": 1.0}',
        '{"step": 4, "a": 0.4}',
        '{"step": 6, "a": 0.3',
        '{"step": 4, "a": 0.25}',
        '{"step": 8, "a": null}',
        '{"step": 6, "b": 3.0}',
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert runs.read_curve(tmp_path, "a") == [(2.0, 0.5), (4.0, 0.25)]
    assert runs.read_curve(tmp_path, "b") == [(2.0, 1.0), (6.0, 3.0)]


def test_metrics_are_readable_json(tmp_path: Path) -> None:
    runs.write_metrics(tmp_path, {"psnr": 30.5, "list": [1, 2]})
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text) == {"psnr": 30.5, "list": [1, 2]}
    assert text.endswith("}\n") and text.count("\n") > 3


def test_runs_are_named_after_what_is_trained_on_what() -> None:
    name = runs.name_run(tiny_nerf(), "ball")
    assert name.parent == Path("runs")
    assert re.fullmatch(r"ball-nerf-\d{8}-\d{6}", name.name)
