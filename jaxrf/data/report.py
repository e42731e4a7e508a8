"""Text report of a data set: sizes, lenses and distances, and warnings about likely mistakes."""

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from jaxrf.cameras.base import Cameras
from jaxrf.data import consistency
from jaxrf.data.known_depth import find_wrong_unit
from jaxrf.data.scene import Scene, Split

# In place of the name of a split, which no name of an image can hold.
SPLIT = "\0"


def dataset_report(scene: Scene) -> list[str]:
    """Counts, sizes, lenses and distances of a scene, as lines of text."""
    lines = []
    for name, split in scene.splits.items():
        cameras = split.cameras
        focal = np.asarray(cameras.focal, np.float64)
        center = np.asarray(cameras.principal_point, np.float64)
        size = np.array([cameras.width, cameras.height])
        angle = np.degrees(2.0 * np.arctan(0.5 * size / focal.mean(axis=0)))
        distortion = "no distortion" if cameras.distortion is None else f"{cameras.lens} distortion"
        focal_range = f"{_format_range(focal[:, 0])} x {_format_range(focal[:, 1])}"
        center_range = f"{_format_range(center[:, 0])}, {_format_range(center[:, 1])}"
        lines.append(
            f"{name}: {len(split)} images of {split.describe_size()} pixels, "
            f"{_describe_alpha(split)}; focal length {focal_range} pixels ({angle[0]:.1f} x "
            f"{angle[1]:.1f} degrees), principal point {center_range}, {distortion}"
        )
    first = next(iter(scene.splits.values())).cameras
    box = "; ".join(f"{axis} {low:.3g} to {high:.3g}" for axis, low, high in _aabb_sides(scene))
    positions = _positions(first)
    if first.ndc is not None:
        lines.append(f"box: {box}, in normalized device coordinates")
        lines.append(
            f"rays: from the plane {first.ndc[2]:.3g} scene units ahead to infinity; contents "
            f"between {scene.near:.3g} and {scene.far:.3g}"
        )
        distances = np.linalg.norm(positions - positions.mean(axis=0), axis=-1)
        lines.append(f"cameras: {_format_range(distances)} scene units from their middle")
    else:
        lines.append(f"box: {box}{' (and all around it)' if scene.unbounded else ''}")
        lines.append(f"rays: from {scene.near:.3g} to {scene.far:.3g} scene units")
        distances = np.linalg.norm(positions - np.mean(scene.aabb, axis=0), axis=-1)
        lines.append(f"cameras: {_format_range(distances)} scene units from the middle of the box")
    lines.append(f"frame: 1 unit of the files is {scene.frame.scale:.4g} scene units")
    return lines


def find_warnings(scene: Scene) -> list[str]:
    """Sentences about what is probably wrong with a scene; it can be trained on all the same."""
    return list(_check_scene(scene))


def _check_scene(scene: Scene) -> Iterator[str]:
    for name, split in scene.splits.items():
        yield from _check_images(name, split)
    yield from _check_all_cameras(scene)
    yield from _check_geometry(scene)
    better = consistency.find_better_cameras(scene)
    if better is not None:
        yield better
    for (one, a), (other, b) in itertools.combinations(scene.splits.items(), 2):
        if {one, other} == {"val", "test"}:
            # Many data sets have the same views for both.
            continue
        same = _equal_poses(_poses(a.cameras), _poses(b.cameras))
        if same:
            yield f"{len(same)} cameras of {one} stand where cameras of {other} do ({same[0]})."


def _check_images(name: str, split: Split) -> Iterator[str]:
    if len(split) < 10 and name == "train":
        yield f"{name} has only {len(split)} images, which is few for a field."
    thumbnails = split.images[:, ::4, ::4].astype(np.int16)
    flat = [
        image_name
        for image_name, image in zip(split.names, thumbnails, strict=True)
        if np.ptp(image, (0, 1)).max() < 2
    ]
    if flat:
        yield f"{len(flat)} images of {name} are of one color ({flat[0]})."
    first_name: dict[bytes, str] = {}
    for image_name, image in zip(split.names, split.images, strict=True):
        twin = first_name.setdefault(hashlib.blake2b(image).digest(), image_name)
        if twin != image_name:
            yield f"{image_name} and {twin} of {name} are the same image."
    transparent = [
        image_name
        for image_name, image in zip(split.names, split.images, strict=True)
        if not image[..., 3].any()
    ]
    if transparent:
        yield f"{len(transparent)} images of {name} are fully transparent ({transparent[0]})."


def _check_all_cameras(scene: Scene) -> Iterator[str]:
    """Sentences on the cameras of each split; one for all splits of which it is true."""
    names: dict[str, list[str]] = {}
    for name, split in scene.splits.items():
        for sentence in _check_cameras(SPLIT, split):
            names.setdefault(sentence, []).append(name)
    for sentence, splits in names.items():
        *others, last = splits
        listed = f"{', '.join(others)} and {last}" if others else last
        yield sentence.replace(SPLIT, listed)


def _check_cameras(name: str, split: Split) -> Iterator[str]:
    cameras = split.cameras
    focal = np.asarray(cameras.focal, np.float64)
    center = np.asarray(cameras.principal_point, np.float64)
    size = np.array([split.image_size(index) for index in range(len(split))], np.float64)
    offset = np.abs(center / size - 0.5).max(initial=0.0)
    if offset > 0.1:
        yield f"The principal point of {name} is {offset:.0%} of the image off the center."
    if np.any(np.abs(focal[:, 0] / focal[:, 1] - 1.0) > 0.05):
        yield (
            f"The focal lengths of {name} differ by more than 5 % between x and y, as those of "
            "few lenses do: unless images are stretched, find the poses again (jaxrf data photos)."
        )
    angle = np.degrees(2.0 * np.arctan(0.5 * size.max() / focal.min(initial=np.inf)))
    if not 5.0 < angle < 150.0 and cameras.lens != "fisheye":
        yield f"The field of view of {name} is {angle:.1f} degrees, which is unusual."
    poses = _poses(cameras)
    same = _equal_poses(poses, poses, same_cameras=True)
    if same:
        yield f"{len(same)} cameras of {name} stand where another one does ({same[0]})."


def _check_geometry(scene: Scene) -> Iterator[str]:
    split = next(iter(scene.splits.values()))
    if split.cameras.ndc is not None:
        return
    positions, low, high = _positions(split.cameras), *np.asarray(scene.aabb, np.float64)
    inside = np.all((positions > low) & (positions < high), axis=-1)
    if not scene.unbounded and np.any(inside):
        yield f"{np.sum(inside)} cameras stand inside of the box."
    # The corners of a box are usually empty: only test the ball inside it.
    distances = np.linalg.norm(positions - 0.5 * (low + high), axis=-1)
    radius = 0.5 * float(np.min(high - low))
    if not scene.unbounded and np.any(distances - radius < scene.near * 0.999):
        yield (
            f"The middle of the box begins {distances.min() - radius:.3g} from a camera, but rays "
            f"begin at {scene.near:.3g}: nearer surfaces are cut off."
        )
    if not scene.unbounded and np.any(distances + radius > scene.far * 1.001):
        yield (
            f"The middle of the box ends {distances.max() + radius:.3g} from a camera, but rays "
            f"end at {scene.far:.3g}."
        )
    axes = -_poses(split.cameras)[:, :3, 2]
    to_center = 0.5 * (low + high) - positions
    length = np.maximum(np.linalg.norm(to_center, axis=-1), 1e-9)
    cosine = np.sum(axes * to_center, axis=-1) / length
    if not scene.unbounded and np.any(cosine < 0.0):
        yield f"{np.sum(cosine < 0.0)} cameras look away from the box."
    spread = np.linalg.norm(positions - positions.mean(axis=0), axis=-1).max(initial=0.0)
    if len(positions) > 1 and spread < 1e-3 * max(float(np.linalg.norm(high - low)), 1e-9):
        yield "All cameras are at one position: distances cannot be reconstructed."
    wrong_unit = find_wrong_unit(split.known_depth, scene) if split.known_depth else None
    if wrong_unit is not None:
        yield wrong_unit


def _describe_alpha(split: Split) -> str:
    # Cropped, as images of several sizes are stored in one array, whose remainder belongs to none.
    alphas = [split.crop(index)[..., 3] for index in range(len(split))]
    if all(alpha.min(initial=255) == 255 for alpha in alphas):
        return "opaque"
    transparent = sum(np.count_nonzero(alpha < 128) for alpha in alphas)
    return f"{transparent / sum(alpha.size for alpha in alphas):.0%} transparent"


def _format_range(values: Float[np.ndarray, "n"]) -> str:
    if len(values) == 0:
        return "none"
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if high - low < 1e-4 * max(abs(high), 1e-9) else f"{low:.4g} to {high:.4g}"


def _aabb_sides(scene: Scene) -> list[tuple[str, float, float]]:
    return [(axis, float(a), float(b)) for axis, a, b in zip("xyz", *scene.aabb, strict=True)]


def _poses(cameras: Cameras) -> Float[np.ndarray, "n 4 4"]:
    return np.asarray(cameras.T_world_camera, np.float64)


def _positions(cameras: Cameras) -> Float[np.ndarray, "n 3"]:
    return _poses(cameras)[:, :3, 3]


def _equal_poses(
    first: Float[np.ndarray, "n 4 4"],
    second: Float[np.ndarray, "m 4 4"],
    same_cameras: bool = False,
) -> list[str]:
    """Pairs of equal poses of two lists.

    With `same_cameras`, the lists are the same one, and a pose is not compared with itself.
    """
    pairs: list[str] = []
    known: dict[bytes, int] = {}
    # Adding zero turns minus zero into zero.
    for index, pose in enumerate(np.round(second, 5) + 0.0):
        known.setdefault(pose.tobytes(), index)
    for index, pose in enumerate(np.round(first, 5) + 0.0):
        twin = known.get(pose.tobytes())
        if twin is not None and not (same_cameras and twin == index):
            pairs.append(f"numbers {index} and {twin}")
    return pairs
