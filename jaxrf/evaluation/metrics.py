"""Image metrics: PSNR and SSIM."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


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
