"""Points of the world that two images of a data set show both."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from jaxrf.data.correspondences import (
    Features,
    find_features,
    fits_fundamental_matrix,
    match_features,
)
from jaxrf.data.scene import Split

# Width and height to which images are reduced at most.
MAX_SIZE = 320
# Degrees between the axes of two cameras that are compared, at most.
MAX_ANGLE = 35.0
# Fewer matches of a pair of images say nothing.
MIN_MATCHES = 20


class Matches(NamedTuple):
    """Points of the world that two images show.

    first, second: (m,) indices of the images.
    pixels, other_pixels: (m, 2) where they show it, in pixels of the images.
    """

    first: Int[np.ndarray, "m"]
    second: Int[np.ndarray, "m"]
    pixels: Float[np.ndarray, "m 2"]
    other_pixels: Float[np.ndarray, "m 2"]


def nearest_views(poses: Float[np.ndarray, "n 4 4"], count: int) -> list[list[int]]:
    """The nearest views to each one, at most `count`, that look in nearly the same direction."""
    positions, axes = poses[:, :3, 3], poses[:, :3, 2]
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    usual = float(np.median(distance))
    turned = axes @ axes.T < np.cos(np.radians(MAX_ANGLE))
    distance = np.where(turned | (distance <= 1e-3 * usual), np.inf, distance)
    order = np.argsort(distance, axis=1, kind="stable")[:, :count]
    return [
        [int(other) for other in others if np.isfinite(distance[first, other])]
        for first, others in enumerate(order)
    ]


def match_pairs(
    split: Split,
    pairs: list[tuple[int, int]],
    features: dict[int, list[Features]],
    min_share: float = 0.5,
) -> Matches:
    """Matched points of those pairs of images that show the same things.

    Points that no pair of pinhole cameras would show at these places are left out.

    Args:
      split: of the images; pixels that its masks exclude are not looked at.
      pairs: indices of images.
      features: of images that were looked at before; those of others are added.
      min_share: two images show different things if no two cameras explain this share of their
        matches.
    """
    rng = np.random.default_rng(0)
    scale = reduction(split)
    matches = [Matches(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)), np.zeros((0, 2)))]
    for pair in pairs:
        for index in pair:
            if index not in features:
                features[index] = _image_features(split, index)
        pixels, other_pixels = match_features(*(features[index] for index in pair))
        right = fits_fundamental_matrix(pixels * scale, other_pixels * scale, rng)
        if right.sum() < max(MIN_MATCHES, min_share * len(right)):
            continue
        first, second = (np.full(int(right.sum()), index) for index in pair)
        matches.append(Matches(first, second, pixels[right], other_pixels[right]))
    return Matches(*(np.concatenate(arrays) for arrays in zip(*matches, strict=True)))


def reduction(split: Split) -> float:
    """Size of the images that points are looked for in, as a share of the images' own."""
    return min(MAX_SIZE / max(split.images.shape[1:3]), 1.0)


def _image_features(split: Split, index: int) -> list[Features]:
    """Features of an image, found in a smaller one; their points are in pixels of the image."""
    width, height = split.image_size(index)
    scale = reduction(split)
    small = (max(round(width * scale), 1), max(round(height * scale), 1))
    rgba = split.crop(index)
    # Transparent pixels are of one gray, whatever their color is.
    gray = np.asarray(Image.fromarray(np.ascontiguousarray(rgba[..., :3])).convert("L"), np.float32)
    gray = np.where(rgba[..., 3] > 0, gray, 128.0).astype(np.float32)
    gray = np.asarray(Image.fromarray(gray).resize(small, Image.Resampling.BOX))
    ratio = np.array([width / small[0], height / small[1]])
    features = [Features(f.points * ratio, f.patches) for f in find_features(gray)]
    if split.masks is None:
        return features
    mask = split.masks[index]
    used = [mask[tuple(f.points.astype(int).T[::-1])] for f in features]
    return [Features(f.points[u], f.patches[u]) for f, u in zip(features, used, strict=True)]
