"""From photos to a data set: poses close to the true ones, reports, resuming and refusals."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from textured import cast_image, ring_poses

from jaxrf.cameras.transforms import fit_similarity, transform_poses
from jaxrf.core.errors import InputError
from jaxrf.data import sources
from jaxrf.data.colmap_files import read_reconstruction
from jaxrf.data.photos import gather, prepare, reconstruct
from jaxrf.data.photos.prepare import PhotoOptions


def write_photos(folder: Path, poses: np.ndarray, names: list[str] | None = None) -> None:
    folder.mkdir(parents=True)
    for index, pose in enumerate(poses):
        name = names[index] if names else f"IMG_{index}.jpg"
        Image.fromarray(cast_image(pose, 400, 300, 330.0)).save(folder / name, quality=95)


def test_without_pycolmap_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos", ring_poses(12)[:3])
    monkeypatch.setitem(__import__("sys").modules, "pycolmap", None)
    with pytest.raises(InputError, match=r"pip install 'jaxrf\[photos\]'"):
        sources.ensure_poses(tmp_path / "photos", PhotoOptions(), lambda sentence: None)


def test_data_sets_with_poses_and_other_folders_are_left_alone(tmp_path: Path) -> None:
    assert sources.ensure_poses(tmp_path, PhotoOptions()) == tmp_path


def test_descriptions_say_what_was_placed_and_what_to_do() -> None:
    report = reconstruct.Report(("a", "b"), {"c": "blurred", "d": "blurred"}, 2.0, 9, 60.0)
    first, second, third, fourth = prepare.describe(report)
    assert first.startswith("Placed: 2 of 4 photos, 9 points, mean reprojection error 2.00")
    assert second == "Not placed: 2 photos (c, d): blurred."
    assert "take more between" in third and "--camera-model" in fourth


def fake_reconstruction(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replaces COLMAP by a list of the names that it is called with."""
    calls: list[list[str]] = []

    def reconstruct_all(folder: Path, names: list[str], *_: object) -> reconstruct.Report:
        calls.append(list(names))
        return reconstruct.Report(tuple(names), {}, 0.5, 9, 60.0)

    monkeypatch.setattr(reconstruct, "reconstruct", reconstruct_all)
    monkeypatch.setattr(reconstruct, "import_pycolmap", lambda: None)
    return calls


def test_added_photos_are_placed_too_and_other_photos_and_options_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_reconstruction(monkeypatch)
    photos, output = tmp_path / "photos", tmp_path / "set"
    write_photos(photos, ring_poses(12)[:4])
    for _ in range(2):
        prepare.prepare_photos(photos, output, PhotoOptions())
    assert [len(names) for names in calls] == [4]
    shutil.copy(photos / "IMG_0.jpg", photos / "IMG_4.jpg")
    assert len(prepare.prepare_photos(photos, output, PhotoOptions()).placed) == 5
    with pytest.raises(InputError, match=r"set is made with other options: give a new folder"):
        prepare.prepare_photos(photos, output, PhotoOptions(max_size=200))
    write_photos(tmp_path / "other", ring_poses(12)[:4], ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    with pytest.raises(InputError, match=r"set is made of other photos \(such as IMG_0\.jpg\)"):
        prepare.prepare_photos(tmp_path / "other", output, PhotoOptions())
    (tmp_path / "foreign" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="foreign holds another data set: give a new folder"):
        prepare.prepare_photos(photos, tmp_path / "foreign", PhotoOptions())
    (output / gather.SOURCE).write_text("[")
    with pytest.raises(InputError, match=r"source\.json is damaged"):
        prepare.prepare_photos(photos, output, PhotoOptions())


def test_an_interrupted_data_set_among_its_photos_adds_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_reconstruction(monkeypatch)
    write_photos(tmp_path / "photos", ring_poses(12)[:4])
    output = tmp_path / "photos" / "set"
    for _ in range(2):
        prepare.prepare_photos(tmp_path / "photos", output, PhotoOptions())
        (output / prepare.REPORT).unlink()
    assert [len(names) for names in calls] == [4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": 10}, "max_size is 10: give 100 pixels or more"),
        ({"frames": 2}, "frames is 2: give 3 or more"),
        ({"camera_model": "FISHY"}, "camera_model is FISHY: give one of auto, SIMPLE_PINHOLE"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PhotoOptions(**options)


def test_a_folder_of_data_sets_is_named_as_one(tmp_path: Path) -> None:
    for name in ("lego", "chair"):
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "transforms_train.json").write_text("{}")
        Image.new("RGB", (40, 40)).save(tmp_path / name / "train" / "r_0.png")
    with pytest.raises(InputError, match=r"no images itself, but 2 data sets: .*such as .*chair"):
        sources.ensure_poses(tmp_path, PhotoOptions())


@pytest.mark.slow
def test_few_photos_are_said_to_be_few(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    write_photos(tmp_path / "photos", ring_poses(12)[:1])
    for index in (1, 2):
        shutil.copy(tmp_path / "photos" / "IMG_0.jpg", tmp_path / "photos" / f"IMG_{index}.jpg")
    with pytest.raises(InputError, match=r"in .*photos: 3 photos are few; take 30 or more"):
        prepare.prepare_photos(tmp_path / "photos", tmp_path / "set", PhotoOptions())


@pytest.mark.slow
def test_poses_of_photos_are_found(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    poses = np.concatenate([ring_poses(16), ring_poses(16, radius=2.2, height=2.6)])
    write_photos(tmp_path / "photos", poses)
    Image.new("RGB", (400, 300), (90, 90, 90)).save(tmp_path / "photos" / "IMG_99.jpg")
    report = prepare.prepare_photos(tmp_path / "photos", tmp_path / "set", PhotoOptions())
    assert len(report.placed) == 32 and report.error < 1.0
    assert report.unplaced == {"IMG_99.jpg": "too little detail, or blurred"}
    assert report.degrees == pytest.approx(2 * np.degrees(np.arctan(200 / 330)), abs=1.5)
    model = read_reconstruction(tmp_path / "set" / "sparse" / "0")
    assert len({image.camera for image in model.images}) == 1
    order = [int(image.name[4:-4]) for image in model.images]
    found = np.stack([image.pose for image in model.images])
    aligned = transform_poses(fit_similarity(found[:, :3, 3], poses[order][:, :3, 3]), found)
    degrees, distance = pose_errors(aligned, poses[order])
    assert degrees.max() < 0.5 and distance.max() < 0.02 * 3.4
    scene = sources.load_scene(tmp_path / "set", ["train", "test"])
    assert len(scene.train) + len(scene.test) == 32
    assert any("IMG_99.jpg" in note for note in scene.notes)
    # A second time, everything is there.
    shutil.rmtree(tmp_path / "photos")
    assert prepare.read_report(tmp_path / "set") == report


@pytest.mark.slow
def test_photos_without_overlap_are_explained(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        noise.resize((320, 240), Image.Resampling.BICUBIC).save(
            tmp_path / "photos" / f"{index}.jpg", quality=95
        )
    with pytest.raises(
        InputError, match=r"No scene was found in .*photos: most of the 12 .* overlap too little"
    ):
        prepare.prepare_photos(tmp_path / "photos", tmp_path / "set", PhotoOptions())


def pose_errors(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles in degrees and distances between poses."""
    turns = found[:, :3, :3] @ true[:, :3, :3].transpose(0, 2, 1)
    cosine = 0.5 * (np.trace(turns, axis1=1, axis2=2) - 1.0)
    degrees = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    return degrees, np.linalg.norm(found[:, :3, 3] - true[:, :3, 3], axis=-1)
