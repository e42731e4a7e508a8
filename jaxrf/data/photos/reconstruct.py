"""Structure from motion by COLMAP (Schoenberger and Frahm, CVPR 2016), through pycolmap.

Features and matches are kept in a database beside the result, so that an interrupted reconstruction
continues with what it had.
"""

import dataclasses
import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrf.core.errors import InputError
from jaxrf.core.progress import ProgressBar
from jaxrf.data.images import open_image
from jaxrf.data.photos import pairs, refine

# Larger images are reduced to this for finding features, which a CPU does in a second or less.
MAX_FEATURE_SIZE = 1200
MAX_FEATURES = 4096
# Where photos show fewer, weaker features are taken, too, and described and matched with more care.
FEW_FEATURES, WEAK_PEAK, MAX_WEAK_FEATURES = 1000, 0.001, 2048
# Photos whose features are counted first.
NUM_SAMPLES = 5
# The lens while photos are placed: with more parameters, few photos do not determine it.
FIRST_MODEL, ANY_MODEL = "SIMPLE_RADIAL", "auto"
# Pairs that are matched between two updates of the progress bar.
PAIRS_PER_CALL = 24
IMAGES_PER_CALL = 4
# A scene of fewer images cannot be learned.
MIN_PLACED = 3
# Matches with other images that an image needs to be placed, as COLMAP counts them.
MIN_MATCHES = 30
# So few photos fail for being few.
FEW_PHOTOS = 10
SEED = 0
EXIF_IFD, EXIF_FOCAL_LENGTH = 0x8769, 0x920A


class NoSceneError(Exception):
    """Too few photos could be placed; says why."""


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of a reconstruction.

    Attributes:
      placed: names of the images that have a pose.
      unplaced: why the others have none, by name.
      error: mean reprojection error, in pixels of the images.
      points: number of 3D points.
      degrees: horizontal angle of view of the first camera.
    """

    placed: tuple[str, ...]
    unplaced: dict[str, str]
    error: float
    points: int
    degrees: float


def import_pycolmap() -> Any:
    """The package pycolmap.

    Raises:
      InputError: it is not installed.
    """
    try:
        pycolmap = importlib.import_module("pycolmap")
    except ImportError:
        raise InputError(
            "Photos without poses need COLMAP, which is not installed: pip install "
            "'jaxrf[photos]', or give a folder with poses."
        ) from None
    # Its log is for its developers.
    pycolmap.logging.minloglevel = pycolmap.logging.Level.FATAL.value
    return pycolmap


def reconstruct(folder: Path, names: Sequence[str], camera_model: str, in_order: bool) -> Report:
    """Finds the poses of the images in `folder/images`; writes the model to `folder/sparse/0`.

    Args:
      folder: of the data set; also holds `database.db`.
      names: of the images.
      camera_model: of COLMAP, such as OPENCV; `ANY_MODEL` is the simplest that will do.
      in_order: whether following images are known to overlap, as in a video.

    Raises:
      InputError: pycolmap is missing.
      NoSceneError: too few images could be placed.
    """
    pycolmap = import_pycolmap()
    pycolmap.set_random_seed(SEED)
    database = folder / "database.db"
    model = FIRST_MODEL if camera_model == ANY_MODEL else camera_model
    thorough = _count_features(pycolmap, folder, names) < FEW_FEATURES
    _extract(pycolmap, database, folder / "images", names, model, thorough)
    ids, features = _read_features(pycolmap, database, names)
    table = pairs.likeness(features)
    chosen = pairs.choose_pairs(table, in_order or pairs.is_in_order(table))
    _match(pycolmap, database, folder, [(names[i], names[j]) for i, j in chosen], thorough)
    models = _map(pycolmap, database, folder, len(names))
    inliers = _count_inliers(pycolmap, database, ids)
    if not models or max(m.num_reg_images() for m in models.values()) < MIN_PLACED:
        raise NoSceneError(_explain_failure(names, features, inliers))
    best = max(models.values(), key=lambda model: (model.num_reg_images(), model.num_points3D()))
    best = refine.refine(pycolmap, best, camera_model == ANY_MODEL)
    output = folder / "sparse" / "0"
    output.mkdir(parents=True, exist_ok=True)
    best.write_binary(str(output))
    placed = {best.image(number).name for number in best.reg_image_ids()}
    elsewhere = {
        model.image(number).name for model in models.values() for number in model.reg_image_ids()
    } - placed
    unplaced = {
        name: _explain(len(features[index]), inliers[index], name in elsewhere)
        for index, name in enumerate(names)
        if name not in placed
    }
    camera = next(iter(best.cameras.values()))
    degrees = float(np.degrees(2.0 * np.arctan(0.5 * camera.width / camera.mean_focal_length())))
    return Report(
        placed=tuple(name for name in names if name in placed),
        unplaced=unplaced,
        error=float(best.compute_mean_reprojection_error()),
        points=int(best.num_points3D()),
        degrees=degrees,
    )


def _extract(
    pycolmap: Any,
    database: Path,
    images: Path,
    names: Sequence[str],
    camera_model: str,
    thorough: bool,
) -> None:
    """Finds the features of the images that the database does not have yet."""
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size, options.use_gpu = MAX_FEATURE_SIZE, False
    options.sift.max_num_features = MAX_FEATURES
    if thorough:
        options.sift.peak_threshold, options.sift.domain_size_pooling = WEAK_PEAK, True
        options.sift.max_num_features = MAX_WEAK_FEATURES
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = camera_model
    masks = images.with_name("masks")
    if masks.is_dir():
        # No features are taken from what moves.
        reader.mask_path = str(masks)
    cameras = _known_cameras(pycolmap, database, images) if database.exists() else {}
    todo = [name for name in names if name not in _known_images(pycolmap, database)]
    with ProgressBar(len(names), "find features", "photo", initial=len(names) - len(todo)) as bar:
        while todo:
            # Photos of one size and focal length share a camera, with those found earlier too.
            key = _camera_key(images / todo[0])
            batch = [n for n in todo if _camera_key(images / n) == key][:IMAGES_PER_CALL]
            todo = [name for name in todo if name not in batch]
            reader.existing_camera_id = cameras.get(key, -1)
            pycolmap.extract_features(
                str(database),
                str(images),
                image_names=batch,
                camera_mode=pycolmap.CameraMode.SINGLE,
                reader_options=reader,
                extraction_options=options,
                device=pycolmap.Device.cpu,
            )
            cameras = _known_cameras(pycolmap, database, images)
            bar.update(len(batch))


def _count_features(pycolmap: Any, folder: Path, names: Sequence[str]) -> float:
    """Median number of features of some of the images."""
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size, options.use_gpu = MAX_FEATURE_SIZE, False
    options.sift.max_num_features = MAX_FEATURES
    chosen = np.unique(np.linspace(0, len(names) - 1, NUM_SAMPLES).astype(int))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        database = Path(scratch, "database.db")
        pycolmap.extract_features(
            str(database),
            str(folder / "images"),
            image_names=[names[index] for index in chosen],
            extraction_options=options,
            device=pycolmap.Device.cpu,
        )
        with pycolmap.Database.open(str(database)) as opened:
            counts = [
                len(opened.read_keypoints(image.image_id)) for image in opened.read_all_images()
            ]
    return float(np.median(counts)) if counts else 0.0


def _known_cameras(pycolmap: Any, database: Path, images: Path) -> dict[tuple[Any, ...], int]:
    """Numbers of the cameras in the database, by `_camera_key`."""
    with pycolmap.Database.open(str(database)) as opened:
        return {_camera_key(images / i.name): i.camera_id for i in opened.read_all_images()}


def _camera_key(path: Path) -> tuple[Any, ...]:
    """Size and EXIF focal length of a photo."""
    with open_image(path) as image:
        return (*image.size, image.getexif().get_ifd(EXIF_IFD).get(EXIF_FOCAL_LENGTH))


def _known_images(pycolmap: Any, database: Path) -> set[str]:
    if not database.exists():
        return set()
    with pycolmap.Database.open(str(database)) as opened:
        return {
            image.name
            for image in opened.read_all_images()
            if opened.exists_descriptors(image.image_id)
        }


def _read_features(
    pycolmap: Any, database: Path, names: Sequence[str]
) -> tuple[list[int], list[np.ndarray]]:
    """Number in the database and strongest features of each image."""
    ids, features = [], []
    with pycolmap.Database.open(str(database)) as opened:
        by_name = {image.name: image.image_id for image in opened.read_all_images()}
        for name in names:
            number = by_name.get(name, -1)
            ids.append(number)
            if number < 0 or not opened.exists_descriptors(number):
                features.append(np.zeros((0, 128), np.float32))
                continue
            keypoints = np.asarray(opened.read_keypoints(number), np.float32)
            data = np.asarray(opened.read_descriptors(number).data, np.uint8)
            scales = keypoints[:, 2] if keypoints.shape[1] == 4 else _scales(keypoints)
            features.append(pairs.strongest_features(data, scales))
    return ids, features


def _scales(keypoints: np.ndarray) -> np.ndarray:
    """Scales of keypoints that are stored as x, y and a 2 x 2 matrix."""
    if keypoints.shape[1] < 6:
        return np.ones(len(keypoints), np.float32)
    return np.asarray(np.hypot(keypoints[:, 2], keypoints[:, 4]))


def _match(
    pycolmap: Any,
    database: Path,
    folder: Path,
    chosen: Sequence[tuple[str, str]],
    thorough: bool,
) -> None:
    """Matches pairs of images; those that the database has already are skipped by COLMAP."""
    options = pycolmap.FeatureMatchingOptions()
    options.use_gpu, options.guided_matching = False, thorough
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = SEED
    pairing = pycolmap.ImportedPairingOptions()
    listing = folder / "pairs.txt"
    pairing.match_list_path = str(listing)
    with ProgressBar(len(chosen), "match photos", "pair") as bar:
        for start in range(0, len(chosen), PAIRS_PER_CALL):
            batch = chosen[start : start + PAIRS_PER_CALL]
            listing.write_text("".join(f"{a} {b}\n" for a, b in batch))
            pycolmap.match_image_pairs(
                str(database),
                matching_options=options,
                pairing_options=pairing,
                verification_options=verification,
                device=pycolmap.Device.cpu,
            )
            bar.update(len(batch))
    listing.unlink(missing_ok=True)


def _map(pycolmap: Any, database: Path, folder: Path, count: int) -> dict[int, Any]:
    """The models that COLMAP makes, one for each group of images that hang together."""
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = MIN_PLACED
    options.random_seed = SEED
    # Two cameras are never placed by a few wrong matches alone.
    options.mapper.init_min_num_inliers = 60
    options.extract_colors = True
    scratch = folder / "models"
    scratch.mkdir(exist_ok=True)
    with ProgressBar(count, "place photos", "photo") as bar:

        def advance() -> None:
            if bar.n < count:
                bar.update(1)

        models: dict[int, Any] = pycolmap.incremental_mapping(
            str(database),
            str(folder / "images"),
            str(scratch),
            options=options,
            initial_image_pair_callback=advance,
            next_image_callback=advance,
        )
        bar.update(count - bar.n)
    return models


def _count_inliers(pycolmap: Any, database: Path, ids: Sequence[int]) -> list[int]:
    """The largest number of verified matches that each image has with another one."""
    largest = dict.fromkeys(ids, 0)
    with pycolmap.Database.open(str(database)) as opened:
        numbers, counts = opened.read_two_view_geometry_num_inliers()
        for pair, count in zip(numbers, counts, strict=True):
            for number in pycolmap.pair_id_to_image_pair(pair) if np.isscalar(pair) else pair:
                largest[int(number)] = max(largest.get(int(number), 0), int(count))
    return [largest[number] for number in ids]


def _explain(num_features: int, num_matches: int, elsewhere: bool) -> str:
    """Why an image was not placed."""
    if num_features < 50:
        return "too little detail, or blurred"
    if elsewhere:
        return "they overlap with each other, but hardly with the others, as of another place"
    if num_matches < MIN_MATCHES:
        return "too little overlap with every other photo"
    return "the overlap with the others does not fit one rigid scene"


def _explain_failure(
    names: Sequence[str], features: Sequence[np.ndarray], inliers: Sequence[int]
) -> str:
    few = sum(len(f) < 50 for f in features)
    alone = sum(count < MIN_MATCHES for count in inliers)
    if len(names) < FEW_PHOTOS:
        return (
            f"{len(names)} photos are few; take 30 or more, moving by small steps, so that each "
            "shows at least two thirds of the one before."
        )
    if few > len(names) // 2:
        return (
            f"most of the {len(names)} photos show too little detail or are blurred; take sharper "
            "ones, of something with more texture."
        )
    if alone > len(names) // 2:
        return (
            f"most of the {len(names)} photos overlap too little with any other; move by small "
            "steps, so that each shows at least two thirds of the one before."
        )
    return (
        f"the {len(names)} photos were taken from nearly one place, or what they show moved; walk "
        "around the scene rather than turn the camera, and keep what you photograph still."
    )
