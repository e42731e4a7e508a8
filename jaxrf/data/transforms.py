"""Captured scenes in one `transforms.json`, as nerfstudio and instant-ngp write them."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.lenses import COEFFICIENTS, Lens
from jaxrf.cameras.transforms import (
    UNIT_AABB,
    DEFAULT_FAR,
    DEFAULT_NEAR,
    center_and_scale,
    identity_transform,
    transform_poses,
)
from jaxrf.core.errors import InputError
from jaxrf.data.files import (
    check_file_path,
    check_folder,
    check_pose,
    common_image_size,
    name_scene,
    read_json,
    shorten,
)
from jaxrf.data.scene import Scene
from jaxrf.data.views import (
    ChooseViews,
    ViewIndex,
    object_aabb,
    rescale_to_images,
    load_split,
    near_far_fn,
    split_every_n,
    select_views,
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
# Of instant-ngp, where the file does not say another one.
UNIT_SCALE = 0.33


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
    """Reads a captured scene, upright around the origin, with cameras within +-1 (`center_and_scale`).

    With an `aabb_scale` of 1 it is an object in a box instead, and stays where it is. If all
    pictures are transparent around something, that is the object, in the box of its visual hull.
    Pixels that a frame's `mask_path` shows black are neither learnt from nor compared.

    Splits are those of the lists `train_filenames`, `val_filenames` and `test_filenames`, if the
    file has them; else every 8th picture in the order of their names is tested and validated on.

    Args:
      folder: holds `transforms.json` and the pictures that it names.
      splits, downscale, choose: see `blender.load_blender`.
      skip_missing: leave out pictures that are named but not there.

    Raises:
      InputError: something is missing, broken, or not what this layout holds.
    """
    check_folder(folder)
    listing = folder / LISTING
    transforms = read_json(listing, "frames")
    views = rescale_to_images(_read_views(folder, listing, transforms, skip_missing))
    poses = np.asarray(views.cameras.T_world_camera, np.float64)
    box = _find_box(transforms, str(listing))
    frame = center_and_scale(poses) if box is None else identity_transform()
    cameras = dataclasses.replace(
        views.cameras, T_world_camera=transform_poses(frame, poses).astype(np.float32)
    )
    views = dataclasses.replace(views, cameras=cameras)
    indices = _split_views(transforms, views)
    loaded = {
        split: load_split(split, select_views(views, indices[split]), downscale, choose)
        for split in splits
    }
    if box is None and "train" in loaded:
        box = object_aabb(loaded["train"])
    near, far = (DEFAULT_NEAR, DEFAULT_FAR) if box is None else near_far_fn(cameras, box)
    around = np.array(UNIT_AABB if box is None else box, np.float32)
    return Scene(
        name=name_scene(folder),
        splits=loaded,
        aabb=around,
        near=near,
        far=far,
        unbounded=box is None,
        frame=frame,
    )


def _find_box(transforms: dict[str, Any], where: str) -> Float[np.ndarray, "2 3"] | None:
    """The unit cube of instant-ngp in the file's coordinates, if nothing lies outside of it.

    A point p is at `scale` p + `offset` in it; an `aabb_scale` above 1 says that there is more.
    """
    if _read_number(transforms, "aabb_scale", where) != 1.0:
        return None
    scale = _read_number(transforms, "scale", where) or UNIT_SCALE
    offset = transforms.get("offset", [0.5, 0.5, 0.5])
    numbers = isinstance(offset, list) and all(
        isinstance(v, float) and math.isfinite(v) for v in offset
    )
    if not numbers or len(offset) != 3 or not 1e-6 < scale < 1e6:
        raise InputError(f"offset or scale of {where} places no box; correct them.")
    low, high = ((side - np.array(offset)) / scale for side in (0.0, 1.0))
    return np.stack([low, high])


def _read_views(
    folder: Path, listing: Path, transforms: dict[str, Any], skip_missing: bool
) -> ViewIndex:
    frames = transforms.get("frames")
    if not isinstance(frames, list) or not frames:
        raise InputError(f'{listing} has no list "frames" with one object per picture; add it.')
    found: dict[PurePath, tuple[np.ndarray, list[float], Lens, list[float]]] = {}
    masks: dict[PurePath, Path] = {}
    for index, frame in enumerate(frames):
        where = f"frames[{index}] of {listing}"
        if not isinstance(frame, dict):
            raise InputError(f"{where} is not an object; give it file_path and transform_matrix.")
        for key in ("file_path", "transform_matrix"):
            if key not in frame:
                raise InputError(f"{where} has no {key}; add it or take the frame out.")
        path = _find_picture(folder, check_file_path(frame["file_path"], where))
        if skip_missing and not (folder / path).is_file():
            continue
        if path in found:
            raise InputError(f"{where} names {path} again; list each picture once.")
        if "mask_path" in frame:
            masks[path] = Path(check_file_path(frame["mask_path"], where))
        numbers = {**transforms, **frame}
        lens, distortion = _read_lens(numbers, where)
        pinhole = _read_pinhole(numbers, where, folder / path, listing)
        found[path] = (check_pose(frame["transform_matrix"], where), pinhole, lens, distortion)
    if not found:
        raise InputError(f"None of the pictures that {listing} names is there; add them.")
    paths = sorted(found)
    poses, pinholes, kinds, distortions = zip(*(found[path] for path in paths), strict=True)
    if len(set(kinds)) > 1:
        raise InputError(
            f"{listing} mixes lenses ({', '.join(sorted(set(kinds)))}); split it by camera."
        )
    sizes = {tuple(pinhole[4:]) for pinhole in pinholes}
    if len(sizes) > 1:
        shown = " and ".join(f"{w:g}x{h:g}" for w, h in sorted(sizes)[:2])
        raise InputError(f"{listing} has pictures of {shown} pixels; give all the same size.")
    pinhole_table = np.array(pinholes)
    bent = np.array(distortions)
    ((width, height),) = sizes
    cameras = Cameras(
        T_world_camera=np.stack(poses),
        focal=pinhole_table[:, :2].astype(np.float32),
        principal_point=pinhole_table[:, 2:4].astype(np.float32),
        width=int(width),
        height=int(height),
        lens=kinds[0],
        distortion=bent.astype(np.float32) if np.any(bent) else None,
    )
    if masks and len(masks) < len(paths):
        raise InputError(f"Some frames of {listing} have a mask_path and some none; give all one.")
    pictures = tuple(Path(path) for path in paths)
    return ViewIndex(folder, listing, pictures, cameras, tuple(masks[p] for p in paths if masks))


def _find_picture(folder: Path, path: PurePath) -> PurePath:
    """A picture's path; files may leave out its suffix."""
    if path.suffix in SUFFIXES:
        return path
    named = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
    return next((p for p in named if (folder / p).is_file()), path.with_name(f"{path.name}.png"))


def _read_number(numbers: dict[str, Any], key: str, where: str) -> float | None:
    """A finite number of a frame or of the whole file; None if there is none."""
    value = numbers.get(key)
    if value is None:
        return None
    if not isinstance(value, float) or not math.isfinite(value):
        raise InputError(f"{key} of {where} is {shorten(value)}; make it a finite number.")
    return value


def _read_pinhole(numbers: dict[str, Any], where: str, picture: Path, listing: Path) -> list[float]:
    """Focal lengths, principal point, width and height, which is the picture's if not given."""
    width, height = (_read_number(numbers, key, where) for key in ("w", "h"))
    if width is None or height is None:
        width, height = map(float, common_image_size([picture], listing))
    if not (1.0 <= width < 1e5 and 1.0 <= height < 1e5):
        raise InputError(f"{where} is of {width:g}x{height:g} pixels; correct w and h.")
    focal = [
        _read_focal(numbers, f"fl_{axis}", f"camera_angle_{axis}", size, where)
        for axis, size in (("x", width), ("y", height))
    ]
    # One axis stands for both where the other is left out.
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
            raise InputError(f"camera_model {shorten(model)} of {where} is none of {known}.")
        lens = MODELS[model]
    values = [_read_number(numbers, key, where) or 0.0 for key in COEFFICIENTS[lens]]
    rational = lens == "perspective" and any(values[3:6])
    if rational and model != "FULL_OPENCV":
        raise InputError(
            f"{where} has k4 to k6, which only camera_model FULL_OPENCV means: name that, or take "
            "them out."
        )
    if any(abs(value) > 1e3 for value in values):
        raise InputError(f"{where} has distortion beyond 1000; correct {COEFFICIENTS[lens]}.")
    return lens, values


def _split_views(transforms: dict[str, Any], views: ViewIndex) -> dict[str, list[int]]:
    """The views of each split: those that lists in the file name, or every 8th held out."""
    keys = {split: f"{split}_filenames" for split in ("train", "val", "test")}
    if not any(key in transforms for key in keys.values()):
        return split_every_n(len(views))
    number = {path.with_suffix(""): index for index, path in enumerate(views.paths)}
    indices: dict[str, list[int]] = {}
    for split, key in keys.items():
        names = transforms.get(key, [])
        if not isinstance(names, list):
            raise InputError(f"{key} of {views.listing} is not a list of file names; make it one.")
        # What is listed but not there was skipped, or refused, with its frame.
        stems = [
            Path(check_file_path(n, f"{key} of {views.listing}")).with_suffix("") for n in names
        ]
        indices[split] = [number[stem] for stem in stems if stem in number]
    for split, other in (("val", "test"), ("test", "val")):
        indices[split] = indices[split] or indices[other]
    return indices
