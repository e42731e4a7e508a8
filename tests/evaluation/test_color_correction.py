"""Color correction for scoring: a fit of the target's colors that saturated pixels do not bend."""

import numpy as np
import pytest

from jaxrf.evaluation.color_correction import correct_colors


def make_image(seed: int, height: int = 24, width: int = 20) -> np.ndarray:
    """A picture in [0, 1] with many colors, some of them saturated."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / 10.0
    waves = [np.sin(rows + k) * np.cos((k + 1) * columns) for k in range(3)]
    image = 0.5 + 0.5 * np.stack(waves, axis=-1) + 0.1 * rng.normal(size=(height, width, 3))
    return np.clip(image, 0.0, 1.0).astype(np.float32)


def correct_slowly(
    rgb: np.ndarray, target: np.ndarray, mask: np.ndarray, num_iterations: int
) -> np.ndarray:
    """The same by one row of a linear system for each pixel and channel."""
    low, high = 0.5 / 255, 1 - 0.5 / 255
    first = current = rgb.astype(np.float64)
    target = target.astype(np.float64)
    for _ in range(num_iterations):
        result = np.zeros_like(current)
        rows = {
            pixel: [r * r, r * g, r * b, g * g, g * b, b * b, r, g, b, 1.0]
            for pixel, (r, g, b) in (
                (pixel, current[pixel]) for pixel in np.ndindex(*current.shape[:2])
            )
        }
        for c in range(3):
            used = [
                p for p in rows
                if mask[p] and all(low <= x[p][c] <= high for x in (first, current, target))
            ]  # fmt: skip
            system = np.array([rows[p] for p in used])
            weights = np.linalg.lstsq(system, np.array([target[p][c] for p in used]))[0]
            for p, row in rows.items():
                result[p][c] = np.clip(np.dot(row, weights), 0.0, 1.0)
        current = result
    return current


@pytest.mark.parametrize("num_iterations", [1, 3])
def test_correct_colors_fits_as_rows_for_each_pixel_do(num_iterations: int) -> None:
    rgb, target = make_image(0), np.clip(1.3 * make_image(1) + 0.3 * make_image(0), 0.0, 1.0)
    mask = np.random.default_rng(2).uniform(size=rgb.shape[:2]) < 0.7
    result = correct_colors(rgb, target, mask, num_iterations)
    assert result.dtype == np.float32
    expected = correct_slowly(rgb, target, mask, num_iterations)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_correct_colors_undoes_exposure_white_balance_and_contrast() -> None:
    target = make_image(0)
    inner = 0.1 + 0.8 * target
    for rgb in (inner * np.float32([0.7, 1.0, 1.1]), inner[..., ::-1] * 0.9 + 0.05):
        np.testing.assert_allclose(correct_colors(rgb, inner), inner, atol=1e-5)
    # Of two different images the corrected one is closer.
    rgb = np.sqrt(make_image(1) * target)
    error, corrected = (np.mean(np.square(x - target)) for x in (rgb, correct_colors(rgb, target)))
    assert corrected < error


def test_saturated_and_masked_pixels_do_not_bend_the_fit() -> None:
    true = 0.2 + 0.7 * make_image(0)
    rgb = 0.6 * true
    target = true.copy()
    target[:4] = 1.0
    expected = np.clip(rgb / 0.6, 0.0, 1.0)
    np.testing.assert_allclose(correct_colors(rgb, target), expected, atol=1e-5)
    mask = np.ones(rgb.shape[:2], bool)
    mask[10:] = False
    target[10:] = 0.5
    np.testing.assert_allclose(correct_colors(rgb, target, mask), expected, atol=1e-5)
    assert np.abs(correct_colors(rgb, target) - expected).max() > 0.01


def test_images_without_enough_colors_stay_finite() -> None:
    gray = np.full((8, 8, 3), 0.4, np.float32)
    np.testing.assert_allclose(correct_colors(gray, gray + 0.2), 0.6, atol=1e-5)
    white = np.ones_like(gray)
    np.testing.assert_array_equal(correct_colors(gray, white), gray)
    np.testing.assert_array_equal(correct_colors(3.0 * gray, gray), white)
