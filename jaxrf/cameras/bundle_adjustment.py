"""Bundle adjustment: the poses that fit matched points of images best.

Triggs, McLauchlan, Hartley, Fitzgibbon: Bundle adjustment, a modern synthesis (1999). Poses and
positions of points are improved together until the points appear where images show them, by
Levenberg and Marquardt's method with the points eliminated from each step (the Schur complement).
Letters in shapes: n cameras, p points, o observations of points in images, m matches.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.sparse import csgraph

from jaxrf.cameras.base import Cameras, project, unproject
from jaxrf.cameras.refinement import CameraAdjustment, adjust_cameras

NUM_STEPS = 50
# A step that lowers the cost by less than this share is the last.
MIN_PROGRESS = 1e-4
# How far given poses are usually off: radians, and shares of the distance of what they see. It
# keeps cameras where they are that hardly any point holds.
PRIOR_TURN, PRIOR_SHIFT = 0.2, 0.2
# Rays to a point differ by so many radians at least, or its distance says nothing.
MIN_ANGLE = 0.03
# Change of a position, as a share of its distance, by which derivatives of projections are taken.
DIFFERENCE = 1e-5


class Tracks(NamedTuple):
    """Points and where images show them: each in at least two images, at one place of each.

    camera, point: (o,) indices.
    pixels: (o, 2) column and row.
    """

    camera: Int[np.ndarray, "o"]
    point: Int[np.ndarray, "o"]
    pixels: Float[np.ndarray, "o 2"]


class Bundle(NamedTuple):
    """Poses, points, and how well they fit.

    poses: camera to world.
    positions: of the points, in the world.
    tracks: of those points that were used.
    error: distance in pixels of each observation from the projected point.
    """

    poses: Float[np.ndarray, "n 4 4"]
    positions: Float[np.ndarray, "p 3"]
    tracks: Tracks
    error: Float[np.ndarray, "o"]


def join_matches(
    first: Int[np.ndarray, "m"],
    second: Int[np.ndarray, "m"],
    pixels: Float[np.ndarray, "m 2"],
    other_pixels: Float[np.ndarray, "m 2"],
) -> Tracks:
    """Tracks of matches: those that share a place of an image show the same point.

    A track that comes back to an image at another place holds a wrong match and is left out.

    Args:
      first, second: indices of the images of each match.
      pixels, other_pixels: where they show it.
    """
    sides = ((first, pixels), (second, other_pixels))
    places = np.concatenate([np.column_stack([index, at]) for index, at in sides])
    distinct, number = np.unique(places, axis=0, return_inverse=True)
    a, b = number.reshape(2, -1)
    graph = sparse.coo_array((np.ones(len(a)), (a, b)), shape=(len(distinct),) * 2)
    count, point = csgraph.connected_components(graph, directed=False)
    camera = distinct[:, 0].astype(int)
    view_points = np.unique(np.column_stack([point, camera]), axis=0)[:, 0]
    is_right = np.bincount(view_points, minlength=count) == np.bincount(point, minlength=count)
    return _take(Tracks(camera, point, distinct[:, 1:]), is_right)


def _take(tracks: Tracks, mask: Bool[np.ndarray, "p"]) -> Tracks:
    """The tracks of some of the points, which are numbered anew."""
    number = np.cumsum(mask) - 1
    used = mask[tracks.point]
    return Tracks(tracks.camera[used], number[tracks.point[used]], tracks.pixels[used])


def triangulate(cameras: Cameras, tracks: Tracks) -> tuple[Float[np.ndarray, "p 3"], Tracks]:
    """The positions nearest to the rays of each track, and the tracks that have one.

    Rays have to meet ahead of the cameras, at a sufficient angle.
    """
    poses = np.asarray(cameras.T_world_camera, np.float64)[tracks.camera]
    local = unproject(cameras, tracks.camera, tracks.pixels)
    direction = np.einsum("oij,oj->oi", poses[:, :3, :3], local)
    count = int(tracks.point.max(initial=-1)) + 1
    across = np.eye(3) - direction[:, :, None] * direction[:, None, :]
    matrix = _sum_by(tracks.point, across, count)
    vector = _sum_by(tracks.point, np.einsum("oij,oj->oi", across, poses[:, :3, 3]), count)
    # The mean squared sine of the angles between the rays and their middle.
    spread = np.linalg.eigvalsh(matrix)[:, 0] / np.maximum(np.bincount(tracks.point), 1)
    matrix = matrix + 1e-9 * np.eye(3)
    positions = np.linalg.solve(matrix, vector[..., None])[..., 0]
    _, depth = project(cameras, tracks.camera, positions[tracks.point])
    is_ahead = np.bincount(tracks.point, weights=depth <= 0.0, minlength=count) == 0
    has_position = is_ahead & (spread > (0.5 * MIN_ANGLE) ** 2)
    return positions[has_position], _take(tracks, has_position)


def adjust_bundle(
    cameras: Cameras, tracks: Tracks, tolerance: float, moves: Bool[np.ndarray, "n"]
) -> Bundle:
    """The poses and points that fit the tracks best, near the given poses.

    The squared error of an observation, e^2, counts as log(1 + e^2 / s^2), so that wrong matches
    count little; s shrinks to the tolerance from the usual error under the given poses.

    Args:
      cameras: n cameras with given poses.
      tracks: at least one of them can be triangulated.
      tolerance: usual error of right observations, in pixels.
      moves: whether each pose may change.
    """
    positions, tracks = triangulate(cameras, tracks)
    poses = np.asarray(cameras.T_world_camera, np.float64)
    bundle = _measure(cameras, poses, positions, tracks)
    _, depth = project(cameras, tracks.camera, positions[tracks.point])
    distance = float(np.median(depth))
    prior = 1.0 / np.repeat([PRIOR_TURN, PRIOR_SHIFT * distance], 3) ** 2
    moved = np.zeros((len(poses), 6))
    scale = max(tolerance, float(np.median(bundle.error)))
    damping = 1e-3
    for _ in range(NUM_STEPS):
        cost = _cost(bundle, moved, prior, scale)
        system = _linearize(cameras, bundle, moved, prior, scale, moves)
        while damping < 1e6:
            camera_step, point_step = system.solve(damping)
            trial = _move(cameras, bundle, camera_step, point_step)
            trial_cost = _cost(trial, moved + camera_step, prior, scale)
            if trial_cost < cost:
                break
            damping *= 8.0
        else:
            break
        bundle, moved = trial, moved + camera_step
        damping = max(damping / 8.0, 1e-9)
        if scale > tolerance:
            scale = max(tolerance, 0.6 * scale)
        elif cost - trial_cost < MIN_PROGRESS * cost:
            break
    return bundle


def _measure(
    cameras: Cameras,
    poses: Float[np.ndarray, "n 4 4"],
    positions: Float[np.ndarray, "p 3"],
    tracks: Tracks,
) -> Bundle:
    cameras = dataclasses.replace(cameras, T_world_camera=poses)
    at, depth = project(cameras, tracks.camera, positions[tracks.point])
    error = np.linalg.norm(at - tracks.pixels, axis=-1)
    return Bundle(poses, positions, tracks, np.where(depth > 0.0, error, 1e6))


def _move(
    cameras: Cameras,
    bundle: Bundle,
    camera_step: Float[np.ndarray, "n 6"],
    point_step: Float[np.ndarray, "p 3"],
) -> Bundle:
    moved = adjust_cameras(
        dataclasses.replace(cameras, T_world_camera=bundle.poses), CameraAdjustment(camera_step), np
    )
    poses = np.asarray(moved.T_world_camera)
    return _measure(cameras, poses, bundle.positions + point_step, bundle.tracks)


def _cost(
    bundle: Bundle, moved: Float[np.ndarray, "n 6"], prior: Float[np.ndarray, "6"], scale: float
) -> float:
    observed = np.sum(np.log1p((bundle.error / scale) ** 2))
    return float(observed + np.sum(prior * moved**2))


class _System(NamedTuple):
    """The equations of a step: gradients, and blocks of the Gauss-Newton matrix.

    camera_blocks, point_blocks: of each camera's, and of each point's own numbers.
    cross: those of cameras against those of points.
    camera_gradient, point_gradient: half the slopes of the cost.
    """

    camera_blocks: Float[np.ndarray, "n 6 6"]
    point_blocks: Float[np.ndarray, "p 3 3"]
    cross: sparse.csr_array
    camera_gradient: Float[np.ndarray, "n 6"]
    point_gradient: Float[np.ndarray, "p 3"]

    def solve(self, damping: float) -> tuple[Float[np.ndarray, "n 6"], Float[np.ndarray, "p 3"]]:
        """The step of cameras and points; damping multiplies the diagonal, plus one."""
        cameras = self.camera_blocks + _diagonals(self.camera_blocks, damping)
        points = self.point_blocks + _diagonals(self.point_blocks, damping)
        inverse = np.linalg.inv(points + 1e-12 * np.eye(3))
        count = len(inverse)
        blocks = sparse.bsr_array(
            (inverse, np.arange(count), np.arange(count + 1)), shape=(3 * count, 3 * count)
        )
        eliminated = self.cross @ blocks.tocsr()
        schur = sparse.block_diag(list(cameras)).toarray() - (eliminated @ self.cross.T).toarray()
        right = eliminated @ self.point_gradient.ravel() - self.camera_gradient.ravel()
        camera_step = np.linalg.solve(schur, right)
        right_points = -self.point_gradient - (self.cross.T @ camera_step).reshape(-1, 3)
        return camera_step.reshape(-1, 6), np.einsum("pij,pj->pi", inverse, right_points)


def _diagonals(blocks: Float[np.ndarray, "b d d"], factor: float) -> Float[np.ndarray, "b d d"]:
    size = blocks.shape[-1]
    diagonal = np.einsum("bii->bi", blocks)
    return factor * diagonal[:, :, None] * np.eye(size)


def _linearize(
    cameras: Cameras,
    bundle: Bundle,
    moved: Float[np.ndarray, "n 6"],
    prior: Float[np.ndarray, "6"],
    scale: float,
    moves: Bool[np.ndarray, "n"],
) -> _System:
    tracks = bundle.tracks
    cameras = dataclasses.replace(cameras, T_world_camera=bundle.poses)
    at, _ = project(cameras, tracks.camera, bundle.positions[tracks.point])
    residual = at - tracks.pixels
    by_camera, by_point = _slopes(cameras, tracks, bundle.positions)
    by_camera = by_camera * moves[tracks.camera][:, None, None]
    # Half the slope of log(1 + e^2 / s^2) is e times this weight (iteratively reweighted squares).
    weight = 1.0 / (scale**2 + bundle.error**2)
    weighted_camera, weighted_point = (
        weight[:, None, None] * slopes for slopes in (by_camera, by_point)
    )
    num_cameras, num_points = len(bundle.poses), len(bundle.positions)
    camera_blocks = np.einsum("oki,okj->oij", weighted_camera, by_camera)
    point_blocks = np.einsum("oki,okj->oij", weighted_point, by_point)
    camera_gradient = np.einsum("oki,ok->oi", weighted_camera, residual)
    point_gradient = np.einsum("oki,ok->oi", weighted_point, residual)
    cross = np.einsum("oki,okj->oij", weighted_camera, by_point)
    rows = np.broadcast_to(6 * tracks.camera[:, None, None] + np.arange(6)[:, None], cross.shape)
    columns = np.broadcast_to(3 * tracks.point[:, None, None] + np.arange(3), cross.shape)
    return _System(
        _sum_by(tracks.camera, camera_blocks, num_cameras) + np.diag(prior),
        _sum_by(tracks.point, point_blocks, num_points),
        sparse.csr_array(
            (cross.ravel(), (rows.ravel(), columns.ravel())),
            shape=(6 * num_cameras, 3 * num_points),
        ),
        _sum_by(tracks.camera, camera_gradient, num_cameras) + prior * moved,
        _sum_by(tracks.point, point_gradient, num_points),
    )


def _slopes(
    cameras: Cameras, tracks: Tracks, positions: Float[np.ndarray, "p 3"]
) -> tuple[Float[np.ndarray, "o 2 6"], Float[np.ndarray, "o 2 3"]]:
    """Derivatives of image points in the numbers of their camera's pose, and of their point."""
    poses = np.asarray(cameras.T_world_camera, np.float64)
    rotation = poses[tracks.camera, :3, :3]
    shift = positions[tracks.point] - poses[tracks.camera, :3, 3]
    local = np.einsum("oji,oj->oi", rotation, shift)
    at_origin = dataclasses.replace(cameras, T_world_camera=np.broadcast_to(np.eye(4), poses.shape))
    change = DIFFERENCE * np.linalg.norm(local, axis=-1, keepdims=True)
    sides = [
        project(at_origin, tracks.camera, local + change * axis)[0]
        - project(at_origin, tracks.camera, local - change * axis)[0]
        for axis in np.eye(3)
    ]
    by_local = np.stack(sides, axis=-1) / (2.0 * change[..., None])
    # A camera that turns by v sees a point at p move by p x v, and one that moves by t, by -t.
    by_turn = np.cross(by_local, local[:, None, :])
    by_pose = np.concatenate([by_turn, -by_local], axis=-1)
    return by_pose, by_local @ np.swapaxes(rotation, 1, 2)


def _sum_by(
    index: Int[np.ndarray, "o"], values: Float[np.ndarray, "o *shape"], count: int
) -> Float[np.ndarray, "count *shape"]:
    """Sums of the values of each index."""
    ones = np.ones(len(index))
    chooser = sparse.csr_array((ones, (index, np.arange(len(index)))), shape=(count, len(index)))
    sums = chooser @ values.reshape(len(index), math.prod(values.shape[1:]))
    return np.asarray(sums).reshape(count, *values.shape[1:])
