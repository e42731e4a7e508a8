"""Image metrics: PSNR and SSIM."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def psnr(rendered: Float[np.ndarray, "*pixels 3"], truth: Float[np.ndarray, "*pixels 3"]) -> float:
    """Peak signal-to-noise ratio in dB, -10 log10(MSE), of the rendering clipped to [0, 1].

    Infinite for equal images.
    """
    error = np.clip(np.asarray(rendered, np.float64), 0.0, 1.0) - truth
    with np.errstate(divide="ignore"):
        return float(-10.0 * np.log10(np.mean(np.square(error))))


def ssim(
    rendered: Float[Array | np.ndarray, "h w c"], truth: Float[Array | np.ndarray, "h w c"]
) -> Float[Array, ""]:
    """Structural similarity in [-1, 1], mean over pixels and channels.

    Wang et al. 2004: an 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1,
    biased covariances, only windows that lie wholly inside the image. Images smaller than the
    window use the largest odd window that fits.
    """
    x = jnp.clip(jnp.asarray(rendered), 0.0, 1.0)
    y = jnp.asarray(truth, x.dtype)
    size = min(11, *(s if s % 2 else s - 1 for s in x.shape[:2]))
    offset = np.arange(size) - size // 2
    window = np.exp(-0.5 * np.square(offset / 1.5))
    window = window / window.sum()

    def blur(image: Array) -> Array:
        for axis in (0, 1):
            length = image.shape[axis] - size + 1
            parts = [
                float(weight) * jax.lax.slice_in_dim(image, i, i + length, axis=axis)
                for i, weight in enumerate(window)
            ]
            image = sum(parts, jnp.zeros_like(parts[0]))
        return image

    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x * mean_x
    variance_y = blur(y * y) - mean_y * mean_y
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2.0 * mean_x * mean_y + c1) * (2.0 * covariance + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return jnp.mean(numerator / denominator)
