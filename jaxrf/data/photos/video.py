"""The sharpest frames of a video."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from jaxrf.core.errors import InputError
from jaxrf.core.progress import ProgressBar

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".3gp", ".mts")
JPEG_QUALITY = 95
# Width to which a frame is reduced before its sharpness is measured.
SHARPNESS_WIDTH = 480
# Without it, frames of phones, whose times are not even, would be repeated or dropped.
EVERY_FRAME_ONCE = ["-fps_mode", "passthrough"]


def is_video(path: Path) -> bool:
    """Whether a path is a file with the suffix of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def extract_frames(video: Path, output: Path, count: int, max_size: int) -> list[str]:
    """Writes the sharpest frame of each of `count` equal parts of a video; those there stay.

    Args:
      video: file of the video.
      output: folder for the frames.
      count: number of frames at most.
      max_size: larger frames are reduced to this width or height.

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
            image = shrink(Image.fromarray(best), max_size)
            image.save(partial, "JPEG", quality=JPEG_QUALITY, subsampling=0)
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


def shrink(image: Image.Image, max_size: int) -> Image.Image:
    """An image reduced so that neither its width nor its height is above `max_size`."""
    if max(image.size) <= max_size:
        return image
    return ImageOps.contain(image, (max_size, max_size), Image.Resampling.LANCZOS)


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
        reader = imageio_ffmpeg.read_frames(str(video), output_params=EVERY_FRAME_ONCE)
        width, height = next(reader)["size"]
        for data in reader:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    except (RuntimeError, OSError, StopIteration, KeyError, ValueError) as error:
        raise InputError(f"{video} is damaged: copy it again, or convert it to MP4.") from error
