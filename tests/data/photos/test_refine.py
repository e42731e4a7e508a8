"""Refinement of reconstructions: lenses are as simple as they can be, and outliers bend nothing."""

from typing import Any

import numpy as np
import pytest

from jaxrf.cameras.transforms import fit_similarity
from jaxrf.data.photos import refine

pycolmap = pytest.importorskip("pycolmap")

WIDTH, HEIGHT, FOCAL = 400, 300, 350.0


def make_reconstruction(
    model: str, parameters: list[float], noise: float = 0.2, wrong: float = 0.0
) -> tuple[Any, np.ndarray]:
    """A reconstruction of 16 views on a ring around random points, and the true positions.

    Its keypoints are those of a lens, with noise, and some of them shifted to one side; poses,
    points and the lens, a SIMPLE_RADIAL, are a little wrong.
    """
    rng = np.random.default_rng(0)
    points = rng.uniform(-1.0, 1.0, (300, 3))
    true = pycolmap.Camera(
        model=model, width=WIDTH, height=HEIGHT, params=np.array(parameters), camera_id=1
    )
    result = pycolmap.Reconstruction()
    camera = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=WIDTH, height=HEIGHT, camera_id=1,
        params=np.array([1.02 * FOCAL, WIDTH / 2, HEIGHT / 2, 0.0]),
    )  # fmt: skip
    result.add_camera_with_trivial_rig(camera)
    positions, tracks = [], [pycolmap.Track() for _ in points]
    for view in range(16):
        angle = 2.0 * np.pi * view / 16
        position = np.array([3.5 * np.cos(angle), 3.5 * np.sin(angle), 0.8 * np.sin(3.0 * angle)])
        ahead = -position / np.linalg.norm(position)
        right = np.cross(ahead, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(ahead, right), ahead])
        positions.append(position)
        local = (points - position) @ rotation.T
        keypoints = np.array([true.img_from_cam(p) for p in local])
        keypoints = keypoints + noise * rng.normal(size=keypoints.shape)
        shifted = rng.uniform(size=len(points)) < wrong
        keypoints[shifted] += [1.8, 0.0]
        image = pycolmap.Image(
            name=f"{view}.jpg", keypoints=keypoints, camera_id=1, image_id=view + 1
        )
        rough = position + 0.01 * rng.normal(size=3)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ rough)
        result.add_image_with_trivial_frame(image, pose)
        for number, track in enumerate(tracks):
            track.add_element(view + 1, number)
    for point, track in zip(points, tracks, strict=True):
        result.add_point3D(point + 0.01 * rng.normal(size=3), track, np.zeros(3, np.uint8))
    return result, np.stack(positions)


def position_error(model: Any, positions: np.ndarray) -> float:
    """Mean distance from the true positions after alignment."""
    found = np.stack([model.image(i + 1).projection_center() for i in range(len(positions))])
    transform = fit_similarity(found, positions)
    aligned = transform.scale * found @ transform.rotation.T + transform.shift
    return float(np.linalg.norm(aligned - positions, axis=-1).mean())


@pytest.mark.parametrize(
    ("model", "parameters", "expected", "center"),
    [
        ("SIMPLE_PINHOLE", [FOCAL, 200.0, 150.0], "SIMPLE_PINHOLE", (200.0, 150.0)),
        ("SIMPLE_RADIAL", [FOCAL, 200.0, 150.0, -0.1], "SIMPLE_RADIAL", (200.0, 150.0)),
        ("RADIAL", [FOCAL, 200.0, 150.0, -0.3, 0.25], "RADIAL", (200.0, 150.0)),
        ("RADIAL", [FOCAL, 206.0, 146.0, -0.3, 0.25], "RADIAL", (206.0, 146.0)),
        ("OPENCV", [FOCAL, 1.05 * FOCAL, 203.0, 150.0, -0.1, 0.05, 0.003, 0.0], "OPENCV", None),
    ],
)
def test_the_lens_is_the_simplest_that_explains_the_photos(
    model: str, parameters: list[float], expected: str, center: tuple[float, float] | None
) -> None:
    rough, positions = make_reconstruction(model, parameters)
    before = position_error(rough, positions)
    refined = refine.refine(pycolmap, rough, chooses_lens=True)
    (camera,) = refined.cameras.values()
    assert camera.model.name == expected
    assert camera.mean_focal_length() == pytest.approx(parameters[0], rel=0.03)
    if center is not None:
        found = (camera.principal_point_x, camera.principal_point_y)
        np.testing.assert_allclose(found, center, atol=1.0)
    assert position_error(refined, positions) < 0.25 * before


def test_a_lens_that_was_named_stays() -> None:
    rough, _ = make_reconstruction("SIMPLE_RADIAL", [FOCAL, 200.0, 150.0, 0.0])
    refined = refine.refine(pycolmap, rough, chooses_lens=False)
    (camera,) = refined.cameras.values()
    assert camera.model.name == "SIMPLE_RADIAL"


def test_outliers_to_one_side_bend_a_robust_refinement_less() -> None:
    parameters = [FOCAL, 200.0, 150.0, 0.0]
    rough, positions = make_reconstruction("SIMPLE_RADIAL", parameters, wrong=0.2)
    plain = pycolmap.Reconstruction(rough)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    pycolmap.bundle_adjustment(plain, options)
    refined = refine.refine(pycolmap, rough, chooses_lens=False)
    assert position_error(refined, positions) < 0.6 * position_error(plain, positions)


def test_change_lens_keeps_what_both_have() -> None:
    camera = pycolmap.Camera(
        model="RADIAL", width=WIDTH, height=HEIGHT, params=np.array([FOCAL, 201, 149, -0.1, 0.02])
    )
    refine.change_lens(pycolmap, camera, "OPENCV")
    assert list(camera.params) == [FOCAL, FOCAL, 201, 149, -0.1, 0.02, 0, 0]
    refine.change_lens(pycolmap, camera, "SIMPLE_RADIAL")
    assert list(camera.params) == [FOCAL, 201, 149, -0.1]
