"""Cameras of RealityCapture ("Internal/External camera parameters", a table) beside their images.

The columns are those of its export template, in which heading, pitch and roll are in degrees.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.lenses import COEFFICIENTS
from jaxrf.core.errors import InputError
from jaxrf.core.json_files import shorten
from jaxrf.data.files import DataFolder, check_folder, find_file, read_head
from jaxrf.data.frames import ALL, CaptureRegion, Frame, Intrinsics, Listing, check_focal
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.options import LoadOptions

# Width of the film that focal lengths are for, in millimeters.
FILM_WIDTH = 36.0
COLUMNS = ("name", "x", "y", "alt", "heading", "pitch", "roll", "f")
# OpenCV's names of the columns of a lens.
LENS_COLUMNS = {"k1": "k1", "k2": "k2", "k3": "k3", "k4": "r8", "t1": "p1", "t2": "p2"}
# Bytes of a file, and of its beginning, in which the header is.
MAX_BYTES, HEAD_BYTES = 1 << 26, 1 << 12


def is_cameras(path: Path) -> bool:
    """Whether a file looks like a table of RealityCapture's cameras."""
    if path.suffix.lower() != ".csv":
        return False
    head = read_head(path, HEAD_BYTES).decode("utf-8-sig", errors="replace")
    return any(_is_header(line.split(",")) for line in head.splitlines()[:3])


def find_cameras(folder: Path) -> Path | None:
    """RealityCapture's table of cameras in a folder, the first of several by name; or None."""
    return find_file(folder, is_cameras)


def read_reality_capture(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists the images that RealityCapture has aligned; every 8th, in order of names, is held out.

    Cameras are camera-to-world in OpenGL's axes, turned by roll around y, then by pitch around x,
    then by -heading around z. A focal length is that of a film of 36 mm along the longer side, by
    which the principal point's offset from the middle is divided, too; k4 is the factor of r^8.

    Args:
      folder: holds the table and the images, which may be in a subfolder.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    del splits
    check_folder(folder)
    listing = find_cameras(folder)
    if listing is None:
        raise InputError(
            f"{folder} has no table of RealityCapture's cameras; export Internal/External camera "
            "parameters."
        )
    files = DataFolder(folder)
    frames = [
        _read_frame(row, files, listing, f"line {number} of {listing}", options)
        for number, row in _rows(listing)
    ]
    if not frames:
        raise InputError(f"{listing} has no camera; align the images, and export again.")
    frames.sort(key=lambda frame: frame.path)
    return Listing(folder, listing, {ALL: frames}, CaptureRegion())


def _is_header(cells: Sequence[str]) -> bool:
    names = {cell.strip().lstrip("#").lower() for cell in cells}
    return names.issuperset(COLUMNS)


def _rows(listing: Path) -> list[tuple[int, dict[str, str]]]:
    """The lines of a table by their number, each as its cells by column."""
    try:
        if listing.stat().st_size > MAX_BYTES:
            raise InputError(f"{listing} has more than {MAX_BYTES >> 20} MiB; it must be smaller.")
        lines = listing.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        table = list(csv.reader(lines))
    except OSError as error:
        raise InputError(f"{listing} cannot be read ({error.strerror}); check the file.") from error
    except csv.Error as error:
        raise InputError(f"{listing} is not a table ({error}); export it again.") from error
    header: list[str] = []
    rows = []
    for number, cells in enumerate(table, start=1):
        if _is_header(cells):
            header = [cell.strip().lstrip("#").lower() for cell in cells]
        elif header and cells and not cells[0].startswith("#"):
            rows.append((number, dict(zip(header, cells, strict=False))))
    return rows


def _read_frame(
    row: dict[str, str], files: DataFolder, listing: Path, where: str, options: LoadOptions
) -> Frame:
    columns = (*COLUMNS[1:], "px", "py", *LENS_COLUMNS)
    number = {column: _to_number(row.get(column), column, where) for column in columns}
    focal = check_focal(number["f"] / FILM_WIDTH, f"f / {FILM_WIDTH:g} of {where}")
    distortion = {name: number[column] for column, name in LENS_COLUMNS.items()}
    pose = np.eye(4)
    pose[:3, :3] = _turn(number["heading"], number["pitch"], number["roll"])
    pose[:3, 3] = number["x"], number["y"], number["alt"]
    return Frame(
        files.find_listed(row["name"].strip(), where, "name"),
        listing,
        pose @ FLIP_YZ if options.axes == "opencv" else pose,
        Intrinsics(
            focal=(focal, focal),
            center=(number["px"], number["py"]),
            relative=True,
            distortion=tuple(distortion.get(name, 0.0) for name in COEFFICIENTS["perspective"])
            if any(distortion.values())
            else (),
        ),
    )


def _to_number(text: str | None, column: str, where: str) -> float:
    """The number of a cell; 0 where a table has no such column of those that it may lack."""
    if text is None and column not in COLUMNS:
        return 0.0
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not abs(value) < 1e9:
        raise InputError(f"{column} of {where} is {shorten(text)}; make it a finite number.")
    return value


def _turn(heading: float, pitch: float, roll: float) -> Float[np.ndarray, "3 3"]:
    """Camera-to-world rotation of angles in degrees."""
    yaw, tilt, spin = (math.radians(angle) for angle in (-heading, pitch, roll))
    about_z = [[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]]
    about_y = [[math.cos(spin), 0, math.sin(spin)], [0, 1, 0], [-math.sin(spin), 0, math.cos(spin)]]
    return np.array(about_z) @ np.array(about_x) @ np.array(about_y)
