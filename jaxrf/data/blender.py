"""NeRF-synthetic ("Blender") scenes: for each split a `transforms_<split>.json` and its PNGs."""

import json
import math
import os
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxrf.cameras import make_cameras
from jaxrf.data.base import Scene, Split, downscale_split
from jaxrf.errors import InputError

ChooseViews = Callable[[int], Sequence[int]]

_POSE_TOLERANCE = 1e-3  # files carry 6 or more digits; a scaled or sheared pose misses by far more
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLORS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey-and-alpha", 6: "RGBA"}


def is_blender(folder: Path) -> bool:
    """Whether a folder has a `transforms_train.json`, or one for val or test."""
    return any(os.path.isfile(_transforms_path(folder, s)) for s in ("train", "val", "test"))


def load_blender(
    folder: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    downscale: int = 1,
    choose: ChooseViews = range,
) -> Scene:
    """Reads a scene in the layout of NeRF's synthetic data (Mildenhall et al. 2020).

    Args:
      folder: holds `transforms_<split>.json` and the pictures that they name.
      splits: which to read; the others are not touched.
      downscale: how many times smaller, along each side, the pictures are made by area.
      choose: gives, for the number of a split's views, the indices of those to read. The others'
        pictures are looked at, so that what is missing or has the wrong size is noticed, but not
        decoded.

    Returns:
      A scene in the box +-1.5, seen between distances 2 and 6. Pictures are straight RGBA, opaque
      where the files have no alpha. Where every picture of a split has an `<its name>_depth.npy`
      beside it (float32 (h, w): distance along each pixel centre's unit ray, inf where it hits
      nothing), these are the split's depth.

    Raises:
      InputError: something is missing, broken, or not what this layout holds.
    """
    if downscale < 1:
        raise InputError(f"The downscale factor is {downscale}; make it 1 or more.")
    if not os.path.exists(folder):  # unlike Path's method, it raises for no name at all
        raise InputError(f"There is no folder {folder}; give the path of a scene's folder.")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the path of the folder of a scene.")
    return Scene(
        name=Path(os.path.abspath(folder)).name,  # "." and ".." have a name too
        splits={split: _load_split(folder, split, downscale, choose) for split in splits},
        aabb=np.array([[-1.5] * 3, [1.5] * 3], np.float32),
        near=2.0,
        far=6.0,
    )


def _load_split(folder: Path, split: str, downscale: int, choose: ChooseViews) -> Split:
    """One split, checked as far as can be before the first picture is decoded."""
    transforms_path = _transforms_path(folder, split)
    transforms = _read_transforms(folder, split)
    camera_angle_x = _check_angle(transforms, transforms_path)
    poses = []
    first_index: dict[PurePath, int] = {}  # of each picture, in the order of the frames
    for index, frame in enumerate(transforms["frames"]):
        where = f"frames[{index}] of {transforms_path}"
        if not isinstance(frame, dict):
            raise InputError(f"{where} is not an object; give it file_path and transform_matrix.")
        for key in ("file_path", "transform_matrix"):
            if key not in frame:
                raise InputError(f"{where} has no {key}; add it or take the frame out.")
        poses.append(_check_pose(frame["transform_matrix"], where))
        first = first_index.setdefault(_check_file_path(frame["file_path"], where), index)
        if first != index:
            raise InputError(f"{where} names the same picture as frames[{first}]; list it once.")

    paths = [folder / relative for relative in first_index]
    sizes = [_read_png_size(path, transforms_path) for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise InputError(
                f"{paths[0]} is {_format_size(sizes[0])} and {path} is {_format_size(size)} pixels;"
                " give all pictures of a split the same size."
            )
    width, height = sizes[0]
    if downscale > min(width, height):
        raise InputError(
            f"The downscale factor {downscale} is larger than the {_format_size(sizes[0])} pixels"
            f" of {paths[0]}; make it smaller."
        )
    names, chosen = _name_pictures(tuple(first_index)), list(choose(len(paths)))
    paths = [paths[index] for index in chosen]
    poses = [poses[index] for index in chosen]
    loaded = Split(
        name=split,
        names=tuple(names[index] for index in chosen),
        images=_read_pictures(paths, width, height),
        cameras=make_cameras(
            np.stack(poses) if poses else np.empty((0, 4, 4)), width, height, camera_angle_x
        ),
        depth=_read_depth([_depth_path(path) for path in paths], width, height),
    )
    return downscale_split(loaded, downscale)


# ---------------------------------------------------------------------------------------------
# The JSON
# ---------------------------------------------------------------------------------------------


def _transforms_path(folder: Path, split: str) -> Path:
    return folder / f"transforms_{split}.json"


def _read_transforms(folder: Path, split: str) -> dict[str, Any]:
    """A split's JSON, an object with a list of one or more "frames"; all its numbers are floats."""
    path = _transforms_path(folder, split)
    if not path.exists():
        found = ", ".join(sorted(other.name for other in folder.glob("transforms_*.json")))
        raise InputError(
            f"{folder} has no {path.name} (found: {found or 'no transforms_*.json at all'});"
            " ask for a split that is there or complete the folder."
        )
    try:
        # Integers become floats too: as such a number of any length is one (or inf).
        transforms = json.loads(path.read_text(encoding="utf-8-sig"), parse_int=float)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; save or copy it again.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not whole JSON ({error}); copy it again.") from error
    if not isinstance(transforms, dict):
        raise InputError(f"{path} is not a JSON object; it must hold camera_angle_x and frames.")
    if not isinstance(transforms.get("frames"), list):
        raise InputError(f'{path} has no list "frames"; add it, with one object per picture.')
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
        f"camera_angle_x in {transforms_path} is {_shorten(value)};"
        " make it the horizontal field of view in radians, between 0 and pi."
    )


def _check_pose(value: object, where: str) -> Float[np.ndarray, "4 4"]:
    """A rigid camera-to-world matrix, float64."""
    rows = value if isinstance(value, list) else []
    if len(rows) != 4 or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise InputError(f"transform_matrix in {where} is not 4 rows of 4 numbers; correct it.")
    largest = float(np.finfo(np.float32).max)  # cameras are float32: beyond it is infinite
    for entry in (entry for row in rows for entry in row):
        if not isinstance(entry, float) or not abs(entry) <= largest:  # NaN compares false
            raise InputError(
                f"transform_matrix in {where} holds {_shorten(entry)}; make it a finite number."
            )
    pose = np.array(rows)
    rotation = pose[:3, :3]
    if (
        np.abs(rotation @ rotation.T - np.eye(3)).max() > _POSE_TOLERANCE
        or np.linalg.det(rotation) < 0.0
        or np.abs(pose[3] - np.array([0.0, 0.0, 0.0, 1.0])).max() > _POSE_TOLERANCE
    ):
        raise InputError(
            f"transform_matrix in {where} is not a rotation and a translation"
            " (orthonormal, determinant +1, last row 0 0 0 1); take scale and mirroring out of it."
        )
    return pose


def _check_file_path(value: object, where: str) -> PurePath:
    """A picture's path relative to the data folder, with its suffix.

    Only the text is judged: a folder of pictures may well be a link to another disk.
    """
    shown = f"file_path {_shorten(value)} in {where}"
    if not isinstance(value, str) or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value):
        raise InputError(f"{shown} is not a file's name; give one such as './train/r_0'.")
    path = PurePath(os.path.normpath(value))
    if path.is_absolute() or path.parts[:1] in ((), ("..",)):
        raise InputError(
            f"{shown} names nothing inside the data folder; give a path relative to it."
        )
    return path if path.suffix.lower() == ".png" else path.with_name(f"{path.name}.png")


def _name_pictures(paths: Sequence[PurePath]) -> tuple[str, ...]:
    """File stems, or paths without suffix where stems repeat."""
    stems = tuple(path.stem for path in paths)
    if len(set(stems)) == len(stems):
        return stems
    return tuple(path.with_suffix("").as_posix() for path in paths)


# ---------------------------------------------------------------------------------------------
# Pictures and depth
# ---------------------------------------------------------------------------------------------


def _read_png_size(path: Path, transforms_path: Path) -> tuple[int, int]:
    """Width and height out of the header of an 8-bit RGB or RGBA PNG.

    The header itself is read because Pillow gives 16-bit RGB as if it were 8-bit.
    """
    try:
        with path.open("rb") as file:
            header = file.read(26)
    except FileNotFoundError:
        raise InputError(
            f"The picture {path} is missing; add it or take its frame out of {transforms_path}."
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the file.") from error
    if not header:
        raise InputError(f"The picture {path} is empty (0 bytes); copy it again.")
    if header[:8] != _PNG_SIGNATURE[: len(header)]:
        raise InputError(f"{path} is not a PNG picture; replace it by one.")
    if len(header) < 26:
        raise InputError(f"The picture {path} is truncated; copy it again.")
    width, height, bits, color = struct.unpack(">IIBB", header[16:])
    if bits != 8 or color not in (2, 6):
        kind = _PNG_COLORS.get(color, f"colour type {color}")
        raise InputError(f"{path} is a PNG in {bits}-bit {kind}; save it as 8-bit RGB or RGBA.")
    # Pillow's own guard against decompression bombs begins with a warning; this one has one limit.
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    if not 0 < width * height <= limit:
        raise InputError(
            f"{path} says it is {_format_size((width, height))} pixels, which is none or more than"
            f" the {limit} that are decoded; replace it."
        )
    return width, height


def _read_pictures(paths: Sequence[Path], width: int, height: int) -> UInt8[np.ndarray, "n h w 4"]:
    """Straight RGBA of PNGs of one size, decoded in parallel: Pillow lets go of the interpreter."""
    images = np.empty((len(paths), height, width, 4), np.uint8)

    def decode(index: int) -> None:
        try:
            with Image.open(paths[index], formats=("PNG",)) as picture:
                images[index] = np.asarray(picture.convert("RGBA"))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise InputError(
                f"The picture {paths[index]} is truncated or broken ({error}); copy it again."
            ) from error

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(paths))))  # a list, so that the first error is raised
    return images


def _depth_path(picture: Path) -> Path:
    return picture.with_name(f"{picture.stem}_depth.npy")


def _read_depth(
    paths: Sequence[Path], width: int, height: int
) -> Float[np.ndarray, "n h w"] | None:
    """Depth of all pictures, or None if one has none."""
    if not all(os.path.isfile(path) for path in paths):
        return None
    depth = np.empty((len(paths), height, width), np.float32)
    for path, target in zip(paths, depth, strict=True):
        try:
            source = np.lib.format.open_memmap(path, mode="r")  # never unpickles
        except (OSError, ValueError, EOFError, OverflowError) as error:
            raise InputError(f"{path} is not a whole .npy file; write it again.") from error
        if source.shape != (height, width) or source.dtype != np.float32:
            raise InputError(
                f"{path} is {source.dtype} of shape {source.shape};"
                f" make it float32 of its picture's shape {(height, width)}."
            )
        target[...] = source
    return depth


# ---------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _shorten(value: object) -> str:
    """A value from the JSON as it would be written there, in one line of bounded length."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
