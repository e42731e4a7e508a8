"""Reads the files of COLMAP models, binary or text, as documented by COLMAP ("Output format")."""

import dataclasses
import math
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxrf.cameras.lenses import Lens
from jaxrf.cameras.poses import rotation_from_quaternion
from jaxrf.core.errors import InputError

MAX_BYTES = 1 << 31


class CameraModel(NamedTuple):
    """A camera model of COLMAP.

    name, number: of the model in text and in binary files.
    parameters: names of its parameters in order; f stands for both focal lengths.
    lens: family of its lens.
    """

    name: str
    number: int
    parameters: str
    lens: Lens


MODELS = (
    CameraModel("SIMPLE_PINHOLE", 0, "f cx cy", "perspective"),
    CameraModel("PINHOLE", 1, "fx fy cx cy", "perspective"),
    CameraModel("SIMPLE_RADIAL", 2, "f cx cy k1", "perspective"),
    CameraModel("RADIAL", 3, "f cx cy k1 k2", "perspective"),
    CameraModel("OPENCV", 4, "fx fy cx cy k1 k2 p1 p2", "perspective"),
    CameraModel("OPENCV_FISHEYE", 5, "fx fy cx cy k1 k2 k3 k4", "fisheye"),
    CameraModel("FULL_OPENCV", 6, "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6", "perspective"),
    CameraModel("FOV", 7, "fx fy cx cy omega", "fov"),
    CameraModel("SIMPLE_RADIAL_FISHEYE", 8, "f cx cy k1", "fisheye"),
    CameraModel("RADIAL_FISHEYE", 9, "f cx cy k1 k2", "fisheye"),
    CameraModel("THIN_PRISM_FISHEYE", 10, "fx fy cx cy k1 k2 p1 p2 k3 k4 sx1 sy1", "fisheye"),
    CameraModel("SIMPLE_FISHEYE", 14, "f cx cy", "fisheye"),
    CameraModel("FISHEYE", 15, "fx fy cx cy", "fisheye"),
)

# Models that are named by numbers in newer files, but not read.
UNREAD_MODELS = {
    11: "RAD_TAN_THIN_PRISM_FISHEYE",
    12: "SIMPLE_DIVISION",
    13: "DIVISION",
    16: "EUCM",
    17: "EQUIRECTANGULAR",
}


@dataclasses.dataclass(frozen=True)
class Camera:
    """A camera: its model, image size and parameters by name."""

    model: CameraModel
    width: int
    height: int
    parameters: dict[str, float]


@dataclasses.dataclass(frozen=True)
class RegisteredImage:
    """A registered image.

    Attributes:
      name: of its file.
      camera: number of the camera.
      pose: (4, 4) camera-to-world, OpenGL axes.
      keypoints: (k, 2) in pixels.
      points: (k,) numbers of the 3D points at the keypoints; -1 for none.
    """

    name: str
    camera: int
    pose: Float[np.ndarray, "4 4"]
    keypoints: Float[np.ndarray, "k 2"]
    points: Int[np.ndarray, "k"]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A reconstruction (COLMAP calls it a model).

    Attributes:
      cameras: by number.
      images: in the order of their names.
      point_numbers: (p,) ascending.
      points: (p, 3) in the coordinates of the reconstruction.
    """

    cameras: dict[int, Camera]
    images: list[RegisteredImage]
    point_numbers: Int[np.ndarray, "p"]
    points: Float[np.ndarray, "p 3"]

    def observe(
        self, image: RegisteredImage
    ) -> tuple[Float[np.ndarray, "k 3"], Float[np.ndarray, "k 2"]]:
        """Vectors from the position of an image to the points it shows, and their keypoints."""
        observed = np.isin(image.points, self.point_numbers)
        rows = np.searchsorted(self.point_numbers, image.points[observed])
        return self.points[rows] - image.pose[:3, 3], image.keypoints[observed]


def read_reconstruction(folder: Path) -> Reconstruction:
    """Reads the cameras, images and, if there are any, points of a reconstruction.

    Raises:
      InputError: a file is missing or damaged.
    """
    binary = os.path.isfile(folder / "images.bin")
    suffix = "bin" if binary else "txt"
    read: tuple[Callable[[Path], Any], ...] = (
        (_read_cameras_bin, _read_images_bin, _read_points_bin)
        if binary
        else (_read_cameras_txt, _read_images_txt, _read_points_txt)
    )
    cameras = _read_file(read[0], folder / f"cameras.{suffix}")
    images = _read_file(read[1], folder / f"images.{suffix}")
    points: dict[int, list[float]] = {}
    if os.path.isfile(folder / f"points3D.{suffix}"):
        points = _read_file(read[2], folder / f"points3D.{suffix}")
    for image in images:
        if image.camera not in cameras:
            raise InputError(
                f"{folder}: {image.name} is of camera {image.camera}, which cameras.{suffix} "
                "does not have; write the model again."
            )
    if not images:
        raise InputError(f"{folder} has no registered image; reconstruct it again.")
    if not all(math.isfinite(v) and abs(v) < 1e9 for point in points.values() for v in point):
        raise InputError(
            f"{folder / f'points3D.{suffix}'} holds a point that is not finite; write it again."
        )
    if not all(0 <= number < 2**63 for number in points):
        raise InputError(
            f"{folder / f'points3D.{suffix}'} holds a point without a valid number; write it again."
        )
    numbers = np.array(sorted(points), np.int64)
    return Reconstruction(
        cameras=cameras,
        images=sorted(images, key=lambda image: image.name),
        point_numbers=numbers,
        points=np.array([points[int(n)] for n in numbers], np.float64).reshape(-1, 3),
    )


def _read_file(read: Callable[[Path], Any], path: Path) -> Any:
    """Reads a file; errors of damaged files become an InputError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} has more than {MAX_BYTES >> 30} GiB; thin the model out.")
        return read(path)
    except FileNotFoundError:
        raise InputError(f"There is no {path}; complete the model.") from None
    except (OSError, ValueError, KeyError, IndexError, struct.error, OverflowError) as error:
        # The message may quote text of any length from the file.
        raise InputError(
            f"{path} is damaged ({str(error)[:200]}); write the model again."
        ) from error


class _Bytes:
    """A binary file that is read sequentially."""

    def __init__(self, path: Path) -> None:
        self._data, self._offset = memoryview(path.read_bytes()), 0

    def take(self, form: str) -> tuple[Any, ...]:
        """The next values of a `struct` format, little-endian."""
        values = struct.unpack_from(f"<{form}", self._data, self._offset)
        self._offset += struct.calcsize(f"<{form}")
        return values

    def take_array(self, dtype: np.dtype[Any], count: int) -> np.ndarray:
        """The next `count` records."""
        size = count * dtype.itemsize
        if not 0 <= size <= len(self._data) - self._offset:
            raise ValueError("it is truncated")
        array = np.frombuffer(self._data[self._offset : self._offset + size], dtype)
        self._offset += size
        return array

    def take_name(self) -> str:
        """The next zero-terminated text."""
        following = bytes(self._data[self._offset : self._offset + 4096])
        end = following.index(b"\0")
        self._offset += end + 1
        return following[:end].decode("utf-8")


def count_images(folder: Path) -> int:
    """Number of registered images of a reconstruction; 0 if its file is damaged."""
    try:
        if os.path.isfile(folder / "images.bin"):
            with (folder / "images.bin").open("rb") as file:
                return int(struct.unpack("<Q", file.read(8))[0])
        lines = (folder / "images.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, struct.error, UnicodeDecodeError):
        return 0
    return sum(1 for line in lines if len(line.split()) >= 10 and not line.startswith("#"))


def _refuse_model(number: int, model: object, path: Path) -> InputError:
    return InputError(
        f"Camera {number} of {path} has the lens {model}, which is not read: undistort the images "
        "(colmap image_undistorter), or reconstruct them with the model OPENCV."
    )


def _make_camera(
    number: int, model: CameraModel, width: int, height: int, values: list[float]
) -> Camera:
    names = model.parameters.split()
    if len(values) != len(names) or not all(math.isfinite(v) and abs(v) < 1e7 for v in values):
        raise ValueError(f"camera {number} does not have the {len(names)} numbers of {model.name}")
    if not (1 <= width < 100_000 and 1 <= height < 100_000):
        raise ValueError(f"camera {number} is of {width}x{height} pixels")
    parameters = dict(zip(names, values, strict=True))
    if "f" in parameters:
        parameters["fx"] = parameters["fy"] = parameters.pop("f")
    if parameters["fx"] <= 0 or parameters["fy"] <= 0:
        raise ValueError(f"camera {number} has a focal length that is not above 0")
    return Camera(model, width, height, parameters)


def _make_pose(quaternion: Sequence[float], shift: Sequence[float]) -> Float[np.ndarray, "4 4"]:
    """Camera-to-world with OpenGL axes, from world-to-camera with x right, y down, z forwards."""
    values = np.array([*quaternion, *shift], np.float64)
    rotation = rotation_from_quaternion(values[:4])
    if rotation is None or not np.all(np.isfinite(values)) or np.abs(values).max() > 1e9:
        raise ValueError("an image's rotation is not a unit quaternion")
    pose = np.eye(4)
    pose[:3, :3] = rotation.T @ np.diag([1.0, -1.0, -1.0])
    pose[:3, 3] = -rotation.T @ values[4:]
    return pose


def _read_cameras_bin(path: Path) -> dict[int, Camera]:
    file, models = _Bytes(path), {model.number: model for model in MODELS}
    cameras = {}
    for _ in range(file.take("Q")[0]):
        number, model, width, height = file.take("iiQQ")
        if model in UNREAD_MODELS:
            raise _refuse_model(number, UNREAD_MODELS[model], path)
        if model not in models:
            raise ValueError(f"camera {number} is of the unknown model {model}")
        count = len(models[model].parameters.split())
        values = list(file.take(f"{count}d"))
        cameras[number] = _make_camera(number, models[model], width, height, values)
    return cameras


def _read_images_bin(path: Path) -> list[RegisteredImage]:
    file, images = _Bytes(path), []
    record = np.dtype([("position", "<f8", 2), ("point", "<i8")])
    for _ in range(file.take("Q")[0]):
        _, *numbers, camera = file.take("i7di")
        name = file.take_name()
        records = file.take_array(record, file.take("Q")[0])
        pose = _make_pose(numbers[:4], numbers[4:])
        keypoints = np.array(records["position"], np.float64)
        points = np.array(records["point"], np.int64)
        images.append(RegisteredImage(name, camera, pose, keypoints, points))
    return images


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
    """Lines except comments. Empty lines count, as an image may have no keypoints."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            yield line


def _read_cameras_txt(path: Path) -> dict[int, Camera]:
    models, cameras = {model.name: model for model in MODELS}, {}
    for words in (line.split() for line in _read_lines(path) if line.strip()):
        number, width, height = int(words[0]), int(words[2]), int(words[3])
        if words[1] in UNREAD_MODELS.values():
            raise _refuse_model(number, words[1], path)
        if words[1] not in models:
            raise ValueError(f"camera {number} is of the unknown model {words[1]}")
        values = [float(word) for word in words[4:]]
        cameras[number] = _make_camera(number, models[words[1]], width, height, values)
    return cameras


def _read_images_txt(path: Path) -> list[RegisteredImage]:
    images, lines = [], iter(_read_lines(path))
    for line in lines:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        numbers = [float(word) for word in words[1:8]]
        records = np.array(next(lines, "").split(), np.float64).reshape(-1, 3)
        images.append(
            RegisteredImage(
                name=words[9].strip(),
                camera=int(words[8]),
                pose=_make_pose(numbers[:4], numbers[4:]),
                keypoints=records[:, :2],
                points=records[:, 2].astype(np.int64),
            )
        )
    return images


def _read_points_txt(path: Path) -> dict[int, list[float]]:
    points = {}
    for words in (line.split() for line in _read_lines(path) if line.strip()):
        number, x, y, z = words[:4]
        points[int(number)] = [float(x), float(y), float(z)]
    return points
