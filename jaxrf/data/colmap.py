"""COLMAP models, binary or text, with the pictures that they were made of.

Schoenberger and Frahm: Structure-from-motion revisited (CVPR 2016); the format is that of COLMAP's
documentation ("Output format").
"""

import dataclasses
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxrf.cameras.base import Cameras
from jaxrf.cameras.lenses import COEFFICIENTS, Lens
from jaxrf.cameras.transforms import (
    UNIT_AABB,
    DEFAULT_FAR,
    DEFAULT_NEAR,
    SimilarityTransform,
    center_and_scale,
    transform_positions,
    transform_poses,
)
from jaxrf.core.errors import InputError
from jaxrf.data.files import check_file_path, check_folder, name_scene
from jaxrf.data.scene import Scene
from jaxrf.data.views import (
    ChooseViews,
    ViewIndex,
    rescale_to_images,
    load_split,
    split_every_n,
    select_views,
)

PLACES = ("sparse/0", "sparse", "colmap/sparse/0", ".")
MAX_BYTES = 1 << 31


class Model(NamedTuple):
    """What a camera model's numbers mean.

    name, number: in text and in binary files.
    parameters: names of its numbers in order; f stands for both focal lengths.
    lens: the family that it is a part of.
    """

    name: str
    number: int
    parameters: str
    lens: Lens


MODELS = (
    Model("SIMPLE_PINHOLE", 0, "f cx cy", "perspective"),
    Model("PINHOLE", 1, "fx fy cx cy", "perspective"),
    Model("SIMPLE_RADIAL", 2, "f cx cy k1", "perspective"),
    Model("RADIAL", 3, "f cx cy k1 k2", "perspective"),
    Model("OPENCV", 4, "fx fy cx cy k1 k2 p1 p2", "perspective"),
    Model("OPENCV_FISHEYE", 5, "fx fy cx cy k1 k2 k3 k4", "fisheye"),
    Model("FULL_OPENCV", 6, "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6", "perspective"),
    Model("FOV", 7, "fx fy cx cy omega", "fov"),
    Model("SIMPLE_RADIAL_FISHEYE", 8, "f cx cy k1", "fisheye"),
    Model("RADIAL_FISHEYE", 9, "f cx cy k1 k2", "fisheye"),
    Model("THIN_PRISM_FISHEYE", 10, "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1", "fisheye"),
)


@dataclasses.dataclass(frozen=True)
class Camera:
    """One camera of a model: its kind, picture size and numbers by name."""

    model: Model
    width: int
    height: int
    numbers: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Picture:
    """One registered picture.

    Attributes:
      name: of its file.
      camera: number of its camera.
      pose: (4, 4) camera-to-world, OpenGL axes.
      keypoints: (k, 2) in pixels.
      points: (k,) numbers of the points they show; -1 for none.
    """

    name: str
    camera: int
    pose: Float[np.ndarray, "4 4"]
    keypoints: Float[np.ndarray, "k 2"]
    points: Int[np.ndarray, "k"]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A COLMAP model.

    Attributes:
      cameras: by number.
      pictures: in the order of their names.
      point_numbers: (p,) ascending.
      points: (p, 3) in the model's coordinates.
    """

    cameras: dict[int, Camera]
    pictures: list[Picture]
    point_numbers: Int[np.ndarray, "p"]
    points: Float[np.ndarray, "p 3"]


def find_model(folder: Path) -> Path | None:
    """The folder in which a scene's model lies; None if there is none."""
    for place in PLACES:
        for suffix in ("bin", "txt"):
            if os.path.isfile(folder / place / f"images.{suffix}"):
                return folder / place
    return None


def load_colmap(
    folder: Path,
    splits: Sequence[str] = ("train", "val", "test"),
    downscale: int = 1,
    choose: ChooseViews = range,
    skip_missing: bool = False,
) -> Scene:
    """Reads a COLMAP scene, upright around the origin, with cameras within +-1 (`center_and_scale`).

    Every 8th picture, in the order of their names, is held out. Pictures are those of `images_K`
    for a downscale of K, if there is such a folder, else those of `images`, averaged. Rays begin
    at half the distance of the nearest hundredth of all observed points.

    Args:
      folder: holds `images` and `sparse/0`, or another usual place of the model.
      splits, downscale, choose: see `blender.load_blender`.
      skip_missing: leave out pictures that the model names but that are not there.

    Raises:
      InputError: something is missing, broken, or not what this layout holds.
    """
    check_folder(folder)
    place = find_model(folder)
    if place is None:
        raise InputError(f"{folder} has no COLMAP model (sparse/0/images.bin); add it.")
    model = read_reconstruction(place)
    pictures, factor = "images", downscale
    if downscale > 1 and (folder / f"images_{downscale}").is_dir():
        pictures, factor = f"images_{downscale}", 1
    named = [Path(pictures, check_file_path(p.name, f"images of {place}")) for p in model.pictures]
    kept = [i for i, p in enumerate(named) if not skip_missing or (folder / p).is_file()]
    if not kept:
        raise InputError(f"None of the pictures that {place} names is in {folder / pictures}.")
    model = dataclasses.replace(model, pictures=[model.pictures[i] for i in kept])
    frame = center_and_scale(np.stack([picture.pose for picture in model.pictures]))
    cameras = make_cameras(model, frame, place)
    views = ViewIndex(folder, place, tuple(named[i] for i in kept), cameras)
    views = rescale_to_images(views)
    indices = split_every_n(len(views))
    near, far = _find_range(model, frame)
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
        frame=frame,
    )


def make_cameras(model: Reconstruction, frame: SimilarityTransform, place: Path) -> Cameras:
    """The cameras of all pictures in a frame; InputError if they are of several sizes or lenses."""
    own = [model.cameras[picture.camera] for picture in model.pictures]
    kinds = {camera.model.lens for camera in own}
    sizes = {(camera.width, camera.height) for camera in own}
    if len(kinds) > 1 or len(sizes) > 1:
        shown = ", ".join(sorted({f"{c.model.name} of {c.width}x{c.height}" for c in own})[:3])
        raise InputError(f"{place} mixes cameras ({shown}); undistort its pictures to one size.")
    (lens,), ((width, height),) = kinds, sizes
    bent = np.array([[c.numbers.get(name, 0.0) for name in COEFFICIENTS[lens]] for c in own])
    poses = transform_poses(frame, np.stack([picture.pose for picture in model.pictures]))
    return Cameras(
        T_world_camera=poses.astype(np.float32),
        focal=np.array([[c.numbers["fx"], c.numbers["fy"]] for c in own], np.float32),
        principal_point=np.array([[c.numbers["cx"], c.numbers["cy"]] for c in own], np.float32),
        width=width,
        height=height,
        lens=lens,
        distortion=bent.astype(np.float32) if np.any(bent) else None,
    )


def _find_range(model: Reconstruction, frame: SimilarityTransform) -> tuple[float, float]:
    """Distances between which observed points lie, with room."""
    points = transform_positions(frame, model.points)
    distances = []
    for picture in model.pictures:
        place = transform_positions(frame, picture.pose[:3, 3])
        seen = np.isin(picture.points, model.point_numbers)
        rows = np.searchsorted(model.point_numbers, picture.points[seen])
        distances.append(np.linalg.norm(points[rows] - place, axis=-1))
    every = np.concatenate(distances) if distances else np.zeros(0)
    if every.size == 0:
        return DEFAULT_NEAR, DEFAULT_FAR
    near, far = np.percentile(every, [1.0, 99.0])
    return max(0.5 * float(near), 1e-3), 2.0 * float(far)


# ---------------------------------------------------------------------------------------------
# The files
# ---------------------------------------------------------------------------------------------


def read_reconstruction(place: Path) -> Reconstruction:
    """Reads the cameras, pictures and, if they are there, points of a model.

    Raises:
      InputError: a file is missing or damaged.
    """
    binary = os.path.isfile(place / "images.bin")
    suffix = "bin" if binary else "txt"
    read: tuple[Callable[[Path], Any], ...] = (
        (_read_cameras_bin, _read_images_bin, _read_points_bin)
        if binary
        else (_read_cameras_txt, _read_images_txt, _read_points_txt)
    )
    cameras = _guard(read[0], place / f"cameras.{suffix}")
    pictures = _guard(read[1], place / f"images.{suffix}")
    points: dict[int, list[float]] = {}
    if os.path.isfile(place / f"points3D.{suffix}"):
        points = _guard(read[2], place / f"points3D.{suffix}")
    for picture in pictures:
        if picture.camera not in cameras:
            raise InputError(
                f"{place}: {picture.name} is of camera {picture.camera}, which cameras.{suffix} "
                "does not have; write the model again."
            )
    if not pictures:
        raise InputError(f"{place} has no registered picture; reconstruct it again.")
    if not all(math.isfinite(v) and abs(v) < 1e9 for point in points.values() for v in point):
        raise InputError(
            f"{place / f'points3D.{suffix}'} holds a point that is not finite; write it again."
        )
    if not all(0 <= number < 2**63 for number in points):
        raise InputError(
            f"{place / f'points3D.{suffix}'} holds a point whose number is none; write it again."
        )
    numbers = np.array(sorted(points), np.int64)
    return Reconstruction(
        cameras=cameras,
        pictures=sorted(pictures, key=lambda picture: picture.name),
        point_numbers=numbers,
        points=np.array([points[int(n)] for n in numbers], np.float64).reshape(-1, 3),
    )


def _guard(read: Callable[[Path], Any], path: Path) -> Any:
    """Reads a file; what goes wrong in a damaged one becomes one sentence."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} has more than {MAX_BYTES >> 30} GiB; thin the model out.")
        return read(path)
    except FileNotFoundError:
        raise InputError(f"There is no {path}; complete the model.") from None
    except (OSError, ValueError, KeyError, IndexError, struct.error, OverflowError) as error:
        # A file may hold words of any length.
        raise InputError(
            f"{path} is damaged ({str(error)[:200]}); write the model again."
        ) from error


class _Bytes:
    """A binary file read from the front."""

    def __init__(self, path: Path) -> None:
        self._data, self._at = memoryview(path.read_bytes()), 0

    def take(self, form: str) -> tuple[Any, ...]:
        """The next values of a `struct` format, little-endian."""
        values = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(f"<{form}")
        return values

    def take_array(self, dtype: np.dtype[Any], count: int) -> np.ndarray:
        """The next so many records."""
        size = count * dtype.itemsize
        if not 0 <= size <= len(self._data) - self._at:
            raise ValueError("it is cut off")
        array = np.frombuffer(self._data[self._at : self._at + size], dtype)
        self._at += size
        return array

    def take_name(self) -> str:
        """The next text that ends with a zero."""
        rest = bytes(self._data[self._at : self._at + 4096])
        end = rest.index(b"\0")
        self._at += end + 1
        return rest[:end].decode("utf-8")


def _make_camera(number: int, model: Model, width: int, height: int, values: list[float]) -> Camera:
    names = model.parameters.split()
    if len(values) != len(names) or not all(math.isfinite(v) and abs(v) < 1e7 for v in values):
        raise ValueError(f"camera {number} has not the {len(names)} numbers of a {model.name}")
    if not (1 <= width < 100_000 and 1 <= height < 100_000):
        raise ValueError(f"camera {number} is of {width}x{height} pixels")
    numbers = dict(zip(names, values, strict=True))
    if "f" in numbers:
        numbers["fx"] = numbers["fy"] = numbers.pop("f")
    if numbers["fx"] <= 0 or numbers["fy"] <= 0:
        raise ValueError(f"camera {number} has a focal length that is not above 0")
    return Camera(model, width, height, numbers)


def _make_pose(quaternion: Sequence[float], shift: Sequence[float]) -> Float[np.ndarray, "4 4"]:
    """Camera-to-world with OpenGL axes, of world-to-camera with x right, y down, z forwards."""
    values = np.array([*quaternion, *shift], np.float64)
    length = float(np.linalg.norm(values[:4]))
    if not np.all(np.isfinite(values)) or np.abs(values).max() > 1e9 or abs(length - 1.0) > 1e-3:
        raise ValueError("a picture's rotation is no unit quaternion")
    w, x, y, z = values[:4] / length
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose = np.eye(4)
    pose[:3, :3] = rotation.T @ np.diag([1.0, -1.0, -1.0])
    pose[:3, 3] = -rotation.T @ values[4:]
    return pose


def _read_cameras_bin(path: Path) -> dict[int, Camera]:
    file, models = _Bytes(path), {model.number: model for model in MODELS}
    cameras = {}
    for _ in range(file.take("Q")[0]):
        number, kind, width, height = file.take("iiQQ")
        if kind not in models:
            raise ValueError(f"camera {number} is of the unknown model {kind}")
        count = len(models[kind].parameters.split())
        values = list(file.take(f"{count}d"))
        cameras[number] = _make_camera(number, models[kind], width, height, values)
    return cameras


def _read_images_bin(path: Path) -> list[Picture]:
    file, pictures = _Bytes(path), []
    record = np.dtype([("place", "<f8", 2), ("point", "<i8")])
    for _ in range(file.take("Q")[0]):
        _, *numbers, camera = file.take("i7di")
        name = file.take_name()
        seen = file.take_array(record, file.take("Q")[0])
        pose = _make_pose(numbers[:4], numbers[4:])
        keypoints = np.array(seen["place"], np.float64)
        pictures.append(Picture(name, camera, pose, keypoints, np.array(seen["point"], np.int64)))
    return pictures


def _read_points_bin(path: Path) -> dict[int, list[float]]:
    file, points = _Bytes(path), {}
    track = np.dtype("<i4")
    for _ in range(file.take("Q")[0]):
        number, x, y, z = file.take("Qddd")
        file.take("3Bd")
        file.take_array(track, 2 * file.take("Q")[0])
        points[number] = [x, y, z]
    return points


def _read_lines(path: Path) -> Iterator[str]:
    """Lines that are no comments, empty ones included: a picture may have no keypoints."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            yield line


def _read_cameras_txt(path: Path) -> dict[int, Camera]:
    models, cameras = {model.name: model for model in MODELS}, {}
    for words in (line.split() for line in _read_lines(path) if line.strip()):
        number, width, height = int(words[0]), int(words[2]), int(words[3])
        if words[1] not in models:
            raise ValueError(f"camera {number} is of the unknown model {words[1]}")
        values = [float(word) for word in words[4:]]
        cameras[number] = _make_camera(number, models[words[1]], width, height, values)
    return cameras


def _read_images_txt(path: Path) -> list[Picture]:
    pictures, lines = [], iter(_read_lines(path))
    for line in lines:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        numbers = [float(word) for word in words[1:8]]
        seen = np.array(next(lines, "").split(), np.float64).reshape(-1, 3)
        pictures.append(
            Picture(
                name=words[9].strip(),
                camera=int(words[8]),
                pose=_make_pose(numbers[:4], numbers[4:]),
                keypoints=seen[:, :2],
                points=seen[:, 2].astype(np.int64),
            )
        )
    return pictures


def _read_points_txt(path: Path) -> dict[int, list[float]]:
    points = {}
    for words in (line.split() for line in _read_lines(path) if line.strip()):
        points[int(words[0])] = [float(word) for word in words[1:4]]
    return points
