"""NeRF-synthetic ("Blender") scenes: a `transforms_<split>.json` and PNGs for each split."""

import math
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import make_cameras
from jaxrf.cameras.poses import check_pose
from jaxrf.core.errors import InputError, MissingSplitError
from jaxrf.core.json_files import read_json, shorten
from jaxrf.data.files import (
    check_downscale,
    check_file_path,
    check_folder,
    common_image_size,
    image_names,
    name_scene,
    read_images,
)
from jaxrf.data.scene import Scene, Split, downscale_split
from jaxrf.data.views import ChooseViews

# All objects of NeRF-synthetic fit into this box; its cameras are about 4 units from the origin.
BOX = ((-1.5, -1.5, -1.5), (1.5, 1.5, 1.5))
NEAR, FAR = 2.0, 6.0


def is_blender(folder: Path) -> bool:
    """Whether a folder has a `transforms_train.json`, or one for val or test."""
    return any(os.path.isfile(_transforms_path(folder, s)) for s in ("train", "val", "test"))


def load_blender(
    folder: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    downscale: int = 1,
    choose: ChooseViews = range,
    skip_missing: bool = False,
) -> Scene:
    """Reads a scene in the layout of NeRF's synthetic data (Mildenhall et al. 2020).

    Args:
      folder: holds `transforms_<split>.json` and the images that they list.
      splits: splits to read; files of other splits are not opened.
      downscale: factor by which images are downscaled along each side, by area.
      choose: maps the number of views of a split to the indices of the views to decode. Sizes of
        the other images are checked, too.
      skip_missing: leave out images that are listed but do not exist.

    Returns:
      A scene in the box +-1.5, with near 2 and far 6. Images are straight RGBA, opaque where the
      files have no alpha. A split has depth if each of its images has an `<image>_depth.npy` beside
      it (float32 (h, w): distance along each pixel center's unit ray, inf where it hits nothing).

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    if downscale < 1:
        raise InputError(f"The downscale factor is {downscale}; make it 1 or more.")
    check_folder(folder)
    return Scene(
        name=name_scene(folder),
        splits={
            split: _load_split(folder, split, downscale, choose, skip_missing) for split in splits
        },
        aabb=np.array(BOX, np.float32),
        near=NEAR,
        far=FAR,
    )


def _load_split(
    folder: Path, split: str, downscale: int, choose: ChooseViews, skip_missing: bool
) -> Split:
    """One split; checks as much as possible before it decodes the first image."""
    transforms_path = _transforms_path(folder, split)
    transforms = _read_transforms(folder, split)
    camera_angle_x = _check_angle(transforms, transforms_path)
    poses = []
    first_index: dict[PurePath, int] = {}  # Frame of each image, in their order.
    for index, frame in enumerate(transforms["frames"]):
        where = f"frames[{index}] of {transforms_path}"
        if not isinstance(frame, dict):
            raise InputError(f"{where} is not an object; give it file_path and transform_matrix.")
        for key in ("file_path", "transform_matrix"):
            if key not in frame:
                raise InputError(f"{where} has no {key}; add it or take the frame out.")
        pose = check_pose(frame["transform_matrix"], where)
        path = check_file_path(frame["file_path"], where)
        if path.suffix.lower() != ".png":
            path = path.with_name(f"{path.name}.png")
        if skip_missing and not (folder / path).is_file():
            continue
        poses.append(pose)
        first = first_index.setdefault(path, index)
        if first != index:
            raise InputError(f"{where} names the same image as frames[{first}]; list it once.")

    if not first_index:
        raise InputError(f"None of the images that {transforms_path} names is there; add them.")
    paths = [folder / relative for relative in first_index]
    width, height = common_image_size(paths, transforms_path, ("PNG",))
    check_downscale(downscale, (width, height), paths[0])
    names, chosen = image_names(tuple(first_index)), list(choose(len(paths)))
    paths = [paths[index] for index in chosen]
    poses = [poses[index] for index in chosen]
    loaded = Split(
        name=split,
        names=tuple(names[index] for index in chosen),
        images=read_images(paths, width, height),
        cameras=make_cameras(
            np.stack(poses) if poses else np.empty((0, 4, 4)), width, height, camera_angle_x
        ),
        depth=_read_depth([_depth_path(path) for path in paths], width, height),
    )
    return downscale_split(loaded, downscale)


def _transforms_path(folder: Path, split: str) -> Path:
    return folder / f"transforms_{split}.json"


def _read_transforms(folder: Path, split: str) -> dict[str, Any]:
    """A split's JSON, an object with a list of one or more "frames"; all its numbers are floats."""
    path = _transforms_path(folder, split)
    if not path.exists():
        existing = ", ".join(sorted(other.name for other in folder.glob("transforms_*.json")))
        raise MissingSplitError(
            f"{folder} has no {path.name} (found: {existing or 'no transforms_*.json at all'});"
            " use another split or complete the folder."
        )
    transforms = read_json(path, "camera_angle_x and frames")
    if not isinstance(transforms.get("frames"), list):
        raise InputError(f'{path} has no list "frames"; add it, with one object per image.')
    if not transforms["frames"]:
        raise InputError(f'{path} is an empty split: "frames" is []; add frames or skip the split.')
    return transforms


def _check_angle(transforms: dict[str, Any], transforms_path: Path) -> float:
    """The horizontal field of view in radians."""
    if "camera_angle_x" not in transforms:
        raise InputError(f"{transforms_path} has no camera_angle_x; add it, in radians.")
    value = transforms["camera_angle_x"]
    if isinstance(value, float) and 0.0 < value < math.pi:
        return value
    raise InputError(
        f"camera_angle_x in {transforms_path} is {shorten(value)};"
        " make it the horizontal field of view in radians, between 0 and pi."
    )


def _depth_path(image: Path) -> Path:
    return image.with_name(f"{image.stem}_depth.npy")


def _read_depth(
    paths: Sequence[Path], width: int, height: int
) -> Float[np.ndarray, "n h w"] | None:
    """Depth of all images; None if one of the files does not exist."""
    if not all(os.path.isfile(path) for path in paths):
        return None
    depth = np.empty((len(paths), height, width), np.float32)
    for path, target in zip(paths, depth, strict=True):
        try:
            source = np.lib.format.open_memmap(path, mode="r")  # Never unpickles.
        except (OSError, ValueError, EOFError, OverflowError) as error:
            raise InputError(f"{path} is not a complete .npy file; write it again.") from error
        if source.shape != (height, width) or source.dtype != np.float32:
            raise InputError(
                f"{path} is {source.dtype} of shape {source.shape};"
                f" make it float32 of its image's shape {(height, width)}."
            )
        target[...] = source
    return depth
