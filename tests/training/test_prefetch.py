"""Prefetched pixels: images in host memory train to the same bits."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from scenes import (
    differing_leaves,
    make_scene,
    slow,
    tiny_hashgrid,
    tiny_nerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.core import memory
from jaxrf.data.scene import KnownDepth
from jaxrf.training import loop, pixels, schedule
from jaxrf.training.config import LossConfig, TrainConfig
from jaxrf.training.prefetch import PixelPrefetcher, PrefetchRequest


@pytest.mark.parametrize(
    "config",
    [
        slow(tiny_tensorf()),
        slow(tiny_voxels(supersample=2, supersample_from=0.5)),
        slow(tiny_nerf(precrop_fraction=0.4, precrop_scale=0.25, num_steps=20)),
        slow(tiny_nerf(train_scale_schedule=((0.0, 4), (0.25, 3), (0.5, 1)), num_steps=20)),
        slow(tiny_hashgrid(num_train_scales=3, background="random")),
        tiny_nerf(),
    ],
    ids=["tensorf", "voxels", "crop", "schedule", "sizes", "plain"],
)
def test_images_on_the_host_train_to_the_same_bits(config: TrainConfig) -> None:
    config = dataclasses.replace(config, steps_per_dispatch=3)
    results = [
        loop.fit(dataclasses.replace(config, keep_images_on_host=on_host), make_scene())
        for on_host in (False, True)
    ]
    assert results[0][0] == results[1][0]
    assert differing_leaves(results[0][1], results[1][1]) == []


def test_pixels_of_known_depth_on_the_host_train_to_the_same_bits() -> None:
    split = make_scene().train
    image, row, column = (axis.ravel() for axis in np.indices(split.images.shape[:3]))
    known = KnownDepth(image, row, column, np.full(image.shape, 3.0, np.float32))
    known = KnownDepth(*(array[::37] for array in known))
    scene = dataclasses.replace(
        make_scene(), splits={"train": dataclasses.replace(split, known_depth=known)}
    )
    changes = {"precrop_fraction": 0.5, "steps_per_dispatch": 3}
    config = tiny_nerf(loss=LossConfig(depth_weight=0.1), **changes)
    results = [
        loop.fit(dataclasses.replace(config, keep_images_on_host=on_host), scene)
        for on_host in (False, True)
    ]
    assert differing_leaves(results[0][1], results[1][1]) == []
    without = loop.fit(tiny_nerf(**changes), scene)
    assert differing_leaves(results[0][1], without[1]) != []


def test_images_stay_on_the_host_if_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = pixels.count_bytes(make_scene().splits["train"], (1, 2))
    assert needed == 8 * 6 * (16 * 16 + 8 * 8)
    requests: list[bool] = []
    to_device = pixels.to_device

    def record(split: Any, scales: Any, keep_images_on_host: bool, use_depth: bool) -> Any:
        requests.append(keep_images_on_host)
        return to_device(split, scales, keep_images_on_host, use_depth)

    monkeypatch.setattr(loop, "to_device", record)
    for free in (3 * needed, needed):
        monkeypatch.setattr(memory, "free_bytes", lambda free=free: free)
        monkeypatch.setattr(memory, "needed_bytes", lambda _: 0)
        loop.fit(tiny_nerf(num_steps=1, num_train_scales=2), make_scene())
    assert requests == [False, True]


def test_take_samples_anew_if_the_request_is_another_one() -> None:
    config = tiny_nerf(num_steps=8)
    dataset = pixels.to_device(make_scene().splits["train"], (1,), keep_images_on_host=True)
    request = PrefetchRequest(config, dataset, schedule.make_train_schedule(config), 16, 0)
    with PixelPrefetcher(2) as prefetcher:
        prefetcher.begin(request)
        first = prefetcher.take(request)
        later = prefetcher.take(request._replace(first=1))
    np.testing.assert_array_equal(first.pixel_ids[1], later.pixel_ids[0])
    assert not np.array_equal(first.pixel_ids[0], later.pixel_ids[0])
    images = np.asarray(dataset.images).reshape(-1, 4)
    np.testing.assert_array_equal(first.rgba, images[first.pixel_ids])
