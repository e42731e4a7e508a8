"""Image metrics, and the table of those that images are scored by."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxrf.evaluation import lpips


def psnr(rgb: Float[np.ndarray, "*pixels 3"], target_rgb: Float[np.ndarray, "*pixels 3"]) -> float:
    """Peak signal-to-noise ratio in dB, -10 log10(MSE); infinite for equal images.

    Args:
      rgb: rendered image; clipped to [0, 1].
      target_rgb: image in [0, 1] to compare with.

    >>> psnr(np.full((4, 4, 3), 0.5), np.full((4, 4, 3), 0.6))
    20.0
    """
    error = np.clip(np.asarray(rgb, np.float64), 0.0, 1.0) - target_rgb
    with np.errstate(divide="ignore"):
        return float(-10.0 * np.log10(np.mean(np.square(error))))


def ssim(
    rgb: Float[Array | np.ndarray, "h w c"], target_rgb: Float[Array | np.ndarray, "h w c"]
) -> Float[Array, ""]:
    """Structural similarity in [-1, 1], mean over pixels and channels (Wang et al. 2004).

    An 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, biased covariances,
    only windows that lie inside the image. Smaller images use the largest odd window that fits.

    Args:
      rgb: rendered image; clipped to [0, 1].
      target_rgb: image in [0, 1] to compare with.

    >>> image = np.linspace(0.0, 1.0, 16 * 16 * 3, dtype=np.float32).reshape(16, 16, 3)
    >>> round(float(ssim(image, image)), 3)
    1.0
    """
    x = jnp.clip(jnp.asarray(rgb), 0.0, 1.0)
    y = jnp.asarray(target_rgb, x.dtype)
    size = min(11, *(s if s % 2 else s - 1 for s in x.shape[:2]))
    offset = np.arange(size) - size // 2
    window = np.exp(-0.5 * np.square(offset / 1.5))
    window = window / window.sum()

    mean_x, mean_y = _convolve(x, window), _convolve(y, window)
    variance_x = _convolve(x * x, window) - mean_x * mean_x
    variance_y = _convolve(y * y, window) - mean_y * mean_y
    covariance = _convolve(x * y, window) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2.0 * mean_x * mean_y + c1) * (2.0 * covariance + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return jnp.mean(numerator / denominator)


def _convolve(
    image: Float[Array, "h w c"], window: Float[np.ndarray, "k"]
) -> Float[Array, "y x c"]:
    """Convolves rows and columns with a symmetric window, without padding."""
    for axis in (0, 1):
        length = image.shape[axis] - len(window) + 1
        terms = [
            float(weight) * jax.lax.slice_in_dim(image, i, i + length, axis=axis)
            for i, weight in enumerate(window)
        ]
        image = sum(terms, jnp.zeros_like(terms[0]))
    return image


_ssim = jax.jit(ssim)
_lpips = jax.jit(lpips.lpips)


class ScoredImage(NamedTuple):
    """A rendered image and the one to compare it with, as metrics take them.

    Attributes:
      rgb: (h, w, 3) rendered; equal to the target where the mask is False.
      target_rgb: (h, w, 3) in [0, 1].
      mask: (h, w) pixels that count; None for all.
      lpips_weights: of LPIPS's network, if there are any.
      corrected_rgb: (h, w, 3) `rgb` after `color_correction.correct_colors`, if that is scored too.
    """

    rgb: Float[np.ndarray, "h w 3"]
    target_rgb: Float[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"] | None = None
    lpips_weights: lpips.Weights | None = None
    corrected_rgb: Float[np.ndarray, "h w 3"] | None = None


class Metric(NamedTuple):
    """A metric that images are scored by.

    Attributes:
      name: key in metrics.json and tag in TensorBoard.
      title: for people.
      format: of a value, with its unit.
      higher_is_better: whether larger values are better.
      compute: the value of an image; None if it needs weights or colors that are not there.
    """

    name: str
    title: str
    format: str
    higher_is_better: bool
    compute: Callable[[ScoredImage], float | None]

    @property
    def heading(self) -> str:
        """The title, with an arrow towards better values."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"


def _score_psnr(image: ScoredImage) -> float:
    if image.mask is None:
        return psnr(image.rgb, image.target_rgb)
    return psnr(image.rgb[image.mask], image.target_rgb[image.mask])


def _score_ssim(image: ScoredImage) -> float:
    return float(_ssim(image.rgb, image.target_rgb))


def _score_lpips(image: ScoredImage) -> float | None:
    if not image.lpips_weights:
        return None
    return float(_lpips(image.lpips_weights, image.rgb, image.target_rgb))


def _score_corrected(
    compute: Callable[[ScoredImage], float | None], image: ScoredImage
) -> float | None:
    """A metric of the image whose colors were corrected."""
    if image.corrected_rgb is None:
        return None
    return compute(image._replace(rgb=image.corrected_rgb))


METRICS = (
    Metric("psnr", "PSNR", "{:.2f} dB", True, _score_psnr),
    Metric("ssim", "SSIM", "{:.4f}", True, _score_ssim),
    Metric("lpips", "LPIPS", "{:.4f}", False, _score_lpips),
    # Where training images have colors of their own, no view can know those of its image.
    Metric(
        "psnr_cc", "color-corrected PSNR", "{:.2f} dB", True, partial(_score_corrected, _score_psnr)
    ),
    Metric(
        "ssim_cc", "color-corrected SSIM", "{:.4f}", True, partial(_score_corrected, _score_ssim)
    ),
)


def compute_metrics(image: ScoredImage) -> dict[str, float]:
    """The values of all metrics of an image by name, without those that cannot be computed."""
    values = {metric.name: metric.compute(image) for metric in METRICS}
    return {name: value for name, value in values.items() if value is not None}


def select_metrics(scores: Mapping[str, Any]) -> list[Metric]:
    """The metrics that scores hold, in the order of the table."""
    return [metric for metric in METRICS if metric.name in scores]


def format_metrics(scores: Mapping[str, Any]) -> list[str]:
    """The value of each metric that scores hold, for people.

    >>> format_metrics({"psnr": 31.234, "ssim": 0.95834})
    ['31.23 dB', '0.9583']
    """
    return [metric.format.format(scores[metric.name]) for metric in select_metrics(scores)]


def describe_metrics(scores: Mapping[str, Any]) -> list[str]:
    """The title and value of each metric that scores hold, for people.

    >>> describe_metrics({"psnr": 31.234, "ssim": 0.95834})
    ['PSNR 31.23 dB', 'SSIM 0.9583']
    """
    titles = [metric.title for metric in select_metrics(scores)]
    return [f"{t} {v}" for t, v in zip(titles, format_metrics(scores), strict=True)]


def mean_metrics(scores: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of the metrics that all of the scores hold, by name."""
    names = [m.name for m in METRICS if all(m.name in score for score in scores)]
    return {name: float(np.mean([score[name] for score in scores])) for name in names}
