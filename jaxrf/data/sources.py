"""Where data sets are searched for, which format a folder has, and loading it with its reader."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrf.core.errors import InputError, MissingSplitError
from jaxrf.data import (
    alicevision,
    blender,
    colmap,
    deepvoxels,
    llff,
    loading,
    metashape,
    multiscale,
    nsvf,
    opensfm,
    polycam,
    reality_capture,
    record3d,
    tiny_nerf,
    transforms,
)
from jaxrf.data.bricks import dataset
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.data.files import format_count, format_names
from jaxrf.data.frames import Listing
from jaxrf.data.loading import ChooseViews
from jaxrf.data.options import LoadOptions, load_options
from jaxrf.data.photos import gather, prepare
from jaxrf.data.photos.prepare import PhotoOptions
from jaxrf.data.scene import Scene

DEFAULT_PATH = Path("nerf_synthetic/lego")
# Files that stand for the folder in which they are.
LISTING_FILES = frozenset(
    {transforms.LISTING, llff.LISTING, multiscale.LISTING, opensfm.LISTING}
    | {f"transforms_{split}.json" for split in ("train", "val", "test")}
)


class DataSource(NamedTuple):
    """A data set to train on.

    folder: None for the built-in scene, which may have to be rendered first.
    reason: one line for the user that says which data set is used and why.
    """

    folder: Path | None
    reason: str


def search_paths() -> list[Path]:
    """Folders in which data sets are searched for: ./data, then the one in JAXRF_DATA."""
    extra = os.environ.get("JAXRF_DATA")
    return [Path("data"), *([Path(extra)] if extra else [])]


def find_source(data: Path | None, synthetic_scene: SyntheticSceneConfig) -> DataSource:
    """The data set to train on: `data`, else the default path, else the built-in scene.

    Args:
      data: folder or name that the user gave, if any.
      synthetic_scene: of the built-in scene.

    Raises:
      InputError: `data` does not exist.
    """
    if data is not None:
        folder = find_data(data)
        return DataSource(folder, f"Data: {folder} (--data).")
    for root in search_paths():
        folder = root / DEFAULT_PATH
        if folder.is_dir():
            return DataSource(folder, f"Data: {folder} (found; --data names another).")
    size = synthetic_scene.size
    return DataSource(
        None,
        f"Data: the built-in scene bricks at {size}x{size}, as {Path('data') / DEFAULT_PATH} does "
        "not exist (--data names a folder).",
    )


def find_data(data: Path) -> Path:
    """The path of a data set that the user named, relative to . or to one of `search_paths`.

    Raises:
      InputError: it does not exist.
    """
    candidates = [data]
    if not data.is_absolute():
        candidates += [root / data for root in search_paths()]
    for folder in candidates:
        if folder.is_file() and _is_listing(folder):
            return folder.parent
        if folder.exists():
            return folder
    raise InputError(
        f"{data} does not exist: give the folder that holds transforms_train.json or another list "
        "of images, a folder of photos or a video (training without --data takes the built-in "
        "scene)."
    )


def _is_listing(path: Path) -> bool:
    return path.name in LISTING_FILES or any(
        reader.is_cameras(path) for reader in (metashape, alicevision, reality_capture)
    )


def ensure_bricks(
    config: SyntheticSceneConfig, progress: Callable[[int, int], None] | None = None
) -> Path:
    """The folder of the built-in scene, which is rendered into the user's cache if necessary."""
    return dataset.cached_bricks(
        width=config.size,
        height=config.size,
        train_views=config.train_views,
        test_views=config.test_views,
        progress=progress,
    )


def ensure_poses(path: Path, options: PhotoOptions, notify: Callable[[str], None] = print) -> Path:
    """The path of a data set with poses: `path`, or, of photos, a folder in the user's cache.

    Args:
      path: a data set, a folder of photos or a video.
      options: of finding poses.
      notify: called with sentences for the user.

    Raises:
      InputError: `path` holds neither, or no poses can be found for its photos.
    """
    if any(known.matches(path) for known in FORMATS):
        return path
    if not prepare.is_photos(path):
        data_sets = gather.find_data_sets(path)
        if data_sets:
            raise InputError(
                f"{path} holds no images itself, but {format_count(len(data_sets), 'data set')}: "
                f"give one, such as {data_sets[0]}."
            )
        return path
    folder = prepare.cached_folder(path, options)
    if prepare.read_report(folder) is None:
        notify(f"{path} has no poses: finding them, in {folder}.")
        foreign = gather.find_foreign_poses(path)
        if foreign:
            notify(
                f"Not used: {format_names(foreign)}, as poses of its kind are not read: export "
                "them in COLMAP's format to use them."
            )
    report = prepare.prepare_photos(path, folder, options)
    for line in prepare.describe(report):
        notify(line)
    return folder


LoadScene = Callable[[Path, Sequence[str], LoadOptions, ChooseViews], Scene]


class Format(NamedTuple):
    """A format in which data sets are stored.

    name: for people.
    sentinel_file: file that only this format has.
    matches: whether a path holds a data set in this format.
    load: (path, splits, options, choose) -> scene.
    """

    name: str
    sentinel_file: str
    matches: Callable[[Path], bool]
    load: LoadScene


def _load_by(read: Callable[[Path, Sequence[str], LoadOptions], Listing]) -> LoadScene:
    """A loader of the data sets that a reader lists."""

    def load(path: Path, splits: Sequence[str], options: LoadOptions, choose: ChooseViews) -> Scene:
        listing = read(path, splits, options)
        if options.downscale is None:
            factor, note = loading.choose_downscale(listing)
            options = dataclasses.replace(options, downscale=factor)
            if factor > 1:
                listing = read(path, splits, options)
                listing = dataclasses.replace(listing, notes=(*listing.notes, note))
        return loading.load_listing(listing, splits, options, choose)

    return load


# Tried in this order: an LLFF folder has a COLMAP model too.
FORMATS = (
    Format("NeRF's tiny example", "*.npz", tiny_nerf.is_tiny_nerf, tiny_nerf.load_tiny_nerf),
    Format(
        "Record3D", "metadata.json with rgb", record3d.is_record3d, _load_by(record3d.read_record3d)
    ),
    Format(
        "multi-scale Blender",
        multiscale.LISTING,
        multiscale.is_multiscale,
        _load_by(multiscale.read_multiscale),
    ),
    Format(
        "Blender (NeRF-synthetic)",
        "transforms_train.json",
        blender.is_blender,
        _load_by(blender.read_blender),
    ),
    Format(
        "nerfstudio or instant-ngp",
        transforms.LISTING,
        transforms.is_transforms,
        _load_by(transforms.read_transforms),
    ),
    Format("LLFF", llff.LISTING, llff.is_llff, _load_by(llff.read_llff)),
    Format(
        "COLMAP",
        "sparse/0/images.bin",
        lambda path: bool(colmap.find_models(path)),
        _load_by(colmap.read_colmap),
    ),
    Format(
        "DeepVoxels",
        f"train/NAME/{deepvoxels.INTRINSICS}",
        lambda path: deepvoxels.find_deepvoxels(path) is not None,
        _load_by(deepvoxels.read_deepvoxels),
    ),
    Format("NSVF", "intrinsics.txt with pose", nsvf.is_nsvf, _load_by(nsvf.read_nsvf)),
    Format(
        "Polycam",
        f"{polycam.KEYFRAMES}/cameras",
        lambda path: polycam.find_keyframes(path) is not None,
        _load_by(polycam.read_polycam),
    ),
    Format(
        "Metashape",
        "cameras.xml",
        lambda path: metashape.find_cameras(path) is not None,
        _load_by(metashape.read_metashape),
    ),
    Format(
        "Meshroom",
        "cameras.sfm",
        lambda path: alicevision.find_cameras(path) is not None,
        _load_by(alicevision.read_alicevision),
    ),
    Format(
        "OpenSfM",
        opensfm.LISTING,
        lambda path: opensfm.find_reconstruction(path) is not None,
        _load_by(opensfm.read_opensfm),
    ),
    Format(
        "RealityCapture",
        "a table (.csv) of cameras",
        lambda path: reality_capture.find_cameras(path) is not None,
        _load_by(reality_capture.read_reality_capture),
    ),
)
# What to do with files that other programs write, by their suffix.
FOREIGN_FILES = {
    ".zip": "unpack it, and give the folder",
    ".r3d": "export the video from Record3D as EXR + RGB, and give that folder",
    ".psx": "export the cameras from Metashape as Agisoft XML into the folder of the photos",
    ".rcproj": "export Internal/External camera parameters from RealityCapture into the folder of "
    "the images, or all in COLMAP's format, and give that folder",
    ".mg": "add cameras.sfm of Meshroom's StructureFromMotion to the folder of the images, and "
    "give that folder",
    ".glb": "it is a mesh; give photos of it",
    ".ply": "it is points or a mesh; give photos of it",
}


def detect_format(path: Path) -> Format:
    """The format of the data set at a path, which is a folder or an .npz.

    Raises:
      InputError: the path does not exist, or holds no known format.
    """
    for candidate in FORMATS:
        if candidate.matches(path):
            return candidate
    if not path.exists():
        raise InputError(f"There is no folder {path}; give the path of a scene's folder.")
    if path.is_file() and path.suffix.lower() in FOREIGN_FILES:
        raise InputError(f"{path} cannot be trained on: {FOREIGN_FILES[path.suffix.lower()]}.")
    files = ", ".join(f"{known.sentinel_file} ({known.name})" for known in FORMATS)
    raise InputError(
        f"{path} holds no data set of a known format: it has no images nor video, and none of "
        f"{files}."
    )


def load_scene(
    path: Path,
    splits: Sequence[str],
    options: LoadOptions | None = None,
    choose: ChooseViews = range,
) -> Scene:
    """The scene at a path, in any known format.

    Args:
      path: of the data set.
      splits: to load; files of the others are not read.
      options: of reading and placing; larger options that include these will do.
      choose: maps the number of images of a split to the indices of those to decode.

    Raises:
      InputError: the data set is missing or damaged, or its format is unknown.
    """
    known = detect_format(path)
    return known.load(path, splits, load_options(options or LoadOptions()), choose)


def has_split(path: Path, split: str, options: LoadOptions | None = None) -> bool:
    """Whether a data set has images of a split.

    Raises:
      InputError: the files that list the images are damaged.
    """
    options = dataclasses.replace(load_options(options or LoadOptions()), skip_missing=True)
    try:
        load_scene(path, [split], options, choose=lambda count: range(0))
    except MissingSplitError:
        return False
    return True


class Preview(NamedTuple):
    """Facts about a data set by which a preset is chosen, from a few of its images.

    is_capture: whether it is photos, a video, or a scene without bounds or facing forward.
    num_pixels: of all training images; 0 if not known.
    """

    is_capture: bool
    num_pixels: int = 0


def preview(path: Path, options: LoadOptions | None = None) -> Preview:
    """Looks at a data set; one that cannot be read is no capture, and reading it says why."""
    options = dataclasses.replace(load_options(options or LoadOptions()), skip_missing=True)
    num_images = 0

    def choose(count: int) -> range:
        nonlocal num_images
        num_images = count
        # Some images, as transparent ones have a box.
        return range(0, count, 1 + count // 4)

    try:
        if not any(known.matches(path) for known in FORMATS):
            return Preview(prepare.is_photos(path))
        scene = load_scene(path, ["train"], options, choose)
    except InputError:
        return Preview(False)
    cameras = scene.train.cameras
    is_capture = scene.unbounded or cameras.ndc is not None
    return Preview(is_capture, num_images * cameras.width * cameras.height)


def describe_scene(path: Path, scene: Scene) -> str:
    """One line for the user: format, image size, splits and cameras of a loaded scene."""
    split = next(iter(scene.splits.values()))
    cameras = split.cameras
    parts = [f"{detect_format(path).name} format", f"{split.describe_size()} pixels"]
    counts = ", ".join(f"{len(views)} {name}" for name, views in scene.splits.items())
    parts.append(f"{counts} views")
    if cameras.distortion is not None or cameras.lens != "perspective":
        parts.append(f"{cameras.lens} lens, undistorted exactly")
    if cameras.ndc is not None:
        parts.append("facing forward, in normalized device coordinates")
    if scene.unbounded:
        parts.append("without bounds: space around the cameras is contracted")
    return "; ".join(parts) + "."
