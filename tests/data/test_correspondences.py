"""Corners, matches between shifted and noisy images, and fundamental matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from jaxrf.data.correspondences import (
    find_features,
    fits_fundamental_matrix,
    match_features,
)


def textured_image(seed: int = 0, height: int = 120, width: int = 160) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = sum(s * ndimage.gaussian_filter(noise, s) for s in (1.5, 3.0, 6.0))
    return (128 + 40 * smooth / smooth.std()).astype(np.float32)


def test_corners_of_a_square_are_found_where_they_are() -> None:
    image = np.full((100, 100), 50.0, np.float32)
    image[40:60, 40:60] = 200.0
    points = find_features(image)[0].points
    for corner in ([40, 40], [40, 60], [60, 40], [60, 60]):
        assert np.linalg.norm(points - corner, axis=-1).min() < 2.0


def test_patches_do_not_depend_on_brightness_and_contrast() -> None:
    image = textured_image()
    for plain, other in zip(find_features(image), find_features(0.5 * image + 60), strict=True):
        np.testing.assert_allclose(plain.points, other.points, atol=1e-3)
        np.testing.assert_allclose(plain.patches, other.patches, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(plain.patches, axis=-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("shift", [(3.0, -5.0), (2.4, 1.7)])
def test_matches_of_a_shifted_image_have_its_shift(shift: tuple[float, float]) -> None:
    image = textured_image()
    moved = ndimage.shift(image, shift, order=3, mode="nearest")
    moved += np.random.default_rng(1).normal(0, 3, image.shape)
    first, second = match_features(find_features(image), find_features(moved.astype(np.float32)))
    assert len(first) > 50
    error = np.linalg.norm(second - first - np.array(shift[::-1]), axis=-1)
    assert np.median(error) < 0.3 and np.mean(error < 1.5) > 0.9


def test_different_images_and_images_without_texture_hardly_match() -> None:
    features = find_features(textured_image())
    num_features = sum(len(scale.points) for scale in features)
    matches = match_features(features, find_features(textured_image(5)))
    assert len(matches[0]) < 0.2 * num_features
    # And what matches by chance fits no two views.
    assert fits_fundamental_matrix(*matches, np.random.default_rng(0)).mean() < 0.5
    for flat in (np.full((60, 80), 7.0, np.float32), np.zeros((5, 4), np.float32)):
        first, second = match_features(features, find_features(flat))
        assert first.shape == second.shape == (0, 2)


def project(positions: np.ndarray, turn: float, offset: np.ndarray) -> np.ndarray:
    cosine, sine = np.cos(turn), np.sin(turn)
    rotation = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    local = positions @ rotation.T + offset
    return 300 * local[:, :2] / local[:, 2:] + np.array([160.0, 120.0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(-0.3, 0.3), st.floats(0.1, 0.6))
def test_pairs_of_two_views_fit_and_random_pairs_do_not(
    seed: int, turn: float, sideways: float
) -> None:
    rng = np.random.default_rng(seed)
    positions = rng.uniform([-1, -1, 3], [1, 1, 6], (80, 3))
    first = project(positions, 0.0, np.zeros(3)) + rng.normal(0, 0.2, (80, 2))
    second = project(positions, turn, np.array([sideways, 0.1, 0.0])) + rng.normal(0, 0.2, (80, 2))
    second[60:] = rng.uniform(0, 300, (20, 2))
    fitting = fits_fundamental_matrix(first, second, rng)
    assert fitting[:60].mean() > 0.9
    assert fitting[60:].mean() < 0.4


def test_few_pairs_fit_nothing() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (8, 2))
    assert not fits_fundamental_matrix(points, points, rng).any()
    assert fits_fundamental_matrix(np.zeros((0, 2)), np.zeros((0, 2)), rng).shape == (0,)
    # All pairs at one point: finite, whatever it says.
    fits_fundamental_matrix(np.ones((20, 2)), np.ones((20, 2)), rng)
