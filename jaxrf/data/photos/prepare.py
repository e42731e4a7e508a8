"""From photos or a video to a data set in COLMAP's format, cached by what it was made of."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from jaxrf.core.checks import require_positive
from jaxrf.core.errors import InputError
from jaxrf.core.user_cache import cache_folder
from jaxrf.data.files import format_count, format_names
from jaxrf.data.photos import gather, reconstruct, video

REPORT = "report.json"
# Below this share of placed photos, and above this error in pixels, a result is doubtful.
FEW_PLACED, LARGE_ERROR = 0.7, 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhotoOptions:
    """How poses are found for photos or a video."""

    frames: int = 100
    """Number of frames of a video: the sharpest of as many equal parts."""
    camera_model: str = reconstruct.ANY_MODEL
    """COLMAP's model of the lens: OPENCV, OPENCV_FISHEYE and others. auto: the simplest without or
    with distortion that explains the photos."""

    max_size: int = 1600
    """Larger photos and frames are reduced to this width or height."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_positive(self, "frames", "max_size")
        if self.frames < reconstruct.MIN_PLACED:
            raise InputError(f"--frames is {self.frames}: give {reconstruct.MIN_PLACED} or more.")


def is_photos(path: Path) -> bool:
    """Whether a path is a video, or a folder with images."""
    return video.is_video(path) or (path.is_dir() and bool(gather.list_photos(path)))


def cached_folder(path: Path, options: PhotoOptions) -> Path:
    """The folder in the user's cache for the poses of photos, by names, sizes and options."""
    files = [path] if path.is_file() else gather.list_photos(path)
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        status = os.stat(file)
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    digest.update(repr(dataclasses.astuple(options)).encode())
    name = path.absolute().stem or "photos"
    return cache_folder() / "photos" / f"{name}-{digest.hexdigest()}"


def prepare_photos(path: Path, output: Path, options: PhotoOptions) -> reconstruct.Report:
    """Writes a data set in COLMAP's format: `images` and `sparse/0`; continues one that was begun.

    Args:
      path: a folder of photos, or a video.
      output: folder of the data set.
      options: of the reconstruction.

    Raises:
      InputError: there are too few photos, one is damaged, or no scene is found in them.
    """
    report = read_report(output)
    if report is not None:
        return report
    # Checked before hours are spent on other things.
    reconstruct.import_pycolmap()
    damaged: dict[str, str] = {}
    if video.is_video(path):
        names = video.extract_frames(path, output / "images", options.frames, options.max_size)
    else:
        photos = gather.list_photos(path)
        names, damaged = gather.gather_photos(photos, output, options.max_size)
    if len(names) < reconstruct.MIN_PLACED:
        raise InputError(
            f"{path} has only {len(names)} images: give at least {reconstruct.MIN_PLACED}, and "
            "better 30 or more, from all sides."
        )
    report = reconstruct.reconstruct(output, names, options.camera_model, video.is_video(path))
    report = dataclasses.replace(report, unplaced=report.unplaced | damaged)
    text = json.dumps(dataclasses.asdict(report), indent=1)
    partial = output / f".{REPORT}"
    partial.write_text(text, encoding="utf-8")
    partial.replace(output / REPORT)
    return report


def read_report(folder: Path) -> reconstruct.Report | None:
    """The report of a data set that is complete; None if there is none."""
    try:
        content = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        content["placed"] = tuple(content["placed"])
        return reconstruct.Report(**content)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def describe(report: reconstruct.Report) -> list[str]:
    """Sentences for the user: how many photos were placed, which were not and why, and advice."""
    total = len(report.placed) + len(report.unplaced)
    lines = [
        f"Placed: {len(report.placed)} of {total} photos, {report.points} points, mean "
        f"reprojection error {report.error:.2f} pixels, angle of view {report.degrees:.0f} degrees."
    ]
    by_reason: dict[str, list[str]] = {}
    for name, reason in report.unplaced.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        count = format_count(len(names), "photo")
        lines.append(f"Not placed: {count} ({format_names(names)}), as {reason}.")
    if len(report.placed) < FEW_PLACED * total:
        lines.append(
            "Many photos are not placed: take more between those that are and those that are not, "
            "so that each shows two thirds of its neighbors."
        )
    if report.error > LARGE_ERROR:
        lines.append(
            "The reprojection error is large: photos may be blurred, or the lens of another kind "
            "(--camera-model)."
        )
    return lines
