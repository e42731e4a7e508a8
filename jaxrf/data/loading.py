"""Makes a scene of a data set's frames: one path for all formats."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.lenses import COEFFICIENTS
from jaxrf.cameras.transforms import transform_poses
from jaxrf.core.errors import NUMPY_LOAD_ERRORS, InputError, MissingSplitError
from jaxrf.data import images, selection
from jaxrf.data.files import DataFolder, image_names, name_scene
from jaxrf.data.frames import ALL, Frame, Listing
from jaxrf.data.image_folders import list_image_folders
from jaxrf.data.known_depth import collect_known_depth, describe_known_depth
from jaxrf.data.options import LoadOptions
from jaxrf.data.placing import Placement, box_distance_range, find_outliers, find_placement
from jaxrf.data.scene import (
    Scene,
    Split,
    downscale_cameras,
    downscale_depth,
    find_split_background,
    shrink_masks,
)
from jaxrf.data.silhouettes import object_aabb

ChooseViews = Callable[[int], Sequence[int]]
# Pixels along the longer side of images from which on they are shrunk unless told otherwise.
MAX_SIDE = 1600
# Relative difference of the aspect ratios of an image and its camera that rounding explains.
ASPECT_TOLERANCE = 0.01


class _Image(NamedTuple):
    """A frame's image file: its size as it is used, whether it is turned, and EXIF's exposure."""

    width: int
    height: int
    upright: bool
    exposure: float | None


def load_listing(
    listing: Listing, splits: Sequence[str], options: LoadOptions, choose: ChooseViews = range
) -> Scene:
    """Reads the images of a data set and places its scene.

    Args:
      listing: of the data set.
      splits: to load.
      options: of reading and placing.
      choose: maps the number of frames of a split to the indices of those to decode. The sizes of
        the others are checked, too.

    Raises:
      MissingSplitError: a split has no frames.
      InputError: an image is missing or damaged, or an option does not fit.
    """
    folder = DataFolder(listing.folder)
    listing = selection.follow_images(listing, folder)
    frames, notes = selection.keep_existing(listing, folder, options.skip_missing)
    frames, outlier_notes = selection.leave_out_outliers(frames, listing)
    frames, mask_notes = selection.add_masks(frames, folder, options)
    by_split = selection.split_frames(frames, listing, options)
    factor = (options.downscale or 1) if listing.downscale is None else listing.downscale
    chosen = {
        name: selection.select_size(by_split.get(name, ()), folder, factor) for name in splits
    }
    sizes = {name: _read_sizes(usable, listing) for name, (usable, _) in chosen.items()}
    if not any(by_split.values()):
        raise MissingSplitError(
            f"{listing.path} leaves no image to the split {splits[0]}: give it more images."
        )
    poses = listing.poses
    if poses is None:
        unique = {id(frame): frame.pose for group in frames.values() for frame in group}
        poses = np.stack(list(unique.values()))
    poses = poses[~find_outliers(poses)]
    slopes = _find_slopes(next(iter(chosen.values()))[0], next(iter(sizes.values())))
    placement = find_placement(listing.region, poses, slopes, options)
    loaded = {}
    for name, (usable, remaining) in chosen.items():
        cameras = _make_cameras(usable, sizes[name], placement, slopes, listing)
        loaded[name] = _load_split(
            name, usable, cameras, sizes[name], listing, remaining, choose,
            depth_scale=placement.transform.scale if options.depth and name == "train" else None,
        )  # fmt: skip
    placement, carve_notes = _carve(placement, loaded, poses)
    unused = selection.find_unlisted(listing, folder) if {"train", ALL} & {*splits} else []
    return Scene(
        name=name_scene(listing.folder),
        splits=loaded,
        aabb=placement.aabb.astype(np.float32),
        near=placement.near,
        far=placement.far,
        unbounded=placement.unbounded,
        frame=placement.transform,
        folder=listing.folder,
        options=options,
        notes=(
            *listing.notes,
            *notes,
            *selection.describe_scales(frames),
            *outlier_notes,
            *mask_notes,
            *carve_notes,
            *describe_known_depth(frames, options.depth),
            *unused,
        ),
    )


def choose_downscale(listing: Listing) -> tuple[int, str]:
    """The factor that makes the longer side of a data set's images `MAX_SIDE` pixels at most.

    Of folders `images_K` that are that small already, the largest of up to twice the factor.

    Returns:
      The factor, 1 where images are small enough or missing, and a sentence on it.
    """
    folder = DataFolder(listing.folder)
    listing = selection.follow_images(listing, folder)
    frames = (frame for group in listing.frames.values() for frame in group)
    existing = ((frame, folder.find(frame.path)) for frame in frames)
    frame, path = next(((f, p) for f, p in existing if p is not None), (None, None))
    # Folders images_K have sizes that somebody chose.
    if frame is None or path is None or path.parent.name.startswith("images_"):
        return 1, ""
    width, height, _, _ = images.read_image_size(listing.folder / path, frame.listing)
    smallest = -(-max(width, height) // MAX_SIDE)
    if smallest == 1:
        return 1, ""
    factors = sorted(k for k in list_image_folders(listing.folder) if smallest <= k < 2 * smallest)
    factor = factors[0] if factors else smallest
    return factor, (
        f"Images of {width}x{height} pixels are used at {width // factor}x{height // factor}: "
        f"--downscale {factor}; --downscale 1 would keep their size."
    )


def _read_sizes(frames: Sequence[Frame], listing: Listing) -> list[_Image]:
    """The sizes of the images of frames.

    An image is turned as its EXIF orientation says, or not where `listing.stored_pixels`, unless
    only the other way has the aspect ratio of its camera.

    Raises:
      InputError: an image is missing or damaged, or has another aspect ratio than its camera.
    """
    sizes = []
    for frame in frames:
        path = listing.folder / frame.path
        width, height, sideways, exposure = images.read_image_size(path, frame.listing)
        turned = _Image(width, height, True, exposure)
        stored_size = (height, width) if sideways else (width, height)
        stored = _Image(*stored_size, False, exposure)
        candidates = (stored, turned) if listing.stored_pixels else (turned, stored)
        declared = frame.intrinsics.size
        fitting = [c for c in candidates if declared is None or _fits(c, declared)]
        if not fitting:
            assert declared is not None
            swapped = _fits(candidates[0], (declared[1], declared[0]))
            hint = "swap its width and height" if swapped else "use the images it was made for"
            raise InputError(
                f"The image {path} is {candidates[0].width}x{candidates[0].height} pixels, "
                f"{frame.listing} is for {declared[0]:g}x{declared[1]:g}, which has another aspect "
                f"ratio: {hint}."
            )
        sizes.append(fitting[0])
    return sizes


def _fits(image: _Image, size: tuple[float, float]) -> bool:
    """Whether an image has an aspect ratio, but for rounding."""
    tolerance = max(ASPECT_TOLERANCE, 1.0 / min(image.width, image.height))
    return abs(size[0] * image.height / (size[1] * image.width) - 1.0) <= tolerance


def _find_slopes(frames: Sequence[Frame], sizes: Sequence[_Image]) -> tuple[float, float]:
    """Tangents of half the widest angles of view, across and down."""
    slopes = [(0.5, 0.5)]
    for frame, (width, height, *_) in zip(frames, sizes, strict=True):
        fx, fy, _, _ = frame.intrinsics.fit(width, height)
        slopes.append((0.5 * width / fx, 0.5 * height / fy))
    across, down = zip(*(slopes[1:] or slopes), strict=True)
    return max(across), max(down)


def _make_cameras(
    frames: Sequence[Frame],
    sizes: Sequence[_Image],
    placement: Placement,
    slopes: tuple[float, float],
    listing: Listing,
) -> Cameras:
    """Cameras in the scene, all for the largest width and height.

    Raises:
      InputError: the frames have several lenses.
    """
    lenses = sorted({frame.intrinsics.lens for frame in frames})
    if len(lenses) > 1:
        raise InputError(
            f"{listing.path} mixes lenses ({', '.join(lenses)}); split it by camera, or undistort "
            "the images."
        )
    lens = lenses[0] if lenses else "perspective"
    width = max((size.width for size in sizes), default=1)
    height = max((size.height for size in sizes), default=1)
    pinholes = np.array(
        [f.intrinsics.fit(s.width, s.height) for f, s in zip(frames, sizes, strict=True)]
    ).reshape(-1, 4)
    count = len(COEFFICIENTS[lens])
    distortion = np.zeros((len(frames), count), np.float32)
    for row, frame in zip(distortion, frames, strict=True):
        row[: len(frame.intrinsics.distortion)] = frame.intrinsics.distortion
    poses = np.stack([frame.pose for frame in frames]) if frames else np.zeros((0, 4, 4))
    ndc = None
    if placement.near_plane is not None:
        ndc = (float(slopes[0]), float(slopes[1]), placement.near_plane)
    return Cameras(
        T_world_camera=transform_poses(placement.transform, poses).astype(np.float32),
        focal=pinholes[:, :2].astype(np.float32),
        principal_point=pinholes[:, 2:].astype(np.float32),
        width=width,
        height=height,
        lens=lens,
        distortion=distortion if np.any(distortion) else None,
        ndc=ndc,
    )


def _load_split(
    name: str,
    frames: Sequence[Frame],
    cameras: Cameras,
    sizes: Sequence[_Image],
    listing: Listing,
    factor: int,
    choose: ChooseViews,
    depth_scale: float | None,
) -> Split:
    """Decodes the chosen frames of a split, with their known depth if it has a scale."""
    if not frames:
        raise MissingSplitError(
            f"{listing.path} leaves no image to the split {name}: give it more images."
        )
    if factor > min(min(size[:2]) for size in sizes):
        raise InputError(
            f"The downscale factor {factor} is larger than the {sizes[0].width}x{sizes[0].height} "
            f"pixels of {listing.folder / frames[0].path}; make it smaller."
        )
    names = image_names([frame.path for frame in frames])
    chosen = np.asarray(list(choose(len(frames))), np.int64)
    usable, usable_sizes = [frames[i] for i in chosen], [sizes[i] for i in chosen]
    width, height = cameras.width, cameras.height
    paths = [listing.folder / frame.path for frame in usable]
    upright = [size.upright for size in usable_sizes]
    all_sizes = np.array([size[:2] for size in sizes])
    known = None
    if depth_scale is not None:
        known = collect_known_depth(
            usable, [s[:2] for s in usable_sizes], cameras[chosen], depth_scale, listing.folder
        )
    masks = _read_masks(usable, usable_sizes, (width, height), listing.folder)
    several_sizes = all_sizes[chosen] // factor if np.ptp(all_sizes, axis=0).any() else None
    return Split(
        name=name,
        names=tuple(names[index] for index in chosen),
        # Shrunk one by one, as all at their full size may not fit into memory.
        images=images.read_images(paths, width, height, upright, factor),
        cameras=downscale_cameras(cameras[chosen], factor),
        depth=_read_depth(usable, usable_sizes, listing.folder) if factor == 1 else None,
        masks=None if masks is None else shrink_masks(masks, factor),
        sizes=several_sizes,
        known_depth=downscale_depth(known, factor, cameras),
        exposures=_list_exposures(usable_sizes),
        paths=tuple(frame.path.as_posix() for frame in usable),
    )


def _list_exposures(sizes: Sequence[_Image]) -> Float[np.ndarray, "n"] | None:
    """Exposures of images; None if one has none."""
    exposures = [size.exposure for size in sizes if size.exposure is not None]
    return np.array(exposures) if exposures and len(exposures) == len(sizes) else None


def _read_masks(
    frames: Sequence[Frame], sizes: Sequence[_Image], full: tuple[int, int], folder: Path
) -> Bool[np.ndarray, "n h w"] | None:
    """Pixels that are used: those of masks, within the size of each image; None for all."""
    if all(frame.mask is None for frame in frames) and all(size[:2] == full for size in sizes):
        return None
    masks = np.zeros((len(frames), full[1], full[0]), bool)
    for target, frame, (width, height, upright, _) in zip(masks, frames, sizes, strict=True):
        if frame.mask is None:
            target[:height, :width] = True
        else:
            path, inverted = folder / frame.mask.path, frame.mask.inverted
            target[:height, :width] = images.read_mask(path, (width, height), inverted, upright)
    return masks


def _read_depth(
    frames: Sequence[Frame], sizes: Sequence[_Image], folder: Path
) -> Float[np.ndarray, "n h w"] | None:
    """Depth of all frames; None if one has none, or if their sizes differ."""
    paths = [folder / frame.depth for frame in frames if frame.depth is not None]
    if not frames or len(paths) < len(frames) or len({size[:2] for size in sizes}) > 1:
        return None
    if not all(path.is_file() for path in paths):
        return None
    width, height = sizes[0][:2]
    depth = np.empty((len(paths), height, width), np.float32)
    for path, target in zip(paths, depth, strict=True):
        try:
            source = np.lib.format.open_memmap(path, mode="r")  # Never unpickles.
        except NUMPY_LOAD_ERRORS as error:
            raise InputError(f"{path} is not a complete .npy file; write it again.") from error
        if source.shape != (height, width) or source.dtype != np.float32:
            raise InputError(
                f"{path} is {source.dtype} of shape {source.shape};"
                f" make it float32 of its image's shape {(height, width)}."
            )
        target[...] = source
    return depth


def _carve(
    placement: Placement, splits: Mapping[str, Split], poses: Float[np.ndarray, "n 4 4"]
) -> tuple[Placement, list[str]]:
    """The placement with the box of the visual hull, if training images show one, and notes."""
    if not placement.may_carve or "train" not in splits:
        return placement, []
    low, high = placement.aabb
    aabb = object_aabb(splits["train"], np.stack([low, high]))
    if aabb is None:
        return placement, []
    near, far = box_distance_range(transform_poses(placement.transform, poses), aabb)
    notes = []
    color = find_split_background(splits["train"])
    if placement.unbounded and color is not None:
        notes.append(f"Object: the images show it before plain {color}, which is left empty.")
    return dataclasses.replace(placement, aabb=aabb, near=near, far=far, unbounded=False), notes
