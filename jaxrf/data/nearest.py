"""How near the content of a capture is, by matched points of neighboring images.

Rays that begin far in front of all content have half of their samples where nothing is, and leave
room for fog before the cameras, which no other view contradicts.
"""

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras, unproject
from jaxrf.data.consistency import epipolar_error
from jaxrf.data.matches import Matches, match_pairs, nearest_views, reduction
from jaxrf.data.scene import Split

# Pairs of images that are looked at, spread over all of them.
MAX_PAIRS = 12
# Points that are triangulated: enough of them, from rays that meet at this angle in degrees at
# least, and pass each other within this many pixels of the reduced images.
MIN_POINTS, MIN_ANGLE, MAX_ERROR = 200, 1.5, 1.0
# Rays begin at this share of the distance that so many percent of the points are nearer than.
NEAR_SHARE, NEAR_PERCENTILE = 0.4, 1.0


def find_near(split: Split) -> float | None:
    """Distance from the cameras before which no content is; None if too few points match.

    Args:
      split: images and cameras of a capture.
    """
    if len(split) < 4:
        return None
    poses = np.asarray(split.cameras.T_world_camera, np.float64)
    nearest = nearest_views(poses, 1)
    firsts = np.unique(np.linspace(0, len(poses) - 1, MAX_PAIRS).astype(int))
    pairs = {(min(i, j), max(i, j)) for i in map(int, firsts) for j in nearest[i]}
    matches = match_pairs(split, sorted(pairs), {})
    good = epipolar_error(split.cameras, matches) * reduction(split) < MAX_ERROR
    distances = ray_distances(split.cameras, Matches(*(array[good] for array in matches)))
    if len(distances) < MIN_POINTS:
        return None
    return NEAR_SHARE * float(np.percentile(distances, NEAR_PERCENTILE))


def ray_distances(cameras: Cameras, matches: Matches) -> Float[np.ndarray, "k"]:
    """Distances of matched points from both of their cameras.

    A point is where its two rays come closest to each other (Hartley and Zisserman, section 12.2).
    Rays that meet behind a camera, or at less than `MIN_ANGLE`, are left out.

    Args:
      cameras: of the images.
      matches: of points that the cameras show where they are.
    """
    poses = np.asarray(cameras.T_world_camera, np.float64)
    ray, other = (
        np.einsum("mij,mj->mi", poses[index, :3, :3], unproject(cameras, index, pixels))
        for index, pixels in (
            (matches.first, matches.pixels),
            (matches.second, matches.other_pixels),
        )
    )
    baseline = poses[matches.second, :3, 3] - poses[matches.first, :3, 3]
    cosine = np.sum(ray * other, axis=-1)
    along, other_along = np.sum(ray * baseline, axis=-1), np.sum(other * baseline, axis=-1)
    squared_sine = np.maximum(1.0 - cosine**2, 1e-12)
    distance = (along - cosine * other_along) / squared_sine
    other_distance = (cosine * along - other_along) / squared_sine
    is_point = (distance > 0.0) & (other_distance > 0.0)
    is_point &= squared_sine > np.sin(np.radians(MIN_ANGLE)) ** 2
    return np.concatenate([distance[is_point], other_distance[is_point]])
