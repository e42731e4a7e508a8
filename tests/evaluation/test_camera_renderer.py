"""The camera renderer: one program for all images, whose bits do not depend on its calls."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import (
    first_state,
    make_scene,
    marching_nerf,
    proposing_hashgrid,
    slow,
    tiny_nerf,
    tiny_voxels,
)

from jaxrf.cameras.base import Cameras, image_rays, resize_cameras
from jaxrf.evaluation import camera_renderer
from jaxrf.evaluation.camera_renderer import CameraRenderer, TrainedField, make_camera_renderer
from jaxrf.rendering.image import HostRendering

BACKGROUND = np.array([0.9, 0.5, 0.1], np.float32)


def make(config: Any, **options: Any) -> CameraRenderer:
    stage, state = first_state(config)
    arguments = (config, stage, state.eval_params, state.grid, (2.0, 6.0), BACKGROUND)
    return make_camera_renderer(TrainedField(*arguments), **options)


def cameras_of(width: int, height: int) -> Cameras:
    return resize_cameras(make_scene().splits["test"].cameras, width, height)


def render(renderer: CameraRenderer, cameras: Cameras, index: int, **options: Any) -> HostRendering:
    image = renderer.render(cameras, index, **options)
    assert image is not None
    return image


def test_camera_renderer_renders_all_sizes_and_cameras_with_one_program() -> None:
    renderer = make(tiny_nerf())
    render(renderer, cameras_of(16, 16), 0)
    compiled = camera_renderer._render_chunks._cache_size()
    one_camera = cameras_of(5, 40)[np.array([1])]
    for cameras, index in ((cameras_of(33, 17), 1), (cameras_of(16, 9), 0), (one_camera, 0)):
        image = render(renderer, cameras, index, supersample=2)
        assert image.rgb.shape == (cameras.height, cameras.width, 3)
    assert camera_renderer._render_chunks._cache_size() == compiled


@pytest.mark.parametrize("make_config", [tiny_nerf, tiny_voxels, slow(marching_nerf)])
@pytest.mark.parametrize("size", [(13, 11), (16, 16), (3, 1)])
def test_camera_renderer_gives_the_same_bits_for_any_chunks_per_call(
    make_config: Any, size: tuple[int, int]
) -> None:
    """Chunks that end neither with a row nor with the image, one or many to a call."""
    images = []
    for chunks_per_call in (1, 5):
        renderer = make(make_config())
        program = renderer.program._replace(chunk_rays=50, chunks_per_call=chunks_per_call)
        renderer = dataclasses.replace(renderer, program=program)
        images.append(render(renderer, cameras_of(*size), 1))
    for name in HostRendering._fields:
        np.testing.assert_array_equal(getattr(images[0], name), getattr(images[1], name))


def test_camera_renderer_stops_before_the_next_call() -> None:
    renderer = make(tiny_nerf(), max_chunk_rays=64)
    calls: list[int] = []

    def should_stop() -> bool:
        calls.append(1)
        return len(calls) > 2

    assert renderer.render(cameras_of(16, 16), 0, should_stop=should_stop) is None
    assert len(calls) == 3


@pytest.mark.parametrize("size", [(13, 11), (8, 4), (3, 1)])
def test_blocks_of_pixels_make_the_same_image(size: tuple[int, int]) -> None:
    """Blocks that end with the image or past it, of a model whose rays share nothing."""
    images = []
    for block in (1, 4):
        renderer = make(tiny_nerf())
        program = renderer.program._replace(chunk_rays=64, chunks_per_call=2, block=block)
        renderer = dataclasses.replace(renderer, program=program)
        images.append(render(renderer, cameras_of(*size), 1, supersample=2))
    for name in HostRendering._fields:
        np.testing.assert_allclose(getattr(images[0], name), getattr(images[1], name), rtol=1e-5)


def test_images_of_a_model_that_shares_proposals_are_nearly_those_of_one_that_does_not() -> None:
    images = []
    for block in (1, 2):
        config = proposing_hashgrid()
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, proposal_block=block)
        )
        renderer = make(config)
        assert renderer.program.spec.group_size == block**2
        assert renderer.program.chunk_rays % block**2 == 0
        images.append(render(renderer, cameras_of(33, 17), 1))
    np.testing.assert_allclose(images[0].rgb, images[1].rgb, atol=0.02)
    assert np.any(images[0].rgb != images[1].rgb)


@pytest.mark.parametrize("size", [(7, 5), (4, 4)])
def test_chunk_rays_are_those_of_the_image_and_empty_past_its_end(size: tuple[int, int]) -> None:
    width, height = size
    cameras = cameras_of(width, height)[np.array([1])]
    expected = jax.tree.map(
        lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), image_rays(cameras, 0, 2.0, 6.0)
    )
    camera = jax.tree.map(jnp.asarray, dataclasses.replace(cameras, width=1, height=1))
    count, first, chunk = width * height, 8, 40
    program = make(tiny_nerf()).program._replace(chunk_rays=chunk)
    rays = camera_renderer._chunk_rays(
        camera,
        (jnp.float32(2.0), jnp.float32(6.0)),
        jnp.int32(first),
        (jnp.int32(width), jnp.int32(height)),
        program,
    )
    for name in ("origins", "directions", "near", "far", "radii"):
        np.testing.assert_allclose(
            getattr(rays, name)[: count - first], getattr(expected, name)[first:], rtol=1e-6
        )
    np.testing.assert_array_equal(rays.far[count - first :], rays.near[count - first :])
