"""Where a data set comes from."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import make_scene, write_scene

from jaxrf.core.errors import InputError
from jaxrf.data import sources
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.data.options import LoadOptions


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in ./data, no JAXRF_DATA, and a cache of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("JAXRF_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def find(data: str | None = None, size: int = 128) -> sources.DataSource:
    path = None if data is None else Path(data)
    return sources.find_source(path, SyntheticSceneConfig(size=size))


def test_find_source_uses_the_given_folder(tmp_path: Path) -> None:
    (tmp_path / "scene").mkdir()
    (tmp_path / "here" / "data" / "nerf_synthetic" / "lego").mkdir(parents=True)
    result = find(str(tmp_path / "scene"))
    assert result.folder == tmp_path / "scene"
    assert "--data" in result.reason and str(tmp_path / "scene") in result.reason


def test_find_source_searches_all_paths_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXRF_DATA", str(tmp_path / "store"))
    for folder in (tmp_path / "store", Path("data"), Path()):
        (folder / "scene").mkdir(parents=True)
        assert find("scene").folder == folder / "scene"


def test_find_source_does_not_search_for_absolute_paths(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(InputError, match=re.escape(f"{missing} does not exist")):
        find(str(missing))


def test_find_source_rejects_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "here" / "data" / "nerf_synthetic" / "lego").mkdir(parents=True)
    with pytest.raises(InputError, match=r"scene does not exist.*transforms_train\.json"):
        find("scene")


def test_find_source_default_path_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lego = Path("nerf_synthetic/lego")
    assert find().folder is None
    (tmp_path / "store" / lego).mkdir(parents=True)
    monkeypatch.setenv("JAXRF_DATA", str(tmp_path / "store"))
    assert find().folder == tmp_path / "store" / lego
    (Path("data") / lego).mkdir(parents=True)
    assert find().folder == Path("data") / lego
    assert "\n" not in find().reason and str(lego) in find().reason


def test_find_source_falls_back_to_the_built_in_scene() -> None:
    result = find(size=77)
    assert result.folder is None
    assert "bricks at 77x77" in result.reason and "data/nerf_synthetic/lego" in result.reason


def test_ensure_bricks_renders_once(tmp_path: Path) -> None:
    config = SyntheticSceneConfig(size=6, train_views=2, test_views=1)
    calls = []
    folder = sources.ensure_bricks(config, lambda done, total: calls.append((done, total)))
    assert tmp_path / "cache" in folder.parents
    assert calls[-1][0] == calls[-1][1] == len(calls) >= 3
    before = (folder / "transforms_train.json").stat().st_mtime_ns
    again = sources.ensure_bricks(config, lambda done, total: calls.append((-1, -1)))
    assert again == folder and (-1, -1) not in calls
    assert (folder / "transforms_train.json").stat().st_mtime_ns == before
    scene = sources.load_scene(folder, ["train", "test"])
    assert scene.splits["train"].images.shape == (2, 6, 6, 4)
    assert len(scene.splits["test"]) == 1


def test_load_scene_reads_a_written_scene(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / "ball")
    scene = sources.load_scene(folder, ["test", "train"])
    assert set(scene.splits) == {"test", "train"} and scene.name == "ball"
    for name, split in scene.splits.items():
        expected = make_scene().splits[name]
        np.testing.assert_array_equal(split.images, expected.images)
        np.testing.assert_allclose(split.cameras.T_world_camera, expected.cameras.T_world_camera)
        np.testing.assert_allclose(split.cameras.focal, expected.cameras.focal)
    small = sources.load_scene(folder, ["test"], LoadOptions(downscale=2))
    assert small.splits["test"].images.shape == (2, 8, 8, 4)
    some = sources.load_scene(folder, ["train"], choose=lambda count: [count - 2]).splits["train"]
    assert some.names == ("r_4",)
    np.testing.assert_array_equal(some.images[0], make_scene().splits["train"].images[4])


def test_captures_are_scenes_without_bounds_facing_forward_or_without_poses(
    tmp_path: Path, real_data: Path
) -> None:
    expected = {
        "fox_270x480": True,
        "nerf_llff_data/fern": True,
        "nerf_synthetic_400/lego": False,
        "deepvoxels_layout": False,
        "tiny_nerf_lego.npz": False,
    }
    known = {name: is_one for name, is_one in expected.items() if (real_data / name).exists()}
    assert {name: sources.preview(real_data / name).is_capture for name in known} == known
    assert not sources.preview(tmp_path).is_capture
    (tmp_path / "transforms.json").write_text("{}")
    assert not sources.preview(tmp_path).is_capture
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "transforms.json").unlink()
    assert sources.preview(tmp_path).is_capture
