"""The frames of a rendering: cameras along a path, or the cameras of a split and its images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrf.cameras import base as cams
from jaxrf.cameras import paths, transforms
from jaxrf.cameras.base import Cameras
from jaxrf.cameras.poses import near_far_for_box
from jaxrf.core.errors import InputError
from jaxrf.data import sources
from jaxrf.data.scene import Split
from jaxrf.export.render_options import RenderOptions
from jaxrf.sampling.occupancy import visible_aabb
from jaxrf.training.runs import Run

# Values of --path that name a split.
SPLITS = ("train-views", "val", "test")
# Turns of a spiral around an object, and the amplitude of its elevation in degrees.
SPIRAL_TURNS, SPIRAL_ELEVATION = 2, 25.0


class RenderPlan(NamedTuple):
    """The frames to render.

    cameras: one for each frame.
    names: of the frames' files, without a suffix.
    split: the images that the cameras took; None for a path.
    depth_range: nearest and farthest distance of the colors of depth, in scene units.
    """

    cameras: Cameras
    names: tuple[str, ...]
    split: Split | None
    depth_range: tuple[float, float]


def plan_render(run: Run, options: RenderOptions) -> RenderPlan:
    """The frames of the path or split that `options.path` names.

    Raises:
      InputError: there is no such path, its file is damaged, or the split's images are missing.
    """
    if options.path in SPLITS:
        split = _load_split(run, options)
        depth_range = _find_depth_range(run, split.cameras)
        return RenderPlan(split.cameras, name_frames(split.names), split, depth_range)
    cameras = path_cameras(run, options)
    names = tuple(f"{index:04d}" for index in range(len(cameras)))
    return RenderPlan(cameras, names, None, _find_depth_range(run, cameras))


def name_frames(image_names: Sequence[str]) -> tuple[str, ...]:
    """File names of images: slashes become underscores, and duplicates are avoided by numbers."""
    names = [name.replace("/", "_").replace("\\", "_") for name in image_names]
    if len(set(names)) < len(names):
        names = [f"{index:04d}-{name}" for index, name in enumerate(names)]
    return tuple(names)


def _load_split(run: Run, options: RenderOptions) -> Split:
    name = "train" if options.path == "train-views" else options.path
    data = options.data or (Path(run.scene.data) if run.scene.data else None)
    if data is None:
        raise InputError(
            f"The run {run.folder} was converted without images, which --path {options.path} "
            "needs: name their folder with --data."
        )
    config = run.config

    def select_images(count: int) -> range:
        return range(0, count, options.every)

    scene = sources.load_scene(data, [name], config, select_images)
    return scene.splits[name]


def path_cameras(run: Run, options: RenderOptions) -> Cameras:
    """Cameras along the path that `options.path` names, with the field of view of training.

    Raises:
      InputError: there is no such path, or its file is damaged.
    """
    scene = run.scene
    if options.path.endswith(".json"):
        return _read_cameras(run, Path(options.path), options.size)
    poses = _path_poses(run, options)
    camera_angle_x = 2.0 * np.arctan(0.5 * scene.width / scene.focal)
    width, height = options.size, options.size * scene.height // scene.width
    cameras = cams.make_cameras(poses, width, height, camera_angle_x)
    return dataclasses.replace(cameras, ndc=scene.ndc)


def _path_poses(run: Run, options: RenderOptions) -> Float[np.ndarray, "n 4 4"]:
    scene, path = run.scene, options.path
    if path == "auto":
        # Behind what a capture shows there may be a wall; an orbit would go through it.
        is_capture = run.state.grid.bounds is not None and len(scene.poses) > 2
        is_capture = is_capture and options.radius is None
        path = "spiral" if scene.ndc is not None else "tour" if is_capture else "orbit"
    if path in ("ellipse", "train", "tour") and not scene.poses:
        raise InputError(
            f"{run.folder} does not hold the poses of its training images, which --path {path} "
            "needs: choose another path."
        )
    match path:
        case "orbit" | "spiral" if path == "orbit" or scene.ndc is None:
            radius, elevation = options.radius or scene.radius, np.deg2rad(options.elevation)
            orbit = (options.frames, radius, elevation, np.asarray(scene.focus))
            spiral = (SPIRAL_TURNS, np.deg2rad(SPIRAL_ELEVATION)) if path == "spiral" else ()
            return paths.orbit_path(*orbit, *spiral)
        case "spiral":
            # The focus is a weighted mean of disparities, because near objects move the most.
            depth = 1.0 / (0.25 / (5.0 * scene.far) + 0.75 / scene.near)
            return paths.spiral_path(options.frames, np.asarray(scene.spread), depth)
        case "ellipse":
            return paths.ellipse_path(options.frames, run.scene.pose_matrices())
        case "tour":
            return paths.tour_path(options.frames, run.scene.pose_matrices())
        case "train":
            return paths.interpolate_path(options.frames, run.scene.pose_matrices())
    raise InputError(
        f"--path {path} is none of orbit, spiral, ellipse, tour, train, train-views, val and test, "
        "nor a .json file."
    )


def _read_cameras(run: Run, path: Path, width: int) -> Cameras:
    """Cameras of a file, in the coordinates of training, with images of this width."""
    cameras = paths.read_path(path).cameras
    frame = transforms.unpack_transform(run.scene.frame)
    poses = transforms.transform_poses(frame, np.asarray(cameras.T_world_camera, np.float64))
    moved = dataclasses.replace(cameras, T_world_camera=poses.astype(np.float32), ndc=run.scene.ndc)
    return cams.resize_cameras(moved, width, max(width * cameras.height // cameras.width, 1))


def _find_depth_range(run: Run, cameras: Cameras) -> tuple[float, float]:
    return near_far_for_box(cameras, visible_aabb(run.state.grid))
