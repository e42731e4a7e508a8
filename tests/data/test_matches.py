"""Matched points of pairs of images: neighbors, masks, images of different things."""

import dataclasses

import numpy as np
import pytest
from textured import textured_scene

from jaxrf.cameras.base import project
from jaxrf.data.matches import match_pairs, nearest_views, reduction
from jaxrf.data.scene import Split


@pytest.fixture(scope="module")
def split() -> Split:
    return textured_scene(24, 240, 180).train


def test_nearest_views_are_those_beside_on_a_ring(split: Split) -> None:
    poses = np.asarray(split.cameras.T_world_camera, np.float64)
    for index, others in enumerate(nearest_views(poses, 2)):
        assert {other % 24 for other in others} == {(index - 1) % 24, (index + 1) % 24}


def test_views_in_other_directions_or_at_the_same_place_are_not_near() -> None:
    """The second looks back, and the third is where the first is."""
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[1, :3, :3] = np.diag([-1.0, 1.0, -1.0])
    poses[1, 0, 3], poses[3, 0, 3] = 0.1, 1.0
    assert nearest_views(poses, 3) == [[3], [], [3], [0, 2]]


def test_matched_points_show_the_same_place(split: Split) -> None:
    """Nearly all points of the second image lie near the ray of the first: on its epipolar line."""
    matches = match_pairs(split, [(0, 1), (5, 6)], {})
    pairs = np.stack([matches.first, matches.second], axis=-1)
    assert np.unique(pairs, axis=0).tolist() == [[0, 1], [5, 6]]
    poses = np.asarray(split.cameras.T_world_camera, np.float64)
    distances = []
    for a, b, pixel, other in zip(*matches, strict=True):
        focal = split.cameras.focal[a]
        ray = np.append((pixel - split.cameras.principal_point[a]) / focal, 1.0) * [1.0, -1.0, -1.0]
        along = poses[a, :3, 3] + np.linspace(1.0, 8.0, 400)[:, None] * (poses[a, :3, :3] @ ray)
        line, _ = project(split.cameras, int(b), along)
        distances.append(np.linalg.norm(line - other, axis=-1).min())
    assert np.mean(np.array(distances) < 2.0) > 0.9


def test_a_smaller_share_of_right_matches_is_enough_if_asked_for(split: Split) -> None:
    """Half of the second image shows another thing, whose matches no two cameras explain."""
    images = split.images.copy()
    images[1, :, 120:] = np.roll(images[1, :, 120:], 60, axis=0)
    other = dataclasses.replace(split, images=images)
    strict, lenient = (len(match_pairs(other, [(0, 1)], {}, share).first) for share in (1.0, 0.1))
    assert strict == 0 < lenient


def test_masked_pixels_have_no_matches(split: Split) -> None:
    masks = np.zeros(split.images.shape[:3], bool)
    masks[:, :, :150] = True
    matches = match_pairs(dataclasses.replace(split, masks=masks), [(0, 1)], {})
    assert len(matches.first) and matches.pixels[:, 0].max() < 150.0
    assert matches.other_pixels[:, 0].max() < 150.0


def test_large_images_are_reduced(split: Split) -> None:
    assert reduction(split) == 1.0
    large = dataclasses.replace(split, images=np.zeros((24, 640, 480, 4), np.uint8))
    assert reduction(large) == pytest.approx(0.5)
