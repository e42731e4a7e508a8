"""Down-scaling against slow loops in exact arithmetic, its geometry, and compositing."""

import dataclasses
import warnings
from fractions import Fraction

import numpy as np
import pytest
from scenes import make_scene

from jaxrf.cameras.base import Cameras, make_cameras, project
from jaxrf.cameras.poses import look_at
from jaxrf.core.errors import InputError
from jaxrf.data.scene import Split, composite, downscale_images, downscale_split, find_background


def random_images(count: int, height: int, width: int) -> np.ndarray:
    """Random straight RGBA, a third of it fully transparent but colored, a third opaque."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, height, width, 4), dtype=np.uint8)
    third = rng.integers(0, 3, (count, height, width))
    images[third == 0, 3] = 0
    images[third == 1, 3] = 255
    return images


def downscale_slowly(image: np.ndarray, factor: int) -> np.ndarray:
    """One loop per axis, premultiplied means in exact fractions."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    small = np.zeros((height, width, 4), np.uint8)
    for row in range(height):
        for column in range(width):
            coverage, light = Fraction(0), [Fraction(0)] * 3
            for i in range(row * factor, (row + 1) * factor):
                for j in range(column * factor, (column + 1) * factor):
                    *rgb, alpha = (int(value) for value in image[i, j])
                    coverage += Fraction(alpha, factor**2)
                    light = [
                        s + Fraction(c * alpha, factor**2) for s, c in zip(light, rgb, strict=True)
                    ]
            if coverage:
                small[row, column, :3] = [round(channel / coverage) for channel in light]
            small[row, column, 3] = round(coverage)
    return small


def make_split(count: int, height: int, width: int) -> Split:
    eyes = np.random.default_rng(1).normal(size=(count, 3)) + np.array([0.0, 0.0, 4.0])
    poses = np.stack([look_at(eye, np.zeros(3)) for eye in eyes])
    return Split(
        name="train",
        names=tuple(f"r_{index}" for index in range(count)),
        images=random_images(count, height, width),
        cameras=make_cameras(poses, width, height, camera_angle_x=0.7),
        depth=np.ones((count, height, width), np.float32),
    )


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(12, 12), (13, 9), (7, 22)])
def test_downscale_equals_slow_reference(size: tuple[int, int], factor: int) -> None:
    images = random_images(2, *size)
    small = downscale_images(images, factor)
    assert small.shape == (2, size[0] // factor, size[1] // factor, 4)
    for image, result in zip(images, small, strict=True):
        expected = image.copy() if factor == 1 else downscale_slowly(image, factor)
        # The color of nothing is free.
        seen = expected[..., 3] > 0
        np.testing.assert_array_equal(result[..., 3], expected[..., 3])
        np.testing.assert_array_equal(result[seen], expected[seen])


def test_downscale_keeps_transparent_color_out() -> None:
    image = np.zeros((1, 2, 2, 4), np.uint8)
    image[0, :, 0] = [200, 100, 50, 255]
    image[0, :, 1] = [0, 255, 0, 0]
    np.testing.assert_array_equal(downscale_images(image, 2), [[[[200, 100, 50, 128]]]])


def test_downscale_commutes_with_composite() -> None:
    """What is seen over a background is the mean of what was seen before."""
    images, background = random_images(2, 24, 24), np.array([1.0, 0.5, 0.0])
    before = composite(images, background).reshape(2, 6, 4, 6, 4, 3).mean(axis=(2, 4))
    after = composite(downscale_images(images, 4), background)
    np.testing.assert_allclose(after, before, atol=1.1 / 255)  # rounded color, rounded alpha


@pytest.mark.parametrize(("size", "factor"), [((40, 60), 4), ((41, 63), 4), ((25, 17), 8)])
def test_downscale_keeps_geometry(size: tuple[int, int], factor: int) -> None:
    split = make_split(3, *size)
    small = downscale_split(split, factor)
    assert (small.cameras.height, small.cameras.width) == small.images.shape[1:3]
    assert (small.name, small.names, small.depth) == (split.name, split.names, None)
    positions = np.random.default_rng(2).uniform(-1.0, 1.0, (50, 3))
    for index in range(3):
        pixels, distance = project(split.cameras, index, positions)
        small_pixels, small_distance = project(small.cameras, index, positions)
        np.testing.assert_allclose(small_pixels, pixels / factor, rtol=1e-6, atol=1e-5)
        np.testing.assert_array_equal(small_distance, distance)


def test_downscale_by_one_is_the_identity() -> None:
    split = make_split(2, 5, 6)
    assert downscale_split(split, 1) is split


def test_downscale_does_not_change_its_input() -> None:
    split = make_split(1, 8, 8)
    images, cameras = split.images.copy(), dataclasses.replace(split.cameras)
    downscale_split(split, 2)
    np.testing.assert_array_equal(split.images, images)
    assert isinstance(split.cameras, Cameras)
    assert split.cameras.width == cameras.width == 8


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_composite_equals_formula(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    rgba = rng.integers(0, 256, (*shape, 4), dtype=np.uint8)
    background = np.array([0.2, 0.9, 1.0])
    result = composite(rgba, background)
    assert result.dtype == np.float32
    for index in np.ndindex(shape):
        *rgb, alpha = (int(value) / 255.0 for value in rgba[index])
        expected = [c * alpha + b * (1.0 - alpha) for c, b in zip(rgb, background, strict=True)]
        np.testing.assert_allclose(result[index], expected, atol=1e-6)


def test_composite_of_transparent_pixels_is_the_background() -> None:
    rgba = np.array([[191, 7, 3, 0], [191, 7, 3, 255]], np.uint8)
    white = composite(rgba, np.ones(3))
    np.testing.assert_array_equal(white[0], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(white[1] * 255.0, [191.0, 7.0, 3.0], rtol=1e-6)


def test_split_length() -> None:
    assert len(make_split(3, 2, 2)) == 3


@pytest.mark.parametrize(("level", "name"), [(255, "white"), (250, "white"), (0, "black")])
def test_find_background_of_opaque_images_is_the_border_color(level: int, name: str) -> None:
    images = np.full((2, 8, 8, 4), 255, np.uint8)
    images[..., :3] = level
    images[:, 2:6, 2:8, :3] = 99  # an object that reaches the right border
    assert find_background(images) == name
    images[1, 3, 3, 3] = 254
    assert find_background(images) is None


def test_find_background_of_no_images_is_none_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_background(np.zeros((0, 8, 8, 4), np.uint8)) is None


def test_find_background_of_captured_scenes_is_none() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 4), dtype=np.uint8)
    images[..., 3] = 255
    assert find_background(images) is None


def test_scene_splits_are_properties() -> None:
    scene = make_scene()
    assert scene.train is scene.splits["train"]
    assert scene.val is scene.splits["val"] and scene.test is scene.splits["test"]


def test_scene_without_a_split_names_those_it_has() -> None:
    full = make_scene()
    scene = dataclasses.replace(full, splits={"train": full.train, "test": full.test})
    with pytest.raises(InputError, match=r"no split 'val' \(loaded: train, test\): load it"):
        _ = scene.val
    with pytest.raises(InputError, match="loaded: none"):
        _ = dataclasses.replace(full, splits={}).train
