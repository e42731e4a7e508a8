"""From photos or a video to a data set in COLMAP's format, cached by what it was made of."""

import dataclasses
import hashlib
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from jaxrf.core.errors import InputError
from jaxrf.core.user_cache import cache_folder
from jaxrf.data.files import format_count, format_names
from jaxrf.data.photos import gather, reconstruct, video

REPORT = "report.json"
# COLMAP places nothing in smaller photos.
MIN_SIZE = 100
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
        if self.frames < reconstruct.MIN_PLACED:
            raise InputError(f"--frames is {self.frames}: give {reconstruct.MIN_PLACED} or more.")
        if self.max_size < MIN_SIZE:
            raise InputError(f"--max-size is {self.max_size}: give {MIN_SIZE} pixels or more.")
        if self.camera_model != reconstruct.ANY_MODEL:
            _check_camera_model(self.camera_model)


def _check_camera_model(name: str) -> None:
    # Imported where it is needed, as it imports jax, for which --help would wait.
    from jaxrf.data.colmap_files import MODELS

    known = (reconstruct.ANY_MODEL, *(model.name for model in MODELS))
    if name not in known:
        raise InputError(f"--camera-model is {name}: give one of {', '.join(known)}.")


def is_photos(path: Path) -> bool:
    """Whether a path is a video, or a folder with images."""
    return video.is_video(path) or (path.is_dir() and bool(gather.list_photos(path)))


def cached_folder(path: Path, options: PhotoOptions) -> Path:
    """The folder in the user's cache for the poses of photos, by names, sizes and options."""
    described = json.dumps(_describe_source(path, options))
    digest = hashlib.blake2b(described.encode(), digest_size=8).hexdigest()
    return cache_folder() / "photos" / f"{path.absolute().stem or 'photos'}-{digest}"


def _describe_source(path: Path, options: PhotoOptions) -> dict[str, Any]:
    """The options, and size and time of each file by its name."""
    files = [path] if path.is_file() else gather.list_photos(path)
    root = path.parent if path.is_file() else path
    status = {file.relative_to(root).as_posix(): os.stat(file) for file in files}
    return {
        "options": {field.name: getattr(options, field.name) for field in fields(PhotoOptions)},
        "files": {name: [s.st_size, s.st_mtime_ns] for name, s in status.items()},
    }


def _continue_with(path: Path, output: Path, options: PhotoOptions) -> None:
    """Notes in `output` what it is made of; photos may have been added since.

    Raises:
      InputError: it is made of other photos, or with other options.
    """
    source = _describe_source(path, options)
    try:
        before = json.loads((output / gather.SOURCE).read_text(encoding="utf-8"))
        changed = before["options"] != source["options"]
        lost = [name for name in before["files"] if name not in source["files"]]
        lost += [n for n, s in source["files"].items() if before["files"].get(n, s) != s]
    except OSError:
        if (output / "images").is_dir() or (output / "sparse").is_dir():
            raise InputError(f"{output} holds another data set: give a new folder.") from None
        output.mkdir(parents=True, exist_ok=True)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{output / gather.SOURCE} is damaged: give a new folder.") from None
    else:
        if changed or lost:
            what = "with other options" if changed else f"of other photos (such as {lost[0]})"
            raise InputError(f"{output} is made {what}: give a new folder, or remove it.")
        if len(before["files"]) < len(source["files"]):
            (output / REPORT).unlink(missing_ok=True)
    _write_json(output / gather.SOURCE, source)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    partial.replace(path)


def prepare_photos(path: Path, output: Path, options: PhotoOptions) -> reconstruct.Report:
    """Writes a data set in COLMAP's format: `images` and `sparse/0`; continues one that was begun.

    Photos that were added since are placed with the others.

    Args:
      path: a folder of photos, or a video.
      output: folder of the data set.
      options: of the reconstruction.

    Raises:
      InputError: there are too few photos, all are damaged, no scene is found in them, or `output`
        is made of others.
    """
    _continue_with(path, output, options)
    report = read_report(output)
    if report is not None:
        return report
    # Checked before hours are spent on other things.
    reconstruct.import_pycolmap()
    unusable: dict[str, str] = {}
    if video.is_video(path):
        names = video.extract_frames(path, output / "images", options.frames, options.max_size)
    else:
        photos = gather.list_photos(path)
        names, unusable = gather.gather_photos(photos, output, options.max_size)
    if len(names) < reconstruct.MIN_PLACED:
        raise InputError(
            f"{path} has only {len(names)} images that can be used: give at least "
            f"{reconstruct.MIN_PLACED}, and better 30 or more, from all sides."
        )
    try:
        report = reconstruct.reconstruct(output, names, options.camera_model, video.is_video(path))
    except reconstruct.NoSceneError as error:
        raise InputError(f"No scene was found in {path}: {error}") from error
    report = dataclasses.replace(report, unplaced=report.unplaced | unusable)
    _write_json(output / REPORT, dataclasses.asdict(report))
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
        lines.append(f"Not placed: {count} ({format_names(names)}): {reason}.")
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
