"""Paths and images of data sets, checked as untrusted input before they are used."""

import math
import os
import re
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from jaxrf.core.errors import InputError
from jaxrf.core.json_files import shorten

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_PNG_COLORS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray-and-alpha", 6: "RGBA"}


def check_file_path(value: object, where: str) -> PurePath:
    """A file's path relative to the data folder, read from a file.

    Checks only the text of the path, as a folder of images may be a link to another disk.

    Raises:
      InputError: the path is not text, or leads out of the data folder.
    """
    described = f"file_path {shorten(value)} in {where}"
    if not isinstance(value, str) or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value):
        raise InputError(f"{described} is not a file's name; give one such as './train/r_0'.")
    path = PurePath(os.path.normpath(value))
    if path.is_absolute() or path.parts[:1] in ((), ("..",)):
        raise InputError(f"{described} is not inside the data folder; give a path relative to it.")
    return path


def image_names(paths: Sequence[PurePath]) -> tuple[str, ...]:
    """Names of images: file stems, or paths without suffix if stems repeat."""
    stems = tuple(path.stem for path in paths)
    if len(set(stems)) == len(stems):
        return stems
    return tuple(path.with_suffix("").as_posix() for path in paths)


def read_image_size(path: Path, listing: Path, formats: Sequence[str]) -> tuple[int, int]:
    """Width and height of an 8-bit image, from its header.

    Args:
      path: of the image.
      listing: file that names the image, for messages.
      formats: allowed formats, of "PNG" and "JPEG".

    Raises:
      InputError: the image is missing, or not one that `read_images` can read.
    """
    try:
        with path.open("rb") as file:
            header = file.read(26)
    except FileNotFoundError:
        raise InputError(
            f"The image {path} is missing; add it or take its frame out of {listing}."
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the file.") from error
    if not header:
        raise InputError(f"The image {path} is empty (0 bytes); copy it again.")
    if "JPEG" in formats and header[:3] == _JPEG_SIGNATURE[: len(header)]:
        width, height = _read_jpeg_size(path)
    elif header[:8] == _PNG_SIGNATURE[: len(header)]:
        width, height = _read_png_size(path, header)
    else:
        raise InputError(f"{path} is not a {' or '.join(formats)} image; replace it by one.")
    # Pillow's guard against decompression bombs first only warns; this check always raises.
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    if not 0 < width * height <= limit:
        raise InputError(
            f"{path} declares {format_size((width, height))} pixels, which is zero or more than"
            f" the limit of {limit}; replace it."
        )
    return width, height


def _read_png_size(path: Path, header: bytes) -> tuple[int, int]:
    """Size of a PNG; reads the header directly because Pillow reports 16-bit RGB as 8-bit."""
    if len(header) < 26:
        raise InputError(f"The image {path} is truncated; copy it again.")
    width, height, bits, color = struct.unpack(">IIBB", header[16:])
    if bits != 8 or color not in (2, 6):
        mode = _PNG_COLORS.get(color, f"color type {color}")
        raise InputError(f"{path} is a PNG in {bits}-bit {mode}; save it as 8-bit RGB or RGBA.")
    return width, height


def _read_jpeg_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            size, mode = image.size, image.mode
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise InputError(
            f"The image {path} is truncated or broken ({error}); copy it again."
        ) from error
    if mode not in ("RGB", "L"):
        raise InputError(f"{path} is a JPEG in {mode}; save it as 8-bit RGB.")
    return size


def common_image_size(
    paths: Sequence[Path], listing: Path, formats: Sequence[str] = ("PNG", "JPEG")
) -> tuple[int, int]:
    """Width and height of the images of a split.

    Raises:
      InputError: the sizes differ, or an image is missing or damaged.
    """
    sizes = [read_image_size(path, listing, formats) for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise InputError(
                f"{paths[0]} is {format_size(sizes[0])} and {path} is {format_size(size)} pixels;"
                " give all images of a split the same size."
            )
    return sizes[0]


def check_downscale(downscale: int, size: tuple[int, int], path: Path) -> None:
    """Raises InputError if images of a size cannot be downscaled by a factor."""
    if downscale < 1:
        raise InputError(f"The downscale factor is {downscale}; make it 1 or more.")
    if downscale > min(size):
        raise InputError(
            f"The downscale factor {downscale} is larger than the {format_size(size)} pixels"
            f" of {path}; make it smaller."
        )


def read_images(paths: Sequence[Path], width: int, height: int) -> UInt8[np.ndarray, "n h w 4"]:
    """Straight RGBA of images of one size, decoded in threads, as Pillow releases the GIL."""
    images = np.empty((len(paths), height, width, 4), np.uint8)

    def decode(index: int) -> None:
        try:
            with Image.open(paths[index], formats=("PNG", "JPEG")) as image:
                images[index] = np.asarray(image.convert("RGBA"))
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise InputError(
                f"The image {paths[index]} is truncated or broken ({error}); copy it again."
            ) from error

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(paths))))  # The list raises the first error.
    return images


def read_masks(paths: Sequence[Path], width: int, height: int) -> Bool[np.ndarray, "n h w"]:
    """Masks from images: True where the gray value is above 127.

    Raises:
      InputError: a mask is missing, damaged, of another size, or black.
    """
    masks = np.empty((len(paths), height, width), bool)
    for path, mask in zip(paths, masks, strict=True):
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                if image.size != (width, height):
                    raise InputError(
                        f"The mask {path} is {format_size(image.size)} pixels, its image "
                        f"{format_size((width, height))}; give it the same size."
                    )
                mask[...] = np.asarray(image.convert("L")) > 127
            if not mask.any():
                raise InputError(f"The mask {path} is black: take its frame out.")
        except FileNotFoundError:
            raise InputError(f"The mask {path} is missing; add it or take it out.") from None
        except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
            raise InputError(f"The mask {path} is truncated or broken ({error}).") from error
    return masks


def check_folder(folder: Path) -> None:
    """Raises InputError if a folder does not exist."""
    if not os.path.exists(folder):  # Unlike Path.exists, this does not raise for invalid names.
        raise InputError(f"There is no folder {folder}; give the path of a scene's folder.")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the path of the folder of a scene.")


def name_scene(folder: Path) -> str:
    """Name of a scene: that of its folder, also for "." and ".."."""
    return Path(os.path.abspath(folder)).name


def format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
