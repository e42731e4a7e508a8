"""Run folders: how they are created, found and opened, and errors about damaged ones."""

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
    differing_leaves,
    first_state,
    make_scene,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.core.errors import InputError
from jaxrf.training import runs
from jaxrf.training.scene_metadata import SceneMetadata


def make_run(folder: Path, steps: tuple[int, ...] = (3,), make: Any = tiny_nerf) -> tuple[Any, Any]:
    """Creates a run with untrained checkpoints; returns its stage and state."""
    config = make(run_dir=folder, keep_checkpoints=5)
    runs.create_folder(folder)
    runs.write_config(folder, config)
    # Not a cube, so that a checkpoint's box cannot be taken for the default one.
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
def test_open_run_restores_the_saved_run(tmp_path: Path, make: Any) -> None:
    stage, state = make_run(tmp_path / "run", (3, 5), make)
    opened = runs.open_run(tmp_path / "run")
    assert opened.folder == tmp_path / "run"
    assert opened.config == make(run_dir=tmp_path / "run", keep_checkpoints=5)
    assert opened.stage == stage and hash(opened.stage) == hash(stage)
    assert int(opened.state.step) == 5 and opened.seconds == 7.5
    assert differing_leaves(opened.state, state) == []
    assert opened.scene == SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    assert int(runs.open_run(tmp_path / "run", 3).state.step) == 3


def test_lazy_checkpoint_manager_opens_with_the_first_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage, state = make_run(run, ())
    shutil.rmtree(run / "checkpoints")
    config = runs.read_config(run)
    unused = runs.LazyCheckpointManager(run, config)
    unused.wait_until_finished()
    unused.close()
    assert not (run / "checkpoints").exists()
    manager = runs.LazyCheckpointManager(run, config)
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    for step in (1, 4):
        state = dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))
        runs.save(manager, scene, stage, state, 2.0 * step, 20.0 + step)
    manager.wait_until_finished()
    assert int(runs.open_run(run).state.step) == 4
    manager.close()
    assert differing_leaves(runs.open_run(run).state, state) == []
    assert int(runs.open_run(run, 1).state.step) == 1


@pytest.mark.parametrize("step", [0, 4, 99])
def test_open_run_names_a_missing_step_and_the_existing_ones(run: Path, step: int) -> None:
    with pytest.raises(InputError, match=rf"{run} .*of step {step}.*3, 5"):
        runs.open_run(run, step)


def test_open_run_rejects_a_folder_without_a_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=rf"{folder} is not a run"):
            runs.open_run(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=str(tmp_path / "file")):
        runs.open_run(tmp_path / "file")


def test_open_run_rejects_a_run_without_checkpoints_and_creates_no_folder(run: Path) -> None:
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
    """Truncates the largest file, which holds the arrays, to half of its size."""
    path = max(files_of(folder), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bits(folder: Path) -> None:
    """Flips bits in the middle of the largest file."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for index in range(middle, min(middle + 50, len(content))):
        content[index] ^= 0x55
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "no meta": lambda step: shutil.rmtree(step / "meta"),
    "empty meta": lambda step: empty_files(step / "meta"),
    "garbled meta": lambda step: garble_files(step / "meta"),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "empty state": lambda step: empty_files(step / "state"),
    "garbled state": lambda step: garble_files(step / "state"),
    "flipped bits": lambda step: flip_bits(step / "state"),
    "half a state": lambda step: halve_data(step / "state"),
    "nothing": lambda step: [shutil.rmtree(p) for p in step.iterdir() if p.is_dir()] and None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_open_run_rejects_a_damaged_checkpoint_and_opens_the_one_before(
    run: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    DAMAGES[damage](run / "checkpoints" / "5")
    with pytest.raises(InputError, match=r"step 5") as caught:
        runs.open_run(run, 5)
    text = str(caught.value)
    assert "\n" not in text and str(run) in text
    assert int(runs.open_run(run, 3).state.step) == 3
    # Without a step, the one before is used, and this is said.
    capsys.readouterr()
    assert int(runs.open_run(run).state.step) == 3
    said = capsys.readouterr().err
    assert "step 5" in said and "Step 3 is used in its place." in said and said.count("\n") == 1
    runs.set_newer_aside(run, 3)
    assert runs.open_run(run).state.step == 3 and capsys.readouterr().err == ""
    assert (run / "damaged" / "5").is_dir()
    DAMAGES[damage](run / "checkpoints" / "3")
    with pytest.raises(InputError, match=r"step 3"):
        runs.open_run(run)


def test_open_run_ignores_an_unfinished_checkpoint(run: Path) -> None:
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "5", checkpoints / "8.orbax-checkpoint-tmp-123")
    assert int(runs.open_run(run).state.step) == 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"num_steps": 3}',
        '{"field": {"type": "nerf"}, "model": {"type": "packed"}, "num_steps": "x"}',
        '{"field": {"kind": "nerf"}, "steps": "x"}',
        "\x00",
    ],
)
def test_read_config_names_a_damaged_file(run: Path, text: str) -> None:
    (run / "config.json").write_text(text)
    with pytest.raises(InputError, match=re.escape(str(run / "config.json"))) as caught:
        runs.read_config(run)
    assert "\n" not in str(caught.value)


def test_read_config_refuses_a_config_of_an_older_version(run: Path) -> None:
    path = run / "config.json"
    older = {"field": {"kind": "nerf", "sampler": "hierarchical", "width": 24}, "steps": 12}
    path.write_text(json.dumps(older))
    complaint = re.escape(f"{path} cannot be used (it is of an older version of jaxrf")
    for open_it in (runs.read_config, runs.open_run):
        with pytest.raises(InputError, match=complaint) as caught:
            open_it(run)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(("version", "age"), [(1, "an older"), (99, "a newer"), (None, "an older")])
def test_read_config_refuses_another_version_of_the_format(
    run: Path, version: int | None, age: str
) -> None:
    path = run / "config.json"
    content = json.loads(path.read_text())
    assert content.pop("version") == runs.FORMAT_VERSION
    path.write_text(json.dumps(content | ({} if version is None else {"version": version})))
    with pytest.raises(InputError, match=f"it is of {age} version of jaxrf"):
        runs.read_config(run)


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (tiny_nerf, "width", 25),
        (tiny_nerf, "activation", "relu"),
        (tiny_tensorf, "prune_threshold", 0.5),
        (tiny_voxels, "compute_dtype", "bfloat16"),
    ],
)
def test_open_run_rejects_a_config_whose_field_differs_from_that_of_the_checkpoint(
    tmp_path: Path, make: Any, name: str, value: Any
) -> None:
    folder = tmp_path / "run"
    make_run(folder, (3,), make)
    content = json.loads((folder / "config.json").read_text())
    assert content["field"][name] != value
    content["field"][name] = value
    (folder / "config.json").write_text(json.dumps(content))
    complaint = rf"step 3 in {folder / 'checkpoints'} has field\.{name} .*, but .* has {value}: "
    with pytest.raises(InputError, match=complaint):
        runs.open_run(folder)


def test_read_config_names_a_file_that_is_not_text(run: Path) -> None:
    (run / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=re.escape(str(run / "config.json"))):
        runs.read_config(run)


def test_find_newest_returns_the_run_whose_config_was_written_last(tmp_path: Path) -> None:
    for number, name in enumerate(["b", "c", "a", "d"]):
        (tmp_path / name).mkdir()
        if name != "d":
            (tmp_path / name / "config.json").write_text("{}")
            os.utime(tmp_path / name / "config.json", (1000 + number, 1000 + number))
    assert runs.find_newest(tmp_path) == tmp_path / "a"


@pytest.mark.parametrize("name", ["", "missing"])
def test_find_newest_rejects_a_folder_without_runs(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"no run under {tmp_path / name}")):
        runs.find_newest(tmp_path / name)


def test_create_folder_accepts_only_an_empty_folder(tmp_path: Path) -> None:
    runs.create_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    runs.create_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "a" / "b" / ".hidden").write_text("")
    with pytest.raises(InputError, match=r"exists already.*run_dir.*resume"):
        runs.create_folder(tmp_path / "a" / "b")
    with pytest.raises(InputError, match="exists already"):
        runs.create_folder(tmp_path / "a" / "b" / ".hidden")


@pytest.mark.parametrize("below", ["file/run", "file/a/b"])
def test_make_writable_rejects_a_folder_that_cannot_be_created(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"{tmp_path / below}.*with output"):
        runs.make_writable(tmp_path / below, "--output")


def test_write_text_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    runs.write_text(path, "first ä\n")
    assert path.read_text(encoding="utf-8") == "first ä\n"
    with pytest.raises(UnicodeEncodeError):
        runs.write_text(path, "x" * 100_000 + "\ud800")
    assert path.read_text(encoding="utf-8") == "first ä\n"

    def fail(self: Path, *arguments: Any, **options: Any) -> None:
        with self.open("w") as file:
            file.write("half")
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="no space"):
            runs.write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "first ä\n"
    runs.write_text(path, "third")
    assert path.read_text(encoding="utf-8") == "third"


def test_read_curve_reads_logs_of_killed_and_resumed_processes(tmp_path: Path) -> None:
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


def test_write_metrics_writes_indented_json(tmp_path: Path) -> None:
    runs.write_metrics(tmp_path, {"psnr": 30.5, "list": [1, 2]})
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text) == {"psnr": 30.5, "list": [1, 2]}
    assert text.endswith("}\n") and text.count("\n") > 3


def test_name_run_names_data_set_field_and_time() -> None:
    name = runs.name_run(tiny_nerf(), "ball")
    assert name.parent == Path("runs")
    assert re.fullmatch(r"ball-nerf-\d{8}-\d{6}", name.name)
