"""Captured scenes with one `transforms.json`, as nerfstudio and instant-ngp write them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.lenses import COEFFICIENTS
from jaxrf.cameras.transforms import SimilarityTransform, invert_transform, transform_poses
from jaxrf.core.errors import InputError
from jaxrf.core.json_files import read_json
from jaxrf.data.files import DataFolder, check_folder, format_names, strip_suffix
from jaxrf.data.frames import ALL, BoxRegion, CaptureRegion, Frame, Listing
from jaxrf.data.nerf_json import read_frames, read_unit_cube
from jaxrf.data.options import LoadOptions
from jaxrf.data.scene import Split

LISTING = "transforms.json"


def is_transforms(folder: Path) -> bool:
    """Whether a folder has a `transforms.json`."""
    return os.path.isfile(folder / LISTING)


def read_transforms(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists a captured scene.

    An `aabb_scale` of 1 declares an object in instant-ngp's unit cube; the scene then has this box
    and the coordinates of the file. The lists `train_filenames`, `val_filenames` and
    `test_filenames` give the splits, if the file has them. Otherwise every 8th image, in the order
    of their names, is held out.

    Args:
      folder: holds `transforms.json` and the images that it lists.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    check_folder(folder)
    listing, files = folder / LISTING, DataFolder(folder)
    content = read_json(listing, "frames")
    frames = sorted(read_frames(content, listing, files, options), key=lambda f: f.path)
    box = read_unit_cube(content, str(listing))
    by_split, notes = _split_frames(content, frames, files, listing)
    region = CaptureRegion() if box is None else BoxRegion(box)
    return Listing(folder, listing, by_split, region, notes=tuple(notes))


def describe_cameras(split: Split, frame: SimilarityTransform) -> dict[str, Any]:
    """A split's cameras in the keys of `transforms.json`, each image with its own lens.

    Args:
      split: with the cameras; gives the names and sizes of its images.
      frame: transform from the coordinates of the files to those of the scene, as in `Scene`.
    """
    cameras = split.cameras
    poses = transform_poses(invert_transform(frame), np.asarray(cameras.T_world_camera))
    model, coefficients = _name_coefficients(cameras)
    frames = []
    for index, name in enumerate(split.paths or split.names):
        width, height = split.image_size(index)
        (fx, fy), (cx, cy) = (
            map(float, np.asarray(pair)[index]) for pair in (cameras.focal, cameras.principal_point)
        )
        numbers = {"w": width, "h": height, "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
        numbers |= {key: float(values[index]) for key, values in coefficients.items()}
        frames.append({"file_path": name, **numbers, "transform_matrix": poses[index].tolist()})
    return {"camera_model": model, "frames": frames}


def _name_coefficients(cameras: Cameras) -> tuple[str, dict[str, Float[np.ndarray, "n"]]]:
    """Camera model and distortion by key, as `read_frames` reads them; without those that are 0.

    Only FULL_OPENCV has a rational lens; the k4 of other perspective ones is the factor of r^8.
    """
    model = {"perspective": "OPENCV", "fisheye": "OPENCV_FISHEYE", "fov": "FOV"}[cameras.lens]
    if cameras.distortion is None:
        return model, {}
    columns = np.asarray(cameras.distortion).T
    by_key = dict(zip(COEFFICIENTS[cameras.lens], columns, strict=False))
    used = {key: values for key, values in by_key.items() if np.any(values)}
    if cameras.lens == "perspective" and used.keys() & {"k4", "k5", "k6"}:
        model = "FULL_OPENCV"
    elif "r8" in used:
        used["k4"] = used.pop("r8")
    return model, used


def _split_frames(
    content: dict[str, Any], frames: list[Frame], files: DataFolder, listing: Path
) -> tuple[dict[str, list[Frame]], list[str]]:
    """Frames by split, as listed in the file, and a note on those that no list names."""
    keys = {split: f"{split}_filenames" for split in ("train", "val", "test")}
    if not any(key in content for key in keys.values()):
        return {ALL: frames}, []
    by_name = {strip_suffix(frame.path): frame for frame in frames}
    by_split: dict[str, list[Frame]] = {}
    for split, key in keys.items():
        names = content.get(key, [])
        if not isinstance(names, list):
            raise InputError(f"{key} of {listing} is not a list of file names; make it one.")
        paths = [
            strip_suffix(files.find_listed(name, f"{key} of {listing}", key)) for name in names
        ]
        by_split[split] = [by_name[path] for path in paths if path in by_name]
    listed = {frame.path for group in by_split.values() for frame in group}
    others = [frame.path.name for frame in frames if frame.path not in listed]
    if not others:
        return by_split, []
    return by_split, [
        f"Not used: {len(others)} frames that {', '.join(keys.values())} of {listing.name} do not "
        f"name ({format_names(others)})."
    ]
