"""Image metrics: closed forms, and SSIM against a loop over its windows."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrf.evaluation.metrics import psnr, ssim


def random_image(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("offset", [0.5, 0.1, 0.01, 1e-4])
def test_psnr_of_a_constant_difference_has_its_closed_form(offset: float) -> None:
    truth = np.full((4, 5, 3), 0.25, np.float32)
    rendered = (truth + np.float32(offset)).astype(np.float32)
    assert psnr(rendered, truth) == pytest.approx(-20.0 * math.log10(offset), abs=0.02)


def test_psnr_is_zero_between_black_and_white_and_infinite_between_equal_images() -> None:
    black, white = np.zeros((2, 3, 3), np.float32), np.ones((2, 3, 3), np.float32)
    assert psnr(black, white) == 0.0
    assert psnr(white, white) == math.inf
    image = random_image(4, 4, 0)
    assert psnr(image, image) == math.inf


def test_psnr_equals_loop() -> None:
    rendered, truth = random_image(5, 4, 1), random_image(5, 4, 2)
    squares = [
        (float(a) - float(b)) ** 2 for a, b in zip(rendered.ravel(), truth.ravel(), strict=True)
    ]
    expected = -10.0 * math.log10(sum(squares) / len(squares))
    assert psnr(rendered, truth) == pytest.approx(expected, rel=1e-6)


def test_psnr_clips_the_rendering() -> None:
    truth = np.ones((2, 2, 3), np.float32)
    assert psnr(np.full((2, 2, 3), 7.0, np.float32), truth) == math.inf
    assert psnr(np.full((2, 2, 3), -3.0, np.float32), truth) == 0.0


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.01, 0.9))
def test_psnr_falls_by_six_decibels_when_the_error_doubles(seed: int, size: float) -> None:
    error = (random_image(3, 3, seed).astype(np.float64) - 0.5) * size * 0.5
    truth = np.full((3, 3, 3), 0.5)
    difference = psnr(truth + error, truth) - psnr(truth + 2 * error, truth)
    assert difference == pytest.approx(20.0 * math.log10(2.0), abs=1e-6)


def ssim_slowly(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, one window, pixel and channel after the other."""
    x, y = np.clip(x, 0, 1).astype(np.float64), y.astype(np.float64)
    height, width, channels = x.shape
    size = min(11, height - (height + 1) % 2, width - (width + 1) % 2)
    half = size // 2
    window = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            window[i, j] = math.exp(-((i - half) ** 2 + (j - half) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    scores = []
    for channel in range(channels):
        for row in range(height - size + 1):
            for column in range(width - size + 1):
                a = x[row : row + size, column : column + size, channel]
                b = y[row : row + size, column : column + size, channel]
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                variance_a = (window * (a - mean_a) ** 2).sum()
                variance_b = (window * (b - mean_b) ** 2).sum()
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
                structure = (2 * covariance + 9e-4) / (variance_a + variance_b + 9e-4)
                scores.append(luminance * structure)
    return float(np.mean(scores))


@pytest.mark.parametrize("size", [(13, 15), (11, 11), (12, 20), (6, 9), (1, 1)])
def test_ssim_equals_loop_over_windows(size: tuple[int, int]) -> None:
    truth = random_image(*size, 3)
    rendered = 0.6 * truth + 0.5 * random_image(*size, 4)
    assert float(ssim(rendered, truth)) == pytest.approx(ssim_slowly(rendered, truth), abs=2e-5)


def test_ssim_of_equal_images_is_one() -> None:
    for image in (random_image(13, 15, 5), np.zeros((13, 15, 3), np.float32)):
        assert float(ssim(image, image)) == pytest.approx(1.0, abs=1e-6)


def test_ssim_is_symmetric_falls_with_noise_and_clips_the_rendering() -> None:
    truth, noise = random_image(13, 15, 6), random_image(13, 15, 7) - 0.5
    first, second = np.clip(truth + 0.1 * noise, 0, 1), np.clip(truth + 0.6 * noise, 0, 1)
    assert float(ssim(first, truth)) == pytest.approx(float(ssim(truth, first)), abs=1e-6)
    assert 1.0 > float(ssim(first, truth)) > float(ssim(second, truth)) > -1.0
    wild = np.where(truth > 0.5, 9.0, -9.0).astype(np.float32)
    assert float(ssim(wild, truth)) == float(ssim(np.clip(wild, 0, 1), truth))


def test_ssim_of_constant_images_compares_their_brightness_only() -> None:
    dark, bright = jnp.full((13, 15, 3), 0.2), jnp.full((13, 15, 3), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ssim(dark, bright)) == pytest.approx(expected, abs=1e-3)
