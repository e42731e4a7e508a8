"""Captured scenes with one `transforms.json`, as nerfstudio and instant-ngp write them."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.lenses import COEFFICIENTS, Lens
from jaxrf.cameras.poses import check_pose
from jaxrf.cameras.transforms import (
    DEFAULT_FAR,
    DEFAULT_NEAR,
    UNIT_AABB,
    center_and_scale,
    identity_transform,
    transform_poses,
)
from jaxrf.core.errors import InputError
from jaxrf.core.json_files import read_json, shorten
from jaxrf.data.files import check_file_path, check_folder, common_image_size, name_scene
from jaxrf.data.scene import Scene
from jaxrf.data.views import (
    ChooseViews,
    ViewIndex,
    box_distance_range,
    load_split,
    object_aabb,
    rescale_to_images,
    select_views,
    split_every_n,
)

LISTING = "transforms.json"
MODELS: dict[str, Lens] = {
    "SIMPLE_PINHOLE": "perspective",
    "PINHOLE": "perspective",
    "PERSPECTIVE": "perspective",
    "SIMPLE_RADIAL": "perspective",
    "RADIAL": "perspective",
    "OPENCV": "perspective",
    "FULL_OPENCV": "perspective",
    "OPENCV_FISHEYE": "fisheye",
    "FISHEYE": "fisheye",
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")
# Default `scale` of instant-ngp.
DEFAULT_SCALE = 0.33


def is_transforms(folder: Path) -> bool:
    """Whether a folder has a `transforms.json`."""
    return os.path.isfile(folder / LISTING)


def load_transforms(
    folder: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    downscale: int = 1,
    choose: ChooseViews = range,
    skip_missing: bool = False,
) -> Scene:
    """Reads a captured scene, upright and centered, with cameras within +-1 (`center_and_scale`).

    An `aabb_scale` of 1 declares an object in instant-ngp's unit cube; the scene then has this box
    and the coordinates of the file. If all images are transparent around an object, the box is that
    of its visual hull. Pixels that are black in a frame's `mask_path` are not used.

    The lists `train_filenames`, `val_filenames` and `test_filenames` give the splits, if the file
    has them. Otherwise every 8th image, in the order of their names, is held out for both
    validation and testing.

    Args:
      folder: holds `transforms.json` and the images that it lists.
      splits, downscale, choose: see `blender.load_blender`.
      skip_missing: leave out images that are listed but do not exist.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    check_folder(folder)
    listing = folder / LISTING
    transforms = read_json(listing, "frames")
    views = rescale_to_images(_read_views(folder, listing, transforms, skip_missing))
    poses = np.asarray(views.cameras.T_world_camera, np.float64)
    box = _read_aabb(transforms, str(listing))
    transform = center_and_scale(poses) if box is None else identity_transform()
    cameras = dataclasses.replace(
        views.cameras, T_world_camera=transform_poses(transform, poses).astype(np.float32)
    )
    views = dataclasses.replace(views, cameras=cameras)
    indices = _split_views(transforms, views)
    loaded = {
        split: load_split(split, select_views(views, indices[split]), downscale, choose)
        for split in splits
    }
    if box is None and "train" in loaded:
        box = object_aabb(loaded["train"])
    near, far = (DEFAULT_NEAR, DEFAULT_FAR) if box is None else box_distance_range(cameras, box)
    return Scene(
        name=name_scene(folder),
        splits=loaded,
        aabb=np.array(UNIT_AABB if box is None else box, np.float32),
        near=near,
        far=far,
        unbounded=box is None,
        frame=transform,
    )


def _read_aabb(transforms: dict[str, Any], where: str) -> Float[np.ndarray, "2 3"] | None:
    """Box of a scene that lies within instant-ngp's unit cube, in the file's coordinates, or None.

    A point p of the file is at `scale` p + `offset` in the unit cube. An `aabb_scale` above 1
    declares that the scene extends beyond the cube.
    """
    if _read_number(transforms, "aabb_scale", where) != 1.0:
        return None
    scale = _read_number(transforms, "scale", where) or DEFAULT_SCALE
    offset = transforms.get("offset", [0.5, 0.5, 0.5])
    are_numbers = isinstance(offset, list) and all(
        isinstance(v, float) and math.isfinite(v) for v in offset
    )
    if not are_numbers or len(offset) != 3 or not 1e-6 < scale < 1e6:
        raise InputError(f"offset or scale of {where} does not define a box; correct them.")
    low, high = ((side - np.array(offset)) / scale for side in (0.0, 1.0))
    return np.stack([low, high])


class _Frame(NamedTuple):
    """One entry of "frames".

    pinhole: focal lengths, principal point, width and height.
    mask: path of the mask, if there is one.
    """

    pose: Float[np.ndarray, "4 4"]
    pinhole: list[float]
    lens: Lens
    distortion: list[float]
    mask: Path | None


def _read_views(
    folder: Path, listing: Path, transforms: dict[str, Any], skip_missing: bool
) -> ViewIndex:
    frames = _read_frames(folder, listing, transforms, skip_missing)
    paths = sorted(frames)
    rows = [frames[path] for path in paths]
    lenses = {row.lens for row in rows}
    if len(lenses) > 1:
        raise InputError(
            f"{listing} mixes lenses ({', '.join(sorted(lenses))}); split it by camera."
        )
    sizes = {tuple(row.pinhole[4:]) for row in rows}
    if len(sizes) > 1:
        examples = " and ".join(f"{w:g}x{h:g}" for w, h in sorted(sizes)[:2])
        raise InputError(f"{listing} has images of {examples} pixels; give all the same size.")
    pinholes = np.array([row.pinhole for row in rows])
    distortion = np.array([row.distortion for row in rows])
    ((width, height),) = sizes
    cameras = Cameras(
        T_world_camera=np.stack([row.pose for row in rows]),
        focal=pinholes[:, :2].astype(np.float32),
        principal_point=pinholes[:, 2:4].astype(np.float32),
        width=int(width),
        height=int(height),
        lens=rows[0].lens,
        distortion=distortion.astype(np.float32) if np.any(distortion) else None,
    )
    masks = tuple(row.mask for row in rows if row.mask is not None)
    if masks and len(masks) < len(paths):
        raise InputError(
            f"Some frames of {listing} have a mask_path and others do not; give it to all frames."
        )
    return ViewIndex(folder, listing, tuple(Path(path) for path in paths), cameras, masks)


def _read_frames(
    folder: Path, listing: Path, transforms: dict[str, Any], skip_missing: bool
) -> dict[PurePath, _Frame]:
    """The entries of "frames" by the path of their image."""
    frames = transforms.get("frames")
    if not isinstance(frames, list) or not frames:
        raise InputError(f'{listing} has no list "frames" with one object per image; add it.')
    by_path: dict[PurePath, _Frame] = {}
    for index, frame in enumerate(frames):
        where = f"frames[{index}] of {listing}"
        if not isinstance(frame, dict):
            raise InputError(f"{where} is not an object; give it file_path and transform_matrix.")
        for key in ("file_path", "transform_matrix"):
            if key not in frame:
                raise InputError(f"{where} has no {key}; add it or take the frame out.")
        path = _find_image(folder, check_file_path(frame["file_path"], where))
        if skip_missing and not (folder / path).is_file():
            continue
        if path in by_path:
            raise InputError(f"{where} names {path} again; list each image once.")
        mask = None
        if "mask_path" in frame:
            mask = Path(check_file_path(frame["mask_path"], where))
        numbers = {**transforms, **frame}
        lens, distortion = _read_lens(numbers, where)
        pinhole = _read_pinhole(numbers, where, folder / path, listing)
        pose = check_pose(frame["transform_matrix"], where)
        by_path[path] = _Frame(pose, pinhole, lens, distortion, mask)
    if not by_path:
        raise InputError(f"None of the images that {listing} names exists; add them.")
    return by_path


def _find_image(folder: Path, path: PurePath) -> PurePath:
    """The path of an image, whose suffix may be missing."""
    if path.suffix in SUFFIXES:
        return path
    candidates = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
    default = path.with_name(f"{path.name}.png")
    return next((p for p in candidates if (folder / p).is_file()), default)


def _read_number(numbers: dict[str, Any], key: str, where: str) -> float | None:
    """A finite number of a frame or of the file; None if it is missing."""
    value = numbers.get(key)
    if value is None:
        return None
    if not isinstance(value, float) or not math.isfinite(value):
        raise InputError(f"{key} of {where} is {shorten(value)}; make it a finite number.")
    return value


def _read_pinhole(numbers: dict[str, Any], where: str, image: Path, listing: Path) -> list[float]:
    """Focal lengths, principal point, width and height; sizes that are missing are the image's."""
    width, height = (_read_number(numbers, key, where) for key in ("w", "h"))
    if width is None or height is None:
        width, height = map(float, common_image_size([image], listing))
    if not (1.0 <= width < 1e5 and 1.0 <= height < 1e5):
        raise InputError(f"{where} has {width:g}x{height:g} pixels; correct w and h.")
    focal = [
        _read_focal(numbers, f"fl_{axis}", f"camera_angle_{axis}", size, where)
        for axis, size in (("x", width), ("y", height))
    ]
    # A single focal length is used for both axes.
    across, down = focal[0] or focal[1], focal[1] or focal[0]
    if across is None or down is None:
        raise InputError(f"{where} has neither fl_x nor camera_angle_x; add one of them.")
    center = [
        _read_number(numbers, key, where) if key in numbers else 0.5 * size
        for key, size in (("cx", width), ("cy", height))
    ]
    return [across, down, center[0] or 0.5 * width, center[1] or 0.5 * height, width, height]


def _read_focal(
    numbers: dict[str, Any], key: str, angle_key: str, size: float, where: str
) -> float | None:
    focal = _read_number(numbers, key, where)
    if focal is None:
        angle = _read_number(numbers, angle_key, where)
        if angle is None:
            return None
        if not 0.0 < angle < math.pi:
            raise InputError(f"{angle_key} of {where} is {angle:g}; make it 0 to pi radians.")
        focal = 0.5 * size / math.tan(0.5 * angle)
    if not 0.0 < focal < 1e7:
        raise InputError(f"{key} of {where} is {focal:g}; make it the focal length in pixels.")
    return focal


def _read_lens(numbers: dict[str, Any], where: str) -> tuple[Lens, list[float]]:
    """The lens of a frame and its coefficients."""
    model = numbers.get("camera_model")
    if numbers.get("is_fisheye") is True:
        model = "OPENCV_FISHEYE"
    lens: Lens = "perspective"
    if model is not None:
        if not isinstance(model, str) or model not in MODELS:
            known = ", ".join(MODELS)
            raise InputError(f"camera_model {shorten(model)} of {where} is not one of {known}.")
        lens = MODELS[model]
    values = [_read_number(numbers, key, where) or 0.0 for key in COEFFICIENTS[lens]]
    rational = lens == "perspective" and any(values[3:6])
    if rational and model != "FULL_OPENCV":
        raise InputError(
            f"{where} has k4 to k6, which only camera_model FULL_OPENCV has: use that model, or "
            "remove them."
        )
    if any(abs(value) > 1e3 for value in values):
        raise InputError(f"{where} has distortion beyond 1000; correct {COEFFICIENTS[lens]}.")
    return lens, values


def _split_views(transforms: dict[str, Any], views: ViewIndex) -> dict[str, list[int]]:
    """Indices of each split's views: as listed in the file, or with every 8th view held out."""
    keys = {split: f"{split}_filenames" for split in ("train", "val", "test")}
    if not any(key in transforms for key in keys.values()):
        return split_every_n(len(views))
    number = {path.with_suffix(""): index for index, path in enumerate(views.paths)}
    indices: dict[str, list[int]] = {}
    for split, key in keys.items():
        names = transforms.get(key, [])
        if not isinstance(names, list):
            raise InputError(f"{key} of {views.listing} is not a list of file names; make it one.")
        # Images that do not exist were skipped or rejected with their frame.
        stems = [
            Path(check_file_path(n, f"{key} of {views.listing}")).with_suffix("") for n in names
        ]
        indices[split] = [number[stem] for stem in stems if stem in number]
    for split, other in (("val", "test"), ("test", "val")):
        indices[split] = indices[split] or indices[other]
    return indices
