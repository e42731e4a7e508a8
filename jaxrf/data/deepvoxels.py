"""DeepVoxels scenes: a folder with `intrinsics.txt`, `pose/` and `rgb/` for each split.

Sitzmann et al.: DeepVoxels (CVPR 2019).
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxrf.core.errors import InputError
from jaxrf.data.files import DataFolder, check_folder
from jaxrf.data.frames import ALL, BoxRegion, Frame, Intrinsics, Listing
from jaxrf.data.nerf_json import FLIP_YZ
from jaxrf.data.options import LoadOptions
from jaxrf.data.text_files import list_stems, read_pose, read_rows

FOLDERS = {"train": "train", "val": "validation", "test": "test"}
INTRINSICS = "intrinsics.txt"
# Half the side of the box, relative to the mean distance of the cameras from its center.
BOX_RATIO = 0.4


def find_deepvoxels(folder: Path) -> str | None:
    """Name of the scene in a folder, which has `train/<name>/intrinsics.txt`; None without."""
    train = folder / FOLDERS["train"]
    try:
        names = sorted(os.listdir(train)) if train.is_dir() else []
    except OSError:
        return None
    return next((name for name in names if os.path.isfile(train / name / INTRINSICS)), None)


def read_deepvoxels(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists a DeepVoxels scene: an object around the origin, on a background of one color.

    Poses are camera-to-world with x right, y down, z forwards. The box is a cube around the
    barycenter that the file gives; half its side is `BOX_RATIO` times the mean camera distance.

    Args:
      folder: holds `train/<name>`, `validation/<name>` and `test/<name>`.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    check_folder(folder)
    name = find_deepvoxels(folder)
    if name is None:
        raise InputError(f"{folder} has no train/NAME/{INTRINSICS}; give a DeepVoxels scene.")
    train, center = _read_frames(folder, "train", name, options)
    poses = np.stack([frame.pose for frame in train])
    half = BOX_RATIO * float(np.linalg.norm(poses[:, :3, 3] - center, axis=-1).mean())
    others = [s for s in FOLDERS if s != "train" and (folder / FOLDERS[s] / name).is_dir()]
    frames = {"train": train} if others else {ALL: train}
    if set(splits) - {"train"}:
        frames |= {split: _read_frames(folder, split, name, options)[0] for split in others}
    aabb = np.stack([center - half, center + half])
    return Listing(folder, folder / FOLDERS["train"] / name, frames, BoxRegion(aabb), poses)


def _read_frames(
    folder: Path, split: str, name: str, options: LoadOptions
) -> tuple[list[Frame], Float[np.ndarray, "3"]]:
    """The frames of a split, and the barycenter in its file."""
    subfolder = Path(FOLDERS[split], name)
    path = folder / subfolder / INTRINSICS
    rows = read_rows(path)
    if len(rows) < 5 or len(rows[0]) < 3 or len(rows[1]) != 3 or len(rows[-1]) != 2:
        raise InputError(
            f"{path} must have lines of focal length and center, barycenter, near plane, scale, "
            "height and width; correct it."
        )
    focal, *center = rows[0][:3]
    height, width = rows[-1]
    if not (0 < focal < 1e7 and 1 <= width < 1e5 and 1 <= height < 1e5):
        raise InputError(f"{path} has an invalid focal length or size; correct it.")
    intrinsics = Intrinsics(
        focal=(focal, focal), center=(center[0], center[1]), size=(width, height)
    )
    stems = list_stems(folder / subfolder / "pose")
    images = DataFolder(folder).list_images(subfolder / "rgb")
    if stems != [image.stem for image in images]:
        raise InputError(
            f"{folder / subfolder} has {len(stems)} poses and {len(images)} images, which must "
            "have the same names; complete it."
        )
    flip = np.eye(4) if options.axes == "opengl" else FLIP_YZ
    return [
        Frame(
            image, path, read_pose(folder / subfolder / "pose" / f"{stem}.txt") @ flip, intrinsics
        )
        for stem, image in zip(stems, images, strict=True)
    ], np.array(rows[1])
