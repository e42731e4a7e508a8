"""Pixels to rays against loops, where pixel centers lie, and paths of cameras."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import assert_looks

from jaxrf.cameras.base import (
    Cameras,
    apply_ray_convention,
    frustum_planes,
    image_rays,
    make_cameras,
    pixels_to_rays,
    project,
    resize_cameras,
)
from jaxrf.cameras.ndc import distance_to_ndc, ndc_to_distance, rays_to_ndc
from jaxrf.cameras.poses import focus_point, look_at, shift_near_far
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core.rays import Rays
from jaxrf.rendering.volume import RadianceFns, render_samples
from jaxrf.sampling.intervals import stratified

rays_through = jax.jit(pixels_to_rays, static_argnames=("near", "far"))


def make_rig() -> Cameras:
    """Cameras that have nothing in common: not square, off-center, fx is not fy."""
    rng = np.random.default_rng(0)
    eyes = rng.normal(size=(3, 3)) * 2.0 + np.array([0.0, 0.0, 5.0])
    poses = np.stack([look_at(eye, rng.normal(size=3)) for eye in eyes])
    return Cameras(
        T_world_camera=poses.astype(np.float32),
        focal=rng.uniform(8.0, 20.0, (3, 2)).astype(np.float32),
        principal_point=np.array([[4.2, 3.1], [6.0, 2.0], [3.3, 4.9]], np.float32),
        width=9,
        height=7,
    )


def unmoved_camera(width: int, height: int, angle: float = 0.9) -> Cameras:
    return make_cameras(np.eye(4)[None], width, height, angle)


def ray_slowly(cameras: Cameras, index: int, column: float, row: float) -> np.ndarray:
    """Direction of the ray through an image point, by a loop in float64."""
    fx, fy = (float(f) for f in cameras.focal[index])
    cx, cy = (float(c) for c in cameras.principal_point[index])
    local = [(column - cx) / fx, -(row - cy) / fy, -1.0]
    length = math.sqrt(sum(v * v for v in local))
    return np.array(
        [
            sum(float(cameras.T_world_camera[index][i, j]) * local[j] / length for j in range(3))
            for i in range(3)
        ]
    )


@pytest.mark.parametrize("batch", [(), (8,), (2, 3)])
def test_pixels_to_rays_equals_loop_for_any_batch_shape(batch: tuple[int, ...]) -> None:
    cameras, rng = make_rig(), np.random.default_rng(1)
    index = rng.integers(0, 3, batch)
    pixels = rng.uniform(0, 9, (*batch, 2)).astype(np.float32)
    rays = rays_through(
        cameras, jnp.asarray(index, jnp.int32), jnp.asarray(pixels), near=0.5, far=8.0
    )
    assert rays.directions.shape == rays.origins.shape == (*batch, 3)
    assert rays.near.shape == rays.far.shape == rays.radii.shape == batch
    np.testing.assert_array_equal(rays.near, 0.5)
    np.testing.assert_array_equal(rays.far, 8.0)
    np.testing.assert_array_equal(rays.camera_index, index)
    for at in np.ndindex(batch):
        camera, (column, row) = int(index[at]), (float(p) for p in pixels[at])
        direction = ray_slowly(cameras, camera, column, row)
        np.testing.assert_allclose(rays.directions[at], direction, atol=1e-6)
        np.testing.assert_array_equal(rays.origins[at], cameras.T_world_camera[camera][:3, 3])
        right = np.linalg.norm(ray_slowly(cameras, camera, column + 1.0, row) - direction)
        below = np.linalg.norm(ray_slowly(cameras, camera, column, row + 1.0) - direction)
        radius = math.sqrt(right * below) * 2.0 / math.sqrt(12.0)
        assert float(rays.radii[at]) == pytest.approx(radius, rel=1e-4)


def test_pixels_to_rays_directions_have_unit_length() -> None:
    rays = image_rays(make_rig(), 1, 0.0, 1.0)
    np.testing.assert_allclose(np.linalg.norm(rays.directions, axis=-1), 1.0, atol=1e-6)


def test_pixels_to_rays_at_principal_point_is_the_optical_axis() -> None:
    cameras = make_rig()
    rays = rays_through(
        cameras, jnp.arange(3), jnp.asarray(cameras.principal_point), near=0.0, far=1.0
    )
    np.testing.assert_allclose(rays.directions, -cameras.T_world_camera[:, :3, 2], atol=1e-6)


def test_center_of_an_odd_sized_image_is_the_center_of_its_middle_pixel() -> None:
    rays = image_rays(unmoved_camera(7, 5), 0, 0.0, 1.0)
    np.testing.assert_allclose(rays.directions[2, 3], [0.0, 0.0, -1.0], atol=1e-7)


def test_middle_of_an_even_sized_image_lies_between_its_four_middle_pixels() -> None:
    cameras = unmoved_camera(8, 6)
    rays, focal = image_rays(cameras, 0, 0.0, 1.0), float(cameras.focal[0, 0])
    for row, up in ((2, 0.5), (3, -0.5)):
        for column, right in ((3, -0.5), (4, 0.5)):
            direction = np.asarray(rays.directions[row, column])
            np.testing.assert_allclose(
                direction[:2] / -direction[2], [right / focal, up / focal], rtol=1e-5
            )


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 1)])
def test_image_rays_are_symmetric_about_the_center(size: tuple[int, int]) -> None:
    directions = np.asarray(image_rays(unmoved_camera(*size), 0, 0.0, 1.0).directions)
    mirrored = directions[:, ::-1] * np.array([-1.0, 1.0, 1.0])
    flipped = directions[::-1] * np.array([1.0, -1.0, 1.0])
    np.testing.assert_allclose(directions, mirrored, atol=1e-6)
    np.testing.assert_allclose(directions, flipped, atol=1e-6)


def test_row_zero_is_the_top_and_column_zero_the_left() -> None:
    directions = np.asarray(image_rays(unmoved_camera(8, 6), 0, 0.0, 1.0).directions)
    assert directions.shape == (6, 8, 3)
    assert np.all(directions[0, :, 1] > 0) and np.all(directions[-1, :, 1] < 0)
    assert np.all(directions[:, 0, 0] < 0) and np.all(directions[:, -1, 0] > 0)
    assert np.all(np.diff(directions[..., 0], axis=1) > 0)
    assert np.all(np.diff(directions[..., 1], axis=0) < 0)
    assert np.all(directions[..., 2] < 0)


def test_image_edges_span_the_field_of_view() -> None:
    angle, cameras = 0.9, unmoved_camera(8, 6, 0.9)
    edges = jnp.asarray([[0.0, 3.0], [8.0, 3.0]])
    rays = rays_through(cameras, jnp.zeros(2, jnp.int32), edges, near=0.0, far=1.0)
    between = math.acos(float(np.dot(rays.directions[0], rays.directions[1])))
    assert between == pytest.approx(angle, rel=1e-5)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_image_rays_go_through_the_pixel_centers(index: int) -> None:
    cameras = make_rig()
    rays = image_rays(cameras, index, 0.5, 2.0)
    assert rays.near.shape == (cameras.height, cameras.width)
    np.testing.assert_array_equal(rays.camera_index, index)
    for row in range(cameras.height):
        for column in range(cameras.width):
            expected = ray_slowly(cameras, index, column + 0.5, row + 0.5)
            np.testing.assert_allclose(rays.directions[row, column], expected, atol=1e-6)
    traced = jax.jit(lambda i: image_rays(cameras, i, 0.5, 2.0))(jnp.asarray(index))
    np.testing.assert_allclose(traced.directions, rays.directions, atol=1e-6)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_project_is_the_inverse_of_pixels_to_rays(index: int) -> None:
    cameras = make_rig()
    rays = image_rays(cameras, index, 0.0, 1.0)
    distance = np.random.default_rng(2).uniform(1, 5, (7, 9, 1))
    positions = np.asarray(rays.origins, np.float64) + distance * np.asarray(rays.directions)
    points, depth = project(cameras, index, positions)
    columns, rows = np.meshgrid(np.arange(9) + 0.5, np.arange(7) + 0.5)
    np.testing.assert_allclose(points, np.stack([columns, rows], -1), atol=1e-4)
    ahead = -cameras.T_world_camera[index][:3, 2].astype(np.float64)
    np.testing.assert_allclose(
        depth, distance[..., 0] * (np.asarray(rays.directions) @ ahead), rtol=1e-5
    )


def test_project_gives_no_positive_depth_behind_or_beside_the_camera() -> None:
    cameras = unmoved_camera(4, 4)
    _, depth = project(cameras, 0, np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]))
    assert depth[0] < 0 and depth[1] == 0 and depth[2] > 0


def test_project_maps_right_and_up_correctly() -> None:
    points, _ = project(unmoved_camera(8, 6), 0, np.array([[0.0, 0.0, -2.0], [0.2, 0.1, -2.0]]))
    np.testing.assert_allclose(points[0], [4.0, 3.0])
    assert points[1][0] > 4.0 and points[1][1] < 3.0


@pytest.mark.parametrize("size", [(4, 3), (16, 12), (5, 9)])
def test_resize_cameras_preserves_the_field_of_view(size: tuple[int, int]) -> None:
    cameras = unmoved_camera(8, 6)
    resized = resize_cameras(cameras, *size)
    assert (resized.width, resized.height) == size
    for x, y in ((0.0, 0.0), (1.0, 1.0), (0.25, 0.75)):
        old, new = (ray_slowly(c, 0, x * c.width, y * c.height) for c in (cameras, resized))
        np.testing.assert_allclose(old, new, atol=1e-6)


def test_made_cameras_have_square_pixels_and_a_centered_principal_point() -> None:
    cameras = make_cameras(np.tile(np.eye(4), (3, 1, 1)), 8, 6, 0.9)
    assert len(cameras) == 3
    np.testing.assert_allclose(cameras.focal, 4.0 / math.tan(0.45), rtol=1e-6)
    np.testing.assert_array_equal(cameras.principal_point, [[4.0, 3.0]] * 3)


def test_pixels_to_rays_gradients_in_pose_and_focal_are_finite() -> None:
    cameras = make_rig()
    pixels = jnp.asarray(cameras.principal_point)

    def total(pose: jax.Array, focal: jax.Array) -> jax.Array:
        moved = Cameras(pose, focal, jnp.asarray(cameras.principal_point), 9, 7)
        rays = pixels_to_rays(moved, jnp.arange(3), pixels, 0.0, 1.0)
        return jnp.sum(rays.directions) + jnp.sum(rays.radii) + jnp.sum(rays.origins)

    gradients = jax.grad(total, argnums=(0, 1))(
        jnp.asarray(cameras.T_world_camera), jnp.asarray(cameras.focal)
    )
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_look_at_is_rigid_looks_at_its_target_and_stands_upright() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        position, target = rng.normal(size=3), rng.normal(size=3)
        pose = look_at(position, target)
        assert_looks(pose, position, target)
        assert pose[2, 0] == pytest.approx(0.0, abs=1e-12), "right is level"
        assert pose[2, 1] > 0, "up is upwards"


def test_look_at_takes_another_direction_for_up() -> None:
    pose = look_at(np.array([0.0, 0.0, 3.0]), np.zeros(3), np.array([1.0, 0.0, 0.0]))
    assert_looks(pose, np.array([0.0, 0.0, 3.0]), np.zeros(3))
    np.testing.assert_allclose(pose[:3, 1], [1.0, 0.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_look_at_along_up_is_rigid(axis: int, sign: float) -> None:
    position = np.zeros(3)
    position[axis] = 2.0 * sign
    for up in (None, np.eye(3)[axis]):
        assert_looks(look_at(position, np.zeros(3), up), position, np.zeros(3))


def test_cameras_are_a_pytree_that_jit_and_vmap_accept() -> None:
    cameras = make_rig()
    assert len(jax.tree.leaves(cameras)) == 3
    through_jit = jax.jit(lambda c: c)(cameras)
    assert isinstance(through_jit, Cameras)
    assert (through_jit.width, through_jit.height) == (9, 7)
    pixels = jnp.asarray(np.random.default_rng(4).uniform(0, 7, (3, 5, 2)), jnp.float32)

    def rays_of(index: jax.Array, pixels: jax.Array) -> Rays:
        return pixels_to_rays(cameras, jnp.broadcast_to(index, (5,)), pixels, 0.0, 1.0)

    mapped = jax.vmap(rays_of)(jnp.arange(3), pixels)
    whole = pixels_to_rays(cameras, jnp.tile(jnp.arange(3)[:, None], (1, 5)), pixels, 0.0, 1.0)
    np.testing.assert_allclose(mapped.directions, whole.directions, atol=1e-6)
    focal = jax.vmap(lambda camera: jnp.sum(camera.focal))(cameras)
    np.testing.assert_allclose(focal, cameras.focal.sum(axis=-1), rtol=1e-6)


def test_focus_point_of_parallel_cameras_is_finite_and_on_mean_axis() -> None:
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[:, 0, 3] = [-1.0, 3.0]
    np.testing.assert_allclose(focus_point(poses), [1.0, 0.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(focus_point(poses[:1]), [-1.0, 0.0, 0.0], atol=1e-9)


# Lenses.


def bent_cameras(count: int = 2) -> Cameras:
    """The lens of a telephone, off the middle, as in instant-ngp's fox."""
    poses = np.stack([look_at(np.array([3.0, i, 1.0]), np.zeros(3)) for i in range(count)])
    numbers = [0.0578421, -0.0805099, 0.0, 0.0, 0.0, 0.0, -0.000980296, 0.00015575]
    return Cameras(
        T_world_camera=poses.astype(np.float32),
        focal=np.tile(np.array([[343.88, 343.62]], np.float32), (count, 1)),
        principal_point=np.tile(np.array([[138.64, 241.3]], np.float32), (count, 1)),
        width=270,
        height=480,
        distortion=np.tile(np.array([numbers], np.float32), (count, 1)),
    )


def fisheye_cameras(reach: float) -> Cameras:
    """A lens that sees so far from its axis, in radians, at the middle of the picture's sides."""
    return Cameras(
        T_world_camera=np.eye(4, dtype=np.float32)[None],
        focal=np.full((1, 2), 50.0 / reach, np.float32),
        principal_point=np.full((1, 2), 50.0, np.float32),
        width=100,
        height=100,
        lens="fisheye",
        distortion=np.array([[0.01, -0.002, 0, 0, 0, 0, 0, 0]], np.float32),
    )


@pytest.mark.parametrize("cameras", [bent_cameras(), fisheye_cameras(0.6)], ids=["bent", "fisheye"])
def test_project_inverts_rays_of_every_lens(cameras: Cameras) -> None:
    rays = image_rays(cameras, 0, 0.1, 9.0)
    distance = np.random.default_rng(0).uniform(0.5, 8.0, rays.near.shape)[..., None]
    points = np.asarray(rays.origins) + distance * np.asarray(rays.directions)
    pixels, depth = project(cameras, 0, points.astype(np.float64))
    columns, rows = np.meshgrid(np.arange(cameras.width) + 0.5, np.arange(cameras.height) + 0.5)
    np.testing.assert_allclose(pixels, np.stack([columns, rows], axis=-1), atol=2e-3)
    assert np.all(depth > 0)
    np.testing.assert_allclose(np.linalg.norm(rays.directions, axis=-1), 1.0, rtol=1e-5)


def test_lens_without_distortion_equals_pinhole() -> None:
    plain = dataclasses.replace(bent_cameras(), distortion=None)
    straight = dataclasses.replace(plain, distortion=np.zeros((2, 8), np.float32))
    expected, result = (image_rays(c, 1, 0.1, 9.0) for c in (plain, straight))
    np.testing.assert_allclose(result.directions, expected.directions, atol=1e-6)
    np.testing.assert_allclose(result.radii, expected.radii, rtol=1e-3)


def test_resize_cameras_preserves_lens_rays() -> None:
    large, small = bent_cameras(), resize_cameras(bent_cameras(), 135, 240)
    index = jnp.zeros((3,), jnp.int32)
    pixels = jnp.asarray([[10.0, 20.0], [130.0, 3.0], [70.5, 239.5]])
    expected = pixels_to_rays(large, index, 2.0 * pixels, 0.1, 9.0)
    result = pixels_to_rays(small, index, pixels, 0.1, 9.0)
    np.testing.assert_allclose(result.directions, expected.directions, atol=1e-6)
    np.testing.assert_allclose(result.radii, 2.0 * expected.radii, rtol=1e-2)


@pytest.mark.parametrize(
    "cameras",
    [bent_cameras(), dataclasses.replace(bent_cameras(), distortion=None), fisheye_cameras(0.6)],
    ids=["bent", "pinhole", "fisheye"],
)
def test_frustum_planes_enclose_the_view_tightly(cameras: Cameras) -> None:
    left, right, top, bottom = np.asarray(frustum_planes(cameras, jnp.asarray(0)))
    rays = image_rays(cameras, 0, 0.1, 9.0)
    pose = np.asarray(cameras.T_world_camera[0])
    local = np.asarray(rays.directions) @ pose[:3, :3]
    plane = local[..., :2] / -local[..., 2:]
    for slope, seen in ((left, -plane[..., 0]), (right, plane[..., 0]), (top, plane[..., 1])):
        assert seen.max() < slope < seen.max() + 0.02
    assert (-plane[..., 1]).max() < bottom < (-plane[..., 1]).max() + 0.02


def test_frustum_planes_of_a_wide_lens_are_infinite() -> None:
    assert np.all(np.isinf(frustum_planes(fisheye_cameras(1.6), jnp.asarray(0))))


# Normalized device coordinates.


def forward_rays(count: int = 50) -> Rays:
    rng = np.random.default_rng(8)
    directions = np.concatenate([rng.uniform(-0.4, 0.4, (count, 2)), -np.ones((count, 1))], -1)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return Rays(
        origins=jnp.asarray(rng.normal(0, 0.2, (count, 3)), jnp.float32),
        directions=jnp.asarray(directions, jnp.float32),
        near=jnp.zeros(count),
        far=jnp.full((count,), 100.0),
        radii=jnp.full((count,), 1e-3),
        camera_index=jnp.zeros((count,), jnp.int32),
    )


def project_slowly(point: np.ndarray, slopes: np.ndarray, plane: float) -> np.ndarray:
    x, y, z = point
    return np.array([-x / (slopes[0] * z), -y / (slopes[1] * z), 1.0 + 2.0 * plane / z])


@pytest.mark.parametrize("plane", [1.0, 1.5])
def test_rays_to_ndc_pass_the_projections_of_their_points(plane: float) -> None:
    rays, slopes = forward_rays(), np.array([0.5, 0.4], np.float32)
    ndc = rays_to_ndc(rays, jnp.asarray(slopes), plane)
    np.testing.assert_allclose(np.linalg.norm(ndc.directions, axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(ndc.origins[:, 2], -1.0, atol=1e-5)
    ends = ndc.origins + ndc.far[:, None] * ndc.directions
    np.testing.assert_allclose(ends[:, 2], 1.0, atol=1e-5)
    for part in (0.0, 0.3, 0.8, 0.99):
        there = part * ndc.far
        distance = ndc_to_distance(rays, ndc, there, plane)
        points = np.asarray(rays.origins + distance[:, None] * rays.directions, np.float64)
        expected = np.stack([project_slowly(point, slopes, plane) for point in points])
        result = ndc.origins + there[:, None] * ndc.directions
        np.testing.assert_allclose(result, expected, atol=2e-4)
        np.testing.assert_allclose(distance_to_ndc(rays, ndc, distance, plane), there, atol=1e-5)
    np.testing.assert_array_equal(distance_to_ndc(rays, ndc, jnp.zeros(ndc.far.shape), plane), 0.0)


def test_ndc_to_distance_is_monotonic_and_ends_far_away() -> None:
    rays = forward_rays()
    ndc = rays_to_ndc(rays, jnp.asarray([0.5, 0.4]))
    parts = np.linspace(0.0, 1.0, 20)
    distances = np.stack([ndc_to_distance(rays, ndc, p * ndc.far) for p in parts])
    assert np.all(np.diff(distances, axis=0) > 0) and np.all(distances[-1] > 1e5)


def test_rays_to_ndc_of_backward_rays_are_empty() -> None:
    rays = forward_rays(3)
    directions = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.6, -0.8]])
    rays = dataclasses.replace(rays, directions=directions)

    def total(origins: jax.Array) -> Any:
        ndc = rays_to_ndc(dataclasses.replace(rays, origins=origins), jnp.asarray([0.5, 0.4]))
        return jnp.sum(ndc.origins) + jnp.sum(ndc.far), ndc

    grads, ndc = jax.grad(total, has_aux=True)(rays.origins)
    assert np.asarray(ndc.far > 0).tolist() == [False, False, True]
    assert all(np.all(np.isfinite(x)) for x in (ndc.origins, ndc.directions, ndc.radii, grads))


def test_radii_squared_are_proportional_to_pixel_area() -> None:
    cameras = dataclasses.replace(
        unmoved_camera(40, 30), focal=np.array([[30.0, 75.0]], np.float32)
    )
    rays = image_rays(cameras, 0, 1.0, 2.0)
    corners = np.stack(np.meshgrid(np.arange(41.0), np.arange(31.0)), axis=-1)
    edge = [np.array([ray_slowly(cameras, 0, *corner) for corner in row]) for row in corners]
    directions = np.array(edge)
    across = directions[:-1, 1:] - directions[:-1, :-1]
    down = directions[1:, :-1] - directions[:-1, :-1]
    area = np.linalg.norm(across, axis=-1) * np.linalg.norm(down, axis=-1)
    # As wide as a disc whose variance is that of the pixel: radius^2 = area / 3.
    np.testing.assert_allclose(np.asarray(rays.radii) ** 2 * 3.0, area, rtol=0.05)


def test_rendering_in_ndc_equals_rendering_in_space() -> None:
    """A ball before a wall, rendered along rays in space and along the same rays in NDC."""
    slopes, plane = np.array([0.5, 0.4]), 1.0
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, :3, 3] = [0.3, -0.2, 0.1]
    cameras = dataclasses.replace(make_cameras(poses, 40, 32, 2.0 * math.atan(slopes[0])), ndc=None)
    seen = dataclasses.replace(cameras, ndc=(float(slopes[0]), float(slopes[1]), plane))

    def content(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        ball = jnp.sum(jnp.square(x - jnp.asarray([[0.3, 0.1, -3.0]])), axis=-1) < 0.8
        wall = x[:, 2] < -8.0
        return jnp.where(ball | wall, 1e6, 0.0), 0.5 + 0.5 * jnp.sin(2.0 * x)

    def from_ndc(x: jax.Array) -> jax.Array:
        z = 2.0 * plane / jnp.minimum(x[:, 2:] - 1.0, -1e-9)
        return jnp.concatenate([-x[:, :2] * jnp.asarray(slopes[None], x.dtype) * z, z], axis=-1)

    def fns(place: Any) -> RadianceFns:
        return RadianceFns(
            density=lambda x, _: content(place(x)),
            features=lambda color: color,
            color=lambda color, *_: color,
        )

    for index in range(2):
        pictures = []
        for own, place, far in ((cameras, lambda x: x, 12.0), (seen, from_ndc, 1.0)):
            rays = image_rays(own, index, 0.5, far)
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rays)
            tdist = stratified(None, flat, 4000)
            behind = jnp.zeros((1280, 3))
            pictures.append(jax.jit(partial(render_samples, fns(place)))(flat, tdist, behind)[0])
        space, ndc = pictures
        assert np.all(space.opacity > 0.999) and np.all(ndc.opacity > 0.999)
        off = np.abs(np.asarray(space.rgb) - np.asarray(ndc.rgb)).max(axis=-1)
        # Where a ray grazes the ball one of them may pass by.
        assert np.mean(off < 0.02) > 0.98
        rays, bent = (image_rays(own, index, 0.5, 12.0) for own in (cameras, seen))
        there = jnp.asarray(ndc.median_depth).reshape(32, 40)
        distance = np.asarray(ndc_to_distance(rays, bent, there, plane)).ravel()
        error = np.abs(distance - np.asarray(space.median_depth))
        assert np.mean(error < 0.02) > 0.98


# ---------------------------------------------------------------------------------------------
# Conventions of other programs
# ---------------------------------------------------------------------------------------------


def test_apply_ray_convention_shifts_the_pixel_center() -> None:
    rig = make_rig()
    other = apply_ray_convention(rig, RayConvention(pixel_center=0.0))
    index, pixels = jnp.zeros((3,), jnp.int32), jnp.asarray([[0.5, 0.5], [3.5, 2.5], [7.5, 1.5]])
    shifted = pixels_to_rays(other, index, pixels, 1.0, 2.0)
    expected = pixels_to_rays(rig, index, pixels - 0.5, 1.0, 2.0)
    np.testing.assert_allclose(shifted.directions, expected.directions, atol=1e-6)
    plain = apply_ray_convention(rig, RayConvention())
    np.testing.assert_array_equal(plain.principal_point, rig.principal_point)
    assert pixels_to_rays(plain, index, pixels, 1.0, 2.0).ray_z_scale is None


def test_z_depth_bounds_end_on_planes() -> None:
    rig = make_rig()
    seen = apply_ray_convention(rig, RayConvention(range_along="axis"))
    for index in range(len(rig)):
        rays = image_rays(seen, index, 1.5, 4.0)
        assert rays.ray_z_scale is not None and np.all(np.asarray(rays.ray_z_scale) >= 1.0)
        for distance, depth in ((rays.near, 1.5), (rays.far, 4.0)):
            ends = rays.origins + distance[..., None] * rays.directions
            _, result = project(rig, index, np.asarray(ends, np.float64))
            np.testing.assert_allclose(result, depth, rtol=1e-5)
        np.testing.assert_allclose(rays.near, 1.5 * rays.ray_z_scale, rtol=1e-6)


def test_z_depth_bounds_are_finite_for_wide_lenses() -> None:
    seen = apply_ray_convention(fisheye_cameras(2.0), RayConvention(range_along="axis"))
    rays = image_rays(seen, 0, 1.0, 2.0)
    assert np.all(np.isfinite(rays.near)) and np.all(np.isfinite(rays.far))


@pytest.mark.parametrize(
    ("away", "expected"),
    [
        (4.0, (2.0, 6.0)),
        (3.5, (2.0, 6.0)),
        (4.5, (2.0, 6.0)),
        (10.0, (7.5, 11.5)),
        (2.0, (0.5, 4.5)),
        (0.5, (0.0, 3.0)),
        (0.0, (0.0, 2.5)),
    ],
)
def test_shift_near_far_follows_a_camera_outside_the_usual_range(
    away: float, expected: tuple[float, float]
) -> None:
    focus = np.array([1.0, -2.0, 0.5])
    poses = np.stack([np.eye(4), np.eye(4)])
    poses[1, :3, 3] = focus + away * np.array([0.6, 0.0, 0.8])
    cameras = make_cameras(poses, 8, 6, 0.7)
    result = shift_near_far(cameras, 1, (2.0, 6.0), focus, (3.5, 4.5))
    assert result == pytest.approx(expected, abs=1e-5)


def test_cameras_are_indexed_by_integer_slice_and_array() -> None:
    rig = fisheye_cameras(2.0)
    assert rig.distortion is not None
    count = 3
    cameras = dataclasses.replace(
        rig,
        T_world_camera=np.stack([np.eye(4, dtype=np.float32) * s for s in (1, 2, 3)]),
        focal=np.arange(6, dtype=np.float32).reshape(3, 2),
        principal_point=np.arange(6, 12, dtype=np.float32).reshape(3, 2),
        distortion=np.repeat(rig.distortion, 3, axis=0) * np.array([[1], [2], [3]], np.float32),
    )
    single = cameras[count - 1]
    assert len(single) == 1 and single.width == cameras.width and single.lens == cameras.lens
    for part, indices in (
        (single, [count - 1]),
        (cameras[-1], [count - 1]),
        (cameras[:1], [0]),
        (cameras[np.array([0, count - 1])], [0, count - 1]),
        (dataclasses.replace(cameras, focal=jnp.asarray(cameras.focal))[0], [0]),
    ):
        np.testing.assert_array_equal(part.T_world_camera, cameras.T_world_camera[indices])
        np.testing.assert_array_equal(part.focal, cameras.focal[indices])
        np.testing.assert_array_equal(part.principal_point, cameras.principal_point[indices])
        np.testing.assert_array_equal(part.distortion, cameras.distortion[indices])
    for index in (count, -count - 1):
        with pytest.raises(IndexError):
            cameras[index]
    assert len([*cameras]) == count
