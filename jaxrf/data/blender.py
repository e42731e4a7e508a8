"""NeRF-synthetic ("Blender") scenes: a `transforms_<split>.json` and images for each split."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrf.core.errors import InputError, MissingSplitError
from jaxrf.core.json_files import read_json
from jaxrf.data.files import DataFolder, check_folder
from jaxrf.data.frames import ALL, BoxRegion, CaptureRegion, Frame, Listing, ObjectRegion, Region
from jaxrf.data.nerf_json import any_exists, read_frames, read_number, read_unit_cube
from jaxrf.data.options import LoadOptions

SPLITS = ("train", "val", "test")


def is_blender(folder: Path) -> bool:
    """Whether a folder has a `transforms_train.json`, or one for val or test."""
    return any(os.path.isfile(_listing_path(folder, split)) for split in SPLITS)


def read_blender(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists a scene in the format of NeRF's synthetic data (Mildenhall et al. 2020).

    The intrinsics are those of `camera_angle_x`, or of the keys that instant-ngp and nerfstudio
    use. A split has depth if each of its images has an `<image>_depth.npy` beside it (float32
    (h, w): distance along each pixel center's unit ray, inf where it hits nothing).

    Args:
      folder: holds `transforms_<split>.json` and the images that they list.
      splits: to read; files of others are opened only to see whether they have images.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    check_folder(folder)
    files = DataFolder(folder)
    frames: dict[str, list[Frame]] = {}
    notes = []
    region: Region = ObjectRegion()
    for split in SPLITS:
        path = _listing_path(folder, split)
        if split != "train" and not os.path.isfile(path):
            continue
        if split == "train" and not os.path.isfile(path) and "train" not in splits:
            continue
        try:
            content = _read_listing(folder, split)
            listed = read_frames(content, path, files, options)
        except InputError:
            if split in splits:
                raise
            # It has images as far as anyone knows.
            frames.setdefault(split, [])
            continue
        if split == "train":
            region = _find_region(content, path)
        elif not any_exists(listed, files):
            notes.append(
                f"Not used: the {len(listed)} cameras of {path.name}, as none of their images "
                f"exists ({listed[0].path})."
            )
            continue
        frames[split] = [_add_depth(frame) for frame in listed]
    if not {"val", "test"} & frames.keys():
        count = len(frames["train"])
        notes.append(
            f"No images are listed for testing: every {options.hold_out}th of the {count} training "
            "images is held out (--hold-out)."
        )
        frames = {ALL: frames["train"]}
    train = frames.get("train") or frames.get(ALL) or next(iter(frames.values()))
    poses = np.stack([frame.pose for frame in train]) if train else None
    first = next((s for s in splits if os.path.isfile(_listing_path(folder, s))), "train")
    return Listing(folder, _listing_path(folder, first), frames, region, poses, notes=tuple(notes))


def _listing_path(folder: Path, split: str) -> Path:
    return folder / f"transforms_{split}.json"


def _read_listing(folder: Path, split: str) -> dict[str, Any]:
    path = _listing_path(folder, split)
    if not path.exists():
        existing = ", ".join(sorted(other.name for other in folder.glob("transforms_*.json")))
        raise MissingSplitError(
            f"{folder} has no {path.name} (found: {existing or 'no transforms_*.json at all'});"
            " use another split or complete the folder."
        )
    return read_json(path, "camera_angle_x and frames")


def _find_region(content: dict[str, Any], path: Path) -> Region:
    """The region that a file declares by instant-ngp's `aabb_scale`, else that of an object."""
    box = read_unit_cube(content, str(path))
    if box is not None:
        return BoxRegion(box)
    aabb_scale = read_number(content, "aabb_scale", str(path))
    return CaptureRegion() if aabb_scale is not None and aabb_scale > 1.0 else ObjectRegion()


def _add_depth(frame: Frame) -> Frame:
    depth = frame.path.with_name(f"{frame.path.stem}_depth.npy")
    return dataclasses.replace(frame, depth=depth)
