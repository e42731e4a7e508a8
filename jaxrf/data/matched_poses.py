"""Poses that fit the matched points of a data set's images, where the given ones do not.

Points that neighboring images show both hold their cameras to a fraction of a pixel within seconds,
so a training that refines cameras begins with these poses. What is left is smaller than the error
of the points and is for the training.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxrf.cameras import bundle_adjustment
from jaxrf.cameras.bundle_adjustment import Bundle
from jaxrf.cameras.refinement import CameraAdjustment
from jaxrf.cameras.transforms import fit_pose_similarity, transform_poses
from jaxrf.data.correspondences import Features
from jaxrf.data.matches import Matches, match_pairs, nearest_views, reduction
from jaxrf.data.scene import Split

# Views that each view is matched with, and those of a view that too few points hold.
NUM_NEIGHBORS, NUM_FURTHER_NEIGHBORS = 4, 12
# A camera with fewer points stays, and if a smaller share of the cameras has enough, all stay.
MIN_POINTS, MIN_SHARE = 30, 0.5
# Share of the matches of two images that two cameras explain; wrong ones count little later.
MIN_RIGHT_SHARE = 0.3
# Usual error of points, and the error up to which they count, in pixels of the reduced images.
TOLERANCE, MAX_ERROR = 1.0, 3.0
# A pose is wrong if another brings the mean error of its points below this share, by so many pixels
# of the reduced image at least: points are not more exact.
MIN_RATIO, MIN_GAIN = 0.7, 0.2


class MatchedPoses(NamedTuple):
    """How poses have to change to fit matched points, and how well they fit.

    adjustment: of each camera.
    num_moved: number of cameras that change.
    num_pairs: pairs of images that were compared.
    error, error_before: the usual errors in pixels under the adjusted and the given poses, of the
      cameras that change.
    """

    adjustment: CameraAdjustment
    num_moved: int
    num_pairs: int
    error: float
    error_before: float

    def describe(self) -> str:
        """A sentence for the user."""
        return (
            f"{self.num_moved} of {len(self.adjustment.pose)} poses are corrected by matched "
            f"points of {self.num_pairs} pairs of images: they usually lay {self.error_before:.2g} "
            f"pixels off and now {self.error:.2g}; training refines them further."
        )


def match_poses(split: Split) -> MatchedPoses | None:
    """Poses that fit matched points better than the given ones.

    None if the given ones fit as well, or if too few points are found. The corrected poses are
    moved by the similarity that brings them nearest to the given ones, as no image shows it.

    Args:
      split: images and given poses.
    """
    cameras, count = split.cameras, len(split)
    if count < 3:
        return None
    matches, num_pairs = _match_neighbors(split)
    if not len(matches.first):
        return None
    _, tracks = bundle_adjustment.triangulate(cameras, bundle_adjustment.join_matches(*matches))
    moves = np.bincount(tracks.camera, minlength=count) >= MIN_POINTS
    if moves.mean() < MIN_SHARE:
        return None
    pixel = 1.0 / reduction(split)

    def adjust(allowed: Bool[np.ndarray, "n"]) -> Bundle:
        return bundle_adjustment.adjust_bundle(cameras, tracks, TOLERANCE * pixel, allowed)

    before, after = adjust(np.zeros(count, bool)), adjust(moves)
    costs, costs_before = (_camera_costs(bundle, MAX_ERROR * pixel) for bundle in (after, before))
    wrong = moves & (costs < np.minimum(MIN_RATIO * costs_before, costs_before - MIN_GAIN * pixel))
    if not wrong.any():
        return None
    poses = np.asarray(cameras.T_world_camera, np.float64)
    if wrong.mean() < MIN_SHARE:
        # Right poses are more exact than points, and hold the others.
        moves, after = wrong, adjust(wrong)
        corrected = after.poses
    else:
        frame = fit_pose_similarity(after.poses[moves], poses[moves])
        corrected = transform_poses(frame, after.poses)
        corrected = np.where(moves[:, None, None], corrected, poses)
    error_before, error = (_usual_error(bundle, moves) for bundle in (before, after))
    return MatchedPoses(
        pose_difference(poses, corrected), int(moves.sum()), num_pairs, error, error_before
    )


def _camera_costs(bundle: Bundle, max_error: float) -> Float[np.ndarray, "n"]:
    """Mean error of each camera's points, none of which counts more than `max_error`."""
    camera, count = bundle.tracks.camera, len(bundle.poses)
    total = np.bincount(camera, np.minimum(bundle.error, max_error), minlength=count)
    return total / np.maximum(np.bincount(camera, minlength=count), 1)


def _usual_error(bundle: Bundle, mask: Bool[np.ndarray, "n"]) -> float:
    return float(np.median(bundle.error[mask[bundle.tracks.camera]]))


def pose_difference(
    poses: Float[np.ndarray, "n 4 4"], others: Float[np.ndarray, "n 4 4"]
) -> CameraAdjustment:
    """The adjustment that turns poses into others."""
    from scipy.spatial.transform import Rotation

    back = np.swapaxes(poses[:, :3, :3], 1, 2)
    turn = Rotation.from_matrix(back @ others[:, :3, :3]).as_rotvec()
    shift = np.einsum("nij,nj->ni", back, others[:, :3, 3] - poses[:, :3, 3])
    return CameraAdjustment(np.concatenate([turn, shift], axis=-1).astype(np.float32))


def _match_neighbors(split: Split) -> tuple[Matches, int]:
    """Matches of each view with its neighbors, and with further ones where they are few."""
    poses = np.asarray(split.cameras.T_world_camera, np.float64)
    features: dict[int, list[Features]] = {}
    near, further = (nearest_views(poses, k) for k in (NUM_NEIGHBORS, NUM_FURTHER_NEIGHBORS))
    pairs = _distinct((i, j) for i, others in enumerate(near) for j in others)
    matches = match_pairs(split, pairs, features, MIN_RIGHT_SHARE)
    num_matches = np.bincount(np.concatenate([matches.first, matches.second]), minlength=len(poses))
    scarce = np.flatnonzero(num_matches < 2 * MIN_POINTS)
    more = _distinct((int(i), j) for i in scarce for j in further[i])
    more = [pair for pair in more if pair not in pairs]
    others = match_pairs(split, more, features, MIN_RIGHT_SHARE)
    joined = Matches(*(np.concatenate(arrays) for arrays in zip(matches, others, strict=True)))
    return joined, len(pairs) + len(more)


def _distinct(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted({(min(pair), max(pair)) for pair in pairs})
