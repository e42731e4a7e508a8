"""The pixels of the training images, and the batches that are sampled from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import Recorder, differing_leaves, make_scene, tiny_nerf
from steps import NEAR_FAR, train_pixels

from jaxrf.cameras.base import image_rays, project, resize_cameras
from jaxrf.core.errors import InputError
from jaxrf.data.scene import Split, composite, downscale_images
from jaxrf.training import loop, pixels, transitions
from jaxrf.training.pixels import Batch, PixelDataset, SamplingRegion, sample_batch


def coded_pixels(height: int, width: int, count: int) -> tuple[PixelDataset, PixelDataset]:
    """Images whose color is (column, row, image), and random RGBA ones of the same cameras."""
    scene = make_scene().splits["train"]
    cameras = dataclasses.replace(
        jax.tree.map(lambda x: x[:count], scene.cameras), width=width, height=height
    )
    image, row, column = np.meshgrid(*map(np.arange, (count, height, width)), indexing="ij")
    opaque = np.full_like(image, 255)
    coded = np.stack([column, row, image, opaque], axis=-1).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, coded.shape, dtype=np.uint8)
    names = tuple(str(i) for i in range(count))
    first, second = (
        pixels.to_device(Split("train", names, images, cameras)) for images in (coded, noise)
    )
    return first, second


def decode_pixels(batch: Batch) -> np.ndarray:
    """(3, p) column, row and image of the pixels of a batch from coded images."""
    return np.rint(np.asarray(batch.target_rgb) * 255).astype(int).T


@pytest.mark.parametrize("background", ["white", "black", "random"])
def test_sample_batch_gives_the_colors_and_rays_of_its_pixels(background: str) -> None:
    coded, noise = coded_pixels(5, 7, 3)
    key = jax.random.key(3)
    batch = sample_batch(coded, key, 300, NEAR_FAR, background)
    assert np.all(np.asarray(batch.alpha) == 1.0)
    column, row, image = decode_pixels(batch)
    assert len({*zip(image, row, column, strict=True)}) > 60  # of 105

    expected_rays = [image_rays(coded.cameras, i, *NEAR_FAR) for i in range(3)]
    for name in ("origins", "directions", "near", "far", "radii", "camera_index"):
        stack = np.stack([np.asarray(getattr(rays, name)) for rays in expected_rays])
        np.testing.assert_allclose(getattr(batch.rays, name), stack[image, row, column], atol=1e-6)

    batch = sample_batch(noise, key, 300, NEAR_FAR, background)
    rgba = np.asarray(noise.images)[image, row, column]
    background_rgb = np.asarray(batch.background)
    np.testing.assert_allclose(batch.alpha, rgba[:, 3] / 255.0, atol=1e-6)
    expected = rgba[:, :3] / 255.0 * rgba[:, 3:] / 255.0
    expected = expected + background_rgb * (1 - rgba[:, 3:] / 255.0)
    np.testing.assert_allclose(batch.target_rgb, expected, atol=1e-6)
    if background == "random":
        assert background_rgb.min() >= 0 and background_rgb.max() <= 1
        assert background_rgb.std(axis=0).min() > 0.2
        assert not np.allclose(background_rgb[:, 0], background_rgb[:, 1])
    else:
        level = {"white": 1.0, "black": 0.0}[background]
        assert np.all(background_rgb == level)
        np.testing.assert_allclose(batch.target_rgb, composite(rgba, np.full(3, level)), atol=1e-6)


def test_sub_rays_pass_the_centers_of_the_parts_of_their_pixel() -> None:
    coded, _ = coded_pixels(5, 7, 3)
    key = jax.random.key(3)
    one = sample_batch(coded, key, 40, NEAR_FAR, "random")
    batch = sample_batch(coded, key, 40, NEAR_FAR, "random", 3)
    rays = batch.rays
    assert np.array_equal(one.target_rgb, batch.target_rgb)
    assert np.array_equal(one.background, batch.background)
    assert rays.near.shape == (360,)
    assert np.array_equal(rays.camera_index, np.repeat(one.rays.camera_index, 9))
    column, row, image = decode_pixels(one)
    for index in range(40):
        points, depths = project(
            coded.cameras,
            int(image[index]),
            np.asarray(rays.origins + rays.directions)[9 * index : 9 * index + 9],
        )
        assert np.all(depths > 0)
        parts = np.array([[(i + 0.5) / 3, (j + 0.5) / 3] for j in range(3) for i in range(3)])
        expected = np.array([column[index], row[index]]) + parts
        np.testing.assert_allclose(points, expected, atol=1e-4)
    # Measured to the next ray, which is nearer: equal to first order only.
    np.testing.assert_allclose(rays.radii.reshape(40, 9)[:, 4], one.rays.radii / 3, rtol=2e-2)


def test_sample_batch_draws_evenly_from_the_listed_pixels_only() -> None:
    coded, _ = coded_pixels(5, 7, 3)
    listed = np.array([2, 40, 77, 104])
    pixel_ids = np.zeros(105, np.int32)
    pixel_ids[:4] = listed
    few = coded._replace(pixel_ids=jnp.asarray(pixel_ids), total=jnp.asarray(4, jnp.int32))
    batch = sample_batch(few, jax.random.key(0), 2000, NEAR_FAR, "white")
    column, row, image = decode_pixels(batch)
    drawn, counts = np.unique((image * 5 + row) * 7 + column, return_counts=True)
    assert drawn.tolist() == listed.tolist()
    assert counts.min() > 400


def test_random_backgrounds_are_independent_of_the_pixels() -> None:
    coded, _ = coded_pixels(5, 7, 3)
    batch = sample_batch(coded, jax.random.key(0), 4000, NEAR_FAR, "random")
    both = np.concatenate([np.asarray(batch.target_rgb), np.asarray(batch.background)], axis=-1)
    correlation = np.corrcoef(both.T)[:3, 3:]
    assert np.abs(correlation).max() < 0.08


@pytest.mark.parametrize("crop", [0.01, 0.4, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("size", [(5, 7), (6, 4), (1, 1)])
def test_a_crop_samples_from_the_center_of_the_images(size: tuple[int, int], crop: float) -> None:
    coded, _ = coded_pixels(*size, 3)
    key = jax.random.key(3)
    full = sample_batch(coded, key, 400, NEAR_FAR, "white")
    region = SamplingRegion(jnp.asarray(crop))
    batch = sample_batch(coded, key, 400, NEAR_FAR, "white", 1, region)
    height, width = size
    column, row, image = decode_pixels(batch)
    full_column, full_row, full_image = decode_pixels(full)
    np.testing.assert_array_equal(image, full_image)
    for cropped, original, count in ((row, full_row, height), (column, full_column, width)):
        # The pixel that contains the point to which the center of the other is moved.
        point = crop * (original + 0.5 - 0.5 * count) + 0.5 * count
        assert np.all(np.abs(cropped + 0.5 - point) <= 0.5 + 1e-5)
        assert np.all(np.abs(cropped + 0.5 - 0.5 * count) <= 0.5 * crop * count + 0.5)
    rays = [image_rays(coded.cameras, i, *NEAR_FAR) for i in range(3)]
    stack = np.stack([np.asarray(r.directions) for r in rays])
    np.testing.assert_allclose(batch.rays.directions, stack[image, row, column], atol=1e-6)
    if crop == 1.0:
        assert differing_leaves(batch, full) == []


# ---------------------------------------------------------------------------------------------
# Images of several sizes
# ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pixels_of_smaller_images_are_means_with_wider_cones() -> None:
    split = make_scene().splits["train"]
    dataset = train_pixels((1, 2, 4))
    size = split.images.shape[1]
    counts = [len(split) * (size // 2**k) ** 2 for k in range(3)]
    assert np.asarray(dataset.starts).tolist() == [0, counts[0], counts[0] + counts[1]]
    assert int(dataset.total) == sum(counts)
    for halvings in range(3):
        factor = 2**halvings
        region = SamplingRegion(size=jnp.asarray(halvings))
        batch = sample_batch(dataset, jax.random.key(2), 60, NEAR_FAR, "white", region=region)
        # All pixels have the same area.
        assert np.all(np.asarray(batch.loss_mult) == 1.0)
        small = dataclasses.replace(
            split, images=downscale_images(split.images, factor),
            cameras=resize_cameras(split.cameras, size // factor, size // factor),
        )  # fmt: skip
        rays = [image_rays(small.cameras, i, *NEAR_FAR) for i in range(len(split))]
        target = composite(small.images, np.ones(3, np.float32))
        for index in range(60):
            camera = int(batch.rays.camera_index[index])
            distance = np.linalg.norm(
                np.asarray(rays[camera].directions) - np.asarray(batch.rays.directions[index]),
                axis=-1,
            )
            row, column = np.unravel_index(np.argmin(distance), distance.shape)
            assert distance[row, column] < 1e-5
            np.testing.assert_allclose(
                batch.target_rgb[index], target[camera, row, column], atol=1e-5
            )
            # Measured to the next ray, which is farther: equal to first order only.
            wide = float(rays[camera].radii[row, column])
            assert float(batch.rays.radii[index]) == pytest.approx(wide, rel=0.06)


def test_unravel_pixels_gives_size_image_row_and_column() -> None:
    dataset = train_pixels((1, 2, 4))
    count, begin = len(make_scene().splits["train"]), 0
    for size, scale in enumerate((1, 2, 4)):
        side = 16 // scale
        pixel_ids = jnp.arange(begin, begin + count * side**2)
        indices = pixels.unravel_pixels(dataset, pixel_ids)
        assert np.all(np.asarray(indices.size) == size)
        assert np.all(np.asarray(indices.scale) == scale)
        expected = np.unravel_index(np.arange(count * side**2), (count, side, side))
        for name, values in zip(("image", "row", "column"), expected, strict=True):
            np.testing.assert_array_equal(getattr(indices, name), values)
        begin += count * side**2


def test_sizes_are_sampled_in_proportion_to_their_pixels_and_weighted_by_area() -> None:
    batch = sample_batch(train_pixels((1, 2, 4)), jax.random.key(0), 4000, NEAR_FAR, "white")
    area = np.asarray(batch.loss_mult, np.float64)
    assert np.mean(area) == pytest.approx(1.0, rel=1e-5)
    ratio = np.rint(area / area.min())
    np.testing.assert_allclose(area, ratio * area.min(), rtol=1e-5)
    shares = [float(np.mean(ratio == 4.0**k)) for k in range(3)]
    np.testing.assert_allclose(shares, np.array([16, 4, 1]) / 21, atol=0.03)


def test_train_scale_schedule_enlarges_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # In steps and in fractions of all steps.
    config, in_fractions = (
        transitions.resolve_config(
            tiny_nerf(num_steps=8, steps_per_dispatch=1, train_scale_schedule=schedule),
            make_scene(),
        )
        for schedule in (((0.0, 4), (2.0, 3), (4.0, 1)), ((0.0, 4), (0.25, 3), (0.5, 1)))
    )
    assert config.train_scale_schedule == ((0, 4), (0.25, 3), (0.5, 1))
    assert in_fractions == config
    areas: list[int] = []
    unravel = pixels.unravel_pixels

    def record(*arguments: object) -> pixels.PixelIndices:
        indices = unravel(*arguments)  # type: ignore[arg-type]
        jax.debug.callback(lambda scale: areas.append(int(scale.max()) ** 2), indices.scale)
        return indices

    monkeypatch.setattr(pixels, "unravel_pixels", record)
    loop.fit(config, make_scene(), Recorder())
    jax.effects_barrier()
    assert areas == [16, 16, 9, 9, 1, 1, 1, 1]


def test_to_device_rejects_scales_larger_than_the_images() -> None:
    with pytest.raises(InputError, match="cannot be made 512 times smaller"):
        train_pixels((1, 512))


def test_count_bytes_counts_the_pixels_of_all_sizes() -> None:
    split = make_scene().splits["train"]
    assert pixels.count_bytes(split, (1, 2)) == 8 * 6 * (16 * 16 + 8 * 8)
