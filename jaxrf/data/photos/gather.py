"""Gathers the images of a folder or a video as upright files of one folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from jaxrf.core.errors import InputError
from jaxrf.core.progress import ProgressBar
from jaxrf.data import images
from jaxrf.data.files import natural_key

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".3gp", ".mts")
# Formats that every program reads as they are.
PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg")
JPEG_QUALITY = 95
# Width to which a frame is reduced before its sharpness is measured.
SHARPNESS_WIDTH = 480
MAX_PHOTOS = 5000


def is_video(path: Path) -> bool:
    """Whether a path is a file with the suffix of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def list_photos(folder: Path) -> list[Path]:
    """The images in a folder, in natural order, or in its folder `images` if it has none itself.

    Masks of other programs and hidden files are left out.
    """
    for candidate in (folder, folder / "images", folder / "input"):
        try:
            paths = [p for p in candidate.iterdir() if images.is_image(p) and p.is_file()]
        except OSError:
            continue
        photos = [path for path in paths if not path.name.startswith("dynamic_mask_")]
        if photos:
            return sorted(photos, key=lambda path: natural_key(path.name))
    return []


def gather_photos(photos: list[Path], output: Path) -> list[str]:
    """Copies photos to a folder, turned as their EXIF orientation says; those there stay.

    A photo that is upright and in a format that every program reads is copied as it is.

    Returns:
      Names of the files, in the order of the photos.

    Raises:
      InputError: a photo is damaged, or there are too many.
    """
    if len(photos) > MAX_PHOTOS:
        raise InputError(
            f"{photos[0].parent} has {len(photos)} images, more than {MAX_PHOTOS}: take fewer."
        )
    output.mkdir(parents=True, exist_ok=True)
    names = []
    with ProgressBar(len(photos), "copy photos", "photo") as bar:
        for photo in photos:
            plain = photo.suffix.lower() in PLAIN_SUFFIXES
            names.append(photo.name if plain else f"{photo.stem}.png")
            target = output / names[-1]
            if not target.exists():
                _copy_photo(photo, target, plain)
            bar.update(1)
    return names


def _copy_photo(photo: Path, target: Path, plain: bool) -> None:
    partial = target.with_name(f".{target.name}")
    images.read_image_size(photo, photo.parent)
    rgba = images.read_image(photo)  # Damage is found here rather than by the reconstruction.
    with images.open_image(photo) as image:
        upright = images.orientation(image) == 1
        if plain and upright and image.format in ("PNG", "JPEG"):
            shutil.copyfile(photo, partial)
        else:
            exif = image.getexif()
            exif.pop(images.EXIF_ORIENTATION, None)
            pixels = rgba if rgba[..., 3].min() < 255 else rgba[..., :3]
            form = "PNG" if target.suffix == ".png" else "JPEG"
            if form == "JPEG":
                pixels = pixels[..., :3]
            save: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0, "exif": exif}
            Image.fromarray(pixels).save(partial, form, **save)
    partial.replace(target)


def extract_frames(video: Path, output: Path, count: int) -> list[str]:
    """Writes the sharpest frame of each of `count` equal parts of a video; those there stay.

    Returns:
      Names of the files, in order.

    Raises:
      InputError: the video is damaged or has no frame.
    """
    output.mkdir(parents=True, exist_ok=True)
    total = _count_frames(video)
    parts = min(count, total)
    names = [f"frame_{part:05d}.jpg" for part in range(parts)]
    if parts and all((output / name).exists() for name in names):
        return names
    best: UInt8[np.ndarray, "h w 3"] | None = None
    best_sharpness, part, written = -1.0, 0, []

    def write() -> None:
        if best is not None:
            partial = output / f".{names[part]}"
            Image.fromarray(best).save(partial, "JPEG", quality=JPEG_QUALITY, subsampling=0)
            partial.replace(output / names[part])
            written.append(names[part])

    with ProgressBar(total, "read video", "frame") as bar:
        for index, frame in enumerate(_read_frames(video)):
            current = min(index * parts // max(total, 1), parts - 1)
            if current != part:
                write()
                best, best_sharpness, part = None, -1.0, current
            sharpness = measure_sharpness(frame)
            if sharpness > best_sharpness:
                best, best_sharpness = frame.copy(), sharpness
            bar.update(1)
    write()
    if not written:
        raise InputError(f"{video} has no frame that can be read: convert it to MP4 (H.264).")
    return written


def measure_sharpness(image: UInt8[np.ndarray, "h w 3"]) -> float:
    """Variance of the Laplacian of an image's brightness, which motion and blur make small."""
    small = Image.fromarray(image)
    if small.width > SHARPNESS_WIDTH:
        small = ImageOps.contain(small, (SHARPNESS_WIDTH, SHARPNESS_WIDTH))
    gray: Float[np.ndarray, "h w"] = np.asarray(small.convert("L"), np.float32)
    if min(gray.shape) < 3:
        return 0.0
    middle = gray[1:-1, 1:-1]
    sides = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    return float(np.var(sides - 4.0 * middle))


def _count_frames(video: Path) -> int:
    import imageio_ffmpeg

    try:
        count, _ = imageio_ffmpeg.count_frames_and_secs(str(video))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{video} is not a video that can be read: convert it to MP4 (H.264)."
        ) from error
    return int(count)


def _read_frames(video: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frames of a video, turned as its metadata says."""
    import imageio_ffmpeg

    try:
        reader = imageio_ffmpeg.read_frames(str(video))
        width, height = next(reader)["size"]
        for data in reader:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    except (RuntimeError, OSError, StopIteration, KeyError, ValueError) as error:
        raise InputError(f"{video} is damaged: copy it again, or convert it to MP4.") from error
