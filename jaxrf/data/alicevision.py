"""Cameras of Meshroom (AliceVision) beside their images: `cameras.sfm` or `sfm.json`.

Written by its nodes StructureFromMotion and ConvertSfMFormat; numbers may be text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.lenses import COEFFICIENTS, Lens
from jaxrf.cameras.poses import check_pose
from jaxrf.core.errors import InputError
from jaxrf.core.json_files import read_json, shorten
from jaxrf.data.files import (
    DataFolder,
    check_folder,
    find_file,
    format_count,
    format_names,
    read_head,
)
from jaxrf.data.frames import ALL, CaptureRegion, Frame, Intrinsics, Listing, check_focal
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.options import LoadOptions

SUFFIX, NAMES = ".sfm", frozenset({"sfm.json", "cameras.json"})
HEAD_BYTES = 1 << 12
# The lens and its coefficients in their order, by the type of camera or of distortion.
DISTORTIONS: dict[str, tuple[Lens, tuple[str, ...]]] = {
    "pinhole": ("perspective", ()),
    "none": ("perspective", ()),
    "radial1": ("perspective", ("k1",)),
    "radialk1": ("perspective", ("k1",)),
    "radial3": ("perspective", ("k1", "k2", "k3")),
    "radialk3": ("perspective", ("k1", "k2", "k3")),
    "brown": ("perspective", ("k1", "k2", "k3", "p1", "p2")),
    "fisheye4": ("fisheye", ("k1", "k2", "k3", "k4")),
}
# Versions from which on principal points are offsets, focal lengths in millimeters, and the ratio
# that of the focal length down to that across in place of its inverse.
OFFSET_VERSION, MILLIMETERS_VERSION, RATIO_VERSION = (1, 2, 1), (1, 2, 2), (1, 2, 5)


def is_cameras(path: Path) -> bool:
    """Whether a file looks like cameras of Meshroom."""
    name = path.name.lower()
    if not name.endswith(SUFFIX) and name not in NAMES:
        return False
    head = read_head(path, HEAD_BYTES)
    return b'"version"' in head and b'"views"' in head


def find_cameras(folder: Path) -> Path | None:
    """Meshroom's file of cameras in a folder, or in the only folder in it that has one; or None."""
    file = find_file(folder, is_cameras)
    if file is not None:
        return file
    try:
        subfolders = [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return None
    files = [file for path in subfolders if (file := find_file(path, is_cameras)) is not None]
    return files[0] if len(files) == 1 else None


def read_alicevision(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists the images that Meshroom has placed; every 8th, in the order of names, is held out.

    A rotation is listed column by column, world-to-camera with x right, y down, z forwards, beside
    the camera's center. Focal lengths are in millimeters of the sensor and principal points from
    the middle, in older files both in pixels, from the corner.

    Args:
      folder: holds the cameras and the images, which may be in a subfolder.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    del splits
    check_folder(folder)
    listing = find_cameras(folder)
    if listing is None:
        raise InputError(f"{folder} has no cameras.sfm of Meshroom; add it.")
    content = read_json(listing, "views, intrinsics and poses")
    version = tuple(int(n) for n in _to_numbers(content.get("version"), 3, f"version of {listing}"))
    poses = _by_id(content, "poses", "poseId", listing)
    intrinsics = _by_id(content, "intrinsics", "intrinsicId", listing)
    files = DataFolder(folder)
    known: dict[str, Intrinsics] = {}
    frames, unplaced = [], []
    for view in _by_id(content, "views", "viewId", listing).values():
        number, where = str(view.get("intrinsicId")), f"view {view.get('viewId')} of {listing}"
        path = files.find_listed(view.get("path"), where, "path")
        pose = poses.get(str(view.get("poseId")))
        if pose is None:
            unplaced.append(path.name)
            continue
        if number not in intrinsics:
            raise InputError(f"{where} has no intrinsics; export the cameras again.")
        if number not in known:
            named = f"intrinsic {number} of {listing}"
            known[number] = _read_intrinsics(intrinsics[number], version, named)
        frames.append(Frame(path, listing, _read_pose(pose, where, options), known[number]))
    if not frames:
        raise InputError(f"{listing} has no view with a pose; compute StructureFromMotion first.")
    notes = []
    if unplaced:
        count = format_count(len(unplaced), "view")
        notes.append(f"Not used: {count} without a pose ({format_names(sorted(unplaced))}).")
    frames.sort(key=lambda frame: frame.path)
    return Listing(
        folder, listing, {ALL: frames}, CaptureRegion(), stored_pixels=True, notes=tuple(notes)
    )


def _by_id(
    content: dict[str, Any], key: str, id_key: str, listing: Path
) -> dict[str, dict[str, Any]]:
    """The objects of a list by their identity."""
    value = content.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise InputError(
            f"{listing} has no list {key} of objects; export what StructureFromMotion has computed."
        )
    return {str(entry.get(id_key)): entry for entry in value}


def _to_numbers(value: object, count: int, where: str) -> list[float]:
    """Numbers, each as such or as text."""
    numbers: list[Any] = value if isinstance(value, list) else [value]
    try:
        result = [float(number) for number in numbers]
    except (TypeError, ValueError):
        result = []
    if len(result) != count or not all(abs(number) < 1e9 for number in result):
        raise InputError(f"{where} is {shorten(value)}, not {count} finite numbers; export again.")
    return result


def _read_intrinsics(entry: dict[str, Any], version: tuple[int, ...], where: str) -> Intrinsics:
    kind = entry.get("distortionType") or entry.get("type")
    if not isinstance(kind, str) or kind not in DISTORTIONS:
        raise InputError(
            f"{where} has the lens {shorten(kind)}, which is not one of {', '.join(DISTORTIONS)}: "
            "export undistorted images (ExportColmap or PrepareDenseScene)."
        )
    lens, names = DISTORTIONS[kind]
    (width,), (height,) = (
        _to_numbers(entry.get(key), 1, f"{key} of {where}") for key in ("width", "height")
    )
    if not all(1.0 <= side < 1e5 for side in (width, height)):
        raise InputError(f"{where} has no width and height in pixels; export again.")
    across, down = _read_focal(entry, version, width, where)
    x, y = _to_numbers(entry.get("principalPoint", [0.0, 0.0]), 2, f"principalPoint of {where}")
    if version >= OFFSET_VERSION:
        x, y = 0.5 * width + x, 0.5 * height + y
    listed = entry.get("distortionParams") or []
    numbers = _to_numbers(listed, len(names), f"distortionParams of {where}") if listed else []
    coefficients = dict(zip(names, numbers, strict=False))
    return Intrinsics(
        focal=(across, down),
        center=(x, y),
        size=(width, height),
        lens=lens,
        distortion=tuple(coefficients.get(name, 0.0) for name in COEFFICIENTS[lens])
        if any(numbers)
        else (),
    )


def _read_focal(
    entry: dict[str, Any], version: tuple[int, ...], width: float, where: str
) -> tuple[float, float]:
    """Focal lengths in pixels, across and down."""
    if version < MILLIMETERS_VERSION:
        value = entry.get("pxFocalLength")
        count = 2 if isinstance(value, list) else 1
        numbers = _to_numbers(value, count, f"pxFocalLength of {where}")
        across, down = numbers[0], numbers[-1]
    else:
        (length,), (sensor,), (ratio,) = (
            _to_numbers(entry.get(key, default), 1, f"{key} of {where}")
            for key, default in (("focalLength", None), ("sensorWidth", None), ("pixelRatio", 1.0))
        )
        if not sensor > 0.0 or not ratio > 0.0:
            raise InputError(f"{where} has no width of its sensor; export again.")
        across = length / sensor * width
        down = across * ratio if version >= RATIO_VERSION else across / ratio
    return check_focal(across, f"focal of {where}"), check_focal(down, f"focal of {where}")


def _read_pose(entry: dict[str, Any], where: str, options: LoadOptions) -> Float[np.ndarray, "4 4"]:
    pose = entry.get("pose")
    transform = pose.get("transform") if isinstance(pose, dict) else None
    if not isinstance(transform, dict):
        raise InputError(f"The pose of {where} has no transform; export the cameras again.")
    columns = _to_numbers(transform.get("rotation"), 9, f"rotation of {where}")
    matrix = np.eye(4)
    # World-to-camera column by column is camera-to-world row by row.
    matrix[:3, :3] = np.reshape(columns, (3, 3))
    matrix[:3, 3] = _to_numbers(transform.get("center"), 3, f"center of {where}")
    checked = check_pose(matrix.tolist(), where, "rotation")
    return checked if options.axes == "opengl" else checked @ FLIP_YZ
