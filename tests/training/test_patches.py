"""Patches of pixels: inside the images, around listed pixels, and the same from the host."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import Recorder, make_scene, tiny_hashgrid, tiny_nerf
from steps import NEAR_FAR

from jaxrf.data.scene import Split
from jaxrf.models.base import StageSpec
from jaxrf.training import loop, pixels, schedule, transitions
from jaxrf.training.config import LossConfig, TrainConfig
from jaxrf.training.patches import find_listed, patch_pixel_ids, sample_patches
from jaxrf.training.pixels import PixelDataset, SamplingRegion, sample_batch, unravel_pixels
from jaxrf.training.prefetch import PrefetchRequest, prefetch_pixels

SIZE = 4


def make_split(masked: bool) -> Split:
    """Images whose color is (column, row, image); masked, the lower left of each alone is used."""
    split = make_scene().train
    image, row, column = np.indices(split.images.shape[:3])
    images = np.stack([column, row, image, np.full_like(row, 255)], axis=-1).astype(np.uint8)
    masks = (row >= 5) & (column < 9) & (image > 0) if masked else None
    return dataclasses.replace(split, images=images, masks=masks)


def make_stage(config: TrainConfig) -> StageSpec:
    return transitions.first_stage(config, make_scene().aabb)


def robust_nerf(**changes: Any) -> TrainConfig:
    loss = LossConfig(inlier_quantile=0.8, patch_size=SIZE)
    return tiny_nerf(loss=loss, batch_rays=64 * SIZE**2, microbatch_samples=10**6, **changes)


@pytest.mark.parametrize("masked", [False, True])
def test_patches_are_squares_inside_the_images_around_listed_pixels(masked: bool) -> None:
    split = make_split(masked)
    dataset, stage = pixels.to_device(split), make_stage(robust_nerf())
    key = jax.random.key(0)
    sampled = sample_patches(dataset, key, stage, SamplingRegion())
    batch = sample_batch(
        dataset, key, stage.num_pixels(), NEAR_FAR, "white", 1, SamplingRegion(), sampled
    )
    at = np.rint(np.asarray(batch.target_rgb) * 255).astype(int).reshape(64, SIZE, SIZE, 3)
    column, row, image = np.moveaxis(at, -1, 0)
    assert np.array_equal(image, np.broadcast_to(image[:, :1, :1], image.shape))
    np.testing.assert_array_equal(row - row[:, :1], np.arange(SIZE)[None, :, None] + 0 * row)
    np.testing.assert_array_equal(column - column[:, :, :1], np.arange(SIZE) + 0 * column)
    np.testing.assert_array_equal(batch.rays.camera_index, image.ravel())
    assert len({*zip(image[:, 0, 0], row[:, 0, 0], column[:, 0, 0], strict=True)}) > 40
    usable = np.ones(split.images.shape[:3], bool) if split.masks is None else split.masks
    np.testing.assert_array_equal(batch.mask, usable[image, row, column].ravel())
    # Each lies around a pixel that is used.
    assert np.asarray(batch.mask).reshape(64, -1).any(axis=1).all()
    assert np.asarray(batch.mask).all() == (not masked)


def test_patches_are_moved_into_the_image_at_its_border() -> None:
    dataset = pixels.to_device(make_split(False))
    side = make_scene().train.images.shape[1]
    for center, corner in ((0, (0, 0)), (side * side - 1, (side - SIZE, side - SIZE))):
        ids = patch_pixel_ids(dataset, jnp.asarray([center], jnp.int32), SIZE)
        at = unravel_pixels(dataset, ids)
        assert (int(at.row[0]), int(at.column[0])) == corner
        assert int(at.row[-1] - at.row[0]) == int(at.column[-1] - at.column[0]) == SIZE - 1
        assert not np.any(at.image)


def test_find_listed_equals_a_set() -> None:
    dataset = pixels.to_device(make_split(True), (1, 2))
    listed = {*np.asarray(dataset.pixel_ids)[: int(dataset.total)].tolist()}
    asked = np.arange(dataset.pixel_ids.size, dtype=np.int32)
    expected = [number in listed for number in asked.tolist()]
    np.testing.assert_array_equal(find_listed(dataset, jnp.asarray(asked)), expected)
    assert 0 < sum(expected) < len(expected)


CONFIGS = {
    "plain": robust_nerf(),
    "crop": robust_nerf(precrop_fraction=0.4, precrop_scale=0.25, num_steps=5),
    "schedule": robust_nerf(train_scale_schedule=((0.0, 2), (0.4, 1)), num_steps=5),
    "sizes": robust_nerf(num_train_scales=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_patches_from_the_host_are_those_of_the_steps(name: str) -> None:
    config = CONFIGS[name]
    split, scales = make_split(True), config.image_scales()
    on_device = pixels.to_device(split, scales)
    on_host = pixels.to_device(split, scales, keep_images_on_host=True)
    stage, course = make_stage(config), schedule.make_train_schedule(config)
    prefetched = prefetch_pixels(PrefetchRequest(config, on_host, course, stage.num_pixels(), 1), 3)
    sizes = set()
    for number in range(3):
        key, _ = jax.random.split(jax.random.fold_in(schedule.training_key(config), number + 1))
        region = pixels.sampling_region(config, course.progress_at(jnp.asarray(number + 1)))
        sampled = sample_patches(on_device, key, stage, region)
        of_host = jax.tree.map(lambda x, n=number: x[n], prefetched)
        np.testing.assert_array_equal(sampled.pixel_ids, of_host.pixel_ids)
        np.testing.assert_array_equal(sampled.mask, of_host.mask)
        one, other = (
            sample_batch(
                dataset, key, stage.num_pixels(), NEAR_FAR, "white", 1, region, pixel_source
            )
            for dataset, pixel_source in ((on_device, sampled), (_drop(on_host), of_host))
        )
        np.testing.assert_array_equal(one.target_rgb, other.target_rgb)
        np.testing.assert_array_equal(one.rays.directions, other.rays.directions)
        at = unravel_pixels(on_device, sampled.pixel_ids)
        sizes |= {*np.asarray(at.size).tolist()}
        patches = np.asarray(at.size).reshape(-1, SIZE**2)
        assert (patches == patches[:, :1]).all()
        side = split.images.shape[1] // np.asarray(at.scale)
        assert (np.asarray(at.row) < side).all() and (np.asarray(at.column) < side).all()
    assert sizes == ({0, 1} if name in ("schedule", "sizes") else {0})


def _drop(dataset: PixelDataset) -> PixelDataset:
    return jax.tree.map(jnp.asarray, pixels.drop_images(dataset))


def test_training_with_sub_rays_filter_and_masks_is_finite() -> None:
    scene = make_scene()
    masks = np.ones(scene.train.images.shape[:3], bool)
    masks[:, :3] = False
    scene = dataclasses.replace(
        scene, splits={"train": dataclasses.replace(scene.train, masks=masks)}
    )
    config = tiny_hashgrid(
        loss=LossConfig(inlier_quantile=0.8, patch_size=SIZE), num_steps=4, supersample=2,
        supersample_from=0.0, batch_samples=1 << 10,
    )  # fmt: skip
    recorder = Recorder()
    stage, state = loop.fit(config, scene, recorder)
    assert stage.num_rays == 128 and stage.num_patches() == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
