"""Whether images fit their poses and lenses: matched points of neighboring views.

Two rays through the same point of the world lie in one plane with both cameras' positions. How far
matched points are from it, under the cameras of the files and under others, shows which axes the
poses are in, and whether focal length and distortion are right (Hartley and Zisserman: Multiple
View Geometry, section 9.2).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from jaxrf.cameras.base import Cameras, unproject
from jaxrf.cameras.transforms import invert_transform, transform_poses
from jaxrf.data.correspondences import Features
from jaxrf.data.matches import Matches, match_pairs, nearest_views, reduction
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.scene import Scene

MAX_PAIRS = 8
# Where these have few matches: neighbors of each view, and pairs in all.
SPARSE_NEIGHBORS, MAX_SPARSE_PAIRS = 4, 100
# Fewer matches of all pairs say nothing.
MIN_TOTAL = 100
# With so few in at least so many pairs, of images that have on average so many corners at each
# scale, images show different things.
MIN_PAIRS, MIN_CORNERS = 24, 80
# The errors that follow are in pixels of the reduced images, in which points are found to about
# half a pixel. Each match counts up to the first: one that is further off may be a wrong match.
MAX_ERROR = 3.0
# Cameras of a smaller mean error need no other explanation.
GOOD_ERROR = 0.3
# Another explanation has to bring the mean error below the first share of the present one, and
# below the second number.
MAX_ERROR_RATIO, MAX_BEST_ERROR = 0.7, 0.8
# Cameras do not fit, whatever the reason, from this mean error.
BAD_ERROR = 1.3
# Factors of the focal length that are tried.
FOCAL_FACTORS = np.geomspace(0.2, 5.0, 41)


def find_better_cameras(scene: Scene) -> str | None:
    """A sentence on what the cameras of a scene seem to be instead; None if they fit the images.

    Says nothing about scenes of fewer than four images or of too little texture, but a word about
    many images of enough texture of which hardly two show the same.
    """
    split = scene.splits.get("train") or next(iter(scene.splits.values()))
    if len(split) < 4:
        return None
    # In the axes of the files, in which they are inverted.
    poses = transform_poses(
        invert_transform(scene.frame), np.asarray(split.cameras.T_world_camera, np.float64)
    )
    cameras = dataclasses.replace(split.cameras, T_world_camera=poses)
    scale = reduction(split)
    features: dict[int, list[Features]] = {}
    pairs = _neighbors(poses)
    matches = match_pairs(split, pairs, features)
    error = epipolar_error(cameras, matches)
    if len(matches.first) < MIN_TOTAL or _truncated_mean(scale * error) > MAX_BEST_ERROR:
        # Wrong poses have wrong neighbors.
        pairs += _neighbors(np.linalg.inv(poses)) + _successors(len(poses))
        matches = match_pairs(split, list(dict.fromkeys(pairs)), features)
        if len(matches.first) < MIN_TOTAL:
            # Images of little texture: each pair has few, so more of them are looked at.
            pairs += _all_neighbors(poses)
            matches = match_pairs(split, list(dict.fromkeys(pairs)), features)
        error = epipolar_error(cameras, matches)
    cost = _truncated_mean(scale * error)
    if len(matches.first) < MIN_TOTAL:
        return _describe_strangers(len(matches.first), len(set(pairs)), features)
    if cost < GOOD_ERROR:
        return None
    better = {}
    for text, other in _alternatives(cameras):
        other_cost = _truncated_mean(scale * epipolar_error(other, matches))
        # Errors of poses are angles, which a shorter focal length turns into fewer pixels.
        shorter = max(1.0, float(np.mean(np.asarray(cameras.focal) / np.asarray(other.focal))))
        if other_cost < min(MAX_BEST_ERROR, MAX_ERROR_RATIO * cost / shorter):
            better[text] = other_cost
    if better:
        best = min(better, key=lambda text: better[text])
        return f"The cameras do not fit their images ({_describe(error)}), and {best}."
    if cost > BAD_ERROR:
        return (
            f"The cameras do not fit their images well ({_describe(error)}): check that each pose "
            "belongs to its image, and the lens, let training correct the poses (--refine poses), "
            "or find all of it from the images (jaxrf data photos)."
        )
    return None


def _describe_strangers(
    num_matches: int, num_pairs: int, features: dict[int, list[Features]]
) -> str | None:
    """A sentence on images full of corners that have hardly one in common with their neighbors."""
    counts = [len(scale.points) for scales in features.values() for scale in scales]
    if num_pairs < MIN_PAIRS or np.mean(counts) < MIN_CORNERS:
        return None
    return (
        f"The cameras could not be checked: {num_pairs} pairs of neighboring images have only "
        f"{num_matches} matched points. Where images show as little in common as that, their poses "
        "are those of other images, or the photos are too far apart: find the poses again (jaxrf "
        "data photos)."
    )


def _alternatives(cameras: Cameras) -> Iterator[tuple[str, Cameras]]:
    """Other cameras that the files may mean, each with what is to be said of it."""
    poses = np.asarray(cameras.T_world_camera, np.float64)
    inverse = np.linalg.inv(poses)
    other_poses = {
        "the poses look like OpenCV's (y down, z forwards): --axes opencv": poses @ FLIP_YZ,
        "the matrices look like world-to-camera: invert them": inverse,
        "the matrices look like world-to-camera with OpenCV's axes: invert them, and then --axes "
        "opencv": inverse @ FLIP_YZ,
    }
    for text, matrices in other_poses.items():
        yield text, dataclasses.replace(cameras, T_world_camera=matrices)
    for factor in FOCAL_FACTORS:
        text = (
            f"a focal length of about {factor:.2g} times the present one fits better: check the "
            "focal length (or the angle of view) in the files, and the image size it belongs to"
        )
        yield text, dataclasses.replace(cameras, focal=np.asarray(cameras.focal) * factor)
    if cameras.distortion is not None:
        text = "they fit better without lens distortion: leave its coefficients out of the files"
        yield text, dataclasses.replace(cameras, distortion=None)
        text = "distortion of the opposite sign fits better: change the signs of its coefficients"
        yield text, dataclasses.replace(cameras, distortion=-np.asarray(cameras.distortion))
    if cameras.lens == "perspective":
        text = "a fisheye lens fits better: name the lens in the files as OPENCV_FISHEYE"
        yield text, dataclasses.replace(cameras, lens="fisheye", distortion=None)
    elif cameras.lens == "fisheye":
        text = "a perspective lens fits better: name the lens in the files as PINHOLE or OPENCV"
        yield text, dataclasses.replace(cameras, lens="perspective", distortion=None)


def _truncated_mean(error: Float[np.ndarray, "m"]) -> float:
    return float(np.minimum(error, MAX_ERROR).mean()) if len(error) else MAX_ERROR


def _describe(error: Float[np.ndarray, "m"]) -> str:
    middle = float(np.median(error))
    if not np.isfinite(middle):
        return "rays of matched points of neighboring images meet behind them"
    return f"matched points of neighboring images usually lie {middle:.2g} pixels off"


def _neighbors(poses: Float[np.ndarray, "n 4 4"]) -> list[tuple[int, int]]:
    """Pairs of a view and the nearest one that looks in nearly the same direction."""
    firsts = np.unique(np.linspace(0, len(poses) - 1, MAX_PAIRS).astype(int))
    nearest = nearest_views(poses, 1)
    return [(int(first), other) for first in firsts for other in nearest[first]]


def _all_neighbors(poses: Float[np.ndarray, "n 4 4"]) -> list[tuple[int, int]]:
    """Pairs of views and of several near ones, as many as `MAX_SPARSE_PAIRS`, evenly chosen."""
    near = nearest_views(poses, SPARSE_NEIGHBORS)
    pairs = sorted({(min(i, j), max(i, j)) for i, others in enumerate(near) for j in others})
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), MAX_SPARSE_PAIRS), dtype=int))
    return [pairs[index] for index in chosen]


def _successors(count: int) -> list[tuple[int, int]]:
    """Pairs of an image and the next one in the order of their names."""
    return [
        (int(i), int(i) + 1) for i in np.unique(np.linspace(0, count - 2, MAX_PAIRS, dtype=int))
    ]


def epipolar_error(cameras: Cameras, matches: Matches) -> Float[np.ndarray, "m"]:
    """Distance in pixels of matched points from the plane that both rays have to lie in.

    The root mean square of both points' angles to it, times the focal length. Infinite where the
    rays meet behind a camera.
    """
    poses = np.asarray(cameras.T_world_camera, np.float64)
    rays = [
        np.einsum("mij,mj->mi", poses[index, :3, :3], unproject(cameras, index, pixels))
        for index, pixels in (
            (matches.first, matches.pixels),
            (matches.second, matches.other_pixels),
        )
    ]
    baseline = poses[matches.second, :3, 3] - poses[matches.first, :3, 3]
    sines = []
    for ray, other in (rays, rays[::-1]):
        normal = np.cross(baseline, other)
        length = np.maximum(np.linalg.norm(normal, axis=-1), 1e-30)
        sines.append(np.sum(ray * normal, axis=-1) / length)
    focal = np.asarray(cameras.focal, np.float64).mean(axis=-1)
    focal = 0.5 * (focal[matches.first] + focal[matches.second])
    error = focal * np.sqrt(0.5 * (sines[0] ** 2 + sines[1] ** 2))
    return np.where(_meet_ahead(rays[0], rays[1], baseline), error, np.inf)


def _meet_ahead(
    ray: Float[np.ndarray, "m 3"],
    other: Float[np.ndarray, "m 3"],
    baseline: Float[np.ndarray, "m 3"],
) -> Bool[np.ndarray, "m"]:
    """Whether unit rays, the other from `baseline`, come closest to each other ahead of both."""
    cosine = np.sum(ray * other, axis=-1)
    along, other_along = np.sum(ray * baseline, axis=-1), np.sum(other * baseline, axis=-1)
    # Distances times the squared sine of the angle between the rays, which is not negative.
    return np.asarray((along > cosine * other_along) & (cosine * along > other_along))
