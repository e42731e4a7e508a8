"""Image metrics: closed forms, and SSIM against a loop over its windows."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrf.evaluation import metrics
from jaxrf.evaluation.metrics import psnr, ssim


def random_image(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("offset", [0.5, 0.1, 0.01, 1e-4])
def test_psnr_of_a_constant_difference_has_the_closed_form(offset: float) -> None:
    target_rgb = np.full((4, 5, 3), 0.25, np.float32)
    rgb = (target_rgb + np.float32(offset)).astype(np.float32)
    assert psnr(rgb, target_rgb) == pytest.approx(-20.0 * math.log10(offset), abs=0.02)


def test_psnr_is_zero_between_black_and_white_and_infinite_between_equal_images() -> None:
    black, white = np.zeros((2, 3, 3), np.float32), np.ones((2, 3, 3), np.float32)
    assert psnr(black, white) == 0.0
    assert psnr(white, white) == math.inf
    image = random_image(4, 4, 0)
    assert psnr(image, image) == math.inf


def test_psnr_equals_loop() -> None:
    rgb, target_rgb = random_image(5, 4, 1), random_image(5, 4, 2)
    squares = [
        (float(a) - float(b)) ** 2 for a, b in zip(rgb.ravel(), target_rgb.ravel(), strict=True)
    ]
    expected = -10.0 * math.log10(sum(squares) / len(squares))
    assert psnr(rgb, target_rgb) == pytest.approx(expected, rel=1e-6)


def test_psnr_clips_the_rendering() -> None:
    target_rgb = np.ones((2, 2, 3), np.float32)
    assert psnr(np.full((2, 2, 3), 7.0, np.float32), target_rgb) == math.inf
    assert psnr(np.full((2, 2, 3), -3.0, np.float32), target_rgb) == 0.0


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.01, 0.9))
def test_psnr_decreases_by_6_db_when_the_error_doubles(seed: int, size: float) -> None:
    error = (random_image(3, 3, seed).astype(np.float64) - 0.5) * size * 0.5
    target_rgb = np.full((3, 3, 3), 0.5)
    difference = psnr(target_rgb + error, target_rgb) - psnr(target_rgb + 2 * error, target_rgb)
    assert difference == pytest.approx(20.0 * math.log10(2.0), abs=1e-6)


def ssim_slowly(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM (Wang et al. 2004) by a loop over channels and windows."""
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
    target_rgb = random_image(*size, 3)
    rgb = 0.6 * target_rgb + 0.5 * random_image(*size, 4)
    assert float(ssim(rgb, target_rgb)) == pytest.approx(ssim_slowly(rgb, target_rgb), abs=2e-5)


def test_ssim_of_equal_images_is_one() -> None:
    for image in (random_image(13, 15, 5), np.zeros((13, 15, 3), np.float32)):
        assert float(ssim(image, image)) == pytest.approx(1.0, abs=1e-6)


def test_ssim_is_symmetric_decreases_with_noise_and_clips_the_rendering() -> None:
    target_rgb, noise = random_image(13, 15, 6), random_image(13, 15, 7) - 0.5
    first, second = np.clip(target_rgb + 0.1 * noise, 0, 1), np.clip(target_rgb + 0.6 * noise, 0, 1)
    assert float(ssim(first, target_rgb)) == pytest.approx(float(ssim(target_rgb, first)), abs=1e-6)
    assert 1.0 > float(ssim(first, target_rgb)) > float(ssim(second, target_rgb)) > -1.0
    out_of_range = np.where(target_rgb > 0.5, 9.0, -9.0).astype(np.float32)
    assert float(ssim(out_of_range, target_rgb)) == float(
        ssim(np.clip(out_of_range, 0, 1), target_rgb)
    )


def test_ssim_of_constant_images_compares_only_brightness() -> None:
    dark, bright = jnp.full((13, 15, 3), 0.2), jnp.full((13, 15, 3), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ssim(dark, bright)) == pytest.approx(expected, abs=1e-3)


def test_a_metric_of_the_table_reaches_scores_summaries_and_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    largest = metrics.Metric(
        "max_error", "largest error", "{:.1f}", False,
        lambda image: float(np.max(np.abs(image.rgb - image.target_rgb))),
    )  # fmt: skip
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, largest))
    black, gray = np.zeros((12, 12, 3), np.float32), np.full((12, 12, 3), 0.5, np.float32)
    scores = metrics.compute_metrics(metrics.ScoredImage(gray, black))
    assert list(scores) == ["psnr", "ssim", "max_error"]
    assert metrics.describe_metrics(scores)[-1] == "largest error 0.5"
    assert [m.heading for m in metrics.select_metrics(scores)] == [
        "PSNR ↑",
        "SSIM ↑",
        "largest error ↓",
    ]
    assert metrics.mean_metrics([scores, {"max_error": 1.0}]) == {"max_error": 0.75}


def test_masked_pixels_do_not_count_for_psnr() -> None:
    black, gray = np.zeros((12, 12, 3), np.float32), np.full((12, 12, 3), 0.5, np.float32)
    mask = np.arange(144).reshape(12, 12) % 3 == 0
    masked = metrics.ScoredImage(np.where(mask[..., None], gray, black), black, mask)
    unmasked = metrics.compute_metrics(masked._replace(mask=None))
    assert metrics.compute_metrics(masked)["psnr"] == pytest.approx(-10 * math.log10(0.25))
    assert unmasked["psnr"] > metrics.compute_metrics(masked)["psnr"]


def test_corrected_images_have_scores_of_their_own() -> None:
    black, gray = np.zeros((12, 12, 3), np.float32), np.full((12, 12, 3), 0.5, np.float32)
    mask = np.arange(144).reshape(12, 12) % 3 == 0
    corrected = np.where(mask[..., None], gray, black) / 5.0
    image = metrics.ScoredImage(np.where(mask[..., None], gray, black), black, mask)
    assert list(metrics.compute_metrics(image)) == ["psnr", "ssim"]
    scores = metrics.compute_metrics(image._replace(corrected_rgb=corrected))
    assert scores["psnr_cc"] == pytest.approx(20.0)
    assert scores["psnr"] == pytest.approx(-10 * math.log10(0.25))
    assert scores["ssim_cc"] > scores["ssim"]
    assert metrics.describe_metrics(scores)[2] == "color-corrected PSNR 20.00 dB"
    assert list(scores) == ["psnr", "ssim", "psnr_cc", "ssim_cc"]
