"""Raw exports of Polycam: a phone's photos with the poses of its tracking.

A folder `keyframes` has `images` and `cameras`, with a JSON file for each image, and where the app
has adjusted poses to the photos `corrected_images` and `corrected_cameras`
(https://github.com/PolyCam/polyform).
"""

import os
from collections.abc import Sequence
from pathlib import Path

from jaxrf.cameras.poses import check_pose
from jaxrf.core.errors import InputError
from jaxrf.core.json_files import read_json
from jaxrf.data.files import DataFolder, check_folder, format_count, format_names
from jaxrf.data.frames import ALL, CaptureRegion, DepthMap, Frame, Intrinsics, Listing, check_focal
from jaxrf.data.nerf_json import FLIP_YZ, read_number
from jaxrf.data.options import LoadOptions

KEYFRAMES = "keyframes"
# Folders of images and of their cameras; the first pair that exists is read.
PAIRS = (("corrected_images", "corrected_cameras"), ("images", "cameras"))
MAX_CAMERAS = 100_000


def find_keyframes(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and of cameras in a folder, relative to it; None without.

    They are in `keyframes`, there or in the only folder below that has it, or in the folder itself
    if that is `keyframes`.
    """
    parents = [Path(KEYFRAMES)]
    if Path(os.path.abspath(folder)).name == KEYFRAMES:
        parents.append(Path())
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return None
    scans = [Path(name, KEYFRAMES) for name in names if os.path.isdir(folder / name / KEYFRAMES)]
    for parent in parents + (scans if len(scans) == 1 else []):
        for images, cameras in PAIRS:
            pair = parent / images, parent / cameras
            if all(os.path.isdir(folder / path) for path in pair):
                return pair
    return None


def read_polycam(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists a raw export of Polycam; every 8th image, in the order of their names, is held out.

    Poses are camera-to-world with OpenGL's axes, in meters. Depth maps of `depth` are in
    millimeters.

    Args:
      folder: holds `keyframes`.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    del splits
    check_folder(folder)
    pair = find_keyframes(folder)
    if pair is None:
        raise InputError(f"{folder} has no {KEYFRAMES}/images; give a raw export of Polycam.")
    images, cameras = pair
    files = DataFolder(folder)
    by_stem = {path.stem: path for path in files.list_images(images)}
    names = sorted(n for n in os.listdir(folder / cameras) if n.endswith(".json"))[:MAX_CAMERAS]
    without_image = [name for name in names if Path(name).stem not in by_stem]
    frames = [
        _read_frame(cameras / name, by_stem[Path(name).stem], files, options)
        for name in names
        if Path(name).stem in by_stem
    ]
    if not frames:
        raise InputError(
            f"None of the {len(names)} cameras in {folder / cameras} has an image in "
            f"{folder / images}: add the images, which have the same names."
        )
    frames.sort(key=lambda frame: frame.path)
    notes = []
    if without_image:
        count = format_count(len(without_image), "camera")
        notes.append(f"Not used: {count} without an image ({format_names(without_image)}).")
    return Listing(folder, folder / cameras, {ALL: frames}, CaptureRegion(), notes=tuple(notes))


def _read_frame(camera: Path, image: Path, files: DataFolder, options: LoadOptions) -> Frame:
    listing = files.root / camera
    content, where = read_json(listing, "a camera"), str(listing)
    numbers = {}
    for key in ("fx", "fy", "cx", "cy", "width", "height"):
        value = read_number(content, key, where)
        if value is None:
            raise InputError(f"{where} has no {key}; export the capture again.")
        numbers[key] = value
    rows = [[content.get(f"t_{row}{column}") for column in range(4)] for row in range(3)]
    pose = check_pose([*rows, [0.0, 0.0, 0.0, 1.0]], where, "t_00 to t_23")
    if options.axes == "opencv":
        pose = pose @ FLIP_YZ
    depth = files.find(camera.parent.parent / "depth" / f"{camera.stem}.png")
    return Frame(
        image,
        listing,
        pose,
        Intrinsics(
            focal=(
                check_focal(numbers["fx"], f"fx of {where}"),
                check_focal(numbers["fy"], f"fy of {where}"),
            ),
            center=(numbers["cx"], numbers["cy"]),
            size=(numbers["width"], numbers["height"]),
        ),
        depth_map=None if depth is None else DepthMap(depth, options.depth_unit),
    )
