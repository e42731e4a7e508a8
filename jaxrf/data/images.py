"""Images and masks in any format that Pillow reads, decoded by one rule and checked as untrusted.

Every image becomes straight 8-bit RGBA. Gray is copied to three channels, palettes and CMYK are
converted, images without alpha are opaque. Gray of more than 8 bits is rounded, RGB of 16 bits
keeps its high bytes. EXR and HDR hold linear light, which is clipped to [0, 1] and encoded as sRGB
(IEC 61966-2-1).
"""

import importlib
import math
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps

from jaxrf.core.errors import InputError

# Suffixes by which images are found in a folder; a listed file may have any other.
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pnm",
    ".tga", ".jp2", ".avif", ".heic", ".heif", ".mpo", ".exr", ".hdr",
)  # fmt: skip
HEIF_SUFFIXES = (".heic", ".heif")
# Formats of Pillow that run other programs or are no photographs.
REFUSED_FORMATS = frozenset({"EPS", "WMF", "PDF", "PALM", "MPEG", "FITS", "GRIB", "HDF5", "BUFR"})
EXIF_ORIENTATION = 0x0112
EXIF_IFD = 0x8769
# Shutter seconds, f-number and ISO speed.
EXIF_EXPOSURE_TIME, EXIF_F_NUMBER, EXIF_ISO = 0x829A, 0x829D, 0x8827
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIGNATURES = (PNG_SIGNATURE, b"\xff\xd8\xff", b"RIFF", b"II*\0", b"MM\0*", b"GIF8", b"BM")
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError,
    OverflowError, AttributeError, ZeroDivisionError, MemoryError, Image.DecompressionBombError,
)  # fmt: skip
MAX_HDR_BYTES = 1 << 30
# Pixels that are averaged at a time.
STRIP_PIXELS = 1 << 20


class HeifError(InputError):
    """An image is HEIF, and the package that reads it is not installed."""


class ImageSize(NamedTuple):
    """Size of an image file.

    Attributes:
      width, height: of the upright image, in pixels.
      sideways: whether its EXIF orientation turns the stored pixels by a quarter turn.
      exposure: t S / N^2 of its EXIF's seconds, ISO speed and f-number: to what linear light is
        proportional for the same scene; None without these.
    """

    width: int
    height: int
    sideways: bool = False
    exposure: float | None = None


def is_image(path: Path) -> bool:
    """Whether a path has the suffix of an image and is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image_size(path: Path, listing: Path) -> ImageSize:
    """Size of an image, from its header.

    Args:
      path: of the image.
      listing: file that names the image, for messages.

    Raises:
      InputError: the image is missing, or not one that can be read.
    """
    try:
        with path.open("rb") as file:
            header = file.read(32)
    except FileNotFoundError:
        raise InputError(
            f"The image {path} is missing; add it, take its frame out of {listing}, or leave out "
            "whatever is missing (--skip-missing)."
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the file.") from error
    if not header:
        raise InputError(f"The image {path} is empty (0 bytes); copy it again.")
    if _is_linear(path, header):
        height, width = _read_linear(path).shape[:2]
        return ImageSize(width, height)
    if header.startswith(PNG_SIGNATURE) and len(header) >= 24:
        # Checked first, as Pillow names no size where it refuses one.
        _check_pixels(path, *struct.unpack(">II", header[16:24]))
    try:
        with open_image(path) as image:
            size, sideways = image.size, orientation(image) in (5, 6, 7, 8)
            exposure = _read_exposure(image)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} declares too many pixels ({error}); replace it.") from error
    except DECODE_ERRORS as error:
        if any(s.startswith(header[:8]) or header.startswith(s) for s in SIGNATURES):
            raise InputError(f"The image {path} is truncated or broken; copy it again.") from error
        raise InputError(f"{path} is not an image of a known format; replace it.") from error
    _check_pixels(path, *size)
    width, height = reversed(size) if sideways else size
    return ImageSize(width, height, sideways, exposure)


def _check_pixels(path: Path, width: int, height: int) -> None:
    # Pillow's guard against decompression bombs first only warns; this check always raises.
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    if not 0 < width * height <= limit:
        raise InputError(
            f"{path} declares {width}x{height} pixels, which is zero or more than the limit of"
            f" {limit}; replace it."
        )


def orientation(image: Image.Image) -> int:
    """EXIF orientation of an image that is not decoded yet, from 1 to 8."""
    value = _read_exif(image).get(EXIF_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _read_exif(image: Image.Image) -> Image.Exif:
    """EXIF data of an image that is not decoded yet; empty if it has none."""
    # For the EXIF data at the end of a PNG, Pillow would decode all pixels.
    if image.format == "PNG" and "exif" not in image.info:
        return Image.Exif()
    return image.getexif()


def _read_exposure(image: Image.Image) -> float | None:
    """Exposure of an image by its EXIF data; None if that lacks a number or has a wrong one."""
    try:
        tags = _read_exif(image).get_ifd(EXIF_IFD)
        iso = tags[EXIF_ISO]
        # Some cameras write several, the first being that of the image.
        iso = iso[0] if isinstance(iso, tuple) else iso
        exposure = float(tags[EXIF_EXPOSURE_TIME]) * float(iso) / float(tags[EXIF_F_NUMBER]) ** 2
    except DECODE_ERRORS:
        return None
    return exposure if 0.0 < exposure < math.inf else None


def read_image(path: Path, upright: bool = True) -> UInt8[np.ndarray, "h w 4"]:
    """Straight RGBA of an image, turned as its EXIF orientation says unless `upright` is False.

    Raises:
      InputError: the image is damaged.
    """
    try:
        with path.open("rb") as file:
            is_linear = _is_linear(path, file.read(32))
        if is_linear:
            return _encode_srgb(_read_linear(path))
        with open_image(path) as image:
            turn = upright and orientation(image) != 1
            return _to_rgba(ImageOps.exif_transpose(image) if turn else image)
    except FileNotFoundError:
        raise InputError(f"The image {path} is missing; add it.") from None
    except DECODE_ERRORS as error:
        raise InputError(
            f"The image {path} is truncated or broken ({_tell(error)}); copy it again."
        ) from error


def read_images(
    paths: Sequence[Path],
    width: int,
    height: int,
    upright: Sequence[bool] | None = None,
    factor: int = 1,
) -> UInt8[np.ndarray, "n h_small w_small 4"]:
    """Straight RGBA of images that fit into a size, decoded in threads, as Pillow releases the GIL.

    Smaller images are at the top left, transparent black beside and below. Each is shrunk by a
    factor as soon as it is decoded.
    """
    images = np.zeros((len(paths), height // factor, width // factor, 4), np.uint8)

    def decode(index: int) -> None:
        rgba = read_image(paths[index], upright is None or upright[index])
        if factor > 1:
            full = np.zeros((height, width, 4), np.uint8)
            full[: rgba.shape[0], : rgba.shape[1]] = rgba
            shrink_image(full, factor, images[index])
        else:
            images[index, : rgba.shape[0], : rgba.shape[1]] = rgba

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(paths))))  # The list raises the first error.
    return images


def shrink_image(
    rgba: UInt8[np.ndarray, "h w 4"], factor: int, small: UInt8[np.ndarray, "h_small w_small 4"]
) -> None:
    """Writes the area means of factor x factor blocks, with colors weighted by alpha, to `small`.

    Averages premultiplied color and alpha, as a larger pixel would integrate light; the result is
    straight RGBA. Rows and columns that do not fill a block are cropped.
    """
    height, width = small.shape[:2]
    # In strips, as floats take four times as much memory.
    rows = max(STRIP_PIXELS // (width * factor**2), 1)
    for top in range(0, height, rows):
        target = small[top : top + rows]
        count = len(target)
        part = rgba[top * factor : (top + count) * factor, : width * factor].astype(np.float32)
        part[..., :3] *= part[..., 3:]
        sums = part.reshape(count, factor, -1).sum(axis=1)
        total = sums.reshape(count, width, factor, 4).sum(axis=2)
        target[..., :3] = np.rint(total[..., :3] / np.maximum(total[..., 3:], 1.0))
        target[..., 3] = np.rint(total[..., 3] / factor**2)


def read_mask(
    path: Path, size: tuple[int, int], inverted: bool = False, upright: bool = True
) -> Bool[np.ndarray, "h w"]:
    """A mask from an image: True where its gray value is above 127, or not if `inverted`.

    A mask with transparency is True where it is opaque, if its colors are all the same.

    Args:
      path: of the mask.
      size: width and height of its image; a mask of another size with the same aspect ratio is
        resized.
      inverted: whether white, rather than black, is left out.
      upright: see `read_image`.

    Raises:
      InputError: the mask is missing, damaged, of another aspect ratio, or leaves nothing.
    """
    try:
        rgba = read_image(path, upright)
    except InputError as error:
        if not path.exists():
            raise InputError(f"The mask {path} is missing; add it or take it out.") from None
        sentence = error.for_command_line.replace("The image", "The mask", 1)
        raise InputError(sentence) from None
    flat = np.ptp(rgba[..., :3], axis=(0, 1)).max() == 0 and np.ptp(rgba[..., 3]) > 0
    luma = rgba[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    mask = (rgba[..., 3] if flat else luma) > 127.5
    height, width = mask.shape
    if (width, height) != size:
        if abs(width * size[1] / (height * size[0]) - 1.0) > 0.02:
            raise InputError(
                f"The mask {path} is {width}x{height} pixels, its image {size[0]}x{size[1]}; give "
                "it the same size."
            )
        resized = Image.fromarray(np.uint8(255 * mask)).resize(size, Image.Resampling.NEAREST)
        mask = np.asarray(resized) > 127
    mask = mask != inverted
    if not mask.any():
        color = "white" if inverted else "black"
        raise InputError(f"The mask {path} is {color}: take its frame out, or the mask.")
    return mask


def open_image(path: Path) -> Image.Image:
    """Opens an image; HEIF if the package pillow-heif is installed.

    Raises:
      HeifError: it is HEIF, and the package is not installed.
    """
    if path.suffix.lower() in HEIF_SUFFIXES:
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError:
            raise HeifError(
                f"{path} is HEIF, which needs one more package: pip install pillow-heif, or save "
                "it as JPEG."
            ) from None
    Image.init()
    return Image.open(path, formats=[name for name in Image.OPEN if name not in REFUSED_FORMATS])


def _to_rgba(image: Image.Image) -> UInt8[np.ndarray, "h w 4"]:
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        values = np.asarray(image).astype(np.float64)
        if mode == "F":
            return _encode_srgb(np.repeat(values[..., None], 3, axis=-1))
        # Gray of 16 bits; "I" holds them in 32.
        levels = np.rint(np.clip(values, 0, 65535) / 257.0).astype(np.uint8)
        opaque = np.full_like(levels, 255)
        return np.stack([levels, levels, levels, opaque], axis=-1)
    return np.asarray(image.convert("RGBA"))


def _encode_srgb(linear: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 4"]:
    """8-bit sRGB of linear light; alpha, if it has any, is linear and premultiplied."""
    finite: Any = np.nan_to_num(linear.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    rgb = np.repeat(finite[..., :1], 3, axis=-1) if finite.shape[-1] < 3 else finite[..., :3]
    alpha = np.ones_like(rgb[..., :1])
    if finite.shape[-1] == 4:
        alpha = np.clip(finite[..., 3:], 0.0, 1.0)
        rgb = rgb / np.where(alpha > 0.0, alpha, 1.0)
    rgb = np.clip(rgb, 0.0, 1.0)
    encoded = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1.0 / 2.4) - 0.055)
    return np.rint(255.0 * np.concatenate([encoded, alpha], axis=-1)).astype(np.uint8)


def _is_linear(path: Path, header: bytes) -> bool:
    """Whether a file holds linear light: OpenEXR, or Radiance's HDR."""
    return header.startswith(b"\x76\x2f\x31\x01") or (
        header.startswith(b"#?") and path.suffix.lower() in (".hdr", ".pic", ".rgbe")
    )


def _read_linear(path: Path) -> Float[np.ndarray, "h w c"]:
    """Linear light of an EXR or HDR file.

    Raises:
      InputError: it is damaged or too large.
    """
    if path.stat().st_size > MAX_HDR_BYTES:
        raise InputError(f"{path} has more than {MAX_HDR_BYTES >> 30} GiB; make it smaller.")
    data = path.read_bytes()
    read: Callable[[Path, bytes], Any] = _read_radiance if data[:2] == b"#?" else _read_exr
    try:
        return np.asarray(read(path, data), np.float32)
    except InputError:
        raise
    except (*DECODE_ERRORS, RuntimeError) as error:
        raise InputError(
            f"The image {path} is truncated or broken ({_tell(error)}); copy it again."
        ) from error


def _read_exr(path: Path, _: bytes) -> Float[np.ndarray, "h w c"]:
    import OpenEXR

    channels = OpenEXR.File(str(path)).channels()
    for name in ("RGBA", "RGB"):
        if name in channels:
            return np.asarray(channels[name].pixels)
    planes = [channels[n].pixels for n in ("R", "G", "B") if n in channels]
    planes = planes or [channels[n].pixels for n in ("Y",)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def _read_radiance(path: Path, data: bytes) -> Float[np.ndarray, "h w 3"]:
    """Radiance's HDR, run-length encoded or not (G. Ward, Real pixels, Graphics Gems II, 1991)."""
    match = re.search(rb"\n\n-Y (\d{1,6}) \+X (\d{1,6})\n", data[:65536])
    if match is None:
        raise ValueError("its size is not given as -Y H +X W")
    height, width = int(match[1]), int(match[2])
    if not 0 < width * height <= (Image.MAX_IMAGE_PIXELS or math.inf):
        raise InputError(f"{path} declares {width}x{height} pixels; replace it.")
    values, position = np.frombuffer(data, np.uint8), match.end()
    pixels = np.zeros((height, width, 4), np.uint8)
    for row in range(height):
        head = values[position : position + 4]
        if len(head) < 4:
            raise ValueError("it ends early")
        if not (head[0] == head[1] == 2 and head[2] < 128 and 8 <= width < 32768):
            flat = values[position : position + 4 * width]
            pixels[row] = flat.reshape(width, 4)
            position += 4 * width
            continue
        position += 4
        for channel in range(4):
            column = 0
            while column < width:
                count = int(values[position])
                if count > 128:
                    count -= 128
                    pixels[row, column : column + count, channel] = values[position + 1]
                    position += 2
                else:
                    run = values[position + 1 : position + 1 + count]
                    pixels[row, column : column + count, channel] = run
                    position += 1 + count
                if count == 0 or column + count > width:
                    raise ValueError("a run is longer than its row")
                column += count
    exponent = np.ldexp(1.0, pixels[..., 3:].astype(np.int32) - 136)
    return np.where(pixels[..., 3:] > 0, pixels[..., :3] * exponent, 0.0).astype(np.float32)


def _tell(error: BaseException) -> str:
    """The text of an error, or its name, in one short line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
