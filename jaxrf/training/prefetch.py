"""Prefetching: pixels of images that stay in host memory, sampled ahead of the steps."""

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrf.training.config import TrainConfig
from jaxrf.training.patches import patch_pixel_ids
from jaxrf.training.pixels import (
    PixelDataset,
    PixelIndices,
    SampledPixels,
    drop_images,
    replace_by_depth_pixels,
    sample_pixel_slots,
    sampling_region,
    unravel_pixels,
)
from jaxrf.training.schedule import TrainSchedule, training_key


class PrefetchRequest(NamedTuple):
    """The steps whose pixels are prefetched: `num_pixels` each, from the step `first` on."""

    config: TrainConfig
    pixels: PixelDataset
    schedule: TrainSchedule
    num_pixels: int
    first: int

    def matches(self, other: "PrefetchRequest") -> bool:
        """Whether both ask for the same; arrays are compared by identity."""
        return all(
            a is b or (isinstance(a, int) and a == b) for a, b in zip(self, other, strict=True)
        )


class PixelPrefetcher:
    """Samples the pixels of coming steps in the background and reads them from host memory.

    They are those that steps would sample themselves, bit for bit.
    """

    def __init__(self, num_steps: int) -> None:
        """`num_steps` is the number of steps sampled for together."""
        self._num_steps = num_steps
        self._pool = ThreadPoolExecutor(1)
        self._request: PrefetchRequest | None = None
        self._result: Future[SampledPixels] | None = None

    def begin(self, request: PrefetchRequest) -> None:
        """Begins with a request."""
        self._request = request
        self._result = self._pool.submit(prefetch_pixels, request, self._num_steps)

    def take(self, request: PrefetchRequest) -> SampledPixels:
        """The pixels of a request, sampled now unless it was begun with."""
        if self._request is None or not self._request.matches(request):
            self.begin(request)
        assert self._result is not None
        return self._result.result()

    def __enter__(self) -> "PixelPrefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        """Drops a request that has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def prefetch_pixels(request: PrefetchRequest, num_steps: int) -> SampledPixels:
    """The pixels of `num_steps` steps, from images in host memory.

    Random numbers are computed on the host too, as the device is busy with the steps before.
    """
    config, pixels, schedule, num_pixels, first = request
    # The program must not depend on the number of steps of the training.
    config = dataclasses.replace(config, num_steps=1, schedule_knots=())
    with jax.default_device(_host_device()):
        sizes = jax.device_get(drop_images(pixels))
        schedule = jax.device_get(schedule)
        patch_size = config.loss.sampled_patch_size
        slots, depth_ids, crops = _sample_slots(
            config, num_pixels // patch_size**2, num_steps, sizes, schedule, np.int32(first)
        )
        listed_ids, mask = np.asarray(pixels.pixel_ids), None
        pixel_ids = listed_ids[np.asarray(slots)]
        pixel_ids = np.where(np.asarray(depth_ids) < 0, pixel_ids, depth_ids)
        if patch_size > 1:
            pixel_ids = jax.device_get(_surround(patch_size, sizes, pixel_ids, crops))
            mask = listed_ids[np.searchsorted(listed_ids, pixel_ids)] == pixel_ids
            crops = jnp.ones_like(crops)
        indices = jax.device_get(_unravel(sizes, pixel_ids, crops))
    rgba = np.zeros((*pixel_ids.shape, 4), np.uint8)
    for size, images in enumerate((pixels.images, *pixels.smaller_images)):
        at = indices.size == size
        rgba[at] = np.asarray(images)[indices.image[at], indices.row[at], indices.column[at]]
    return SampledPixels(pixel_ids, rgba, mask)


def _host_device() -> jax.Device:
    """The device that computes in host memory, if JAX has it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _sample_slots(
    config: TrainConfig,
    count: int,
    num_steps: int,
    pixels: PixelDataset,
    schedule: TrainSchedule,
    first: Int[Array, ""],
) -> tuple[Int[Array, "k p"], Int[Array, "k p"], Float[Array, "k"]]:
    """Slots of the pixels of each step, as the step itself would sample them, and its crop.

    In between, the pixels of known depth in place of them, -1 where there is none.
    """
    key = training_key(config)

    def sample(step: Array) -> tuple[Array, Array, Array]:
        key_batch, _ = jax.random.split(jax.random.fold_in(key, step))
        key_pixel, _ = jax.random.split(key_batch)
        region = sampling_region(config, schedule.progress_at(step))
        slots = sample_pixel_slots(pixels, key_pixel, count, region.size)
        depth_ids = jnp.full_like(slots, -1)
        if pixels.depth is not None:
            share = config.loss.depth_share
            depth_ids, _ = replace_by_depth_pixels(pixels, key_pixel, depth_ids, share, region)
        return slots, depth_ids, jnp.asarray(region.crop, jnp.float32)

    return jax.vmap(sample)(first + jnp.arange(num_steps, dtype=jnp.int32))


@jax.jit
def _unravel(
    pixels: PixelDataset, pixel_ids: Int[Array, "k p"], crops: Float[Array, "k"]
) -> PixelIndices:
    return jax.vmap(partial(unravel_pixels, pixels))(pixel_ids, crops)


@partial(jax.jit, static_argnums=0)
def _surround(
    patch_size: int, pixels: PixelDataset, pixel_ids: Int[Array, "k n"], crops: Float[Array, "k"]
) -> Int[Array, "k p"]:
    """The pixels of the patches around pixels, as the steps would find them."""
    return jax.vmap(lambda ids, crop: patch_pixel_ids(pixels, ids, patch_size, crop))(
        pixel_ids, crops
    )
