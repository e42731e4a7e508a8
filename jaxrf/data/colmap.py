"""COLMAP models with the images that they were made of.

Schoenberger and Frahm: Structure-from-motion revisited (CVPR 2016).
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.lenses import COEFFICIENTS
from jaxrf.core.errors import InputError
from jaxrf.data.colmap_files import (
    Camera,
    Reconstruction,
    RegisteredImage,
    count_images,
    read_reconstruction,
)
from jaxrf.data.files import DataFolder, check_folder
from jaxrf.data.frames import ALL, CaptureRegion, Frame, Intrinsics, Listing
from jaxrf.data.image_folders import find_image_folder
from jaxrf.data.known_depth import locate_points
from jaxrf.data.options import LoadOptions

# Folders that hold a model, or several that are named by numbers.
MODEL_FOLDERS = ("sparse", "colmap/sparse", "distorted/sparse", ".")


def find_models(folder: Path) -> list[Path]:
    """The folders of a scene's COLMAP models in the first of `MODEL_FOLDERS` that has any."""
    for name in MODEL_FOLDERS:
        parent = folder / name
        try:
            entries = sorted(os.listdir(parent)) if os.path.isdir(parent) and name != "." else []
        except OSError:
            entries = []
        candidates = [parent / entry for entry in entries if entry.isdecimal()] + [parent]
        models = [candidate for candidate in candidates if _is_model(candidate)]
        if models:
            return models
    return []


def _is_model(folder: Path) -> bool:
    return any(os.path.isfile(folder / f"images.{suffix}") for suffix in ("bin", "txt"))


def read_colmap(folder: Path, splits: Sequence[str], options: LoadOptions) -> Listing:
    """Lists a COLMAP scene; of several models, that of the most images.

    Every 8th image, in the order of their names, is held out. Rays begin at half the first
    percentile of the distances of observed points. If all cameras face forward
    (`placing.faces_forward`), rays are in normalized device coordinates.

    Args:
      folder: holds `images` and `sparse/0`, or another of `MODEL_FOLDERS`.
      splits: to read.
      options: of reading.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    check_folder(folder)
    models = find_models(folder)
    if not models:
        raise InputError(f"{folder} has no COLMAP model (sparse/0/images.bin); add it.")
    counts = [count_images(model) for model in models]
    path = models[int(np.argmax(counts))]
    notes = []
    if len(models) > 1:
        others = ", ".join(
            f"{model.relative_to(folder)} ({count} images)"
            for model, count in zip(models, counts, strict=True)
            if model != path
        )
        notes.append(
            f"Used: the model {path.relative_to(folder)} of {max(counts)} images, the largest; not "
            f"used: {others}."
        )
    model = read_reconstruction(path)
    files, listing = DataFolder(folder), path / ("images.bin" if _is_binary(path) else "images.txt")
    listed = [files.find_listed(image.name, str(listing), "The name") for image in model.images]
    image_folder, factor = find_image_folder(folder, listed, options.downscale or 1)
    frames = [
        Frame(
            Path(image_folder, name),
            listing,
            image.pose,
            _intrinsics(model.cameras[image.camera]),
            points=find_points(model, image),
        )
        for name, image in zip(listed, model.images, strict=True)
    ]
    near, far, nearest = _find_range(model)
    return Listing(
        folder,
        listing,
        {ALL: frames},
        CaptureRegion(near, far, nearest),
        downscale=factor,
        stored_pixels=True,
        notes=tuple(notes),
    )


def find_points(model: Reconstruction, image: RegisteredImage) -> Float[np.ndarray, "q 3"] | None:
    """The points that an image shows, as `Frame.points` has them; None if the model has none."""
    if not len(model.points):
        return None
    camera = model.cameras[image.camera]
    size = (float(camera.width), float(camera.height))
    return locate_points(image, size, *model.observe(image))


def _is_binary(model: Path) -> bool:
    return os.path.isfile(model / "images.bin")


def _intrinsics(camera: Camera) -> Intrinsics:
    numbers, lens = camera.parameters, camera.model.lens
    distortion = tuple(numbers.get(name, 0.0) for name in COEFFICIENTS[lens])
    return Intrinsics(
        focal=(numbers["fx"], numbers["fy"]),
        center=(numbers["cx"], numbers["cy"]),
        size=(float(camera.width), float(camera.height)),
        lens=lens,
        distortion=distortion if any(distortion) else (),
    )


def _find_range(model: Reconstruction) -> tuple[float | None, float | None, float | None]:
    """Range of rays, and distance of the nearest content along the optical axis, from points.

    Half the 1st and twice the 99th percentile of the distances of points from their cameras, and
    the 1st percentile along the axis.
    """
    distances, depths = [], []
    for image in model.images:
        to_points, _ = model.observe(image)
        distances.append(np.linalg.norm(to_points, axis=-1))
        depths.append(to_points @ -image.pose[:3, 2])
    all_distances = np.concatenate(distances) if distances else np.zeros(0)
    if all_distances.size == 0:
        return None, None, None
    near, far = np.percentile(all_distances, [1.0, 99.0])
    nearest = float(np.percentile(np.concatenate(depths), 1.0))
    return 0.5 * float(near), 2.0 * float(far), nearest if nearest > 0.0 else None
