"""Reconstructions of OpenSfM, and of OpenDroneMap, which runs it: `reconstruction.json`.

Camera models: https://opensfm.org/docs/geometry.html.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.lenses import COEFFICIENTS, Lens
from jaxrf.cameras.poses import rotation_from_vector
from jaxrf.core.errors import InputError
from jaxrf.core.json_files import read_json_array, shorten
from jaxrf.data.files import DataFolder, check_folder, format_count
from jaxrf.data.frames import ALL, CaptureRegion, Frame, Intrinsics, Listing, check_focal
from jaxrf.data.nerf_json import FLIP_YZ, read_number
from jaxrf.data.options import LoadOptions

LISTING = "reconstruction.json"
# In the data set of OpenSfM, or in the project of OpenDroneMap.
PATHS = (Path(LISTING), Path("opensfm", LISTING))
IMAGES = Path("images")
# The lens and its coefficients, by the type of projection.
PROJECTIONS: dict[str, tuple[Lens, tuple[str, ...]]] = {
    "perspective": ("perspective", ("k1", "k2")),
    "simple_radial": ("perspective", ("k1",)),
    "radial": ("perspective", ("k1", "k2")),
    "brown": ("perspective", ("k1", "k2", "k3", "p1", "p2")),
    "fisheye": ("fisheye", ("k1", "k2")),
    "fisheye_opencv": ("fisheye", ("k1", "k2", "k3", "k4")),
}


def find_reconstruction(folder: Path) -> Path | None:
    """The file of reconstructions in a folder or in its `opensfm`; None without."""
    return next((folder / path for path in PATHS if os.path.isfile(folder / path)), None)


def read_opensfm(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists the images of the largest reconstruction; every 8th, in order of names, is held out.

    A shot turns the world by its rotation vector and then moves it by its translation, to x right,
    y down, z forwards. Focal lengths and principal points are in units of the longer side.

    Args:
      folder: holds `reconstruction.json` and `images`, or is a project of OpenDroneMap.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    del splits
    check_folder(folder)
    listing = find_reconstruction(folder)
    if listing is None:
        raise InputError(f"{folder} has no {LISTING}; give a data set of OpenSfM.")
    parts = [part for part in read_json_array(listing, "reconstructions") if _has_shots(part)]
    if not parts:
        raise InputError(f"{listing} has no reconstruction with shots; reconstruct again.")
    part = max(parts, key=lambda part: len(part["shots"]))
    notes = []
    if len(parts) > 1:
        counts = ", ".join(str(len(other["shots"])) for other in parts if other is not part)
        notes.append(
            f"Used: the largest of {len(parts)} reconstructions in {LISTING}, of "
            f"{format_count(len(part['shots']), 'image')}; not used: those of {counts}."
        )
    files = DataFolder(folder)
    known: dict[str, Intrinsics] = {}
    frames = []
    for name, shot in sorted(part["shots"].items()):
        where = f"Shot {shorten(name)} of {listing}"
        camera = shot.get("camera") if isinstance(shot, dict) else None
        if not isinstance(camera, str) or camera not in part["cameras"]:
            raise InputError(f"{where} has no camera; reconstruct again.")
        if camera not in known:
            known[camera] = _read_camera(part["cameras"][camera], f"Camera {camera} of {listing}")
        path = files.find_listed(name, where, "The name")
        path = files.find(IMAGES / path) or path
        frames.append(Frame(path, listing, _read_pose(shot, where, options), known[camera]))
    return Listing(folder, listing, {ALL: frames}, CaptureRegion(), notes=tuple(notes))


def _has_shots(part: object) -> bool:
    if not isinstance(part, dict):
        return False
    shots, cameras = part.get("shots"), part.get("cameras")
    return isinstance(shots, dict) and bool(shots) and isinstance(cameras, dict)


def _read_camera(camera: object, where: str) -> Intrinsics:
    number = camera if isinstance(camera, dict) else {}
    kind = number.get("projection_type")
    if not isinstance(kind, str) or kind not in PROJECTIONS:
        raise InputError(
            f"{where} has the projection {shorten(kind)}, which is not one of "
            f"{', '.join(PROJECTIONS)}: reconstruct with one of these."
        )
    lens, names = PROJECTIONS[kind]
    width, height = (read_number(number, key, where) or 0.0 for key in ("width", "height"))
    if not all(1.0 <= side < 1e5 for side in (width, height)):
        raise InputError(f"{where} has no width and height in pixels; reconstruct again.")
    longer = max(width, height)
    across, down = (
        check_focal(
            (_first(number, (f"focal_{axis}", "focal"), where)) * longer, f"focal of {where}"
        )
        for axis in "xy"
    )
    right, low = (_first(number, (key,), where) * longer for key in ("c_x", "c_y"))
    coefficients = {name: _first(number, (name,), where) for name in names}
    return Intrinsics(
        focal=(across, down),
        center=(0.5 * width + right, 0.5 * height + low),
        size=(width, height),
        lens=lens,
        distortion=tuple(coefficients.get(name, 0.0) for name in COEFFICIENTS[lens])
        if any(coefficients.values())
        else (),
    )


def _first(number: dict[str, Any], keys: Sequence[str], where: str) -> float:
    """The first number of some keys that a camera has; 0 without."""
    values = (read_number(number, key, where) for key in keys)
    return next((value for value in values if value is not None), 0.0)


def _read_pose(shot: dict[str, Any], where: str, options: LoadOptions) -> Float[np.ndarray, "4 4"]:
    vectors = []
    for key in ("rotation", "translation"):
        value = shot.get(key)
        numbers = value if isinstance(value, list) else []
        if len(numbers) != 3 or not all(isinstance(n, float) and abs(n) < 1e9 for n in numbers):
            raise InputError(f"{key} of {where} is not 3 finite numbers; reconstruct again.")
        vectors.append(np.array(numbers))
    T_camera_world = np.eye(4)
    T_camera_world[:3, :3] = rotation_from_vector(vectors[0])
    T_camera_world[:3, 3] = vectors[1]
    pose = np.linalg.inv(T_camera_world)
    return pose if options.axes == "opengl" else pose @ FLIP_YZ
