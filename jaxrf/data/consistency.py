"""Whether images fit their poses and lenses: matched points of neighboring views.

Two rays through the same point of the world lie in one plane with both cameras' positions. How far
matched points are from it, under the cameras of the files and under others, shows which axes the
poses are in, and whether focal length and distortion are right (Hartley and Zisserman: Multiple
View Geometry, section 9.2).
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from jaxrf.cameras import lenses
from jaxrf.cameras.base import Cameras
from jaxrf.cameras.lenses import Lens
from jaxrf.cameras.transforms import invert_transform, transform_poses
from jaxrf.data.correspondences import (
    Features,
    find_features,
    fits_fundamental_matrix,
    match_features,
)
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.scene import Scene, Split

# Width and height to which images are reduced at most.
MAX_SIZE = 320
MAX_PAIRS = 8
# Degrees between the axes of two cameras that are compared, at most.
MAX_ANGLE = 35.0
# Fewer matches say nothing, of one pair of images and of all pairs; two images show different
# things if no two cameras explain this share of their matches.
MIN_MATCHES, MIN_TOTAL, MIN_RIGHT_SHARE = 20, 100, 0.5
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


class _Matches(NamedTuple):
    """Points of the world that two images show.

    first, second: (m,) indices of the images.
    pixels, other_pixels: (m, 2) where they show it, in pixels of the images.
    """

    first: Int[np.ndarray, "m"]
    second: Int[np.ndarray, "m"]
    pixels: Float[np.ndarray, "m 2"]
    other_pixels: Float[np.ndarray, "m 2"]


def find_better_cameras(scene: Scene) -> str | None:
    """A sentence on what the cameras of a scene seem to be instead; None if they fit the images.

    Says nothing about scenes of fewer than four images or of too little texture.
    """
    split = scene.splits.get("train") or next(iter(scene.splits.values()))
    if len(split) < 4:
        return None
    # In the axes of the files, in which they are inverted.
    poses = transform_poses(
        invert_transform(scene.frame), np.asarray(split.cameras.T_world_camera, np.float64)
    )
    cameras = dataclasses.replace(split.cameras, T_world_camera=poses)
    scale = _reduction(split)
    features: dict[int, list[Features]] = {}
    pairs = _neighbors(poses)
    matches = match_pairs(split, pairs, features)
    error = epipolar_error(cameras, matches)
    if len(matches.first) < MIN_TOTAL or _truncated_mean(scale * error) > MAX_BEST_ERROR:
        # Wrong poses have wrong neighbors.
        pairs += _neighbors(np.linalg.inv(poses)) + _successors(len(poses))
        matches = match_pairs(split, list(dict.fromkeys(pairs)), features)
        error = epipolar_error(cameras, matches)
    cost = _truncated_mean(scale * error)
    if len(matches.first) < MIN_TOTAL or cost < GOOD_ERROR:
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
            "belongs to its image, and the lens, or find both from the images (jaxrf data photos)."
        )
    return None


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


def match_pairs(
    split: Split, pairs: list[tuple[int, int]], features: dict[int, list[Features]]
) -> _Matches:
    """Matched points of those pairs of images that show the same things.

    Points that no pair of pinhole cameras would show at these places are left out.

    Args:
      split: of the images; pixels that its masks exclude are not looked at.
      pairs: indices of images.
      features: of images that were looked at before; those of others are added.
    """
    rng = np.random.default_rng(0)
    scale = _reduction(split)
    matches = [_Matches(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)), np.zeros((0, 2)))]
    for pair in pairs:
        for index in pair:
            if index not in features:
                features[index] = _image_features(split, index)
        pixels, other_pixels = match_features(*(features[index] for index in pair))
        right = fits_fundamental_matrix(pixels * scale, other_pixels * scale, rng)
        if right.sum() < max(MIN_MATCHES, MIN_RIGHT_SHARE * len(right)):
            continue
        first, second = (np.full(int(right.sum()), index) for index in pair)
        matches.append(_Matches(first, second, pixels[right], other_pixels[right]))
    return _Matches(*(np.concatenate(arrays) for arrays in zip(*matches, strict=True)))


def _reduction(split: Split) -> float:
    return min(MAX_SIZE / max(split.images.shape[1:3]), 1.0)


def _image_features(split: Split, index: int) -> list[Features]:
    """Features of an image, found in a smaller one; their points are in pixels of the image."""
    width, height = split.image_size(index)
    scale = _reduction(split)
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


def _neighbors(poses: Float[np.ndarray, "n 4 4"]) -> list[tuple[int, int]]:
    """Pairs of a view and a near one that looks in nearly the same direction."""
    positions, axes = poses[:, :3, 3], poses[:, :3, 2]
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    usual = float(np.median(distance))
    turned = axes @ axes.T < np.cos(np.radians(MAX_ANGLE))
    distance = np.where(turned | (distance <= 1e-3 * usual), np.inf, distance)
    firsts = np.unique(np.linspace(0, len(poses) - 1, MAX_PAIRS).astype(int))
    nearest = distance.argmin(axis=1)
    return [(int(i), int(nearest[i])) for i in firsts if np.isfinite(distance[i, nearest[i]])]


def _successors(count: int) -> list[tuple[int, int]]:
    """Pairs of an image and the next one in the order of their names."""
    return [
        (int(i), int(i) + 1) for i in np.unique(np.linspace(0, count - 2, MAX_PAIRS, dtype=int))
    ]


def epipolar_error(cameras: Cameras, matches: _Matches) -> Float[np.ndarray, "m"]:
    """Distance in pixels of matched points from the plane that both rays have to lie in.

    The root mean square of both points' angles to it, times the focal length. Infinite where the
    rays meet behind a camera.
    """
    poses = np.asarray(cameras.T_world_camera, np.float64)
    rays = [
        np.einsum("mij,mj->mi", poses[index, :3, :3], _directions(cameras, index, pixels))
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


def _undistort(
    lens: Lens, coefficients: Float[np.ndarray, "m k"], image_point: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "m 2"]:
    """`lenses.undistort` in numpy, as compiling it would take longer than all else here."""
    point, step = image_point, 1e-5

    def bend(point: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "m 2"]:
        return np.asarray(lenses.distort(lens, coefficients, point, xp=np))

    for _ in range(lenses.NEWTON_STEPS):
        sides = [
            (bend(point + axis) - bend(point - axis)) / (2 * step) for axis in step * np.eye(2)
        ]
        jacobian = np.stack(sides, axis=-1)
        regular = np.abs(np.linalg.det(jacobian)) > 1e-6
        jacobian = np.where(regular[:, None, None], jacobian, 1e6 * np.eye(2))
        change = np.linalg.solve(jacobian, (image_point - bend(point))[..., None])[..., 0]
        point = point + np.clip(change, -0.5, 0.5)
    return point


def _directions(
    cameras: Cameras, index: Int[np.ndarray, "m"], pixels: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "m 3"]:
    """Unit directions of pixels in their cameras' axes."""
    focal = np.asarray(cameras.focal, np.float64)[index]
    point = (pixels - np.asarray(cameras.principal_point, np.float64)[index]) / focal
    if cameras.distortion is not None:
        point = _undistort(cameras.lens, np.asarray(cameras.distortion, np.float64)[index], point)
    direction = lenses.point_to_direction(cameras.lens, point, xp=np)
    return np.asarray(direction, np.float64) * np.array([1.0, -1.0, -1.0])
