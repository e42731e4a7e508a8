"""Evaluation: views rendered in chunks, their metrics and the means of these."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import SIZE, first_state, make_scene, tiny_nerf, tiny_tensorf, tiny_voxels

from jaxrf.cameras.base import Cameras, image_rays, resize_cameras
from jaxrf.data.scene import composite
from jaxrf.evaluation import camera_renderer, metrics, scoring
from jaxrf.evaluation.camera_renderer import ChunkProgram, TrainedField
from jaxrf.evaluation.scoring import RenderFn
from jaxrf.models.base import RenderSpec, render_rays
from jaxrf.rendering.volume import Rendering
from jaxrf.training.config import TrainConfig


def make_render(
    config: TrainConfig, background: np.ndarray, crop_to_occupied: bool = True
) -> tuple[RenderFn, Rendering]:
    """The render function, and its expected result for the first test view, rendered at once."""
    stage, state = first_state(config)
    render = scoring.make_render_fn(
        TrainedField(config, stage, state.params, state.grid, (2.0, 6.0), background),
        crop_to_occupied=crop_to_occupied,
    )
    convention = config.ray_convention
    stage, box = config.model.eval_stage(stage, state.grid, convention, crop_to_occupied)
    rays = image_rays(make_scene().splits["test"].cameras, 0, 2.0, 6.0)
    rays = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rays)
    arguments = (state.params, state.grid, rays, jnp.asarray(background), jnp.asarray(box))
    spec = RenderSpec(config.model, stage, convention, 1 << 13)
    expected = jax.jit(render_rays, static_argnums=0)(spec, *arguments)
    return render, expected


def test_render_fn_with_supersampling_averages_a_finer_view() -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    white = np.ones(3, np.float32)
    common = (state.params, state.grid, (2.0, 6.0), white)
    cameras = make_scene().splits["test"].cameras
    finer = resize_cameras(cameras, 2 * SIZE, 2 * SIZE)
    fine = scoring.make_render_fn(TrainedField(config, stage, *common))(finer, 1)
    averaged = scoring.make_render_fn(TrainedField(config, stage, *common), supersample=2)(
        cameras, 1
    )
    assert averaged.rgb.shape == (SIZE, SIZE, 3)
    blocks = fine.rgb.reshape(SIZE, 2, SIZE, 2, 3)
    np.testing.assert_allclose(averaged.rgb, blocks.mean(axis=(1, 3)), atol=1e-6)
    split = dataclasses.replace(stage, supersample=2)
    same = scoring.make_render_fn(TrainedField(config, split, *common))(cameras, 1)
    assert np.array_equal(same.rgb, averaged.rgb)


@pytest.mark.parametrize("crop_to_occupied", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        tiny_tensorf(),
        # 100 rays at a time: the last chunk of 256 pixels is not full.
        tiny_nerf(render_samples=3200),
        tiny_voxels(render_samples=100),
    ],
    ids=["tensorf", "nerf", "voxels"],
)
def test_render_fn_renders_the_rays_of_a_view_in_order(
    config: TrainConfig, crop_to_occupied: bool
) -> None:
    background = np.array([0.9, 0.5, 0.1], np.float32)
    render, all_rays = make_render(config, background, crop_to_occupied)
    view = render(make_scene().splits["test"].cameras, 0)
    for name in ("rgb", "opacity", "depth", "median_depth"):
        image = getattr(view, name)
        assert isinstance(image, np.ndarray)
        expected = np.asarray(getattr(all_rays, name))
        assert image.shape == (SIZE, SIZE, *expected.shape[1:])
        np.testing.assert_allclose(image.reshape(expected.shape), expected, atol=2e-5)


def test_render_fn_halves_the_samples_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    render, _ = make_render(tiny_nerf(render_samples=1 << 13), np.ones(3, np.float32))
    cameras = make_scene().splits["test"].cameras
    expected = render(cameras, 0)
    tried: list[int] = []
    render_chunks = camera_renderer._render_chunks

    def short_of_memory(program: ChunkProgram, *arguments: Any) -> Rendering:
        tried.append(program.spec.num_samples)
        if program.spec.num_samples > 1 << 11:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return render_chunks(program, *arguments)

    monkeypatch.setattr(camera_renderer, "_render_chunks", short_of_memory)
    np.testing.assert_allclose(render(cameras, 0).rgb, expected.rgb, atol=2e-5)
    assert tried[:3] == [1 << 13, 1 << 12, 1 << 11]
    # The next view begins with the number of samples that fit.
    tried.clear()
    render(cameras, 1)
    assert set(tried) == {1 << 11}


def test_render_fn_raises_other_errors_and_gives_up_below_the_least_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    render, _ = make_render(tiny_nerf(), np.ones(3, np.float32))
    cameras = make_scene().splits["test"].cameras
    for text in ("RESOURCE_EXHAUSTED: no memory", "INTERNAL: something else"):

        def fail(*_: Any, text: str = text) -> Rendering:
            raise jax.errors.JaxRuntimeError(text)

        monkeypatch.setattr(camera_renderer, "_render_chunks", fail)
        with pytest.raises(RuntimeError, match=text):
            render(cameras, 0)


def test_render_fn_renders_the_camera_of_the_index() -> None:
    render, _ = make_render(tiny_nerf(), np.ones(3, np.float32))
    cameras = make_scene().splits["test"].cameras
    assert not np.allclose(render(cameras, 0).rgb, render(cameras, 1).rgb)


def fake_render(rgb: float) -> RenderFn:
    def render(cameras: Cameras, index: int) -> Rendering:
        shape = (cameras.height, cameras.width)
        plain = jnp.ones(shape)
        colors = jnp.full((*shape, 3), rgb + index)
        return jax.device_get(Rendering(colors, plain, plain, plain))

    return render


def test_score_split_composites_the_truth_and_clips_the_rendering() -> None:
    split = make_scene().splits["test"]
    background = np.array([0.0, 0.5, 1.0], np.float32)
    scored = list(scoring.score_split(fake_render(0.5), split, background, range(1, -1, -1)))
    assert [s.name for s in scored] == ["r_1", "r_0"] and [s.view for s in scored] == [1, 0]
    for item, level in zip(scored, (1.0, 0.5), strict=True):  # 1.5 is clipped to 1
        truth = composite(split.images[item.view], background)
        np.testing.assert_array_equal(item.target_rgb, truth)
        mse = np.mean((truth.astype(np.float64) - level) ** 2)
        assert item.scores["psnr"] == pytest.approx(-10 * math.log10(mse), abs=1e-6)
        assert -1 <= item.scores["ssim"] < 0.9


def test_score_split_of_the_truth_gives_infinite_psnr_and_ssim_one() -> None:
    split = make_scene().splits["test"]
    black = np.zeros(3, np.float32)

    def render(cameras: Cameras, index: int) -> Rendering:
        plain = jnp.ones((cameras.height, cameras.width))
        colors = jnp.asarray(composite(split.images[index], black))
        return jax.device_get(Rendering(colors, plain, plain, plain))

    (item,) = scoring.score_split(render, split, black, [0])
    assert item.scores["psnr"] == math.inf and item.scores["ssim"] == pytest.approx(1.0, abs=1e-6)


def test_summarize_averages_metrics_not_errors() -> None:
    split = make_scene().splits["test"]
    scored = list(scoring.score_split(fake_render(0.1), split, np.ones(3, np.float32), [0, 1]))
    pairs = zip(scored, (20.0, 30.0), (0.5, 1.0), strict=True)
    scored = [s._replace(scores={"psnr": p, "ssim": q}) for s, p, q in pairs]
    assert scoring.summarize(scored) == {
        "psnr": 25.0,
        "ssim": 0.75,
        "per_image": [
            {"name": "r_0", "psnr": 20, "ssim": 0.5},
            {"name": "r_1", "psnr": 30, "ssim": 1},
        ],
    }


@pytest.mark.parametrize(
    ("count", "max_indices"), [(10, 4), (2, 4), (3, 4), (4, 4), (1, 9), (100, 1)]
)
def test_evenly_spaced_indices_are_distinct_and_evenly_spaced(count: int, max_indices: int) -> None:
    chosen = scoring.evenly_spaced_indices(count, max_indices)
    assert len(chosen) == min(count, max_indices)
    assert chosen == sorted(set(chosen)) and chosen[0] == 0 and chosen[-1] < count
    gaps = np.diff([*chosen, count])
    assert gaps.max() - gaps.min() <= 1


def test_evenly_spaced_indices_of_nothing_are_empty() -> None:
    assert scoring.evenly_spaced_indices(0, 4) == [] and scoring.evenly_spaced_indices(4, 0) == []


def test_score_split_also_scores_corrected_colors_within_masks() -> None:
    split, black = make_scene().splits["test"], np.zeros(3, np.float32)
    masks = np.zeros(split.images.shape[:3], bool)
    masks[:, 4:12, 3:13] = True
    masked = dataclasses.replace(split, masks=masks)

    def render(cameras: Cameras, index: int) -> Any:
        plain = np.ones((cameras.height, cameras.width), np.float32)
        rgb = 0.5 * composite(split.images[index], black)
        # Whatever is outside of the mask must not matter.
        rgb = np.where(masks[index][..., None], rgb, np.float32(0.7))
        return jax.device_get(Rendering(*map(jnp.asarray, (rgb, plain, plain, plain))))

    (plain,) = scoring.score_split(render, masked, black, [0])
    (item,) = scoring.score_split(render, masked, black, [0], correct_colors=True)
    assert list(plain.scores) == ["psnr", "ssim"]
    assert {name: item.scores[name] for name in plain.scores} == plain.scores
    assert item.scores["psnr"] < 20.0 and item.scores["psnr_cc"] > 80.0
    assert item.scores["ssim_cc"] == pytest.approx(1.0, abs=1e-4)


def test_score_split_computes_lpips_only_with_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = make_scene().splits["test"]
    black = np.zeros(3, np.float32)
    calls: list[Any] = []

    def distance(weights: Any, rgb: np.ndarray, target_rgb: np.ndarray) -> float:
        calls.append(weights)
        return 0.1 * len(calls)

    monkeypatch.setattr(metrics, "_lpips", distance)
    without = scoring.summarize(list(scoring.score_split(fake_render(0.5), split, black, [0, 1])))
    assert calls == [] and "lpips" not in without and "lpips" not in without["per_image"][0]
    weights = {"lin0.model.1.weight": jnp.ones((1, 1, 1, 1))}
    scored = list(scoring.score_split(fake_render(0.5), split, black, [0, 1], weights))
    summary = scoring.summarize(scored)
    assert calls == [weights, weights] and summary["lpips"] == pytest.approx(0.15)
    assert [item["lpips"] for item in summary["per_image"]] == pytest.approx([0.1, 0.2])
    assert summary["psnr"] == without["psnr"]
