"""Images of cameras, rendered in chunks of rays by one compiled program for every image size.

A chunk is a constant number of consecutive pixels, block by block where neighboring rays share work
(`Model.pixel_block`). Its rays are made on the device from the index of its first pixel, so neither
the size of the image nor the number of cameras is part of the program. Devices take turns with
chunks; a chunk is computed alike whichever device renders it.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxrf.cameras.base import Cameras, apply_ray_convention, pixels_to_rays, resize_cameras
from jaxrf.cameras.poses import SceneRange
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core.rays import Rays
from jaxrf.models.base import Model, ModelParams, RenderSpec, StageSpec, render_rays
from jaxrf.parallel import devices, sums
from jaxrf.rendering.image import HostRendering, resolve_supersampling
from jaxrf.rendering.volume import Rendering
from jaxrf.sampling.occupancy import OccupancyGrid

# Samples evaluated together on a CPU, where larger arrays leave its caches.
MAX_CPU_SAMPLES = 1 << 15
# Rays of a call of the program, about. Results of a call are fetched together.
CALL_RAYS, MAX_CALL_CHUNKS = 1 << 18, 64
# Calls that may wait for the device before the host asks whether to stop. With none, the device
# would wait for the host.
CALLS_AHEAD = 2


@runtime_checkable
class RenderConfig(Protocol):
    """The numbers of a configuration that rendering depends on; a `TrainConfig` has them.

    Attributes:
      model: how rays are sampled and rendered.
      ray_convention: of rays and compositing.
      render_samples: samples evaluated together at most.
      shards: parts that rays are cut into for bits that do not depend on the number of devices.
    """

    @property
    def model(self) -> Model: ...
    @property
    def ray_convention(self) -> RayConvention: ...
    @property
    def render_samples(self) -> int: ...
    @property
    def shards(self) -> int | None: ...


class TrainedField(NamedTuple):
    """A trained field, and what rendering it takes besides a camera.

    Attributes:
      config, stage, params, grid: of the training. With `config.shards`, the bits of an image do
        not depend on the number of devices.
      scene_range: near and far, distances along rays, or a function that computes them.
      background: (3,) color of rays that hit nothing.
    """

    config: RenderConfig
    stage: StageSpec
    params: ModelParams
    grid: OccupancyGrid
    scene_range: SceneRange
    background: Float[np.ndarray, "3"]


class ChunkProgram(NamedTuple):
    """Static arguments of the program that renders chunks.

    Attributes:
      spec: the model and its evaluation shapes.
      chunk_rays: rays of a chunk.
      chunks_per_call: chunks that each device renders in a call, one after the other, at most.
      mesh: the devices.
      block: pixels along each side of the blocks that follow each other, row by row.
    """

    spec: RenderSpec
    chunk_rays: int
    chunks_per_call: int
    mesh: Mesh
    block: int = 1

    @property
    def call_rays(self) -> int:
        """Rays of a call of the program, on all devices."""
        return self.chunks_per_call * self.mesh.size * self.chunk_rays

    def padded_pixels(self, width: Any, height: Any) -> Any:
        """Pixels of the blocks that cover an image."""
        columns, rows = (-(-size // self.block) for size in (width, height))
        return columns * rows * self.block**2


@dataclasses.dataclass(frozen=True)
class CameraRenderer:
    """A trained field that renders images of cameras.

    Attributes:
      program: static arguments of the compiled program. Its ray convention is applied to cameras.
      deterministic: compile such that bits do not depend on the number of devices.
      params, grid: parameters and occupancy grid, replicated over the program's mesh.
      aabb: (2, 3) box outside of which nothing is rendered.
      scene_range: near and far, distances along rays, or a function that computes them.
      background: (3,) color of rays that hit nothing.
    """

    program: ChunkProgram
    deterministic: bool
    params: ModelParams
    grid: OccupancyGrid
    aabb: Float[np.ndarray, "2 3"]
    scene_range: SceneRange
    background: Float[np.ndarray, "3"]

    def render(
        self,
        cameras: Cameras,
        index: int,
        supersample: int = 1,
        crop_aabb: Float[np.ndarray, "2 3"] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> HostRendering | None:
        """Renders the image of one camera.

        Args:
          cameras: of the image's size.
          index: of the camera.
          supersample: rays of a pixel along each axis, averaged.
          crop_aabb: box outside of which the field is empty, if any.
          should_stop: called before each call of the program, if given.

        Returns:
          The image in host memory, or None once `should_stop` returned True.
        """
        width, height = supersample * cameras.width, supersample * cameras.height
        num_pixels, call_rays = self.program.padded_pixels(width, height), self.program.call_rays
        arguments = self._image_arguments(cameras, index, supersample, crop_aabb)
        calls: list[Rendering] = []
        for start in range(0, num_pixels, call_rays):
            if should_stop is not None and should_stop():
                return None
            pixels = devices.replicate(
                self.program.mesh, (np.int32(start), np.int32(height), np.int32(width))
            )
            calls.append(self._render_call(pixels, arguments))
            if should_stop is not None and len(calls) > CALLS_AHEAD:
                jax.block_until_ready(calls[-1 - CALLS_AHEAD])
        image = _join_calls(calls, width, height, self.program.block)
        return resolve_supersampling(image, supersample)

    def compile(self, cameras: Cameras) -> None:
        """Compiles the program for cameras like these, unless it is compiled."""
        # An image without pixels has no chunks to render.
        empty = dataclasses.replace(cameras, width=1, height=1)
        arguments = self._image_arguments(empty, 0, 1, None)
        pixels = devices.replicate(self.program.mesh, (np.int32(0),) * 3)
        jax.block_until_ready(self._render_call(pixels, arguments))

    def _render_call(self, pixels: tuple[Any, Any, Any], arguments: tuple[Any, ...]) -> Rendering:
        render_chunks = _render_chunks_deterministic if self.deterministic else _render_chunks
        rendering: Rendering = render_chunks(
            self.program, self.params, self.grid, pixels, *arguments
        )
        return rendering

    def _image_arguments(
        self,
        cameras: Cameras,
        index: int,
        supersample: int,
        crop_aabb: Float[np.ndarray, "2 3"] | None,
    ) -> tuple[Any, ...]:
        """Arguments of `_render_chunks` that are the same for all chunks of an image."""
        near, far = (
            self.scene_range(cameras, index) if callable(self.scene_range) else self.scene_range
        )
        camera = apply_ray_convention(cameras, self.program.spec.convention)[index]
        camera = resize_cameras(camera, supersample * camera.width, supersample * camera.height)
        # Width and height are static, but the program must not depend on them.
        camera = dataclasses.replace(camera, width=1, height=1)
        arguments = (camera, (near, far), self.background, self.aabb, crop_aabb)
        dtype = jax.dtypes.canonicalize_dtype(np.float64)
        arguments = jax.tree.map(lambda x: np.asarray(x, dtype), arguments)
        return devices.replicate(self.program.mesh, arguments)


def make_camera_renderer(
    trained: TrainedField,
    crop_to_occupied: bool = True,
    mesh: Mesh | None = None,
    max_chunk_rays: int | None = None,
    num_samples: int | None = None,
) -> CameraRenderer:
    """A renderer of a trained field.

    Args:
      trained: the field.
      crop_to_occupied: render the bounding box of occupied cells only. That is faster, but the
        program is recompiled whenever cells were pruned.
      mesh: devices that share the chunks, by default one. All processes of the mesh have to render.
      max_chunk_rays: render a single chunk of at most this many rays per call, to keep calls short.
        The bits of an image may then depend on the number of devices despite `config.shards`.
      num_samples: evaluated together at most, in place of `config.render_samples`.
    """
    config, grid = trained.config, trained.grid
    mesh = mesh or devices.make_mesh(1)
    num_samples = num_samples or config.render_samples
    if jax.default_backend() == "cpu":
        num_samples = min(num_samples, MAX_CPU_SAMPLES)
    max_rays = config.model.rays_per_chunk(num_samples)
    # Several devices get smaller chunks, so that a small image has chunks for all of them. With
    # `config.shards` the size of a chunk, and so its bits, do not depend on the number of devices.
    chunk_rays = max(max_rays // min(config.shards or mesh.size, 4), 64)
    chunks_per_call = min(max(CALL_RAYS // (chunk_rays * mesh.size), 1), MAX_CALL_CHUNKS)
    if max_chunk_rays is not None:
        chunk_rays, chunks_per_call = min(max_rays, max_chunk_rays), 1
    block = config.model.pixel_block()
    chunk_rays = math.ceil(chunk_rays / block**2) * block**2
    convention = config.ray_convention
    stage, aabb = config.model.eval_stage(trained.stage, grid, convention, crop_to_occupied)
    spec = RenderSpec(config.model, stage, convention, num_samples, block**2)
    program = ChunkProgram(spec, chunk_rays, chunks_per_call, mesh, block)
    params, grid = devices.replicate(mesh, (trained.params, grid))
    deterministic = bool(config.shards) and max_chunk_rays is None
    return CameraRenderer(
        program, deterministic, params, grid, aabb, trained.scene_range, trained.background
    )


def _render_chunks_of_call(
    program: ChunkProgram,
    params: ModelParams,
    grid: OccupancyGrid,
    pixels: tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]],
    camera: Cameras,
    near_far: tuple[Float[Array, ""], Float[Array, ""]],
    background: Float[Array, "3"],
    aabb: Float[Array, "2 3"],
    crop_aabb: Float[Array, "2 3"] | None,
) -> Rendering:
    """Renders `program.call_rays` pixels of an image; those past its last pixel are zero.

    `pixels` are the index of the first pixel in the order of blocks, and the height and the width
    of the image. The result has the batch shape (chunks_per_call, devices, chunk_rays), in the
    order of pixels.
    """
    on_device = partial(_render_chunks_on_device, program)
    run = devices.shard_rays(program.mesh, on_device, (False,) * 8, axis=1, gather_outputs=True)
    return run(params, grid, pixels, camera, near_far, background, aabb, crop_aabb)


def _render_chunks_on_device(
    program: ChunkProgram,
    params: ModelParams,
    grid: OccupancyGrid,
    pixels: tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]],
    camera: Cameras,
    near_far: tuple[Float[Array, ""], Float[Array, ""]],
    *background_and_boxes: Any,
) -> Rendering:
    """The chunks that one device renders in a call; see `_render_chunks_of_call`."""
    chunk_rays, num_devices = program.chunk_rays, program.mesh.size
    start, height, width = pixels
    num_pixels = program.padded_pixels(width, height)
    device = devices.device_index(program.mesh)

    def render_chunk(index: Int[Array, ""], output: Rendering) -> Rendering:
        first = start + (index * num_devices + device) * chunk_rays
        rays = _chunk_rays(camera, near_far, first, (width, height), program)
        # The barriers keep the compiler from fusing a chunk with what surrounds it, which may
        # round it differently on another number of devices.
        rays = jax.lax.optimization_barrier(rays)
        chunk = render_rays(program.spec, params, grid, rays, *background_and_boxes)
        chunk = jax.lax.optimization_barrier(chunk)
        return jax.tree.map(lambda image, part: image.at[index, 0].set(part), output, chunk)

    shape = (program.chunks_per_call, 1, chunk_rays)
    output = Rendering(jnp.zeros((*shape, 3)), *(jnp.zeros(shape) for _ in range(3)))
    # A small image needs fewer chunks than a call can render.
    rays_per_turn = num_devices * chunk_rays
    turns = (num_pixels - start + rays_per_turn - 1) // rays_per_turn
    turns = jnp.minimum(turns, program.chunks_per_call)
    return jax.lax.fori_loop(0, turns, render_chunk, output)


def _chunk_rays(
    camera: Cameras,
    near_far: tuple[Float[Array, ""], Float[Array, ""]],
    first: Int[Array, ""],
    size: tuple[Int[Array, ""], Int[Array, ""]],
    program: ChunkProgram,
) -> Rays:
    """Rays through the centers of consecutive pixels, in the order of blocks.

    Blocks reach past the last column and row, which they repeat there. Past the last block rays are
    empty (`far` is `near`), so that marching skips them.
    """
    width, height = size
    block, num_pixels = program.block, program.padded_pixels(width, height)
    pixel = first + jnp.arange(program.chunk_rays, dtype=jnp.int32)
    is_pixel = pixel < num_pixels
    index, within = jnp.divmod(jnp.minimum(pixel, num_pixels - 1), block**2)
    row, column = jnp.divmod(index, -(-width // block))
    if block > 1:
        offset = jnp.asarray(block_offsets(block))[within]
        row = jnp.minimum(block * row + offset[:, 0], height - 1)
        column = jnp.minimum(block * column + offset[:, 1], width - 1)
    position = jnp.stack([column, row], axis=-1).astype(jnp.float32) + 0.5
    rays = pixels_to_rays(camera, jnp.zeros_like(pixel), position, *near_far)
    return dataclasses.replace(rays, far=jnp.where(is_pixel, rays.far, rays.near))


def block_offsets(block: int) -> Int[np.ndarray, "n 2"]:
    """Row and column of each pixel in a block, in the order of the Z-curve (Morton 1966).

    Every quarter of the pixels, and every quarter of that, is a block of its own.

    Args:
      block: pixels along each side, a power of two.

    >>> block_offsets(2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    offsets = np.zeros((1, 2), np.int32)
    while len(offsets) < block**2:
        corners = np.array(list(np.ndindex(2, 2)), np.int32)
        offsets = (2 * offsets[:, None] + corners).reshape(-1, 2)
    return offsets


# Jitted at module level, so that all renderers of the same program share what was compiled.
_render_chunks = jax.jit(_render_chunks_of_call, static_argnums=0)
_render_chunks_deterministic = jax.jit(
    _render_chunks_of_call,
    static_argnums=0,
    compiler_options=sums.DETERMINISTIC_COMPILER_OPTIONS,
)


def _join_calls(calls: list[Rendering], width: int, height: int, block: int) -> HostRendering:
    """The image in host memory, of what the calls rendered."""
    # All calls were dispatched before the first is waited for.
    host = jax.device_get(calls)
    columns, rows = (-(-size // block) for size in (width, height))
    order = np.argsort(block_offsets(block) @ np.array([block, 1]))

    def join(name: str) -> np.ndarray:
        parts = [getattr(call, name) for call in host]
        pixels = np.concatenate([part.reshape(-1, *part.shape[3:]) for part in parts])
        channels = pixels.shape[1:]
        pixels = pixels[: rows * columns * block**2]
        pixels = pixels.reshape(rows, columns, block**2, *channels)[:, :, order]
        blocks = pixels.reshape(rows, columns, block, block, *channels).swapaxes(1, 2)
        image = blocks.reshape(rows * block, columns * block, *channels)
        return image[:height, :width]

    return HostRendering(*(join(name) for name in HostRendering._fields))
