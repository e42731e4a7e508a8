"""LLFF scenes: `poses_bounds.npy` and images, facing forward (in NDC) or captured all around.

Mildenhall et al.: Local light field fusion (SIGGRAPH 2019).
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.poses import POSE_TOLERANCE
from jaxrf.core.errors import NUMPY_LOAD_ERRORS, InputError
from jaxrf.data.colmap import find_models, find_points
from jaxrf.data.colmap_files import read_reconstruction
from jaxrf.data.files import check_folder
from jaxrf.data.frames import ALL, CaptureRegion, Frame, Intrinsics, Listing
from jaxrf.data.image_folders import choose_factor, list_image_folders
from jaxrf.data.images import SUFFIXES
from jaxrf.data.options import LoadOptions

LISTING = "poses_bounds.npy"
MAX_VIEWS = 100_000


def is_llff(folder: Path) -> bool:
    """Whether a folder has a `poses_bounds.npy`."""
    return os.path.isfile(folder / LISTING)


def read_llff(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists an LLFF scene; every 8th image, in the order of their names, is held out.

    If all cameras face forward (`placing.faces_forward`), rays are in normalized device
    coordinates. For a downscale of K, reads the images of `images_K` if there is such a folder,
    else downscales those of the largest folder.

    Args:
      folder: holds `poses_bounds.npy` and `images` or `images_K`.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    check_folder(folder)
    poses, hwf, bounds = read_poses_bounds(folder / LISTING)
    factors = list_image_folders(folder)
    if not factors:
        raise InputError(f"{folder} has no images, nor images_K; add the images.")
    image_folder, factor = choose_factor(folder, factors, options.downscale or 1)
    names = _list_images(folder, image_folder, len(poses))
    frames = [
        Frame(
            Path(image_folder, name),
            folder / LISTING,
            pose,
            Intrinsics(focal=(focal, focal), size=(float(width), float(height))),
            points=points,
        )
        for name, pose, (height, width, focal), points in zip(
            names, poses, hwf.tolist(), _find_points(folder, poses), strict=True
        )
    ]
    region = CaptureRegion()
    notes: tuple[str, ...] = ()
    if bounds.any():
        nearest = float(bounds.min())
        region = CaptureRegion(0.9 * nearest, float(bounds.max()), nearest)
    else:
        notes = (f"Not used: the depths in {LISTING}, as all are 0; near and far are assumed.",)
    return Listing(
        folder, folder / LISTING, {ALL: frames}, region, downscale=factor, stored_pixels=True,
        notes=notes,
    )  # fmt: skip


def read_poses_bounds(
    path: Path,
) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 3"], Float[np.ndarray, "n 2"]]:
    """Poses with OpenGL axes, (height, width, focal length), (nearest, farthest) of each view.

    The columns of the rotations in the file are down, right, back. Depths that are all 0 were not
    known to the program that wrote them.

    Raises:
      InputError: the file is missing, damaged or not in this format.
    """
    try:
        table = np.lib.format.open_memmap(path, mode="r")  # Never unpickles.
    except FileNotFoundError:
        raise InputError(f"There is no {path}; give the folder of an LLFF scene.") from None
    except NUMPY_LOAD_ERRORS as error:
        raise InputError(
            f"{path} is not a complete .npy file ({error}); write it again."
        ) from error
    if table.ndim != 2 or table.shape[1] != 17 or table.dtype.kind != "f":
        raise InputError(
            f"{path} is {table.dtype} of shape {table.shape}; it must hold 17 floats for each view."
        )
    if not 1 <= len(table) <= MAX_VIEWS:
        raise InputError(f"{path} has {len(table)} views; it must have 1 to {MAX_VIEWS}.")
    values = np.array(table, np.float64)
    if not np.all(np.isfinite(values)) or np.abs(values).max() > 1e9:
        raise InputError(f"{path} holds numbers that are not finite; write it again.")
    columns, bounds = values[:, :15].reshape(-1, 3, 5), values[:, 15:]
    down, right, back, position, hwf = (columns[..., i] for i in range(5))
    rotation = np.stack([right, -down, back], axis=-1)
    deviation = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2))
    if deviation.max() > POSE_TOLERANCE or np.linalg.det(rotation).min() < 0:
        worst = int(deviation.argmax())
        raise InputError(f"The pose of view {worst} in {path} is not a rotation; write it again.")
    if hwf.min() < 1.0 or hwf[:, :2].max() > 1e5:
        raise InputError(f"{path} has a height, width or focal length below 1; write it again.")
    if bounds.any() and (np.any(bounds[:, 0] <= 0) or np.any(bounds[:, 1] <= bounds[:, 0])):
        raise InputError(
            f"{path} has a view whose nearest depth is not below its farthest; write it again."
        )
    poses = np.tile(np.eye(4), (len(values), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = rotation, position
    return poses, hwf, bounds


def _find_points(
    folder: Path, poses: Float[np.ndarray, "n 4 4"]
) -> list[Float[np.ndarray, "q 3"] | None]:
    """Points of the COLMAP model that LLFF's poses were made of, if it is there, by image."""
    for path in find_models(folder):
        model = read_reconstruction(path)
        if len(model.images) != len(poses):
            continue
        positions = np.stack([image.pose[:3, 3] for image in model.images])
        size = np.ptp(positions, axis=0).max()
        if np.abs(positions - poses[:, :3, 3]).max() <= 1e-3 * size:
            return [find_points(model, image) for image in model.images]
    return [None] * len(poses)


def _list_images(folder: Path, image_folder: str, count: int) -> list[str]:
    """Names of the images that the poses belong to, in LLFF's order.

    LLFF gives poses to the images that COLMAP placed; where there are more images, the model tells
    which.
    """
    names = sorted(
        name
        for name in os.listdir(folder / image_folder)
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )
    if len(names) > count:
        for model in find_models(folder):
            placed = sorted(image.name for image in read_reconstruction(model).images)
            if len(placed) == count:
                return placed
    if len(names) != count:
        remedy = "take the images out that have no pose" if len(names) > count else "add the others"
        raise InputError(
            f"{folder / image_folder} has {len(names)} images and {LISTING} {count} poses; their "
            f"numbers must be equal: {remedy}."
        )
    return names
