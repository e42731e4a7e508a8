"""Color correction of a rendered image for scoring, where exposure is not the field's to know."""

import numpy as np
from jaxtyping import Bool, Float

# Pixels closer than this to 0 or 1 are saturated: half a level of 8 bits.
SATURATION_MARGIN = 0.5 / 255.0


def correct_colors(
    rgb: Float[np.ndarray, "h w 3"],
    target_rgb: Float[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"] | None = None,
    num_iterations: int = 5,
) -> Float[np.ndarray, "h w 3"]:
    """An image with the colors of another: the least-squares fit of a quadratic map of its colors.

    Each channel of the target is fitted by a polynomial of the image's three channels: squares and
    products, the channels, and a constant. Pixels that are saturated in this channel, of either
    image or of the result so far, are left out; the fit is therefore repeated on the result. A
    channel with fewer pixels than the polynomial has terms stays as it is. The correction with
    which Mildenhall et al. (RawNeRF, CVPR 2022, supplement) and Barron et al. (Zip-NeRF, ICCV 2023)
    score images.

    Args:
      rgb: rendered; clipped to [0, 1].
      target_rgb: in [0, 1].
      mask: pixels to fit; None for all.
      num_iterations: number of fits.

    Returns:
      The corrected image in [0, 1], in float32.
    """
    # Channels come first: each is contiguous.
    colors = np.clip(np.asarray(rgb, np.float64), 0.0, 1.0).reshape(-1, 3).T.copy()
    target = np.asarray(target_rgb, np.float64).reshape(-1, 3).T.copy()
    usable = _is_unsaturated(colors) & _is_unsaturated(target)
    if mask is not None:
        usable &= mask.reshape(1, -1)
    for _ in range(num_iterations):
        terms = _polynomial_terms(colors)
        used = usable & _is_unsaturated(colors)
        channels = [
            _fit_channel(terms, *channel) for channel in zip(colors, target, used, strict=True)
        ]
        colors = np.clip(np.stack(channels), 0.0, 1.0)
    return colors.T.reshape(rgb.shape).astype(np.float32)


def _is_unsaturated(values: Float[np.ndarray, "3 p"]) -> Bool[np.ndarray, "3 p"]:
    return (values >= SATURATION_MARGIN) & (values <= 1.0 - SATURATION_MARGIN)


def _polynomial_terms(colors: Float[np.ndarray, "3 p"]) -> Float[np.ndarray, "10 p"]:
    """Products of two channels, the channels, and 1, of each pixel."""
    first, second = np.triu_indices(3)
    return np.concatenate([colors[first] * colors[second], colors, np.ones_like(colors[:1])])


def _fit_channel(
    terms: Float[np.ndarray, "10 p"],
    values: Float[np.ndarray, "p"],
    target: Float[np.ndarray, "p"],
    used: Bool[np.ndarray, "p"],
) -> Float[np.ndarray, "p"]:
    """The combination of terms that is closest to the target at the used pixels."""
    if np.count_nonzero(used) < len(terms):
        return values
    rows = terms * used
    # The normal equations, whose smallest solution also fits images of few colors.
    weights, *_ = np.linalg.lstsq(rows @ terms.T, rows @ target, rcond=None)
    return np.asarray(weights @ terms)
