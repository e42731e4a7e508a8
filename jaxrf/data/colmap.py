"""COLMAP models with the images that they were made of.

Schoenberger and Frahm: Structure-from-motion revisited (CVPR 2016).
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.lenses import COEFFICIENTS
from jaxrf.cameras.transforms import (
    DEFAULT_FAR,
    DEFAULT_NEAR,
    UNIT_AABB,
    SimilarityTransform,
    center_and_scale,
    transform_poses,
    transform_positions,
)
from jaxrf.core.errors import InputError
from jaxrf.data.colmap_files import Reconstruction, read_reconstruction
from jaxrf.data.files import check_file_path, check_folder, name_scene
from jaxrf.data.scene import Scene
from jaxrf.data.views import (
    ChooseViews,
    ViewIndex,
    load_split,
    rescale_to_images,
    select_views,
    split_every_n,
)

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", ".")


def find_model(folder: Path) -> Path | None:
    """The folder of a scene's COLMAP model; None if there is none."""
    for subfolder in MODEL_FOLDERS:
        for suffix in ("bin", "txt"):
            if os.path.isfile(folder / subfolder / f"images.{suffix}"):
                return folder / subfolder
    return None


def load_colmap(
    folder: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    downscale: int = 1,
    choose: ChooseViews = range,
    skip_missing: bool = False,
) -> Scene:
    """Reads a COLMAP scene, upright and centered, with cameras within +-1 (`center_and_scale`).

    Every 8th image, in the order of their names, is held out. For a downscale of K, reads the
    images of `images_K` if there is such a folder, else downscales those of `images`. Rays begin at
    half the first percentile of the distances of observed points.

    Args:
      folder: holds `images` and `sparse/0`, or another of `MODEL_FOLDERS`.
      splits, downscale, choose: see `blender.load_blender`.
      skip_missing: leave out images that the model lists but that do not exist.

    Raises:
      InputError: a file is missing, damaged or not in this format.
    """
    check_folder(folder)
    model_folder = find_model(folder)
    if model_folder is None:
        raise InputError(f"{folder} has no COLMAP model (sparse/0/images.bin); add it.")
    model = read_reconstruction(model_folder)
    image_folder, factor = "images", downscale
    if downscale > 1 and (folder / f"images_{downscale}").is_dir():
        image_folder, factor = f"images_{downscale}", 1
    where = f"images of {model_folder}"
    paths = [Path(image_folder, check_file_path(image.name, where)) for image in model.images]
    used = [i for i, p in enumerate(paths) if not skip_missing or (folder / p).is_file()]
    if not used:
        raise InputError(
            f"None of the images that {model_folder} names is in {folder / image_folder}."
        )
    model = dataclasses.replace(model, images=[model.images[i] for i in used])
    transform = center_and_scale(np.stack([image.pose for image in model.images]))
    cameras = make_cameras(model, transform, model_folder)
    views = ViewIndex(folder, model_folder, tuple(paths[i] for i in used), cameras)
    views = rescale_to_images(views)
    indices = split_every_n(len(views))
    near, far = _near_and_far(model, transform)
    return Scene(
        name=name_scene(folder),
        splits={
            split: load_split(split, select_views(views, indices[split]), factor, choose)
            for split in splits
        },
        aabb=np.array(UNIT_AABB, np.float32),
        near=near,
        far=far,
        unbounded=True,
        frame=transform,
    )


def make_cameras(
    model: Reconstruction, transform: SimilarityTransform, model_folder: Path
) -> Cameras:
    """The cameras of all images, in the scene's coordinates.

    Raises:
      InputError: they have several sizes or lenses.
    """
    cameras = [model.cameras[image.camera] for image in model.images]
    lenses = {camera.model.lens for camera in cameras}
    sizes = {(camera.width, camera.height) for camera in cameras}
    if len(lenses) > 1 or len(sizes) > 1:
        examples = sorted({f"{c.model.name} of {c.width}x{c.height}" for c in cameras})[:3]
        raise InputError(
            f"{model_folder} mixes cameras ({', '.join(examples)}); undistort its images to one "
            "size."
        )
    (lens,), ((width, height),) = lenses, sizes
    parameters = [camera.parameters for camera in cameras]
    distortion = np.array([[p.get(name, 0.0) for name in COEFFICIENTS[lens]] for p in parameters])
    poses = transform_poses(transform, np.stack([image.pose for image in model.images]))
    return Cameras(
        T_world_camera=poses.astype(np.float32),
        focal=np.array([[p["fx"], p["fy"]] for p in parameters], np.float32),
        principal_point=np.array([[p["cx"], p["cy"]] for p in parameters], np.float32),
        width=width,
        height=height,
        lens=lens,
        distortion=distortion.astype(np.float32) if np.any(distortion) else None,
    )


def _near_and_far(model: Reconstruction, transform: SimilarityTransform) -> tuple[float, float]:
    """Half the 1st and twice the 99th percentile of the distances of points from their cameras."""
    points = transform_positions(transform, model.points)
    distances = []
    for image in model.images:
        position = transform_positions(transform, image.pose[:3, 3])
        observed = np.isin(image.points, model.point_numbers)
        rows = np.searchsorted(model.point_numbers, image.points[observed])
        distances.append(np.linalg.norm(points[rows] - position, axis=-1))
    all_distances = np.concatenate(distances) if distances else np.zeros(0)
    if all_distances.size == 0:
        return DEFAULT_NEAR, DEFAULT_FAR
    near, far = np.percentile(all_distances, [1.0, 99.0])
    return max(0.5 * float(near), 1e-3), 2.0 * float(far)
