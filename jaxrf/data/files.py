"""Files of data sets: JSON, poses and pictures, doubted as files of strangers deserve."""

import json
import math
import os
import re
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from jaxrf.core.errors import InputError

# Files carry 6 or more digits; a scaled or sheared pose misses by far more.
POSE_TOLERANCE = 1e-3
# Text of this size holds a hundred thousand frames.
MAX_JSON_BYTES = 1 << 28
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_PNG_COLORS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray-and-alpha", 6: "RGBA"}


def read_json(path: Path, must_hold: str) -> dict[str, Any]:
    """A file's JSON object, all of whose numbers are floats; `must_hold` says what it is for."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(
                f"{path} has more than {MAX_JSON_BYTES >> 20} MiB; it must be smaller."
            )
        # Integers become floats too: as such a number of any length is one (or inf).
        value = json.loads(path.read_text(encoding="utf-8-sig"), parse_int=float)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; save or copy it again.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not whole JSON ({error}); copy it again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; it must hold {must_hold}.")
    return value


def check_pose(
    value: object, where: str, key: str = "transform_matrix"
) -> Float[np.ndarray, "4 4"]:
    """A rigid camera-to-world matrix, float64; `key` is what it is called where it stands."""
    rows = value if isinstance(value, list) else []
    if len(rows) != 4 or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise InputError(f"{key} in {where} is not 4 rows of 4 numbers; correct it.")
    largest = float(np.finfo(np.float32).max)  # cameras are float32: beyond it is infinite
    for entry in (entry for row in rows for entry in row):
        if not isinstance(entry, float) or not abs(entry) <= largest:  # NaN compares false
            raise InputError(f"{key} in {where} holds {shorten(entry)}; make it a finite number.")
    pose = np.array(rows)
    rotation = pose[:3, :3]
    if (
        np.abs(rotation @ rotation.T - np.eye(3)).max() > POSE_TOLERANCE
        or np.linalg.det(rotation) < 0.0
        or np.abs(pose[3] - np.array([0.0, 0.0, 0.0, 1.0])).max() > POSE_TOLERANCE
    ):
        raise InputError(
            f"{key} in {where} is not a rotation and a translation"
            " (orthonormal, determinant +1, last row 0 0 0 1); take scale and mirroring out of it."
        )
    return pose


def check_file_path(value: object, where: str) -> PurePath:
    """A file's path relative to the data folder.

    Only the text is judged: a folder of pictures may well be a link to another disk.
    """
    shown = f"file_path {shorten(value)} in {where}"
    if not isinstance(value, str) or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value):
        raise InputError(f"{shown} is not a file's name; give one such as './train/r_0'.")
    path = PurePath(os.path.normpath(value))
    if path.is_absolute() or path.parts[:1] in ((), ("..",)):
        raise InputError(
            f"{shown} names nothing inside the data folder; give a path relative to it."
        )
    return path


def image_names(paths: Sequence[PurePath]) -> tuple[str, ...]:
    """File stems, or paths without suffix where stems repeat."""
    stems = tuple(path.stem for path in paths)
    if len(set(stems)) == len(stems):
        return stems
    return tuple(path.with_suffix("").as_posix() for path in paths)


def read_image_size(path: Path, listing: Path, formats: Sequence[str]) -> tuple[int, int]:
    """Width and height out of the header of an 8-bit picture.

    Args:
      path: of the picture.
      listing: the file that names it.
      formats: which of "PNG" and "JPEG" it may be.

    Raises:
      InputError: it is missing, or nothing that `read_images` reads.
    """
    try:
        with path.open("rb") as file:
            header = file.read(26)
    except FileNotFoundError:
        raise InputError(
            f"The picture {path} is missing; add it or take its frame out of {listing}."
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the file.") from error
    if not header:
        raise InputError(f"The picture {path} is empty (0 bytes); copy it again.")
    if "JPEG" in formats and header[:3] == _JPEG_SIGNATURE[: len(header)]:
        width, height = _read_jpeg_size(path)
    elif header[:8] == _PNG_SIGNATURE[: len(header)]:
        width, height = _read_png_size(path, header)
    else:
        wanted = " or ".join(formats)
        raise InputError(f"{path} is not a {wanted} picture; replace it by one.")
    # Pillow's own guard against decompression bombs begins with a warning; this one has one limit.
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    if not 0 < width * height <= limit:
        raise InputError(
            f"{path} says it is {format_size((width, height))} pixels, which is none or more than"
            f" the {limit} that are decoded; replace it."
        )
    return width, height


def _read_png_size(path: Path, header: bytes) -> tuple[int, int]:
    """The header itself is read because Pillow gives 16-bit RGB as if it were 8-bit."""
    if len(header) < 26:
        raise InputError(f"The picture {path} is truncated; copy it again.")
    width, height, bits, color = struct.unpack(">IIBB", header[16:])
    if bits != 8 or color not in (2, 6):
        kind = _PNG_COLORS.get(color, f"color type {color}")
        raise InputError(f"{path} is a PNG in {bits}-bit {kind}; save it as 8-bit RGB or RGBA.")
    return width, height


def _read_jpeg_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path, formats=("JPEG",)) as picture:
            size, mode = picture.size, picture.mode
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise InputError(
            f"The picture {path} is truncated or broken ({error}); copy it again."
        ) from error
    if mode not in ("RGB", "L"):
        raise InputError(f"{path} is a JPEG in {mode}; save it as 8-bit RGB.")
    return size


def common_image_size(
    paths: Sequence[Path], listing: Path, formats: Sequence[str] = ("PNG", "JPEG")
) -> tuple[int, int]:
    """Width and height that all pictures of a split have; InputError if they differ."""
    sizes = [read_image_size(path, listing, formats) for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise InputError(
                f"{paths[0]} is {format_size(sizes[0])} and {path} is {format_size(size)} pixels;"
                " give all pictures of a split the same size."
            )
    return sizes[0]


def check_downscale(downscale: int, size: tuple[int, int], path: Path) -> None:
    """InputError if pictures cannot be made so many times smaller."""
    if downscale < 1:
        raise InputError(f"The downscale factor is {downscale}; make it 1 or more.")
    if downscale > min(size):
        raise InputError(
            f"The downscale factor {downscale} is larger than the {format_size(size)} pixels"
            f" of {path}; make it smaller."
        )


def read_images(paths: Sequence[Path], width: int, height: int) -> UInt8[np.ndarray, "n h w 4"]:
    """Straight RGBA of pictures of one size, decoded in parallel: Pillow lets go of the GIL."""
    images = np.empty((len(paths), height, width, 4), np.uint8)

    def decode(index: int) -> None:
        try:
            with Image.open(paths[index], formats=("PNG", "JPEG")) as picture:
                images[index] = np.asarray(picture.convert("RGBA"))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise InputError(
                f"The picture {paths[index]} is truncated or broken ({error}); copy it again."
            ) from error

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(paths))))  # a list, so that the first error is raised
    return images


def read_masks(paths: Sequence[Path], width: int, height: int) -> Bool[np.ndarray, "n h w"]:
    """Where pictures of one channel, or the first of several, are brighter than half."""
    masks = np.empty((len(paths), height, width), bool)
    for path, mask in zip(paths, masks, strict=True):
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as picture:
                if picture.size != (width, height):
                    raise InputError(
                        f"The mask {path} is {format_size(picture.size)} pixels, its picture "
                        f"{format_size((width, height))}; make it as large."
                    )
                mask[...] = np.asarray(picture.convert("L")) > 127
            if not mask.any():
                raise InputError(f"The mask {path} is black: take its frame out.")
        except FileNotFoundError:
            raise InputError(f"The mask {path} is missing; add it or take it out.") from None
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise InputError(f"The mask {path} is truncated or broken ({error}).") from error
    return masks


def check_folder(folder: Path) -> None:
    """InputError if there is no such folder."""
    if not os.path.exists(folder):  # unlike Path's method, it raises for no name at all
        raise InputError(f"There is no folder {folder}; give the path of a scene's folder.")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the path of the folder of a scene.")


def name_scene(folder: Path) -> str:
    """What a scene is called: "." and ".." have a name too."""
    return Path(os.path.abspath(folder)).name


def format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def shorten(value: object) -> str:
    """A value from the JSON as it would be written there, in one line of bounded length."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
