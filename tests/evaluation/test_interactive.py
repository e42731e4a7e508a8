"""Pictures for live viewing: the same as others, of any size, and given up when one wishes."""

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
from jaxrf.evaluation import interactive, scoring
from jaxrf.evaluation.interactive import (
    InteractiveRenderer,
    Pace,
    make_interactive_renderer,
    refine,
    render_progressively,
    shrink,
)
from jaxrf.training.config import TrainConfig

WHOLE = np.array([[-np.inf] * 3, [np.inf] * 3], np.float32)
BEHIND = np.array([0.9, 0.5, 0.1], np.float32)


def make(config: TrainConfig, supersample: int = 1) -> tuple[InteractiveRenderer, scoring.RenderFn]:
    stage, state = first_state(config)
    stage = dataclasses.replace(stage, supersample=supersample)
    field = (config, stage, state.shown, state.grid, (2.0, 6.0), BEHIND)
    return make_interactive_renderer(*field), scoring.make_render_fn(*field)


def camera_of(width: int = 16, height: int = 16) -> Cameras:
    cameras = make_scene().splits["test"].cameras[1]
    return resize_cameras(cameras, width, height)


@pytest.mark.parametrize("make_config", [tiny_nerf, tiny_voxels, slow(tiny_tensorf)])
def test_a_picture_is_that_of_the_evaluation(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Strips that end neither with a row nor with the picture.
    monkeypatch.setattr(interactive, "CPU_TILE_RAYS", 100)
    paint, render = make(make_config(), supersample=2)
    camera = camera_of(14, 11)
    found, wanted = paint.paint(camera, WHOLE, lambda: False, 2), render(camera, 0)
    assert found is not None
    for name in ("rgb", "opacity", "depth", "median_depth"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=2e-5)


def test_pictures_of_all_sizes_take_one_program() -> None:
    paint, _ = make(tiny_nerf())
    assert paint.paint(camera_of(), WHOLE, lambda: False) is not None
    compiled = interactive._paint_strip._cache_size()
    for width, height in ((16, 9), (33, 17), (5, 40)):
        picture = paint.paint(camera_of(width, height), WHOLE, lambda: False)
        assert picture is not None and picture.rgb.shape == (height, width, 3)
    assert interactive._paint_strip._cache_size() == compiled


def test_who_wishes_to_stop_gets_nothing_and_waits_for_no_other_strip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interactive, "CPU_TILE_RAYS", 64)
    paint, _ = make(tiny_nerf())
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    assert paint.paint(camera_of(), WHOLE, stop) is None
    assert len(asked) == 3


@pytest.mark.parametrize("make_config", [tiny_nerf, tiny_voxels, marching_nerf])
def test_outside_of_a_box_there_is_nothing(make_config: Any) -> None:
    paint, _ = make(make_config())
    box = np.array([[-0.2, -0.6, -0.9], [0.7, 0.1, 0.5]], np.float32)
    camera = camera_of()
    rays = image_rays(camera, 0, 2.0, 6.0)
    enter, leave = (
        np.asarray(t) for t in intersect_aabb(rays.origins, rays.directions, jnp.asarray(box))
    )
    whole, cropped = (paint.paint(camera, b, lambda: False) for b in (WHOLE, box))
    assert whole is not None and cropped is not None
    missed = enter > leave
    assert missed.any() and not missed.all()
    np.testing.assert_array_equal(cropped.opacity[missed], 0.0)
    np.testing.assert_allclose(cropped.rgb[missed], np.broadcast_to(BEHIND, (missed.sum(), 3)))
    through = leave - enter > 0.3
    assert np.all(cropped.opacity[through] > 0.0)
    assert np.all(cropped.opacity <= whole.opacity + 1e-6)
    depth = cropped.median_depth[through]
    assert np.all((depth > enter[through] - 0.3) & (depth < leave[through] + 0.3))


@pytest.mark.parametrize("size", [(768, 512), (50, 60), (1920, 3)])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.69, 0.72, 1.0])
def test_sizes_grow_to_the_whole(size: tuple[int, int], share: float) -> None:
    first = shrink(*size, share)
    sizes = list(refine(*size, first))
    assert sizes[-1] == size and all(w >= 1 and h >= 1 for w, h in sizes)
    if len(sizes) > 1:
        assert sizes[0] == first
    for (before, _), (after, _) in itertools.pairwise(sizes):
        assert before < after <= 2.9 * before
    assert len(sizes) < 8


def test_the_pace_finds_the_size_that_fits_and_is_quick_to_slow_down() -> None:
    pace = Pace(0.1)
    assert pace.fit(1000, 500)[0] == interactive.COARSEST
    for _ in range(20):
        pace.note(1000, 0.01)
    # 10 microseconds a ray: 10,000 of them.
    width, height = pace.fit(1000, 500)
    assert width * height == pytest.approx(10_000, rel=0.02)
    assert width / height == pytest.approx(2.0, rel=0.02)
    pace.note(1000, 0.1)
    assert np.prod(pace.fit(1000, 500)) == pytest.approx(1152, rel=0.1)  # 48 wide, no less
    assert pace.fit(10, 10) == (10, 10)


def test_a_picture_comes_coarse_at_once_and_at_last_as_it_is() -> None:
    paint, render = make(tiny_nerf(), supersample=2)
    camera, pace = camera_of(120, 110), Pace(1e-9)
    views = list(render_progressively(paint, camera, WHOLE, pace, lambda: False))
    widths = [view.rgb.shape[1] for view in views]
    assert widths == [48, 120, 120]
    np.testing.assert_allclose(views[-1].rgb, render(camera, 0).rgb, atol=2e-5)
    assert pace.per_ray is not None
    assert list(render_progressively(paint, camera, WHOLE, pace, lambda: True)) == []


@pytest.mark.parametrize("times", [0.4, 3.0])
def test_near_and_far_may_be_those_of_the_camera(times: float) -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    camera = camera_of()
    pose = np.array(camera.T_world_camera)
    pose[:, :3, 3] *= times
    camera = dataclasses.replace(camera, T_world_camera=pose, focal=camera.focal * times)
    field = (config, stage, state.shown, state.grid)
    moved = 4.0 * (times - 1.0)
    seen = (max(2.0 + moved, 0.0), 6.0 + moved)
    found, wanted, cut = (
        (make_interactive_renderer(*field, r, BEHIND), scoring.make_render_fn(*field, r, BEHIND))
        for r in (lambda cameras, index: seen, seen, (2.0, 6.0))
    )
    whole = wanted[1](camera, 0)
    np.testing.assert_array_equal(found[1](camera, 0).rgb, whole.rgb)
    painted = found[0].paint(camera, WHOLE, lambda: False)
    assert painted is not None
    np.testing.assert_allclose(painted.rgb, whole.rgb, atol=2e-5)
    # Where training cameras see, it would be cut off.
    assert cut[1](camera, 0).opacity.mean() < 0.5 * whole.opacity.mean()
