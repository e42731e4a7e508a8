"""Gathers the photos of a folder, and their masks, as upright files of one folder."""

import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxrf.core.errors import InputError
from jaxrf.core.progress import ProgressBar
from jaxrf.data import images, masks
from jaxrf.data.files import natural_key
from jaxrf.data.photos.video import JPEG_QUALITY, shrink

# Formats that every program reads as they are.
PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PHOTOS = 5000
# COLMAP's features do not fit into smaller photos.
MIN_PHOTO_SIZE = 32
# Files of other programs' poses beside photos, which are not read, and what those of tables and of
# metadata hold.
FOREIGN_POSES = re.compile(
    r"bundle.*\.out|.*\.nvm|sfm_data\.(json|bin)|.*\.(mg|rcproj|psx|csv|xmp)",
    re.IGNORECASE,
)
FOREIGN_COLUMNS = {".csv": (b"heading", b"yaw", b"omega"), ".xmp": (b"xcr:Rotation",)}
HEAD_BYTES = 1 << 12
# A data set that is made of photos has its sources in this file, from the beginning on.
SOURCE = "source.json"
# Files and folders of data sets with poses, or made of photos: their images are no further photos.
POSE_FILES = frozenset(
    {"transforms.json", "transforms_train.json", "poses_bounds.npy", "metadata.json", "sparse"}
    | {"keyframes", "intrinsics.txt", "reconstruction.json", "opensfm", "cameras.sfm", SOURCE}
)


class Photos(NamedTuple):
    """Photos that were gathered.

    names: of the files, in the order of the photos.
    unusable: why a photo was left out, by its name.
    """

    names: list[str]
    unusable: dict[str, str]


def list_photos(folder: Path) -> list[Path]:
    """The images in a folder and in all below it, in natural order.

    If it has none itself but a folder `images` or `input`, only those in that one: others beside it
    hold the same in other sizes, depth or masks. Masks of other programs, hidden files, and data
    sets with poses below the folder are left out.
    """
    if not _list_folder(folder):
        for candidate in (folder / "images", folder / "input"):
            photos = _list_folder(candidate)
            if photos:
                return photos
    photos = []
    for parent, subfolders, _ in os.walk(folder):
        subfolders[:] = sorted(
            (n for n in subfolders if _may_hold_photos(Path(parent, n))), key=natural_key
        )
        photos += _list_folder(Path(parent))
        if len(photos) > MAX_PHOTOS:
            break
    return photos


def _may_hold_photos(folder: Path) -> bool:
    if folder.name.startswith(".") or folder.name in masks.MASK_FOLDERS:
        return False
    return not _is_data_set(folder)


def _is_data_set(folder: Path) -> bool:
    return any((folder / name).exists() for name in POSE_FILES)


def find_data_sets(folder: Path) -> list[Path]:
    """Data sets with poses directly below a folder, in natural order."""
    try:
        subfolders = [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(filter(_is_data_set, subfolders), key=lambda path: natural_key(path.name))


def find_foreign_poses(folder: Path) -> list[str]:
    """Names of files in a folder that look like poses which are not read."""
    try:
        listed = sorted(os.listdir(folder))
    except OSError:
        return []
    return [n for n in listed if FOREIGN_POSES.fullmatch(n) and _has_poses(folder / n)]


def _has_poses(path: Path) -> bool:
    columns = FOREIGN_COLUMNS.get(path.suffix.lower())
    if columns is None:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    return any(column in head for column in columns)


def _list_folder(folder: Path) -> list[Path]:
    try:
        paths = [p for p in folder.iterdir() if images.is_image(p) and p.is_file()]
    except OSError:
        return []
    photos = [path for path in paths if not masks.is_dynamic_mask(path)]
    return sorted(photos, key=lambda path: natural_key(path.name))


def name_photos(photos: list[Path]) -> list[str]:
    """A name for the file of each photo: its own, without spaces, or with its folder's if needed.

    COLMAP's lists of pairs cannot hold spaces.
    """
    parents = {photo.parent for photo in photos}
    root = Path(os.path.commonpath(parents)) if len(parents) > 1 else None
    names: list[str] = []
    for photo in photos:
        plain = photo.suffix.lower() in PLAIN_SUFFIXES
        stem = (
            photo.stem if root is None else "_".join(photo.relative_to(root).with_suffix("").parts)
        )
        stem, suffix = re.sub(r"\s+", "_", stem), photo.suffix if plain else ".png"
        name, number = stem + suffix, 2
        while name in names:
            name, number = f"{stem}_{number}{suffix}", number + 1
        names.append(name)
    return names


def gather_photos(photos: list[Path], output: Path, max_size: int) -> Photos:
    """Copies photos to `output/images`, turned as their EXIF orientation says; those there stay.

    A photo that is upright, small enough and in a format that every program reads is copied as it
    is. Its mask, if there is one by the usual names, goes to `output/masks`.

    Args:
      photos: files.
      output: folder of the data set.
      max_size: larger photos are reduced to this width or height.

    Raises:
      InputError: all photos are damaged, or there are too many.
    """
    if len(photos) > MAX_PHOTOS:
        raise InputError(
            f"{photos[0].parent} has {len(photos)} images, more than {MAX_PHOTOS}: take fewer."
        )
    folder = output / "images"
    folder.mkdir(parents=True, exist_ok=True)
    names, unusable = [], {}
    failure: InputError | None = None
    with ProgressBar(len(photos), "copy photos", "photo") as bar:
        for photo, name in zip(photos, name_photos(photos), strict=True):
            try:
                size = images.read_image_size(photo, photo.parent)
                if min(size.width, size.height) < MIN_PHOTO_SIZE:
                    unusable[photo.name] = f"smaller than {MIN_PHOTO_SIZE} pixels"
                    continue
                if not (folder / name).exists():
                    _copy_mask(photo, output / masks.masks_in_folders(Path(name))[0], max_size)
                    _copy_photo(photo, folder / name, max_size)
                names.append(name)
            except images.HeifError:
                # All photos of a phone are HEIF, or none.
                raise
            except InputError as error:
                failure, unusable[photo.name] = error, "damaged; copy again"
            bar.update(1)
    if failure is not None and not names:
        raise failure
    return Photos(names, unusable)


def _copy_photo(photo: Path, target: Path, max_size: int) -> None:
    partial = target.with_name(f".{target.name}")
    images.read_image_size(photo, photo.parent)
    rgba = images.read_image(photo)  # Damage is found here rather than by the reconstruction.
    with images.open_image(photo) as image:
        upright = images.orientation(image) == 1
        is_small = max(image.size) <= max_size
        is_plain = target.suffix == photo.suffix and image.format in ("PNG", "JPEG")
        if is_plain and upright and is_small:
            shutil.copyfile(photo, partial)
        else:
            exif = image.getexif()
            exif.pop(images.EXIF_ORIENTATION, None)
            form = "PNG" if target.suffix == ".png" else "JPEG"
            transparent = form == "PNG" and rgba[..., 3].min() < 255
            pixels = rgba if transparent else rgba[..., :3]
            save: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0, "exif": exif}
            shrink(Image.fromarray(pixels), max_size).save(partial, form, **save)
    partial.replace(target)


def _copy_mask(photo: Path, target: Path, max_size: int) -> None:
    """Copies the mask of a photo, black where pixels are left out, if it has one."""
    for path, inverted in _possible_masks(photo):
        if path.is_file():
            size = images.read_image_size(photo, photo.parent)
            mask = images.read_mask(path, (size.width, size.height), inverted)
            target.parent.mkdir(parents=True, exist_ok=True)
            levels = np.where(mask, 255, 0).astype(np.uint8)
            shrink(Image.fromarray(levels), max_size).save(target)
            return


def _possible_masks(photo: Path) -> list[tuple[Path, bool]]:
    """Files that may be the mask of a photo, and whether their white pixels are left out."""
    in_folders = [
        (folder / mask, False)
        for folder in (photo.parent, photo.parent.parent)
        for mask in masks.masks_in_folders(Path(photo.name))
    ]
    return [(masks.dynamic_mask(photo), True), *in_folders]
