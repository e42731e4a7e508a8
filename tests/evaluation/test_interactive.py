"""Interactive rendering: images as in evaluation, of any size, abandoned on request."""

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scenes import (
    first_state,
    make_scene,
    marching_nerf,
    slow,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.cameras.base import Cameras, image_rays, resize_cameras
from jaxrf.core.rays import intersect_aabb
from jaxrf.evaluation import camera_renderer, interactive, scoring
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.evaluation.interactive import (
    FrameTimer,
    InteractiveRenderer,
    make_interactive_renderer,
    render_progressively,
    resolution_ladder,
    scale_size,
)
from jaxrf.training.config import TrainConfig

NO_CROP = np.array([[-np.inf] * 3, [np.inf] * 3], np.float32)
BACKGROUND = np.array([0.9, 0.5, 0.1], np.float32)


def make(config: TrainConfig, supersample: int = 1) -> tuple[InteractiveRenderer, scoring.RenderFn]:
    stage, state = first_state(config)
    stage = dataclasses.replace(stage, supersample=supersample)
    field = (config, stage, state.eval_params, state.grid, (2.0, 6.0), BACKGROUND)
    return make_interactive_renderer(TrainedField(*field)), scoring.make_render_fn(
        TrainedField(*field)
    )


def camera_of(width: int = 16, height: int = 16) -> Cameras:
    cameras = make_scene().splits["test"].cameras[1]
    return resize_cameras(cameras, width, height)


@pytest.mark.parametrize("make_config", [tiny_nerf, tiny_voxels, slow(tiny_tensorf)])
def test_interactive_renderer_renders_images_as_in_evaluation(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tiles that end neither with a row nor with the image.
    monkeypatch.setattr(interactive, "CPU_TILE_RAYS", 100)
    renderer, render = make(make_config(), supersample=2)
    camera = camera_of(14, 11)
    image = renderer.render(camera, NO_CROP, lambda: False, 2)
    expected = render(camera, 0)
    assert image is not None
    for name in ("rgb", "opacity", "depth", "median_depth"):
        np.testing.assert_allclose(getattr(image, name), getattr(expected, name), atol=2e-5)


def test_interactive_renderer_renders_all_image_sizes_with_one_program() -> None:
    renderer, _ = make(tiny_nerf())
    assert renderer.render(camera_of(), NO_CROP, lambda: False) is not None
    compiled = camera_renderer._render_chunks._cache_size()
    for width, height in ((16, 9), (33, 17), (5, 40)):
        image = renderer.render(camera_of(width, height), NO_CROP, lambda: False)
        assert image is not None and image.rgb.shape == (height, width, 3)
    assert camera_renderer._render_chunks._cache_size() == compiled


def test_interactive_renderer_starts_no_tile_once_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interactive, "CPU_TILE_RAYS", 64)
    renderer, _ = make(tiny_nerf())
    calls: list[int] = []

    def should_stop() -> bool:
        calls.append(1)
        return len(calls) > 2

    assert renderer.render(camera_of(), NO_CROP, should_stop) is None
    assert len(calls) == 3


@pytest.mark.parametrize("make_config", [tiny_nerf, tiny_voxels, marching_nerf])
def test_interactive_renderer_renders_nothing_outside_of_the_crop_box(make_config: Any) -> None:
    renderer, _ = make(make_config())
    box = np.array([[-0.2, -0.6, -0.9], [0.7, 0.1, 0.5]], np.float32)
    camera = camera_of()
    rays = image_rays(camera, 0, 2.0, 6.0)
    enter, leave = (
        np.asarray(t) for t in intersect_aabb(rays.origins, rays.directions, jnp.asarray(box))
    )
    full, cropped = (renderer.render(camera, b, lambda: False) for b in (NO_CROP, box))
    assert full is not None and cropped is not None
    missed = enter > leave
    assert missed.any() and not missed.all()
    np.testing.assert_array_equal(cropped.opacity[missed], 0.0)
    np.testing.assert_allclose(cropped.rgb[missed], np.broadcast_to(BACKGROUND, (missed.sum(), 3)))
    through = leave - enter > 0.3
    assert np.all(cropped.opacity[through] > 0.0)
    assert np.all(cropped.opacity <= full.opacity + 1e-6)
    depth = cropped.median_depth[through]
    assert np.all((depth > enter[through] - 0.3) & (depth < leave[through] + 0.3))


@pytest.mark.parametrize("size", [(768, 512), (50, 60), (1920, 3)])
@pytest.mark.parametrize("factor", [0.01, 0.3, 0.69, 0.72, 1.0])
def test_resolution_ladder_grows_to_the_full_size(size: tuple[int, int], factor: float) -> None:
    first = scale_size(*size, factor)
    sizes = list(resolution_ladder(*size, first))
    assert sizes[-1] == size and all(w >= 1 and h >= 1 for w, h in sizes)
    if len(sizes) > 1:
        assert sizes[0] == first
    for (before, _), (after, _) in itertools.pairwise(sizes):
        assert before < after <= 2.9 * before
    assert len(sizes) < 8


def test_frame_timer_finds_the_size_that_fits_and_reacts_to_a_slow_frame_at_once() -> None:
    timer = FrameTimer(0.1)
    assert timer.target_size(1000, 500)[0] == interactive.MIN_WIDTH
    for _ in range(20):
        timer.update(1000, 0.01)
    # 10 microseconds a ray: 10,000 of them.
    width, height = timer.target_size(1000, 500)
    assert width * height == pytest.approx(10_000, rel=0.02)
    assert width / height == pytest.approx(2.0, rel=0.02)
    timer.update(1000, 0.1)
    assert np.prod(timer.target_size(1000, 500)) == pytest.approx(1152, rel=0.1)  # 48 wide, no less
    assert timer.target_size(10, 10) == (10, 10)


def test_render_progressively_begins_coarse_and_ends_with_the_supersampled_image() -> None:
    renderer, render = make(tiny_nerf(), supersample=2)
    camera, timer = camera_of(120, 110), FrameTimer(1e-9)
    views = list(render_progressively(renderer, camera, NO_CROP, timer, lambda: False))
    widths = [view.rgb.shape[1] for view in views]
    assert widths == [48, 120, 120]
    np.testing.assert_allclose(views[-1].rgb, render(camera, 0).rgb, atol=2e-5)
    assert timer.seconds_per_ray is not None
    assert list(render_progressively(renderer, camera, NO_CROP, timer, lambda: True)) == []


@pytest.mark.parametrize("times", [0.4, 3.0])
def test_renderers_accept_near_and_far_of_each_camera(times: float) -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    camera = camera_of()
    pose = np.array(camera.T_world_camera)
    pose[:, :3, 3] *= times
    camera = dataclasses.replace(camera, T_world_camera=pose, focal=camera.focal * times)
    field = (config, stage, state.eval_params, state.grid)
    moved = 4.0 * (times - 1.0)
    near_far = (max(2.0 + moved, 0.0), 6.0 + moved)
    per_camera, constant, training = (
        (
            make_interactive_renderer(TrainedField(*field, r, BACKGROUND)),
            scoring.make_render_fn(TrainedField(*field, r, BACKGROUND)),
        )
        for r in (lambda cameras, index: near_far, near_far, (2.0, 6.0))
    )
    expected = constant[1](camera, 0)
    np.testing.assert_array_equal(per_camera[1](camera, 0).rgb, expected.rgb)
    image = per_camera[0].render(camera, NO_CROP, lambda: False)
    assert image is not None
    np.testing.assert_allclose(image.rgb, expected.rgb, atol=2e-5)
    # The near and far of the training cameras would cut the object off.
    assert training[1](camera, 0).opacity.mean() < 0.5 * expected.opacity.mean()
