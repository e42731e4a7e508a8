"""Cameras of Agisoft Metashape (File > Export > Export Cameras, Agisoft XML) beside their images.

Agisoft Metashape User Manual, appendix on camera models.
"""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.lenses import COEFFICIENTS, Lens
from jaxrf.cameras.poses import check_pose
from jaxrf.core.errors import InputError
from jaxrf.data.files import (
    DataFolder,
    check_folder,
    find_file,
    format_count,
    format_names,
    parse_path,
    read_head,
)
from jaxrf.data.frames import ALL, CaptureRegion, Frame, Intrinsics, Listing, check_focal
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.options import LoadOptions

# Bytes of a file, and of its beginning by which it is recognized.
MAX_BYTES, HEAD_BYTES = 1 << 28, 1 << 12
LENSES: dict[str, Lens] = {"frame": "perspective", "fisheye": "fisheye"}
# Shear of the image, in pixels at its corners, above which leaving it out is worth a note.
MAX_SHEAR = 0.5


class _Sensor(NamedTuple):
    """A camera's intrinsics, and the numbers that are left out of them, if they matter."""

    intrinsics: Intrinsics
    left_out: str


class _Camera(NamedTuple):
    """A camera with its pose, camera-to-world in OpenGL's axes."""

    label: str
    pose: Float[np.ndarray, "4 4"]
    intrinsics: Intrinsics


class _Cameras(NamedTuple):
    """The cameras of a chunk: those with a pose, the labels of the others, what is left out."""

    posed: list[_Camera]
    unplaced: list[str]
    left_out: list[str]


def is_cameras(path: Path) -> bool:
    """Whether a file looks like cameras of Metashape."""
    if path.suffix.lower() != ".xml":
        return False
    head = read_head(path, HEAD_BYTES)
    return b"<document" in head and b"<chunk" in head


def find_cameras(folder: Path) -> Path | None:
    """Metashape's file of cameras in a folder, the first of several by name; None without."""
    return find_file(folder, is_cameras)


def read_metashape(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists the images that Metashape has aligned; every 8th, in the order of names, is held out.

    Cameras are camera-to-world with x right, y down, z forwards, in the coordinates of their chunk.
    Those of a rig that have no pose of their own are placed by their master's pose, and the
    rotation and location of their sensor, which are slave-to-master and in meters. Images are found
    by the cameras' labels, in any subfolder. A pixel is at
    (w / 2 + cx + (f + b1) x + b2 y, h / 2 + cy + f y), where (x, y) is bent by k1 to k4, p1 and p2;
    OpenCV's p1 is Metashape's p2 and the other way round.

    Args:
      folder: holds the cameras and the images.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    del splits
    check_folder(folder)
    listing = find_cameras(folder)
    if listing is None:
        raise InputError(f"{folder} has no cameras of Metashape; export them as Agisoft XML.")
    chunks = [c for c in _parse(listing).iter("chunk") if c.find(".//camera/transform") is not None]
    if not chunks:
        raise InputError(
            f"{listing} has no camera with a pose; align the photos, and export again."
        )
    chunk = max(chunks, key=lambda c: len(c.findall(".//camera/transform")))
    notes = [f"Used: the largest of {len(chunks)} chunks of {listing.name}."] if chunks[1:] else []
    cameras = _read_cameras(chunk, listing, options)
    if not cameras.posed:
        raise InputError(f"All cameras of {listing} are disabled; enable them, and export again.")
    if cameras.unplaced:
        count, names = format_count(len(cameras.unplaced), "camera"), format_names(cameras.unplaced)
        notes.append(f"Not used: {count} without a pose or disabled ({names}).")
    if cameras.left_out:
        notes.append(
            f"Left out: {format_names(cameras.left_out, 1)}; export undistorted images if edges "
            "come out blurred."
        )
    return Listing(
        folder,
        listing,
        {ALL: _locate(cameras.posed, listing)},
        CaptureRegion(),
        stored_pixels=True,
        notes=tuple(notes),
    )


def _read_cameras(chunk: ET.Element, listing: Path, options: LoadOptions) -> _Cameras:
    sensors = {sensor.get("id", ""): sensor for sensor in chunk.iter("sensor")}
    known: dict[str, _Sensor] = {}
    poses = _read_poses(chunk, sensors, listing)
    posed, unplaced = [], []
    for index, camera in enumerate(chunk.iter("camera")):
        label, number = camera.get("label", ""), camera.get("sensor_id", "")
        if index not in poses or camera.get("enabled", "true").lower() in ("false", "0"):
            unplaced.append(label)
            continue
        if number not in known:
            if number not in sensors:
                raise InputError(f"Camera {label} of {listing} has no sensor; export it again.")
            known[number] = _read_sensor(sensors[number], f"Sensor {number} of {listing}")
        pose = poses[index] if options.axes == "opengl" else poses[index] @ FLIP_YZ
        posed.append(_Camera(label, pose, known[number].intrinsics))
    left_out = [sensor.left_out for sensor in known.values() if sensor.left_out]
    return _Cameras(posed, unplaced, left_out)


def _read_poses(
    chunk: ET.Element, sensors: dict[str, ET.Element], listing: Path
) -> dict[int, Float[np.ndarray, "4 4"]]:
    """Poses of cameras by their place in a chunk, in the axes of the file, without those unplaced.

    Of a rig, often only the master has a transform.
    """
    cameras = list(chunk.iter("camera"))
    poses = {
        index: _read_pose(transform, f"Camera {camera.get('label', '')} of {listing}")
        for index, camera in enumerate(cameras)
        if (transform := camera.find("transform")) is not None
    }
    by_id = {cameras[index].get("id", ""): pose for index, pose in poses.items()}
    for index, camera in enumerate(cameras):
        master = by_id.get(camera.get("master_id", ""))
        sensor = sensors.get(camera.get("sensor_id", ""))
        if index in poses or master is None or sensor is None:
            continue
        where = f"Sensor {sensor.get('id', '')} of {listing}"
        offset = np.eye(4)
        for tag, size in (("rotation", 9), ("location", 3)):
            numbers = _to_numbers(sensor.findtext(tag), f"{tag} of {where}")
            if len(numbers) != size:
                raise InputError(f"{where} has no {tag} in its rig; export the cameras again.")
            target = offset[:3, :3] if tag == "rotation" else offset[:3, 3]
            target[...] = np.reshape(numbers, target.shape)
        offset[:3, 3] /= _read_scale(chunk, listing)
        poses[index] = master @ check_pose(offset.tolist(), where, "rotation")
    return poses


def _read_scale(chunk: ET.Element, listing: Path) -> float:
    """Meters per unit of a chunk's coordinates, which are arbitrary without references."""
    where = f"The scale of the transform of {listing}"
    scale = (_to_numbers(chunk.findtext("transform/scale"), where) or [1.0])[0]
    if not 1e-9 < scale < 1e9:
        raise InputError(f"{where} is {scale:g}; export the cameras again.")
    return scale


def _parse(listing: Path) -> ET.Element:
    try:
        if listing.stat().st_size > MAX_BYTES:
            raise InputError(f"{listing} has more than {MAX_BYTES >> 20} MiB; it must be smaller.")
        data = listing.read_bytes()
    except OSError as error:
        raise InputError(f"{listing} cannot be read ({error.strerror}); check the file.") from error
    # Entities can be made to expand without end.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise InputError(
            f"{listing} declares a document type, as Metashape never does; export it again."
        )
    try:
        return ET.fromstring(data)
    except (ET.ParseError, ValueError, RecursionError, LookupError) as error:
        raise InputError(f"{listing} is not complete XML ({error}); copy it again.") from error


def _read_pose(transform: ET.Element, where: str) -> Float[np.ndarray, "4 4"]:
    numbers = _to_numbers(transform.text, f"transform of {where}")
    if len(numbers) != 16:
        raise InputError(f"transform of {where} is not 16 numbers; export the cameras again.")
    rows = [numbers[start : start + 4] for start in range(0, 16, 4)]
    return check_pose(rows, where, "transform")


def _to_numbers(text: str | None, where: str) -> list[float]:
    try:
        return [float(part) for part in (text or "").split()]
    except ValueError:
        raise InputError(f"{where} is not made of numbers; export the cameras again.") from None


def _read_sensor(sensor: ET.Element, where: str) -> _Sensor:
    kind = sensor.get("type", "frame")
    if kind not in LENSES:
        raise InputError(
            f"{where} is {kind}, which is not read: export images of frame or fisheye cameras."
        )
    lens = LENSES[kind]
    calibrations = sensor.findall("calibration")
    calibration = next(
        (c for c in calibrations if c.get("class") == "adjusted"),
        calibrations[0] if calibrations else None,
    )
    if calibration is None:
        raise InputError(f"{where} has no calibration; align the photos, and export again.")
    resolution = calibration.find("resolution")
    if resolution is None:
        resolution = sensor.find("resolution")
    sides = {} if resolution is None else resolution.attrib
    width, height = (
        (_to_numbers(sides.get(side), f"{side} of {where}") or [0.0])[0]
        for side in ("width", "height")
    )
    if not all(1.0 <= side < 1e5 for side in (width, height)):
        raise InputError(f"{where} has no width and height in pixels; export the cameras again.")
    values = {
        child.tag: _to_numbers(child.text, f"{child.tag} of {where}") for child in calibration
    }
    number = {tag: numbers[0] for tag, numbers in values.items() if len(numbers) == 1}
    if not all(abs(value) < 1e7 for value in number.values()):
        raise InputError(f"{where} has a number that cannot be right; export the cameras again.")
    number = _to_present_form(number, (width, height))
    fy = check_focal(number.get("f", 0.0), f"f of {where}")
    fx = check_focal(fy + number.get("b1", 0.0), f"f and b1 of {where}")
    coefficients = {key: number.get(key, 0.0) for key in ("k1", "k2", "k3", "k4")}
    coefficients |= {"p1": number.get("p2", 0.0), "p2": number.get("p1", 0.0)}
    if lens == "perspective":
        coefficients["r8"] = coefficients.pop("k4")
    distortion = tuple(coefficients.get(key, 0.0) for key in COEFFICIENTS[lens])
    intrinsics = Intrinsics(
        focal=(fx, fy),
        center=(0.5 * width + number.get("cx", 0.0), 0.5 * height + number.get("cy", 0.0)),
        size=(width, height),
        lens=lens,
        distortion=distortion if any(distortion) else (),
    )
    return _Sensor(intrinsics, _describe_left_out(number, fx, height, where))


def _to_present_form(number: dict[str, float], size: tuple[float, float]) -> dict[str, float]:
    """The numbers of a calibration by their present names.

    Those of PhotoScan's first versions are as OpenCV has them, with a skew (Agisoft Lens User
    Manual 0.4).
    """
    if "f" in number or not {"fx", "fy", "cx", "cy"} <= number.keys():
        return number
    return number | {
        "f": number["fy"],
        "b1": number["fx"] - number["fy"],
        "b2": number.get("skew", 0.0),
        "cx": number["cx"] - 0.5 * size[0],
        "cy": number["cy"] - 0.5 * size[1],
        "p1": number.get("p2", 0.0),
        "p2": number.get("p1", 0.0),
    }


def _describe_left_out(number: dict[str, float], focal: float, height: float, where: str) -> str:
    """Names the numbers of a calibration that are left out, if they matter."""
    left_out = [tag for tag in ("p3", "p4") if number.get(tag)]
    if abs(number.get("b2", 0.0)) * 0.5 * height / focal > MAX_SHEAR:
        left_out.append("b2")
    if not left_out:
        return ""
    return f"{' and '.join(left_out)} of {where}"


def _locate(posed: Sequence[_Camera], listing: Path) -> list[Frame]:
    """Frames with their images, in the order of names, by the labels of their cameras."""
    folder = DataFolder(listing.parent)
    paths = [parse_path(label, f"The label of a camera in {listing}") for label, *_ in posed]
    holders = folder.find_holders([path.name for path in paths])
    # Of several folders, the images may be those of `images_K`; loading tells them apart.
    parent = holders[0] if len(holders) == 1 else Path()
    frames = {}
    for path, (label, pose, intrinsics) in zip(paths, posed, strict=True):
        image = folder.find(parent / path.name) or parent / path.name
        if image in frames:
            raise InputError(
                f"{listing} has two cameras with the label {label}: rename the photos, so that "
                "each name is there once."
            )
        frames[image] = Frame(image, listing, pose, intrinsics)
    return [frames[path] for path in sorted(frames)]
