"""The robust loss: inliers against loops, and distractors that do not reach the gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import make_scene, proposing_hashgrid, tiny_nerf
from steps import first_batch, run_steps

from jaxrf.core.errors import InputError
from jaxrf.training import loop, losses, transitions
from jaxrf.training.config import LossConfig
from jaxrf.training.losses import squared_error, total_loss
from jaxrf.training.robust import find_inliers, inlier_quantile_at


def find_inliers_slowly(
    residual: np.ndarray, mask: np.ndarray, quantile: float, size: int
) -> np.ndarray:
    """Pixel by pixel."""
    threshold = np.quantile(residual[mask], quantile)
    residual, mask = residual.reshape(-1, size, size), mask.reshape(-1, size, size)
    fits = mask & (residual <= threshold)
    smoothed = np.zeros_like(fits)
    for patch, row, column in np.ndindex(fits.shape):
        rows, columns = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
        around, counted = fits[patch, rows, columns], mask[patch, rows, columns]
        smoothed[patch, row, column] = around.sum() > 0.5 * counted.sum()
    inliers = (fits | smoothed) & mask
    begin = (size - size // 2) // 2
    center = slice(begin, begin + size // 2)
    for patch in range(len(fits)):
        if inliers[patch].sum() > 0.6 * mask[patch].sum():
            inliers[patch, center, center] = True
    return (inliers & mask).ravel()


@pytest.mark.parametrize("fraction", [0.6, 1.0])
@pytest.mark.parametrize(("quantile", "size"), [(0.5, 6), (0.7, 5), (0.9, 6), (1.0, 5), (0.5, 1)])
def test_find_inliers_equals_loop(quantile: float, size: int, fraction: float) -> None:
    rng = np.random.default_rng(size)
    residual = rng.uniform(size=12 * size**2).astype(np.float32)
    mask = rng.uniform(size=residual.size) < fraction
    expected = find_inliers_slowly(residual, mask, quantile, size)
    residual[~mask] = np.inf
    found = find_inliers(jnp.asarray(residual), jnp.asarray(mask), quantile, size)
    np.testing.assert_array_equal(found, expected)
    assert expected.sum() < mask.sum() or quantile == 1.0


def residuals_of_patches() -> np.ndarray:
    """(8, 16, 16) small residuals, a patch of a distractor, one of its edge, one of thin lines."""
    residual = np.random.default_rng(0).uniform(0.0, 0.01, (8, 16, 16)).astype(np.float32)
    residual[0] += 1.0
    residual[1, :, 6:] += 1.0
    residual[2, ::4] += 1.0
    return residual


def test_distractors_are_outliers_and_thin_details_are_inliers() -> None:
    residual = residuals_of_patches()
    mask = np.ones(residual.size, bool)
    inliers = find_inliers(jnp.asarray(residual.ravel()), jnp.asarray(mask), 0.7, 16)
    inliers = np.asarray(inliers).reshape(8, 16, 16)
    assert not inliers[0].any()
    assert not inliers[1, :, 7:].any() and inliers[1, :, :5].mean() > 0.9
    # Lines are a pixel wide, so most of the pixels around are inliers.
    assert inliers[2, 4::4].mean() > 0.9
    assert inliers[3:].mean() > 0.9


def test_the_quantile_falls_from_one_over_the_warmup() -> None:
    for warmup, expected in ((0.2, [1.0, 0.9, 0.8, 0.8]), (0.0, [0.8] * 4)):
        config = LossConfig(inlier_quantile=0.8, inlier_warmup=warmup)
        progresses = [jnp.asarray(progress) for progress in (0.0, 0.1, 0.2, 0.9)]
        quantiles = [float(inlier_quantile_at(config, progress)) for progress in progresses]
        assert quantiles == pytest.approx(expected)


def test_all_pixels_are_inliers_of_equal_residuals_and_none_of_an_empty_mask() -> None:
    residual = jnp.zeros(32)
    assert find_inliers(residual, jnp.ones(32, bool), 0.5, 4).all()
    assert not find_inliers(residual, jnp.zeros(32, bool), 0.5, 4).any()


@pytest.mark.parametrize("quantile", [0.0, 0.7])
def test_outliers_and_pixels_outside_the_mask_have_no_gradient(quantile: float) -> None:
    config = transitions.resolve_config(proposing_hashgrid(), make_scene())
    stage = transitions.first_stage(config, make_scene().aabb)
    batch, _ = first_batch(config, stage)
    target_rgb = jnp.asarray(np.random.default_rng(1).uniform(size=(2048, 3)), jnp.float32)
    mask = jnp.ones(2048, bool).at[-100:].set(False)
    quantiles = jnp.full(2048, quantile) if quantile else None
    batch = batch._replace(
        target_rgb=target_rgb, mask=mask, loss_mult=jnp.ones(2048), inlier_quantile=quantiles
    )
    offset = jnp.sqrt(jnp.asarray(residuals_of_patches().ravel()))[:, None]
    loss_config = LossConfig(inlier_quantile=quantile, distortion_weight=1.0, patch_size=16)

    def compute_loss(rgb: jax.Array, distortion: jax.Array) -> jax.Array:
        overflowed = jnp.zeros(2048, bool).at[600].set(True)
        rendering = losses.TrainRendering(
            rgb=(rgb,), opacities=(jnp.ones(2048),), overflowed=overflowed,
            num_samples=jnp.zeros((), jnp.int32), distortion_loss=distortion,
            interlevel_loss=None, depth_loss=None, grid=None,  # type: ignore[arg-type]
        )  # fmt: skip
        return total_loss(loss_config, squared_error, rendering, batch, 1, True)

    rgb = (target_rgb + offset).at[600].set(1e3)
    loss, (of_rgb, of_distortion) = jax.value_and_grad(compute_loss, (0, 1))(rgb, jnp.ones(2048))
    assert np.isfinite(loss) and np.isfinite(of_rgb).all()
    trained = np.any(np.asarray(of_rgb) != 0.0, axis=1)
    assert not trained[600] and not trained[-100:].any()
    assert trained[:256].any() == (quantile == 0.0)
    assert trained[800:1900].mean() > 0.9
    expected = np.ones(2048, bool)
    expected[[600, *range(1948, 2048)]] = False
    np.testing.assert_array_equal(np.asarray(of_distortion) != 0.0, expected)


def test_microbatches_hold_full_patches_and_train_alike() -> None:
    loss = LossConfig(inlier_quantile=1.0, patch_size=4)
    states = []
    for microbatch_samples in (None, 700):
        config = tiny_nerf(loss=loss, batch_rays=140, microbatch_samples=microbatch_samples)
        stage = transitions.first_stage(config, make_scene().aabb)
        assert (stage.num_rays, stage.patch_size, stage.num_patches()) == (128, 4, 8)
        assert stage.num_microbatches == (1 if microbatch_samples is None else 8)
        after, metrics = run_steps(config, 1)
        assert float(metrics[0].finite_fraction) == 1.0
        states.append(after[-1].params)
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_shards_hold_full_patches() -> None:
    config = proposing_hashgrid(
        loss=LossConfig(inlier_quantile=0.8, patch_size=4), supersample=2, supersample_from=0.0,
        batch_rays=700,
    )  # fmt: skip
    stage = transitions.first_stage(config, make_scene().aabb, devices=4)
    assert (stage.num_rays, stage.num_patches(), stage.num_shards) == (512, 8, 4)
    few = transitions.first_stage(
        dataclasses.replace(config, batch_rays=10), make_scene().aabb, devices=4
    )
    assert few.num_patches() == 4


def test_patches_that_fit_into_no_image_are_refused() -> None:
    config = tiny_nerf(loss=LossConfig(inlier_quantile=0.8), num_train_scales=2)
    with pytest.raises(InputError, match=r"16x16 pixels do not fit into images of 8x8: lower"):
        loop.fit(config, make_scene())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inlier_quantile": 1.5}, r"loss.inlier_quantile is 1.5: give 1 or less."),
        ({"inlier_quantile": -0.1}, r"loss.inlier_quantile is -0.1: give 0 or more."),
        ({"patch_size": 0}, r"loss.patch_size is 0: give a number above 0."),
        ({"inlier_quantile": 0.8, "depth_weight": 0.1}, r"samples patches, and loss.depth_weight"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LossConfig(**changes)
