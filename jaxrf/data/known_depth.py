"""Known depth of pixels, which a field can be trained on: points of COLMAP, and depth maps.

Deng et al.: Depth-supervised NeRF (CVPR 2022). A depth map holds depth along the optical axis in a
unit of the files, 0 where it is not known, as nerfstudio and instant-ngp read it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from jaxrf.cameras.base import Cameras, pixels_to_rays
from jaxrf.core.errors import InputError
from jaxrf.data.colmap_files import RegisteredImage
from jaxrf.data.files import format_count
from jaxrf.data.frames import Frame
from jaxrf.data.images import DECODE_ERRORS, open_image
from jaxrf.data.scene import KnownDepth, Scene

# Pixels of a depth map that are used at most.
MAX_PIXELS = 20_000
# Distances outside of these, relative to those of the rays, are of another unit.
MAX_UNIT_ERROR = 20.0


def locate_points(
    image: RegisteredImage,
    size: tuple[float, float],
    to_points: Float[np.ndarray, "k 3"],
    keypoints: Float[np.ndarray, "k 2"],
) -> Float[np.ndarray, "q 3"]:
    """The points of a reconstruction that an image shows, as `Frame.points` has them.

    Args:
      image: the image.
      size: width and height that the keypoints are in.
      to_points: (k, 3) from the image's position to each point (`Reconstruction.observe`).
      keypoints: (k, 2) of the points.
    """
    located = np.concatenate(
        [keypoints / np.array(size), np.linalg.norm(to_points, axis=-1)[:, None]], axis=-1
    )
    in_front = to_points @ -image.pose[:3, 2] > 0.0
    within = np.all((located[:, :2] >= 0.0) & (located[:, :2] < 1.0), axis=-1)
    return located[in_front & within]


def collect_known_depth(
    frames: Sequence[Frame],
    sizes: Sequence[tuple[int, int]],
    cameras: Cameras,
    scale: float,
    folder: Path,
) -> KnownDepth | None:
    """Known depth of the images of a split; None if there is none.

    Args:
      frames: of the split.
      sizes: width and height of each image.
      cameras: of the split.
      scale: scene units per unit of the files.
      folder: of the data set.

    Raises:
      InputError: a depth map is missing or damaged.
    """
    cameras = dataclasses.replace(cameras, ndc=None)
    parts = []
    for index, (frame, size) in enumerate(zip(frames, sizes, strict=True)):
        located = np.zeros((0, 3)) if frame.points is None else frame.points
        pixels, distance = located[:, :2] * np.array(size), located[:, 2]
        if frame.depth_map is not None:
            map_fractions, depth = _read_depth_map(folder / frame.depth_map.path, index)
            map_pixels = map_fractions * np.array(size)
            cosine = _cosines(cameras, index, map_pixels)
            pixels = np.concatenate([pixels, map_pixels])
            distance = np.concatenate([distance, frame.depth_map.unit * depth / cosine])
        columns, rows = np.minimum(pixels.astype(np.int32), np.array(size) - 1).T
        image = np.full(len(rows), index, np.int32)
        parts.append((image, rows, columns, (scale * distance).astype(np.float32)))
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return KnownDepth(*joined) if joined and joined[0].size else None


def _cosines(
    cameras: Cameras, index: int, pixels: Float[np.ndarray, "q 2"]
) -> Float[np.ndarray, "q"]:
    """Cosines of the angles between the rays of pixels and the optical axis of a camera."""
    indices = np.full(len(pixels), index, np.int32)
    points = jnp.asarray(pixels, jnp.float32)
    rays = pixels_to_rays(cameras, jnp.asarray(indices), points, 0.0, 1.0)
    axis = -np.asarray(cameras.T_world_camera)[index, :3, 2]
    return np.maximum(np.asarray(rays.directions) @ axis, 1e-3)


def _read_depth_map(
    path: Path, seed: int
) -> tuple[Float[np.ndarray, "q 2"], Float[np.ndarray, "q"]]:
    """Some pixels of a depth map whose depth is known, as fractions of its size, and their depth.

    Raises:
      InputError: the depth map is missing, damaged, or has only 8 bits.
    """
    try:
        if path.suffix == ".npy":
            values = np.lib.format.open_memmap(path, mode="r")  # Never unpickles.
            levels = values[..., 0] if values.ndim == 3 else values
        else:
            with open_image(path) as image:
                levels = _decode(image, path)
    except FileNotFoundError:
        raise InputError(f"The depth map {path} is missing; add it or take it out.") from None
    except DECODE_ERRORS as error:
        raise InputError(f"The depth map {path} is damaged; copy it again.") from error
    if levels.ndim != 2 or levels.dtype.kind not in "fui":
        raise InputError(
            f"The depth map {path} is {levels.dtype} of shape {levels.shape}; give height x width "
            "numbers."
        )
    depth = np.asarray(levels, np.float32)
    rows, columns = np.nonzero(np.isfinite(depth) & (depth > 0.0))
    if len(rows) > MAX_PIXELS:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MAX_PIXELS])
        rows, columns = rows[chosen], columns[chosen]
    fractions = (np.stack([columns, rows], axis=-1) + 0.5) / np.array(depth.shape[::-1])
    return fractions, depth[rows, columns].astype(np.float64)


def _decode(image: Image.Image, path: Path) -> np.ndarray:
    if not (image.mode.startswith("I") or image.mode == "F"):
        raise InputError(
            f"The depth map {path} has 8 bits ({image.mode}), which is a picture of depth: give 16 "
            "bits in one channel, or an .npy file."
        )
    return np.asarray(image)


def describe_known_depth(frames: Mapping[str, Sequence[Frame]], is_used: bool) -> list[str]:
    """A note on the known depth of a data set, and on whether it is trained on."""
    every = [frame for group in frames.values() for frame in group]
    maps = sum(frame.depth_map is not None for frame in every)
    points = sum(0 if frame.points is None else len(frame.points) for frame in every)
    kinds = [
        *([format_count(maps, "depth map")] if maps else []),
        *([f"COLMAP's points in {points} pixels"] if points else []),
    ]
    if not kinds:
        return []
    if is_used:
        return [f"Depth: {' and '.join(kinds)}."]
    return [f"Known depth: {' and '.join(kinds)}; --loss.depth-weight 0.01 would train on it."]


def find_wrong_unit(known: KnownDepth, scene: Scene) -> str | None:
    """A sentence if distances are far outside of those of the rays; None if they fit."""
    near, far, median = scene.near, scene.far, float(np.median(known.distance))
    if near / MAX_UNIT_ERROR <= median <= far * MAX_UNIT_ERROR:
        return None
    return (
        f"Half of the known depths are below {median:.3g} scene units, and rays are sampled from "
        f"{near:.3g} to {far:.3g}: the depth maps are in another unit (--depth-unit)."
    )
