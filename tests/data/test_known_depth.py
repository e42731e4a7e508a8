"""Known depth: points of COLMAP and depth maps, in every unit and size that files have."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_formats import POINTS, write_colmap, write_depth_maps, write_llff, z_depth
from PIL import Image

from jaxrf.cameras.base import image_rays
from jaxrf.cameras.transforms import transform_positions
from jaxrf.core.errors import InputError
from jaxrf.data import report, sources
from jaxrf.data.colmap import find_points
from jaxrf.data.colmap_files import read_reconstruction
from jaxrf.data.options import LoadOptions
from jaxrf.data.scene import KnownDepth, Scene, downscale_split


def load(folder: Path, **options: object) -> Scene:
    """The training split, with its known depth."""
    return sources.load_scene(folder, ["train"], LoadOptions(depth=True, **options))  # type: ignore[arg-type]


def known_depth(scene: Scene) -> KnownDepth:
    known = scene.train.known_depth
    assert known is not None
    return known


# Points of COLMAP.


@pytest.mark.parametrize("text", [False, True])
def test_points_of_colmap_are_at_their_keypoints_as_far_as_they_are_away(
    text: bool, tmp_path: Path
) -> None:
    scene = load(write_colmap(tmp_path, text=text))
    known = known_depth(scene)
    assert len(known.image) == 2 * len(scene.train)
    # The numbers of the points, in the order of the keypoints of each image, are 4 and 9.
    points = transform_positions(scene.frame, POINTS[[1, 0]])
    for image, row, column, distance in zip(*known, strict=True):
        order = 0 if (row, column) == (2, 1) else 1
        assert (row, column) == ((2, 1), (6, 5))[order]
        position = np.asarray(scene.train.cameras.T_world_camera)[image, :3, 3]
        assert distance == pytest.approx(np.linalg.norm(points[order] - position), rel=1e-5)


def test_points_behind_a_camera_or_outside_of_its_image_are_left_out(tmp_path: Path) -> None:
    model = read_reconstruction(write_colmap(tmp_path) / "sparse" / "0")
    image = model.images[0]
    located = find_points(model, image)
    assert located is not None and len(located) == 2
    turned = image.pose @ np.diag([1.0, -1.0, -1.0, 1.0])
    behind = find_points(model, type(image)(**{**vars(image), "pose": turned}))
    assert behind is not None and len(behind) == 0
    shifted = find_points(model, type(image)(**{**vars(image), "keypoints": image.keypoints + 12}))
    assert shifted is not None and len(shifted) == 1


def test_llff_takes_the_points_of_the_model_beside_it(tmp_path: Path) -> None:
    folder = write_llff(tmp_path / "llff")
    shutil.copytree(write_colmap(tmp_path / "colmap") / "sparse", folder / "sparse")
    known = known_depth(load(folder))
    np.testing.assert_allclose(
        known.distance[:2] / known_depth(load(tmp_path / "colmap")).distance[:2],
        known.distance[0] / known_depth(load(tmp_path / "colmap")).distance[0],
        rtol=1e-4,
    )


# Depth maps.


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".npy"])
@pytest.mark.parametrize("size", [16, 8, 32])
def test_depth_along_the_axis_becomes_distance_along_rays(
    size: int, suffix: str, tmp_path: Path
) -> None:
    scene = load(write_depth_maps(tmp_path, size, suffix))
    known = known_depth(scene)
    first = known.image == 0
    assert first.sum() == size**2 - 4
    cameras = scene.train.cameras
    rays = image_rays(cameras, 0, 0.0, 1.0)
    directions = np.asarray(rays.directions)[known.row[first], known.column[first]]
    along_axis = directions @ -np.asarray(cameras.T_world_camera)[0, :3, 2]
    axial = known.distance[first] * along_axis / scene.frame.scale
    expected = z_depth()[known.row[first], known.column[first]]
    # Within a pixel the wall is slanted, and cosines differ, where the sizes do.
    np.testing.assert_allclose(axial, expected, atol=2e-3 if size == 16 else 0.25)


def test_units_come_from_the_option_or_from_the_file(tmp_path: Path) -> None:
    folder = write_depth_maps(tmp_path)
    in_meters = known_depth(load(folder))
    doubled = known_depth(load(folder, depth_unit=0.002))
    np.testing.assert_allclose(doubled.distance, 2.0 * in_meters.distance, rtol=1e-6)
    listing = folder / "transforms.json"
    content = json.loads(listing.read_text().replace("depth_file_path", "depth_path"))
    listing.write_text(json.dumps({**content, "integer_depth_scale": 0.003}))
    tripled = known_depth(load(folder))
    np.testing.assert_allclose(tripled.distance, 3.0 * in_meters.distance, rtol=1e-6)


def test_a_wrong_unit_is_named(tmp_path: Path) -> None:
    scene = load(write_depth_maps(tmp_path))
    assert not any("--depth-unit" in text for text in report.find_warnings(scene))
    scene = load(tmp_path, depth_unit=1.0)
    assert any("--depth-unit" in text for text in report.find_warnings(scene))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), ("is missing",)),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), ("is damaged",)),
        (lambda path: Image.new("L", (16, 16), 9).save(path), ("8 bits", "16 bits")),
    ],
)
def test_depth_maps_that_cannot_be_used_are_named(
    spoil: object, words: tuple[str, ...], tmp_path: Path
) -> None:
    write_depth_maps(tmp_path)
    spoil(tmp_path / "depth" / "1.png")  # type: ignore[operator]
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert all(word in str(error.value) for word in ("depth/1.png", *words))


# Both.


def test_known_depth_is_read_only_where_it_is_asked_for_and_named_otherwise(
    tmp_path: Path,
) -> None:
    for folder, word in (
        (write_depth_maps(tmp_path / "maps"), "6 depth maps"),
        (write_colmap(tmp_path / "points"), "COLMAP's points"),
    ):
        scene = sources.load_scene(folder, ["train"])
        assert scene.train.known_depth is None
        assert [note for note in scene.notes if "would train on it" in note and word in note] == [
            note for note in scene.notes if "--loss.depth-weight" in note
        ]
        assert any(note.startswith("Depth: ") for note in load(folder).notes)
        assert not any("Not used: depth," in note for note in scene.notes)


def test_known_depth_follows_its_pixels_when_images_shrink(tmp_path: Path) -> None:
    split = load(write_depth_maps(tmp_path)).train
    known = split.known_depth
    small = downscale_split(split, 3).known_depth
    assert known is not None and small is not None
    kept = (known.row < 15) & (known.column < 15)
    np.testing.assert_array_equal(small.row, known.row[kept] // 3)
    np.testing.assert_array_equal(small.column, known.column[kept] // 3)
    np.testing.assert_array_equal(small.distance, known.distance[kept])
    assert small.row.max() < 5
