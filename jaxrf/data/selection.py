"""Which of the frames that a data set lists are used, for which split, with which files."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from jaxrf.core.errors import InputError
from jaxrf.data import images, masks
from jaxrf.data.files import DataFolder, format_count, format_names, natural_key, strip_suffix
from jaxrf.data.frames import ALL, Frame, Listing, Mask
from jaxrf.data.image_folders import IMAGE_FOLDER
from jaxrf.data.options import LoadOptions
from jaxrf.data.placing import find_outliers

# Fewer images determine no depth.
MIN_TRAIN_FRAMES = 2
# Folders in which programs keep what training does not use.
UNREAD_FOLDERS = ("depth", "depths", "depth_maps", "normal", "normals")

Frames = Mapping[str, Sequence[Frame]]


def follow_images(listing: Listing, folder: DataFolder) -> Listing:
    """A listing with its images where they are, if none is where it says.

    They are looked for by their names, in all subfolders, unless several have the same name, as
    those of several splits or cameras may. The folders `images_K` have the same images in several
    sizes, of which the largest is taken; of other folders, the one whose images are as large as
    their cameras say.

    Raises:
      InputError: several folders have them.
    """
    paths = {frame.path: frame for group in listing.frames.values() for frame in group}
    names = {strip_suffix(path).name.lower() for path in paths}
    if len(names) < len(paths) or any(folder.find(path) is not None for path in paths):
        return listing
    holders = folder.find_holders([path.name for path in paths])
    sizes = [IMAGE_FOLDER.fullmatch(holder.name) for holder in holders]
    if all(sizes) and len({holder.parent for holder in holders}) == 1:
        holders = [min(holders, key=lambda holder: natural_key(holder.name))]
    if not holders:
        return listing
    first = next(iter(paths.values()))
    if len(holders) > 1:
        fitting = [holder for holder in holders if _is_as_declared(first, holder, folder)]
        holders = fitting if len(fitting) == 1 else holders
    if len(holders) > 1:
        folders = format_names([str(holder) for holder in holders])
        raise InputError(
            f"None of the images that {first.listing} names exists ({first.path}), but several "
            f"folders have images of these names ({folders}): correct the paths in it."
        )
    frames = {
        name: [
            dataclasses.replace(f, path=folder.find(holders[0] / f.path.name) or f.path)
            for f in group
        ]
        for name, group in listing.frames.items()
    }
    note = (
        f"Images: {listing.folder / holders[0]} has those that {first.listing.name} names, which "
        f"are not where it says ({first.path})."
    )
    return dataclasses.replace(listing, frames=frames, notes=(*listing.notes, note))


def _is_as_declared(frame: Frame, parent: Path, folder: DataFolder) -> bool:
    """Whether a frame's image in another folder is exactly as large as its camera says."""
    path = folder.find(parent / frame.path.name)
    if path is None or frame.intrinsics.size is None:
        return False
    try:
        image = images.read_image_size(folder.root / path, frame.listing)
    except InputError:
        return False
    sizes = {(image.width, image.height), (image.height, image.width)}
    return tuple(map(round, frame.intrinsics.size)) in sizes


def keep_existing(
    listing: Listing, folder: DataFolder, skip_missing: bool
) -> tuple[Frames, list[str]]:
    """Frames without those of missing images, if these may be skipped, and notes on them.

    Raises:
      InputError: no image of a split exists.
    """
    usable, notes = {}, []
    for name, frames in listing.frames.items():
        existing = [f for f in frames if folder.find(f.path) is not None]
        if frames and not existing and (skip_missing or len(frames) > 1):
            raise InputError(
                f"None of the images that {frames[0].listing} names exists ({frames[0].path}); "
                "add them."
            )
        usable[name] = existing if skip_missing else list(frames)
        if skip_missing and len(existing) < len(frames):
            missing = [f.path.name for f in frames if f not in existing]
            count = format_count(len(missing), "missing image")
            notes.append(f"Left out: {count} ({format_names(missing)}).")
    return usable, notes


def describe_scales(frames: Frames) -> list[str]:
    """A note on poses whose axes are scaled."""
    every = {id(f): f for group in frames.values() for f in group}.values()
    scaled = [frame for frame in every if frame.scale != 1.0]
    if not scaled:
        return []
    return [
        f"Poses: the axes of {len(scaled)} of {format_count(len(every), 'matrix', 'matrices')} in "
        f"{scaled[0].listing.name} are scaled, by {scaled[0].scale:.4g} for {scaled[0].path.name}, "
        "which changes no image and is taken out; positions are read as they are."
    ]


def leave_out_outliers(frames: Frames, listing: Listing) -> tuple[Frames, list[str]]:
    """Frames without those whose poses cannot be right, and notes on them."""
    every = [frame for group in frames.values() for frame in group]
    if not every:
        return frames, []
    outliers = find_outliers(np.stack([frame.pose for frame in every]))
    if not outliers.any():
        return frames, []
    wrong = {id(frame) for frame, is_outlier in zip(every, outliers, strict=True) if is_outlier}
    names = format_names([frame.path.name for frame in every if id(frame) in wrong])
    usable = {name: [f for f in group if id(f) not in wrong] for name, group in frames.items()}
    return usable, [
        f"Left out: {format_count(len(wrong), 'image')} ({names}), as {listing.path} puts the "
        "camera far away from all others: correct its pose."
    ]


def split_frames(frames: Frames, listing: Listing, options: LoadOptions) -> dict[str, list[Frame]]:
    """Frames by split; every 8th of `ALL` is held out for testing, from the first on (LLFF).

    Validation and testing take each other's frames where one has none.

    Raises:
      InputError: there are too few frames to train on.
    """
    splits = {name: list(group) for name, group in frames.items()}
    undivided = splits.pop(ALL, None)
    if undivided is not None:
        test = undivided[:: options.hold_out] if len(undivided) > 1 else []
        train = [f for i, f in enumerate(undivided) if i % options.hold_out or not test]
        splits = {"train": train, "val": test, "test": test}
        if 0 < len(train) < MIN_TRAIN_FRAMES:
            count = format_count(len(undivided), "image")
            raise InputError(
                f"{listing.path} has poses for only {count}, which is too little to learn a "
                "scene from: give it three or more, or reconstruct it again from images that "
                "overlap more."
            )
    for name, other in (("val", "test"), ("test", "val")):
        splits[name] = splits.get(name) or splits.get(other, [])
    return splits


def select_size(
    frames: Sequence[Frame], folder: DataFolder, factor: int
) -> tuple[list[Frame], int]:
    """Frames with their files, and the factor by which these are still to be downscaled.

    Takes images of `images_K`, beside `images`, if they are there for all frames.
    """
    located = [dataclasses.replace(f, path=folder.find(f.path) or f.path) for f in frames]
    if factor > 1:
        smaller = [folder.find(_downscaled_path(frame.path, factor)) for frame in located]
        paths = [path for path in smaller if path is not None]
        if paths and len(paths) == len(located):
            return [
                dataclasses.replace(frame, path=path, depth=None)
                for frame, path in zip(located, paths, strict=True)
            ], 1
    return located, factor


def _downscaled_path(path: Path, factor: int) -> PurePath:
    parts = list(path.parts)
    if "images" not in parts[:-1]:
        return PurePath("\0")
    index = parts.index("images")
    parts[index] = f"images_{factor}"
    return PurePath(*parts)


def add_masks(frames: Frames, folder: DataFolder, options: LoadOptions) -> tuple[Frames, list[str]]:
    """Frames with the masks that lie beside their images by the usual names, and notes on them.

    instant-ngp's `dynamic_mask_NAME.png` beside an image has white where pixels are left out;
    `masks/NAME.png` or `masks/NAME.SUFFIX.png` (COLMAP) has black.
    """
    every = [frame for group in frames.values() for frame in group]
    listed = sum(frame.mask is not None for frame in every)
    if not options.masks:
        cleared = {
            name: [dataclasses.replace(f, mask=None) for f in group]
            for name, group in frames.items()
        }
        return cleared, [f"Not used: {listed} masks (--no-masks)."] if listed else []
    result = {
        name: [dataclasses.replace(f, mask=f.mask or _find_mask(f.path, folder)) for f in group]
        for name, group in frames.items()
    }
    by_frame = [frame.mask for group in result.values() for frame in group]
    used = [mask for mask in by_frame if mask is not None]
    if not used:
        return result, []
    rule = "white" if used[0].inverted else "black"
    return result, [
        f"Masks: {len(used)} of {len(by_frame)} images have one, such as {used[0].path}, whose "
        f"{rule} pixels are not used (--no-masks ignores them)."
    ]


def _find_mask(image: Path, folder: DataFolder) -> Mask | None:
    dynamic = folder.find(masks.dynamic_mask(image))
    if dynamic is not None:
        return Mask(dynamic, inverted=True)
    if image.parts[0].startswith("images"):
        for path in masks.masks_in_folders(Path(*image.parts[1:])):
            mask = folder.find(path)
            if mask is not None:
                return Mask(mask)
    return None


def find_unlisted(listing: Listing, folder: DataFolder) -> list[str]:
    """Notes on images beside the listed ones that no file lists, and on unread folders."""
    listed = {folder.find(f.path) or f.path for group in listing.frames.values() for f in group}
    dynamic = {folder.find(masks.dynamic_mask(path)) for path in listed}
    parents = sorted({path.parent for path in listed})
    unused = [
        path
        for parent in parents
        for path in folder.list_images(parent)
        if path not in listed and path not in dynamic
    ]
    notes = []
    if unused:
        where = listing.folder / unused[0].parent
        names = format_names([path.name for path in unused])
        count = format_count(len(unused), "image")
        notes.append(f"Not used: {count} in {where} without a pose ({names}).")
    every = [frame for group in listing.frames.values() for frame in group]
    read = {f.depth_map.path.parts[0] for f in every if f.depth_map is not None}
    unread = [
        name for name in UNREAD_FOLDERS if name not in read and (listing.folder / name).is_dir()
    ]
    if unread:
        notes.append(f"Not used: {', '.join(unread)}, as no file lists what is in it.")
    return notes
