"""Where the scene is in the coordinates of a data set: its transform, box and range of rays."""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float

from jaxrf.cameras.poses import focus_point
from jaxrf.cameras.transforms import (
    DEFAULT_FAR,
    DEFAULT_NEAR,
    UNIT_AABB,
    SimilarityTransform,
    center_and_scale,
    identity_transform,
    looks_forward,
    recenter_poses,
    transform_poses,
    transform_positions,
)
from jaxrf.data.frames import BoxRegion, CaptureRegion, ObjectRegion, Region
from jaxrf.data.options import LoadOptions

# All objects of NeRF-synthetic fit into this box; its cameras are 4.03 units from the origin.
OBJECT_AABB = ((-1.5, -1.5, -1.5), (1.5, 1.5, 1.5))
OBJECT_NEAR, OBJECT_FAR, OBJECT_DISTANCE = 2.0, 6.0, 4.03
# Mean distances of cameras from the origin for which those numbers hold.
OBJECT_DISTANCES = (3.3, 4.9)
# Cameras this many times as far from the middle of all cameras as half of them are placed wrongly.
OUTLIER_RATIO = 20.0
# Distance of the near plane of NDC; the nearest object has distance 4/3 (`recenter_poses`).
NEAR_PLANE = 1.0
# Width of all views together, in views, and smallest cosine between a ray and the mean axis, with
# which NDC are used: 75 degrees.
MAX_NDC_WIDTH = 4.0
MIN_NDC_COSINE = math.cos(math.radians(75.0))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a scene is.

    Attributes:
      transform: from the files' coordinates to the scene's.
      aabb: (2, 3) of the scene, in its units.
      near, far: of its rays, in its units.
      unbounded: whether cameras see space around the box.
      near_plane: of normalized device coordinates, in scene units; None for rays in space.
      may_carve: whether the box and range are better taken from the silhouettes of transparent
        images.
    """

    transform: SimilarityTransform
    aabb: Float[np.ndarray, "2 3"]
    near: float
    far: float
    unbounded: bool
    near_plane: float | None = None
    may_carve: bool = False


def find_outliers(poses: Float[np.ndarray, "n 4 4"]) -> Bool[np.ndarray, "n"]:
    """Cameras that are so far from all others that their pose must be wrong.

    Farther from the median position than `OUTLIER_RATIO` times the median distance. Never more than
    a tenth of the cameras (or one), as then they are another part of the capture.
    """
    positions = poses[:, :3, 3].astype(np.float64)
    distances = np.linalg.norm(positions - np.median(positions, axis=0), axis=-1)
    outliers = distances > OUTLIER_RATIO * max(float(np.median(distances)), 1e-9)
    if outliers.sum() > max(1, len(poses) // 10) or len(poses) < 5:
        return np.zeros(len(poses), bool)
    return outliers


def find_placement(
    region: Region,
    poses: Float[np.ndarray, "n 4 4"],
    slopes: tuple[float, float],
    options: LoadOptions,
) -> Placement:
    """The placement of a scene, by the rule of its kind and the options that override it.

    Args:
      region: what the data set says of it.
      poses: camera-to-world, OpenGL axes, in the files' coordinates, without outliers.
      slopes: tangents of half the widest angles of view, across and down.
      options: near, far, box, center, scale_to and ndc are used.
    """
    placement = _find_by_region(region, poses, slopes, options)
    scale = placement.transform.scale
    if options.box is not None:
        low, high = np.array(options.box[:3]), np.array(options.box[3:])
        aabb = np.stack([transform_positions(placement.transform, v) for v in (low, high)])
        near, far = box_distance_range(transform_poses(placement.transform, poses), aabb)
        placement = dataclasses.replace(
            placement, aabb=aabb, near=near, far=far, unbounded=False, may_carve=False
        )
    if options.near is not None:
        placement = dataclasses.replace(placement, near=options.near * scale)
    if options.far is not None:
        placement = dataclasses.replace(placement, far=options.far * scale)
    if placement.near >= placement.far:
        far = 2.0 * placement.near if options.far is None else placement.far
        placement = dataclasses.replace(placement, near=min(placement.near, 0.5 * far), far=far)
    return placement


def _find_by_region(
    region: Region,
    poses: Float[np.ndarray, "n 4 4"],
    slopes: tuple[float, float],
    options: LoadOptions,
) -> Placement:
    is_moved = options.center is not None or options.scale_to is not None
    match region:
        case CaptureRegion():
            forward = region.nearest is not None and options.box is None and not is_moved
            forward = forward and faces_forward(poses, slopes)
            if forward if options.ndc is None else options.ndc:
                return _find_forward(poses, region, slopes)
            return _find_captured(poses, region, options)
        case BoxRegion(box):
            transform = _move(identity_transform(), poses, options)
            aabb = np.stack([transform_positions(transform, corner) for corner in box])
            near, far = box_distance_range(transform_poses(transform, poses), aabb)
            return Placement(transform, aabb, near, far, unbounded=False)
        case ObjectRegion():
            return _find_object(poses, slopes, options)


def _find_forward(
    poses: Float[np.ndarray, "n 4 4"], region: CaptureRegion, slopes: tuple[float, float]
) -> Placement:
    """In normalized device coordinates, from the near plane to infinity."""
    nearest = region.nearest or 2.0 * (region.near or 0.5)
    transform = recenter_poses(poses, nearest)
    aabb = _ndc_aabb(transform_poses(transform, poses), slopes)
    near, far = 0.9 * nearest * transform.scale, (region.far or 10.0 * nearest) * transform.scale
    return Placement(transform, aabb, near, far, unbounded=False, near_plane=NEAR_PLANE)


def _find_captured(
    poses: Float[np.ndarray, "n 4 4"], region: CaptureRegion, options: LoadOptions
) -> Placement:
    """Upright and centered, cameras within +-1; a box that is given keeps the files' axes."""
    transform = center_and_scale(poses) if options.box is None else _scale_to_cameras(poses)
    transform = _move(transform, poses, options)
    near = DEFAULT_NEAR if region.near is None else max(region.near * transform.scale, 1e-3)
    far = DEFAULT_FAR if region.far is None else region.far * transform.scale
    return Placement(transform, np.array(UNIT_AABB), near, far, unbounded=True, may_carve=True)


def _find_object(
    poses: Float[np.ndarray, "n 4 4"], slopes: tuple[float, float], options: LoadOptions
) -> Placement:
    """NeRF's box and range if the cameras are at its distance, else scaled so that they are."""
    positions = poses[:, :3, 3]
    distance = float(np.linalg.norm(positions, axis=-1).mean()) if len(poses) else OBJECT_DISTANCE
    aabb = np.array(OBJECT_AABB)
    is_usual = OBJECT_DISTANCES[0] <= distance <= OBJECT_DISTANCES[1]
    if is_usual and options.center is None and options.scale_to is None:
        return Placement(identity_transform(), aabb, OBJECT_NEAR, OBJECT_FAR, unbounded=False)
    center = focus_point(poses)
    ahead = np.einsum("ni,ni->n", center - positions, -poses[:, :3, 2]) > 0
    if ahead.mean() < 0.5:
        # The cameras look outwards, as in a room.
        return _find_captured(poses, CaptureRegion(), options)
    from_center = float(np.linalg.norm(positions - center, axis=-1).mean())
    # An object that is modeled off the origin only a little keeps its origin.
    if np.linalg.norm(center) < 0.25 * from_center:
        center, from_center = np.zeros(3), distance
    scale = OBJECT_DISTANCE / max(from_center, 1e-9)
    transform = SimilarityTransform(scale, np.eye(3), -scale * center)
    transform = _move(transform, poses, options)
    radius = from_center * transform.scale
    middle = transform_positions(transform, center)
    half = min(1.04 * radius * max(slopes), 0.9 * radius)
    aabb = np.stack([middle - half, middle + half])
    near, far = box_distance_range(transform_poses(transform, poses), aabb)
    return Placement(transform, aabb, near, far, unbounded=False, may_carve=True)


def _move(
    transform: SimilarityTransform, poses: Float[np.ndarray, "n 4 4"], options: LoadOptions
) -> SimilarityTransform:
    """A transform with the middle and the scale that options ask for."""
    if options.center is None and options.scale_to is None:
        return transform
    if options.center is None:
        middle = np.zeros(3)
    else:
        middle = transform_positions(transform, np.array(options.center))
    scale = 1.0
    if options.scale_to is not None:
        positions = transform_positions(transform, poses[:, :3, 3]) - middle
        scale = options.scale_to / max(float(np.abs(positions).max(initial=0.0)), 1e-9)
    return SimilarityTransform(
        transform.scale * scale, transform.rotation, scale * (transform.shift - middle)
    )


def _scale_to_cameras(poses: Float[np.ndarray, "n 4 4"]) -> SimilarityTransform:
    """Cameras within +-1 around their middle, with the files' axes."""
    positions = poses[:, :3, 3]
    middle = positions.mean(axis=0)
    scale = 1.0 / max(float(np.abs(positions - middle).max()), 1e-9)
    return SimilarityTransform(scale, np.eye(3), -scale * middle)


def faces_forward(poses: Float[np.ndarray, "n 4 4"], slopes: tuple[float, float]) -> bool:
    """Whether all rays of all cameras leave along the mean axis, so that NDC hold.

    All cameras look within 60 degrees of their mean direction, the corners of all images within 75
    degrees of it, and all of them together are not much wider than one.
    """
    if not looks_forward(poses):
        return False
    back = poses[:, :3, 2].mean(axis=0)
    corners = np.array([[x * slopes[0], y * slopes[1], -1.0] for x in (-1, 1) for y in (-1, 1)])
    corners /= np.linalg.norm(corners, axis=-1, keepdims=True)
    directions = np.einsum("nij,kj->nki", poses[:, :3, :3], corners)
    cosine = float(np.min(directions @ -(back / np.linalg.norm(back))))
    if cosine < MIN_NDC_COSINE:
        return False
    return math.sqrt(1.0 - cosine**2) / cosine < MAX_NDC_WIDTH * math.hypot(*slopes)


def _ndc_aabb(
    poses: Float[np.ndarray, "n 4 4"], slopes: tuple[float, float]
) -> Float[np.ndarray, "2 3"]:
    """Box in NDC around the views of all cameras, from the near plane to infinity."""
    sides, plane = np.array(slopes), NEAR_PLANE
    corners = np.array([[x, y, -1.0] for x in (-1, 1) for y in (-1, 1)])
    corners[:, :2] *= sides
    directions = np.einsum("nij,kj->nki", poses[:, :3, :3], corners)
    ahead = np.maximum(-directions[..., 2:], 1e-3)
    origins = np.broadcast_to(poses[:, None, :3, 3], directions.shape)
    near = origins + (plane + origins[..., 2:]) / ahead * directions
    ends = np.concatenate(
        [near[..., :2] / (sides * plane), directions[..., :2] / (sides * ahead)], axis=0
    ).reshape(-1, 2)
    low, high = ends.min(axis=0), ends.max(axis=0)
    assert math.isfinite(low.sum() + high.sum())
    return np.array([[*low, -1.0], [*high, 1.0]])


def box_distance_range(
    poses: Float[np.ndarray, "n 4 4"], aabb: Float[np.ndarray, "2 3"], min_ratio: float = 0.05
) -> tuple[float, float]:
    """Smallest and largest distance of a box from cameras.

    The smallest one is at least `min_ratio` of the largest one.
    """
    positions = poses[:, :3, 3].astype(np.float64)
    outside = np.maximum(np.maximum(aabb[0] - positions, positions - aabb[1]), 0)
    nearest = np.linalg.norm(outside, axis=-1)
    far_corner = np.maximum(np.abs(positions - aabb[0]), np.abs(positions - aabb[1]))
    farthest = float(np.linalg.norm(far_corner, axis=-1).max())
    return max(float(nearest.min()), min_ratio * farthest), farthest
