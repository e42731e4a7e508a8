"""The built-in scene as a data set: its cameras, its files, and its cache."""

import json
import math
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from jaxtyping import Float

from jaxrf.data.bricks import dataset
from jaxrf.data.bricks.dataset import sequence_pose, write_bricks
from jaxrf.data.bricks.model import Model, build_model
from jaxrf.data.bricks.rendering import render_view

CAMERA_ANGLE_X = 0.6911112070083618
SMALL = {"width": 20, "height": 16, "train_views": 3, "val_views": 1, "test_views": 2}


@pytest.fixture(scope="module")
def model() -> Model:
    return build_model()


# --- Cameras ---


def test_sequence_pose_looks_at_the_origin_from_its_distance() -> None:
    for index in (0, 1, 99, 10_000, 20_024):
        pose = sequence_pose(index)
        rotation, position = pose[:3, :3], pose[:3, 3]
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(rotation), 1.0, atol=1e-12)
        np.testing.assert_allclose(position, 4.03 * rotation[:, 2], atol=1e-12)
        assert rotation[2, 1] > 0 and abs(rotation[2, 0]) < 1e-12  # upright, level
        assert -5.01 <= math.degrees(math.asin(position[2] / 4.03)) <= 85.01
        np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])


def views(split: str, count: int) -> Float[np.ndarray, "count 3"]:
    first = dataset.FIRST_POSE[split]
    return np.array([sequence_pose(first + i)[:3, 2] for i in range(count)])


def test_training_views_are_near_but_not_equal_to_test_views() -> None:
    train, held_out = views("train", 100), np.concatenate([views("val", 10), views("test", 25)])
    angles = np.degrees(np.arccos(np.clip(held_out @ train.T, -1, 1))).min(axis=1)
    assert angles.min() > 0.1 and angles.max() < 15
    each_other = np.degrees(np.arccos(np.clip(views("val", 10) @ views("test", 25).T, -1, 1)))
    assert each_other.min() > 0.1


@pytest.mark.parametrize(("split", "count"), [("train", 20), ("train", 100), ("test", 25)])
def test_sequence_poses_cover_the_hemisphere_evenly(split: str, count: int) -> None:
    directions = views(split, count)
    assert np.linalg.norm(directions[:, :2].mean(axis=0)) < 0.15
    assert directions[:, 2].min() < 0.1 and directions[:, 2].max() > 0.8
    angles = np.arccos(np.clip(directions @ directions.T, -1, 1)) + 9 * np.eye(count)
    assert angles.min() > 0.3 * math.sqrt(2 * math.pi / count)


# --- Files ---


def read_tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_write_bricks_files_can_be_read(model: Model, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    folder = write_bricks(
        tmp_path / "new" / "scene", **SMALL, supersamples=2, progress=lambda *n: reports.append(n)
    )
    assert folder == tmp_path / "new" / "scene"
    assert reports == [(done, 6) for done in range(1, 7)]
    assert [path.name for path in folder.parent.iterdir()] == ["scene"]
    counts = {"train": 3, "val": 1, "test": 2}
    assert len(read_tree(folder)) == 3 + 2 * 6
    for split, count in counts.items():
        transforms = json.loads((folder / f"transforms_{split}.json").read_text())
        assert transforms["camera_angle_x"] == CAMERA_ANGLE_X
        names = [frame["file_path"] for frame in transforms["frames"]]
        assert names == [f"./{split}/r_{i}" for i in range(count)]
        for frame in transforms["frames"]:
            path = folder / frame["file_path"]
            rgba, depth = iio.imread(f"{path}.png"), np.load(f"{path}_depth.npy")
            expected = render_view(model, np.array(frame["transform_matrix"]), 20, 16, 2)
            assert rgba.dtype == np.uint8 and depth.dtype == np.float32
            np.testing.assert_array_equal(rgba, expected[0])
            np.testing.assert_array_equal(depth, expected[1])


def test_write_bricks_is_deterministic(tmp_path: Path) -> None:
    first, second = (read_tree(write_bricks(tmp_path / name, **SMALL)) for name in "ab")
    assert first == second


def test_write_bricks_test_views_do_not_depend_on_train_views(tmp_path: Path) -> None:
    few, more = (
        read_tree(write_bricks(tmp_path / str(n), 8, 8, n, 1, 2, supersamples=1)) for n in (1, 3)
    )
    assert few["transforms_test.json"] == more["transforms_test.json"]
    assert few["test/r_1.png"] == more["test/r_1.png"]
    assert few["train/r_0.png"] == more["train/r_0.png"]


def test_write_bricks_leaves_nothing_when_interrupted(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert any(tmp_path.iterdir()), "the test must interrupt while something is there"
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bricks(tmp_path / "scene", **SMALL, supersamples=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_write_bricks_refuses_an_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "scene").mkdir()
    (tmp_path / "scene" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="already exists: delete it or choose another"):
        write_bricks(tmp_path / "scene", **SMALL)
    assert read_tree(tmp_path) == {"scene/mine.txt": b"mine"}


def test_write_bricks_first_of_two_writers_wins(tmp_path: Path) -> None:
    folder = tmp_path / "scene"

    def overtake(done: int, total: int) -> None:
        if done == total:
            write_bricks(folder, **SMALL, supersamples=1)
            (folder / "winner.txt").write_text("first")

    assert write_bricks(folder, **SMALL, supersamples=1, progress=overtake) == folder
    assert (folder / "winner.txt").exists() and (folder / "transforms_test.json").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_write_bricks_rejects_a_folder_with_other_contents(tmp_path: Path) -> None:
    folder = tmp_path / "scene"

    def obstruct(done: int, total: int) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("mine")

    with pytest.raises(OSError, match="scene"):
        write_bricks(folder, **SMALL, supersamples=1, progress=obstruct)
    assert read_tree(tmp_path) == {"scene/mine.txt": b"mine"}


# --- The cache ---


def test_cached_bricks_writes_once(tmp_path: Path) -> None:
    reports: list[int] = []
    first, second = (
        dataset.cached_bricks(
            tmp_path / "c", **SMALL, progress=lambda done, _: reports.append(done)
        )
        for _ in range(2)
    )
    assert first == second == tmp_path / "c" / "bricks-v1-20x16-3-1-2"
    assert reports == [1, 2, 3, 4, 5, 6]
    assert (first / "train" / "r_2.png").exists()


@pytest.mark.parametrize("xdg", ["set", "relative", "empty", "unset"])
def test_cached_bricks_default_cache_follows_xdg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xdg: str
) -> None:
    """An XDG path that is empty or relative is to be ignored."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    values = {"set": str(tmp_path / "xdg"), "relative": "some/where", "empty": ""}
    if xdg == "unset":
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", values[xdg])
    root = tmp_path / "xdg" if xdg == "set" else tmp_path / "home" / ".cache"
    folder = dataset.cached_bricks(width=4, height=4, train_views=1, val_views=1, test_views=1)
    assert folder == root / "jaxrf" / "bricks-v1-4x4-1-1-1"
    assert folder.is_dir()


@pytest.mark.parametrize("below", ["", "deeper"])
def test_cached_bricks_explains_an_unwritable_cache(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"cannot be written to .*bricks-v1.*: set XDG_CACHE_HOME"):
        dataset.cached_bricks(tmp_path / "file" / below, **SMALL)


def test_cached_bricks_explains_missing_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(dataset, "write_bricks", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied.*XDG_CACHE_HOME"):
        dataset.cached_bricks(tmp_path, **SMALL)


def test_cached_bricks_uses_a_cache_that_another_process_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(folder: Path, *args: object, **kwargs: object) -> Path:
        folder.mkdir()
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(dataset, "write_bricks", overtaken)
    assert dataset.cached_bricks(tmp_path, **SMALL).is_dir()
