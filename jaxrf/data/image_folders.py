"""Folders that hold the images of a capture in several sizes: `images`, `images_2`, `images_4`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from jaxrf.core.errors import InputError
from jaxrf.data.files import DataFolder

IMAGE_FOLDER = re.compile(r"images(_([1-9]\d{0,3}))?")
# Other names under which programs keep the images of a capture.
OTHER_FOLDERS = ("input", "rgb", "")


def list_image_folders(folder: Path) -> dict[int, str]:
    """Names of the folders `images` and `images_K`, by the factor K."""
    factors = {}
    for entry in sorted(os.listdir(folder)):
        match = IMAGE_FOLDER.fullmatch(entry)
        if match and (folder / entry).is_dir():
            factors[int(match[2] or 1)] = entry
    return factors


def choose_factor(folder: Path, factors: dict[int, str], downscale: int) -> tuple[str, int]:
    """The folder to read for a factor, and the factor by which its images are to be downscaled.

    Raises:
      InputError: images of this size neither exist nor can be computed.
    """
    if downscale in factors:
        return factors[downscale], 1
    smallest = min(factors)
    if downscale > smallest and downscale % smallest == 0:
        return factors[smallest], downscale // smallest
    if downscale == 1:
        return factors[smallest], 1
    existing = ", ".join(factors[factor] for factor in sorted(factors))
    raise InputError(
        f"Images at 1/{downscale} of {folder} do not exist and cannot be computed (found: "
        f"{existing}); choose another --downscale."
    )


def find_image_folder(folder: Path, names: Sequence[PurePath], downscale: int) -> tuple[str, int]:
    """The folder in which a capture's images are, and the factor that remains for downscaling.

    Folders in which none of the names is are not considered; without any, it is `images`.
    """
    files = DataFolder(folder)
    sample = names[:: 1 + len(names) // 20]

    def holds(name: str) -> bool:
        return any(files.find(PurePath(name, path)) is not None for path in sample)

    factors = {k: name for k, name in list_image_folders(folder).items() if holds(name)}
    if factors:
        return choose_factor(folder, factors, downscale)
    return next((name for name in OTHER_FOLDERS if holds(name)), "images"), downscale
