"""Adjusted cameras: the identity at zero, derivatives, and the preconditioner."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrf.cameras import lenses
from jaxrf.cameras.base import Cameras, pixels_to_rays, project
from jaxrf.cameras.poses import look_at
from jaxrf.cameras.refinement import (
    CameraAdjustment,
    adjust_cameras,
    flatten_adjustment,
    make_preconditioner,
    precondition,
    projection_jacobian,
    unflatten_adjustment,
    zero_adjustment,
)


def make_rig(lens: lenses.Lens = "perspective", k1: float = 0.0) -> Cameras:
    """Three cameras around the origin; k1 is of the lens, and all other coefficients are 0."""
    rng = np.random.default_rng(0)
    poses = np.stack([look_at(4.0 * eye / np.linalg.norm(eye), 0.2 * eye) for eye in
                      rng.normal(size=(3, 3))])  # fmt: skip
    distortion = np.zeros((3, len(lenses.COEFFICIENTS[lens])), np.float32)
    distortion[:, 0] = k1
    return Cameras(
        T_world_camera=poses.astype(np.float32),
        focal=rng.uniform(50.0, 60.0, (3, 2)).astype(np.float32),
        principal_point=np.array([[33.0, 24.0], [30.0, 25.0], [31.0, 22.0]], np.float32),
        width=64,
        height=48,
        lens=lens,
        distortion=distortion if k1 else None,
    )


def random_adjustment(size: float, coefficients: int = 9) -> CameraAdjustment:
    rng = np.random.default_rng(1)
    like = zero_adjustment("lenses", 3, coefficients)
    return jax.tree.map(lambda x: size * rng.normal(size=x.shape).astype(np.float32), like)


@pytest.mark.parametrize("k1", [0.0, 0.1])
def test_a_zero_adjustment_leaves_every_bit_of_cameras(k1: float) -> None:
    cameras = make_rig(k1=k1)
    zero = zero_adjustment("lenses", 3, 9 if k1 else 0)
    assert zero is not None
    adjusted = jax.jit(adjust_cameras)(cameras, zero)
    assert adjusted.lens == cameras.lens and adjusted.width == cameras.width
    for a, b in zip(jax.tree.leaves(adjusted), jax.tree.leaves(cameras), strict=True):
        np.testing.assert_array_equal(a, b)
    assert zero_adjustment("none", 3, 0) is None


def test_adjust_cameras_against_a_loop() -> None:
    """Each camera turns around its center and moves along its axes, by the exponential's series."""
    cameras = make_rig(k1=0.1)
    adjustment = random_adjustment(0.3)
    adjusted = adjust_cameras(cameras, adjustment)
    for n in range(3):
        x, y, z = adjustment.pose[n, :3].astype(np.float64)
        skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        turn, term = np.eye(3), np.eye(3)
        for k in range(1, 20):
            term = term @ skew / k
            turn = turn + term
        pose = cameras.T_world_camera[n].astype(np.float64)
        change = np.eye(4)
        change[:3, :3], change[:3, 3] = turn, adjustment.pose[n, 3:]
        np.testing.assert_allclose(adjusted.T_world_camera[n], pose @ change, atol=2e-6)
        factor = np.exp(adjustment.log_focal[n])
        np.testing.assert_allclose(adjusted.focal[n], cameras.focal[n] * factor, rtol=1e-5)
        np.testing.assert_allclose(
            adjusted.distortion[n], cameras.distortion[n] + adjustment.distortion[n], atol=1e-6
        )


@pytest.mark.parametrize("size", [0.0, 1e-4, 0.5])
def test_derivatives_of_rays_against_differences(size: float) -> None:
    """Of origins and directions in all numbers; also at zero and where the series takes over."""
    cameras = make_rig(k1=0.1)
    adjustment = random_adjustment(size)
    adjustment = adjustment._replace(distortion=0.01 * adjustment.distortion)
    index = jnp.arange(3, dtype=jnp.int32)
    pixels = jnp.array([[3.5, 40.5], [50.5, 11.5], [20.5, 20.5]])
    weights = np.random.default_rng(2).normal(size=(2, 3, 3))

    def total(numbers: Any) -> jax.Array:
        adjusted = adjust_cameras(cameras, unflatten_adjustment(numbers, adjustment))
        rays = pixels_to_rays(adjusted, index, pixels, 0.0, 1.0)
        return jnp.sum(rays.origins * weights[0]) + jnp.sum(rays.directions * weights[1])

    numbers = flatten_adjustment(adjustment)
    gradient = np.asarray(jax.jit(jax.grad(total))(numbers))
    value, step = jax.jit(total), 3e-3
    slow = np.zeros_like(gradient)
    for place in np.ndindex(*gradient.shape):
        moved = np.zeros_like(gradient)
        moved[place] = step
        slow[place] = (value(numbers + moved) - value(numbers - moved)) / (2.0 * step)
    np.testing.assert_allclose(gradient, slow, atol=4e-3)


def test_the_jacobian_of_a_pinhole_against_its_formula() -> None:
    cameras = make_rig()
    positions = np.random.default_rng(3).normal(size=(5, 3)) * 0.5
    like = zero_adjustment("lenses", 1, 0)
    assert like is not None
    jacobian = projection_jacobian(cameras[1], like, positions)
    pose = cameras.T_world_camera[1].astype(np.float64)
    fx, fy = cameras.focal[1].astype(np.float64)
    for row, position in zip(jacobian, positions, strict=True):
        x, y, z = (position - pose[:3, 3]) @ pose[:3, :3]
        # The image point (-fx x / z, fy y / z) of a point that moves against the camera.
        by_point = np.array([[-fx / z, 0.0, fx * x / z**2], [0.0, fy / z, -fy * y / z**2]])
        skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        focal = np.array([-fx * x / z, fy * y / z])
        expected = np.concatenate([by_point @ skew, -by_point, focal[:, None]], axis=1)
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("center", [None, np.zeros(3)])
def test_preconditioned_numbers_move_images_by_a_pixel_independently(center: Any) -> None:
    """Without damping, the moments of the Jacobian become the identity."""
    cameras = make_rig()
    factors = make_preconditioner(cameras, "lenses", (2.0, 6.0), center, 0.0, 0.0)
    rng = np.random.default_rng(4)
    index = jnp.zeros(4000, jnp.int32)
    pixels = jnp.asarray(rng.uniform(size=(4000, 2)) * [64, 48], jnp.float32)
    like = zero_adjustment("lenses", 1, 0)
    assert like is not None
    # Of other points of the same frustum, at distances that are spread as the docstring says.
    share = rng.uniform(size=(4000, 1))
    distance = 2.0 + 4.0 * share if center is None else 1.0 / (0.5 - share / 3.0)
    for n, factor in enumerate(factors):
        rays = pixels_to_rays(cameras[n], index, pixels, 0.0, 1.0)
        positions = np.asarray(rays.origins + distance * rays.directions, np.float64)
        jacobian = projection_jacobian(cameras[n], like, positions).reshape(-1, 7)
        moments = factor.T @ (jacobian.T @ jacobian / 4000) @ factor
        np.testing.assert_allclose(moments, np.eye(7), atol=0.2)
        np.testing.assert_array_equal(factor, factor.T)


def test_the_preconditioner_is_the_same_each_time_and_follows_its_formula() -> None:
    cameras = make_rig("fisheye", 0.05)
    first, again = (make_preconditioner(cameras, "poses", (1.0, 3.0)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    damped = make_preconditioner(cameras, "poses", (1.0, 3.0), None, 0.5)
    plain = make_preconditioner(cameras, "poses", (1.0, 3.0), None, 0.0, 0.0)
    for a, b in zip(damped, plain, strict=True):
        moments = np.linalg.inv(b.astype(np.float64) @ b)
        expected = moments + 0.5 * np.diag(np.diag(moments))
        found = np.linalg.inv(a.astype(np.float64) @ a)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_coefficients_that_a_lens_does_not_use_stay_zero() -> None:
    cameras = make_rig(k1=0.1)
    factors = make_preconditioner(cameras, "lenses", (2.0, 6.0))
    assert factors.shape == (3, 16, 16)
    moved = precondition(jnp.asarray(factors), random_adjustment(1.0))
    assert moved.distortion is not None
    assert np.all(np.asarray(moved.distortion)[:, 0] != 0.0)
    assert not np.any(np.asarray(moved.distortion)[:, 1:])


def test_rays_in_ndc_have_finite_derivatives() -> None:
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    poses[:, 0, 3] = [-0.2, 0.0, 0.3]
    cameras = dataclasses.replace(make_rig(), T_world_camera=poses, ndc=(0.6, 0.45, 1.0))
    index = jnp.arange(3, dtype=jnp.int32)
    pixels = jnp.array([[0.5, 0.5], [31.5, 24.5], [63.5, 47.5]])

    def total(adjustment: CameraAdjustment) -> jax.Array:
        rays = pixels_to_rays(adjust_cameras(cameras, adjustment), index, pixels, 0.5, 2.0)
        return jnp.sum(rays.origins) + jnp.sum(rays.directions * jnp.arange(1.0, 4.0)[None])

    zero = zero_adjustment("lenses", 3, 0)
    assert zero is not None
    gradient = jax.jit(jax.grad(total))(zero)
    assert all(np.all(np.isfinite(x)) and np.any(x) for x in jax.tree.leaves(gradient))
    assert np.all(np.isfinite(make_preconditioner(cameras, "lenses", (0.5, 9.0), np.zeros(3))))


def test_project_undoes_the_rays_of_adjusted_cameras() -> None:
    cameras = adjust_cameras(make_rig(k1=0.1), random_adjustment(0.02))
    rays = pixels_to_rays(cameras, jnp.array([1]), jnp.array([[20.5, 30.5]]), 0.0, 1.0)
    found, _ = project(cameras, 1, np.asarray(rays.origins + 3.0 * rays.directions, np.float64))
    np.testing.assert_allclose(found, [[20.5, 30.5]], atol=1e-3)
