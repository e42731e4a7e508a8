"""The JSON objects in which NeRF, instant-ngp and nerfstudio list images, read by one rule."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.lenses import COEFFICIENTS, Lens
from jaxrf.cameras.poses import split_scale
from jaxrf.core.errors import InputError
from jaxrf.core.json_files import shorten
from jaxrf.data.files import DataFolder
from jaxrf.data.frames import DepthMap, Frame, Intrinsics, Mask, check_focal
from jaxrf.data.options import LoadOptions

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
    "FOV": "fov",
}
# From the axes of OpenCV (y down, z forwards) to those of OpenGL.
FLIP_YZ = np.diag([1.0, -1.0, -1.0, 1.0])
# Default `scale` of instant-ngp.
DEFAULT_SCALE = 0.33


def read_frames(
    content: dict[str, Any], listing: Path, folder: DataFolder, options: LoadOptions
) -> list[Frame]:
    """The frames of a JSON object, in its order. A frame's keys override those of the object.

    Raises:
      InputError: an entry is missing or cannot be right.
    """
    frames = content.get("frames")
    if not isinstance(frames, list):
        raise InputError(f'{listing} has no list "frames" with one object per image; add it.')
    if not frames:
        raise InputError(
            f'{listing} is an empty split: it has no list "frames" with an entry; add frames or '
            "skip the split."
        )
    shared = {key: value for key, value in content.items() if key != "frames"}
    first_index: dict[Path, int] = {}
    result = []
    for index, frame in enumerate(frames):
        where = f"frames[{index}] of {listing}"
        if not isinstance(frame, dict):
            raise InputError(f"{where} is not an object; give it file_path and transform_matrix.")
        for key in ("file_path", "transform_matrix"):
            if key not in frame:
                raise InputError(f"{where} has no {key}; add it or take the frame out.")
        pose, scale = split_scale(frame["transform_matrix"], where)
        if options.axes == "opencv":
            pose = pose @ FLIP_YZ
        path = _add_suffix(folder, folder.find_listed(frame["file_path"], where))
        first = first_index.setdefault(path, index)
        if first != index:
            raise InputError(
                f"{where} names the same image as frames[{first}] again; list each image once."
            )
        mask = None
        if frame.get("mask_path") is not None:
            mask = Mask(folder.find_listed(frame["mask_path"], where, "mask_path"))
        intrinsics = read_intrinsics({**shared, **frame}, where, str(listing))
        depth_map = _find_depth_map({**shared, **frame}, where, folder, options)
        result.append(
            Frame(path, listing, pose, intrinsics, mask, depth_map=depth_map, scale=scale)
        )
    return result


def _find_depth_map(
    numbers: dict[str, Any], where: str, folder: DataFolder, options: LoadOptions
) -> DepthMap | None:
    """The depth map that nerfstudio's depth_file_path or instant-ngp's depth_path names."""
    for key in ("depth_file_path", "depth_path"):
        if numbers.get(key) is None:
            continue
        unit = read_number(numbers, "integer_depth_scale", where)
        if unit is not None and not 0.0 < unit < 1e9:
            raise InputError(f"integer_depth_scale of {where} is {unit:g}; make it above 0.")
        path = folder.find_listed(numbers[key], where, key)
        return DepthMap(folder.find(path) or path, unit or options.depth_unit)
    return None


def _add_suffix(folder: DataFolder, path: Path) -> Path:
    """The path, with .png if it does not exist and has no suffix, for messages."""
    if path.suffix or folder.find(path) is not None:
        return path
    return path.with_name(f"{path.name}.png")


def read_intrinsics(numbers: dict[str, Any], where: str, listing: str) -> Intrinsics:
    """Intrinsics of a frame out of its keys and those of the file.

    Raises:
      InputError: there is no focal length nor angle, or a number cannot be right.
    """
    width, height = (read_number(numbers, key, where) for key in ("w", "h"))
    size = None if width is None or height is None else (width, height)
    if size is not None and not all(1.0 <= side < 1e5 for side in size):
        raise InputError(f"{where} has {width:g}x{height:g} pixels; correct w and h.")
    focal = [read_number(numbers, f"fl_{axis}", where) for axis in "xy"]
    for axis, length in zip("xy", focal, strict=True):
        if length is not None:
            check_focal(length, f"fl_{axis} of {where}")
    angles: list[float | None] = [None, None]
    for i, axis in enumerate("xy"):
        key = f"camera_angle_{axis}"
        # A focal length counts for both axes; an angle is only read where it is needed.
        if focal[i] is None and (axis == "x" or angles[0] is None) and not any(focal):
            angles[i] = _read_angle(numbers, key, listing)
    if not any(focal) and not any(angles):
        raise InputError(
            f"{listing} has no camera_angle_x, in radians, and {where} has neither fl_x nor "
            "camera_angle_x; add one of them."
        )
    if not any(focal) and angles[0] is not None and size is not None:
        angles[1] = _read_angle(numbers, "camera_angle_y", listing)
    center = (read_number(numbers, "cx", where), read_number(numbers, "cy", where))
    lens, distortion = _read_lens(numbers, where)
    return Intrinsics(
        focal=(focal[0], focal[1]),
        angles=(angles[0], angles[1]),
        center=center,
        size=size,
        lens=lens,
        distortion=distortion,
    )


def read_number(numbers: dict[str, Any], key: str, where: str) -> float | None:
    """A finite number of a frame or of the file; None if it is missing."""
    value = numbers.get(key)
    if value is None:
        return None
    if not isinstance(value, float) or not math.isfinite(value):
        raise InputError(f"{key} of {where} is {shorten(value)}; make it a finite number.")
    return value


def _read_angle(numbers: dict[str, Any], key: str, listing: str) -> float | None:
    value = numbers.get(key)
    if value is None:
        return None
    if isinstance(value, float) and 0.0 < value < math.pi:
        return value
    raise InputError(
        f"{key} in {listing} is {shorten(value)}; make it the field of view in radians, between 0 "
        "and pi."
    )


def _read_lens(numbers: dict[str, Any], where: str) -> tuple[Lens, tuple[float, ...]]:
    """The lens of a frame and its coefficients.

    Only FULL_OPENCV has a rational lens. Elsewhere k4 is the factor of r^8, as nerfstudio writes
    and reads it for cameras of Metashape.
    """
    model = numbers.get("camera_model")
    if numbers.get("is_fisheye") is True:
        model = "OPENCV_FISHEYE"
    lens: Lens = "perspective"
    if model is not None:
        if not isinstance(model, str) or model not in MODELS:
            known = ", ".join(MODELS)
            raise InputError(f"camera_model {shorten(model)} of {where} is not one of {known}.")
        lens = MODELS[model]
    values = {key: read_number(numbers, key, where) or 0.0 for key in COEFFICIENTS[lens]}
    if lens == "perspective" and model != "FULL_OPENCV":
        if values["k5"] or values["k6"]:
            raise InputError(
                f"{where} has k5 or k6, which only camera_model FULL_OPENCV has: name that model."
            )
        values["r8"], values["k4"] = values["k4"], 0.0
    if any(abs(value) > 1e3 for value in values.values()):
        raise InputError(f"{where} has distortion beyond 1000; correct {COEFFICIENTS[lens]}.")
    return lens, tuple(values.values()) if any(values.values()) else ()


def read_unit_cube(content: dict[str, Any], where: str) -> Float[np.ndarray, "2 3"] | None:
    """Box of a scene that lies within instant-ngp's unit cube, in the file's coordinates, or None.

    A point p of the file is at `scale` p + `offset` in the unit cube. An `aabb_scale` above 1
    declares that the scene extends beyond the cube.

    Raises:
      InputError: the numbers define no box.
    """
    if read_number(content, "aabb_scale", where) != 1.0:
        return None
    scale = read_number(content, "scale", where) or DEFAULT_SCALE
    offset = content.get("offset", [0.5, 0.5, 0.5])
    are_numbers = isinstance(offset, list) and all(
        isinstance(v, float) and math.isfinite(v) for v in offset
    )
    if not are_numbers or len(offset) != 3 or not 1e-6 < scale < 1e6:
        raise InputError(f"offset or scale of {where} does not define a box; correct them.")
    low, high = ((side - np.array(offset)) / scale for side in (0.0, 1.0))
    return np.stack([low, high])


def any_exists(frames: Sequence[Frame], folder: DataFolder) -> bool:
    """Whether an image of some frames exists."""
    return any(folder.find(frame.path) is not None for frame in frames)
