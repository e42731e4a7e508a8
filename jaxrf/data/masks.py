"""The usual names of masks beside images, as other programs write them."""

from pathlib import Path, PurePath

from jaxrf.data.files import strip_suffix

MASK_FOLDERS = ("masks", "mask")
_DYNAMIC_PREFIX = "dynamic_mask_"


def is_dynamic_mask(path: Path) -> bool:
    """Whether a file is named as a mask of instant-ngp."""
    return path.name.startswith(_DYNAMIC_PREFIX)


def dynamic_mask(image: Path) -> Path:
    """The mask of instant-ngp beside an image, white where pixels are left out.

    >>> dynamic_mask(Path("images/0001.jpg")).as_posix()
    'images/dynamic_mask_0001.png'
    """
    return image.with_name(f"{_DYNAMIC_PREFIX}{strip_suffix(image).name}.png")


def masks_in_folders(image: PurePath) -> list[Path]:
    """Masks of an image in folders beside the images, black where pixels are left out (COLMAP).

    Args:
      image: relative to the folder of images.

    >>> masks_in_folders(PurePath("0001.jpg"))[0].as_posix()
    'masks/0001.jpg.png'
    """
    return [
        Path(folder, name)
        for folder in MASK_FOLDERS
        for name in (f"{image}.png", f"{strip_suffix(image)}.png")
    ]
