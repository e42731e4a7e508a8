"""Points that two images show both: corners, patches around them, and pairs that look alike.

Brown, Szeliski and Winder: Multi-image matching using multi-scale oriented patches (CVPR 2005),
without orientation, as neighboring photos are usually as upright as each other. Harris corners at
a few scales, normalized 8x8 patches, nearest neighbors both ways that are much nearer than the
second, and the fundamental matrix of most of them (Hartley: In defense of the eight-point
algorithm, PAMI 1997).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

# Standard deviations of the blur in which corners are found, in pixels.
SCALES = (1.0, 2.0, 3.5)
MAX_CORNERS_PER_SCALE = 300
PATCH_SIZE = 8
# Distance of a patch's samples, and the blur before they are taken, in standard deviations.
PATCH_SPACING, PATCH_BLUR = 1.3, 0.7
# Standard deviation of gray values, of 255, in a patch that says something.
MIN_CONTRAST = 4.0
# Correlation of a pair, and how much nearer than the second best it has to be.
MIN_CORRELATION, MAX_RATIO = 0.8, 0.7
NUM_SAMPLES = 200
# Distance from an epipolar line, in pixels, up to which a pair fits a fundamental matrix.
EPIPOLAR_TOLERANCE = 1.5


class Features(NamedTuple):
    """Corners of an image at one scale.

    points: (k, 2) column and row in pixels; the center of a pixel is at + 0.5.
    patches: (k, 64) gray values around each, of mean 0 and norm 1.
    """

    points: Float[np.ndarray, "k 2"]
    patches: Float[np.ndarray, "k d"]


def find_features(gray: Float[np.ndarray, "h w"]) -> list[Features]:
    """The strongest corners of an image, for each of `SCALES`.

    Args:
      gray: from 0 to 255.
    """
    return [_find_features(gray, scale) for scale in SCALES]


def _find_features(gray: Float[np.ndarray, "h w"], scale: float) -> Features:
    from scipy import ndimage

    blurred = ndimage.gaussian_filter(gray, scale)
    slopes = ndimage.sobel(blurred, 1), ndimage.sobel(blurred, 0)
    xx, xy, yy = (
        ndimage.gaussian_filter(slopes[a] * slopes[b], 1.5 * scale)
        for a, b in ((0, 0), (0, 1), (1, 1))
    )
    # The harmonic mean of the eigenvalues (Brown et al., equation 2).
    strength = (xx * yy - xy * xy) / (xx + yy + 1e-3)
    window = 2 * int(np.ceil(2 * scale)) + 1
    is_corner = strength == ndimage.maximum_filter(strength, size=window)
    is_corner &= strength > 1e-3 * strength.max()
    margin = int(6 * scale) + 1
    is_corner[:margin] = is_corner[-margin:] = False
    is_corner[:, :margin] = is_corner[:, -margin:] = False
    rows, columns = np.nonzero(is_corner)
    strongest = np.argsort(-strength[rows, columns], kind="stable")[:MAX_CORNERS_PER_SCALE]
    rows, columns = rows[strongest], columns[strongest]
    row = rows + _peak_offset(
        strength[rows - 1, columns], strength[rows, columns], strength[rows + 1, columns]
    )
    column = columns + _peak_offset(
        strength[rows, columns - 1], strength[rows, columns], strength[rows, columns + 1]
    )
    steps = (np.arange(PATCH_SIZE) - 0.5 * (PATCH_SIZE - 1)) * PATCH_SPACING * scale
    grid = np.broadcast_arrays(
        row[:, None, None] + steps[:, None], column[:, None, None] + steps[None, :]
    )
    soft = ndimage.gaussian_filter(gray, PATCH_BLUR * scale)
    patches = ndimage.map_coordinates(
        soft, [axis.ravel() for axis in grid], order=1, mode="nearest"
    )
    patches = patches.reshape(len(row), PATCH_SIZE**2)
    patches -= patches.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(patches, axis=1)
    textured = norm > MIN_CONTRAST * PATCH_SIZE
    points = np.stack([column, row], axis=-1) + 0.5
    return Features(points[textured], patches[textured] / norm[textured, None])


def _peak_offset(
    before: Float[np.ndarray, "k"], peak: Float[np.ndarray, "k"], after: Float[np.ndarray, "k"]
) -> Float[np.ndarray, "k"]:
    """Offset in pixels, at most a half, of the top of a parabola through three values."""
    curvature = 2.0 * peak - before - after
    return np.clip(0.5 * (after - before) / np.where(curvature > 0, curvature, np.inf), -0.5, 0.5)


def match_features(
    first: list[Features], second: list[Features]
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]:
    """Points of two images that look alike: each other's nearest, by far.

    Args:
      first, second: `find_features` of each image.
    """
    pairs = [_match_features(a, b) for a, b in zip(first, second, strict=True)]
    return np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])


def _match_features(
    first: Features, second: Features
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m 2"]]:
    if len(first.points) < 2 or len(second.points) < 2:
        return np.zeros((0, 2)), np.zeros((0, 2))
    correlation = first.patches @ second.patches.T
    rows = np.arange(len(correlation))
    nearest, back = correlation.argmax(axis=1), correlation.argmax(axis=0)
    best = correlation[rows, nearest]
    second_best = np.partition(correlation, -2, axis=1)[:, -2]
    matched = (back[nearest] == rows) & (best > MIN_CORRELATION)
    matched &= 1.0 - best < MAX_RATIO * (1.0 - second_best)
    return first.points[matched], second.points[nearest[matched]]


def fits_fundamental_matrix(
    first: Float[np.ndarray, "m 2"], second: Float[np.ndarray, "m 2"], rng: np.random.Generator
) -> Bool[np.ndarray, "m"]:
    """Which pairs of points some fundamental matrix explains: the one that explains most of them.

    None of them if there are fewer than nine. Matrices through eight random pairs each are compared
    by their truncated errors (MSAC; Torr and Zisserman 2000), and the best is fitted to its pairs.
    """
    if len(first) < 9:
        return np.zeros(len(first), bool)
    center, size = np.concatenate([first, second]).mean(axis=0), np.std([first, second]) + 1e-9
    a, b = ((points - center) / size for points in (first, second))
    tolerance = EPIPOLAR_TOLERANCE / size
    (x, y), (u, v) = a.T, b.T
    equations = np.stack([u * x, u * y, u, v * x, v * y, v, x, y, np.ones_like(x)], axis=-1)
    samples = rng.permuted(np.broadcast_to(np.arange(len(a)), (NUM_SAMPLES, len(a))), axis=1)[:, :8]
    errors = _line_distances(_solve_fundamental(equations[samples]), a, b)
    error = errors[np.minimum(errors, tolerance).mean(axis=1).argmin()]
    for _ in range(2):
        fitting = error < tolerance
        if fitting.sum() < 9:
            break
        refined = _line_distances(_solve_fundamental(equations[fitting][None]), a, b)[0]
        if np.minimum(refined, tolerance).mean() >= np.minimum(error, tolerance).mean():
            break
        error = refined
    return np.asarray(error < tolerance)


def _solve_fundamental(equations: Float[np.ndarray, "s m 9"]) -> Float[np.ndarray, "s 3 3"]:
    """Matrices of rank 2 that come closest to solving each set of equations."""
    square = np.einsum("smi,smj->sij", equations, equations)
    matrices = np.linalg.eigh(square)[1][:, :, 0].reshape(-1, 3, 3)
    left, values, right = np.linalg.svd(matrices)
    values[:, 2] = 0.0
    return np.asarray((left * values[:, None, :]) @ right)


def _line_distances(
    matrices: Float[np.ndarray, "s 3 3"], a: Float[np.ndarray, "m 2"], b: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "s m"]:
    """Root mean square distance of both points of each pair from their epipolar lines."""
    a_h, b_h = (np.concatenate([points, np.ones((len(points), 1))], axis=1) for points in (a, b))
    lines_b = np.einsum("sij,mj->smi", matrices, a_h)
    lines_a = np.einsum("sji,mj->smi", matrices, b_h)
    residual = np.abs(np.sum(lines_b * b_h, axis=-1))
    inverse = [1.0 / (np.sum(lines[..., :2] ** 2, axis=-1) + 1e-30) for lines in (lines_a, lines_b)]
    return np.asarray(residual * np.sqrt(0.5 * (inverse[0] + inverse[1])))
