"""The ball of `scenes` written in every format that is read, for the tests of the readers."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scenes import ANGLE, make_scene
from scipy.spatial.transform import Rotation

from jaxrf.cameras.base import Cameras, image_rays
from jaxrf.cameras.transforms import invert_transform, transform_positions
from jaxrf.data.scene import Scene, downscale_images

# Names of the images sort otherwise than they were taken.
ORDER = (3, 0, 5, 1, 4, 2)


def true_cameras(views: Any = slice(None)) -> Cameras:
    """The cameras of the ball's training views, in the coordinates that files are written in."""
    cameras = make_scene().splits["train"].cameras
    return Cameras(
        T_world_camera=cameras.T_world_camera[views],
        focal=cameras.focal[views],
        principal_point=cameras.principal_point[views],
        width=cameras.width,
        height=cameras.height,
    )


def save_images(folder: Path, names: list[str], suffix: str = ".png") -> None:
    """The training images on white; the name says which view it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        rgba = make_scene().splits["train"].images[index].astype(np.float32)
        alpha = rgba[..., 3:] / 255.0
        rgb = np.rint(rgba[..., :3] * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)
        (folder / f"{name}{suffix}").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(folder / f"{name}{suffix}", quality=95, subsampling=0)


def view_names() -> list[str]:
    """The name of each view's image: sorted, they are in `ORDER`."""
    return [f"p{ORDER.index(view)}" for view in range(len(ORDER))]


def check_rays(scene: Scene, split: str, cameras: Cameras, views: list[int]) -> None:
    """Rays of a split are those of the true cameras, once they are moved back to the file."""
    back = invert_transform(scene.frame)
    found = scene.splits[split]
    assert len(found) == len(views)
    for index, view in enumerate(views):
        rays, truth = (
            image_rays(found.cameras, index, 1.0, 2.0),
            image_rays(cameras, view, 1.0, 2.0),
        )
        origins = transform_positions(back, np.asarray(rays.origins, np.float64))
        np.testing.assert_allclose(origins, truth.origins, atol=2e-5)
        directions = np.asarray(rays.directions, np.float64) @ back.rotation.T
        np.testing.assert_allclose(directions, truth.directions, atol=2e-5)


def write_transforms(folder: Path, suffix: str = ".jpg", **changes: Any) -> Path:
    """nerfstudio's format; `changes` go into the file."""
    cameras = true_cameras()
    save_images(folder / "images", view_names(), suffix)
    frames = [
        {
            "file_path": f"images/{name}{suffix}",
            "transform_matrix": np.asarray(pose, np.float64).tolist(),
        }
        for name, pose in zip(view_names(), cameras.T_world_camera, strict=True)
    ]
    focal = float(cameras.focal[0, 0])
    size = {"w": cameras.width, "h": cameras.height}
    content = {"fl_x": focal, "fl_y": focal, "cx": 8.0, "cy": 8.0, **size, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content | changes))
    return folder


def write_llff(folder: Path, poses: np.ndarray | None = None, images: str = "images") -> Path:
    """LLFF's format, the images said to be twice as large as they are."""
    cameras = true_cameras()
    poses = np.asarray(cameras.T_world_camera if poses is None else poses, np.float64)
    save_images(folder / images, view_names())
    rows = np.zeros((len(poses), 17))
    for view, pose in enumerate(poses):
        right, up, back = pose[:3, :3].T
        hwf = 2.0 * np.array([cameras.height, cameras.width, float(cameras.focal[0, 0])])
        table = np.stack([-up, right, back, pose[:3, 3], hwf], axis=1)
        rows[ORDER.index(view)] = [*table.ravel(), 2.5, 6.0]
    np.save(folder / "poses_bounds.npy", rows)
    return folder


def _to_colmap(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit quaternion and shift from the world to a camera with y down and z forwards."""
    rotation = np.diag([1.0, -1.0, -1.0]) @ pose[:3, :3].T
    shift = -rotation @ pose[:3, 3]
    # The eigenvector of the largest eigenvalue (Bar-Itzhack 2000).
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    k = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    x, y, z, w = np.linalg.eigh(k / 3.0)[1][:, -1]
    return np.array([w, x, y, z]), shift


POINTS = np.array([[0.3, 0.2, 0.1], [-0.4, 0.5, -0.2], [0.0, -0.6, 0.4]])


def write_colmap(
    folder: Path,
    model: str = "SIMPLE_PINHOLE",
    number: int = 0,
    values: list[float] | None = None,
    text: bool = False,
    matrices: np.ndarray | None = None,
) -> Path:
    """COLMAP's format, with three points that every view shows at places that mean nothing."""
    cameras = true_cameras()
    matrices = np.asarray(cameras.T_world_camera if matrices is None else matrices, np.float64)
    save_images(folder / "images", view_names())
    place = folder / "sparse" / "0"
    place.mkdir(parents=True)
    values = values or [float(cameras.focal[0, 0]), 8.0, 8.0]
    size, count = (cameras.width, cameras.height), len(cameras)
    poses = [_to_colmap(pose) for pose in matrices]
    if text:
        numbers = " ".join(map(repr, values))
        (place / "cameras.txt").write_text(f"# id\n7 {model} {size[0]} {size[1]} {numbers}\n")
        lines = ["# two lines each"]
        for view, (name, (turn, shift)) in enumerate(zip(view_names(), poses, strict=True)):
            numbers = " ".join(repr(float(v)) for v in (*turn, *shift))
            lines += [f"{view + 1} {numbers} 7 {name}.png", "1.0 2.0 4 3.0 4.0 -1 5.0 6.0 9"]
        (place / "images.txt").write_text("\n".join(lines) + "\n")
        points = [
            f"{n} {' '.join(map(repr, map(float, p)))} 9 9 9 0.5 1 0"
            for n, p in zip((9, 4, 5), POINTS, strict=True)
        ]
        (place / "points3D.txt").write_text("\n".join(points))
        return folder
    head = struct.pack("<Q", 1) + struct.pack("<iiQQ", 7, number, *size)
    (place / "cameras.bin").write_bytes(head + struct.pack(f"<{len(values)}d", *values))
    data = struct.pack("<Q", count)
    for view, (name, (turn, shift)) in enumerate(zip(view_names(), poses, strict=True)):
        data += struct.pack("<i7di", view + 1, *turn, *shift, 7) + f"{name}.png".encode() + b"\0"
        seen = ((1.0, 2.0, 4), (3.0, 4.0, -1), (5.0, 6.0, 9))
        data += struct.pack("<Q", 3) + b"".join(struct.pack("<ddq", *one) for one in seen)
    (place / "images.bin").write_bytes(data)
    data = struct.pack("<Q", 3)
    for name_, point in zip((9, 4, 5), POINTS, strict=True):
        data += struct.pack("<Q3d3Bd", name_, *point, 9, 9, 9, 0.5)
        data += struct.pack("<Q2i", 1, 1, 0)
    (place / "points3D.bin").write_bytes(data)
    return folder


def write_deepvoxels(folder: Path) -> Path:
    """DeepVoxels' format, the same views in each split."""
    cameras = true_cameras()
    for split in ("train", "validation", "test"):
        place = folder / split / "ball"
        save_images(place / "rgb", view_names())
        (place / "pose").mkdir()
        for name, pose in zip(view_names(), cameras.T_world_camera, strict=True):
            numbers = (np.asarray(pose, np.float64) @ np.diag([1.0, -1.0, -1.0, 1.0])).ravel()
            (place / "pose" / f"{name}.txt").write_text(" ".join(map(repr, map(float, numbers))))
        focal = float(cameras.focal[0, 0])
        (place / "intrinsics.txt").write_text(f"{focal} 8.0 8.0 0.\n0. 0. 0.\n0.\n1.\n16 16\n\n")
    return folder


def write_multiscale(folder: Path, matrices: bool = False) -> Path:
    """Multi-scale Blender's format: each image at 1, 1/2 and 1/4 of its size, in every split."""
    cameras, table = true_cameras(), {}
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        columns: dict[str, list[Any]] = {
            n: [] for n in ("file_path", "cam2world", "width", "height", "focal", "pix2cam")
        }
        for view, name in enumerate(view_names()):
            images = make_scene().splits["train"].images[view : view + 1]
            for halvings in range(3):
                small = downscale_images(images, 2**halvings)[0]
                path = folder / split / f"{name}_d{halvings}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(small).save(path)
                focal = float(cameras.focal[view, 0]) / 2**halvings
                row = (
                    f"{split}/{path.name}",
                    np.asarray(cameras.T_world_camera[view], np.float64).tolist(),
                    small.shape[1],
                    small.shape[0],
                    focal,
                    [[1 / focal, 0, 0], [0, -1 / focal, 0], [0, 0, -1]],
                )
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
        del columns["focal" if matrices else "pix2cam"]
        table[split] = columns
    (folder / "metadata.json").write_text(json.dumps(table))
    return folder


def write_nsvf(folder: Path, matrix: bool = True, prefixes: str = "000112") -> Path:
    """NSVF's format; `prefixes` says which split each image is of, in the order of their names."""
    true = true_cameras()
    names = [f"{prefixes[ORDER.index(v)]}_{n}" for v, n in enumerate(view_names())]
    save_images(folder / "rgb", names)
    (folder / "pose").mkdir()
    for view, name in enumerate(names):
        pose = np.asarray(true.T_world_camera[view], np.float64) @ np.diag([1.0, -1.0, -1.0, 1.0])
        np.savetxt(folder / "pose" / f"{name}.txt", pose)
    focal = float(true.focal[0, 0])
    if matrix:
        rows = np.array([[focal, 0, 8, 0], [0, focal, 8, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        np.savetxt(folder / "intrinsics.txt", rows)
    else:
        (folder / "intrinsics.txt").write_text(f"{focal} 8.0 8.0 0.\n0. 0. 0.\n0.\n1.\n16 16\n")
    (folder / "bbox.txt").write_text("-1 -1 -1 1 1 1 0.4\n")
    return folder


def write_polycam(folder: Path, corrected: bool = True) -> Path:
    """Polycam's raw export, with other numbers in what it has not corrected."""
    true = true_cameras()
    for prefix in ("", "corrected_")[: 1 + corrected]:
        save_images(folder / "keyframes" / f"{prefix}images", view_names(), ".jpg")
        place = folder / "keyframes" / f"{prefix}cameras"
        place.mkdir(parents=True)
        for view, name in enumerate(view_names()):
            pose = np.array(true.T_world_camera[view], np.float64)
            if corrected and not prefix:
                pose[:3, 3] += 1.0
            numbers: dict[str, Any] = {
                f"t_{row}{column}": pose[row, column] for row in range(3) for column in range(4)
            }
            focal = float(true.focal[view, 0])
            # The numbers are those of larger images.
            numbers |= {"fx": 2 * focal, "fy": 2 * focal, "cx": 16.0, "cy": 16.0}
            numbers |= {"width": 32, "height": 32, "timestamp": 10**15, "blur_score": 120.5}
            (place / f"{name}.json").write_text(json.dumps(numbers))
    return folder


def write_record3d(folder: Path, count: int | None = None) -> Path:
    """Record3D's export: the views again and again, their numbers as names."""
    true = true_cameras()
    views = list(range(len(true))) if count is None else [n % len(true) for n in range(count)]
    poses = np.asarray(true.T_world_camera, np.float64)
    rows = []
    for number, view in enumerate(views):
        # `_to_colmap` has the inverse rotation, of a camera whose y and z point the other way.
        w, x, y, z = _to_colmap(poses[view] @ np.diag([1.0, -1.0, -1.0, 1.0]))[0]
        rows.append([-x, -y, -z, w, *poses[view, :3, 3]])
        save_images(folder / "rgb", [f"{view}"] if count is None else [f"{number}"], ".jpg")
    save_images(folder / "rgb", [f"{n}" for n in range(len(true))], ".jpg")
    focal = float(true.focal[0, 0])
    content = {"poses": rows, "K": [focal, 0, 0, 0, focal, 0, 8, 8, 1], "w": 16, "h": 16}
    (folder / "metadata.json").write_text(json.dumps(content | {"fps": 60}))
    return folder


METASHAPE_LENS = "<k1>0.05</k1><k2>-0.01</k2><k4>0.002</k4><p1>0.001</p1><p2>-0.003</p2>"


def write_metashape(
    folder: Path, lens: str = "", kind: str = "frame", suffix: str = "", extra: str = ""
) -> Path:
    """Metashape's cameras beside a folder of images, in two groups."""
    true = true_cameras()
    save_images(folder / "photos", view_names(), ".jpg")
    focal = float(true.focal[0, 0])
    cameras = ""
    for view, name in enumerate(view_names()):
        pose = np.asarray(true.T_world_camera[view], np.float64) @ np.diag([1.0, -1.0, -1.0, 1.0])
        text = " ".join(map(repr, map(float, pose.ravel())))
        camera = f'<camera id="{view}" sensor_id="3" label="{name}{suffix}">'
        camera += f"<transform>{text}</transform></camera>"
        cameras += f'<group id="{view}">{camera}</group>' if view % 2 else camera
    calibration = f'<resolution width="32" height="32"/><f>{2 * focal}</f>{lens}'
    (folder / "block.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?><document version="2.0.0">'
        '<chunk label="Chunk 1" enabled="true"><sensors next_id="4">'
        f'<sensor id="3" label="phone" type="{kind}"><resolution width="32" height="32"/>'
        '<calibration type="frame" class="initial"><f>9</f></calibration>'
        f'<calibration type="frame" class="adjusted">{calibration}</calibration></sensor>'
        f"</sensors><cameras>{cameras}{extra}</cameras></chunk></document>"
    )
    return folder


def write_rig(folder: Path, scale: float = 2.0) -> Path:
    """Metashape's cameras of a rig of two: the second has no pose but an offset, in meters."""
    write_metashape(folder)
    listing = folder / "block.xml"
    poses = [
        np.asarray(pose, np.float64) @ np.diag([1.0, -1.0, -1.0, 1.0])
        for pose in true_cameras().T_world_camera[:2]
    ]
    offset = np.linalg.inv(poses[0]) @ poses[1]
    rotation, location = (
        " ".join(map(repr, map(float, part.ravel())))
        for part in (offset[:3, :3], offset[:3, 3] * scale)
    )
    text = listing.read_text()
    sensor = text[text.index("<sensor id") : text.index("</sensors>")]
    slave = sensor.replace('id="3"', 'id="4" master_id="3"', 1).replace(
        "</sensor>", f"<rotation>{rotation}</rotation><location>{location}</location></sensor>"
    )
    text = text.replace("</sensors>", f"{slave}</sensors>")
    begin = text.index('<camera id="1"')
    end = text.index("</camera>", begin)
    camera = f'<camera id="1" sensor_id="4" master_id="0" label="{view_names()[1]}">'
    text = text[:begin] + camera + text[end:]
    listing.write_text(
        text.replace("</cameras>", f"</cameras><transform><scale>{scale}</scale></transform>")
    )
    return folder


ALICEVISION_VERSION = ("1", "2", "6")


def write_alicevision(folder: Path, version: Sequence[str] = ALICEVISION_VERSION) -> Path:
    """Meshroom's cameras, as text, with paths from before the images moved."""
    true = true_cameras()
    save_images(folder / "photos", view_names(), ".jpg")
    focal = float(true.focal[0, 0])
    views, poses = [], []
    for view, name in enumerate(view_names()):
        pose = np.asarray(true.T_world_camera[view], np.float64) @ np.diag([1.0, -1.0, -1.0, 1.0])
        number = str(1000 + view)
        views.append(
            {"viewId": number, "poseId": number, "intrinsicId": "7", "path": f"D:/in/{name}.jpg"}
        )
        # World-to-camera, column by column.
        rotation = [str(entry) for entry in pose[:3, :3].T.ravel(order="F")]
        transform = {"rotation": rotation, "center": [str(entry) for entry in pose[:3, 3]]}
        poses.append({"poseId": number, "pose": {"transform": transform, "locked": "0"}})
    views.append({"viewId": "9", "poseId": "9", "intrinsicId": "7", "path": "D:/in/lost.jpg"})
    # Of images that are twice as large, on a sensor of 8 mm, with pixels that are half as high.
    intrinsic: dict[str, Any] = {"intrinsicId": "7", "width": "32", "height": "32"}
    if tuple(map(int, version)) < (1, 2, 1):
        intrinsic |= {"pxFocalLength": str(2 * focal), "principalPoint": ["17", "14"]}
    else:
        length = str(2 * focal / 32 * 8)
        intrinsic |= {"focalLength": length, "sensorWidth": "8", "principalPoint": ["1", "-2"]}
        intrinsic["pixelRatio"] = "2" if tuple(map(int, version)) >= (1, 2, 5) else "0.5"
    intrinsic |= {"type": "radial3", "distortionParams": ["0.05", "-0.01", "0.002"]}
    content = {"version": version, "views": views, "intrinsics": [intrinsic], "poses": poses}
    (folder / "cameras.sfm").write_text(json.dumps(content))
    return folder


def write_opensfm(folder: Path, camera: dict[str, Any] | None = None) -> Path:
    """OpenSfM's reconstruction in the project of OpenDroneMap, and a small one of other shots."""
    true = true_cameras()
    save_images(folder / "images", view_names(), ".jpg")
    # OpenDroneMap keeps undistorted copies, with the same names.
    save_images(folder / "opensfm" / "undistorted" / "images", view_names(), ".jpg")
    shots = {}
    for view, name in enumerate(view_names()):
        pose = np.asarray(true.T_world_camera[view], np.float64) @ np.diag([1.0, -1.0, -1.0, 1.0])
        inverse = np.linalg.inv(pose)
        vector = Rotation.from_matrix(inverse[:3, :3]).as_rotvec()
        shots[f"{name}.jpg"] = {
            "rotation": vector.tolist(), "translation": inverse[:3, 3].tolist(), "camera": "phone",
        }  # fmt: skip
    focal = float(true.focal[0, 0]) / 16
    model = {"projection_type": "perspective", "width": 32, "height": 32, "focal": focal}
    cameras = {"phone": camera or model}
    small = {"cameras": cameras, "shots": {"lost.jpg": shots[f"{view_names()[0]}.jpg"]}}
    content = [small, {"cameras": cameras, "shots": shots, "points": {}}]
    (folder / "opensfm" / "reconstruction.json").write_text(json.dumps(content))
    return folder


def write_reality_capture(folder: Path, header: str = "px,py,k1,k2,k3,k4,t1,t2") -> Path:
    """RealityCapture's table of cameras beside a folder of images."""
    true = true_cameras()
    save_images(folder / "photos", view_names(), ".jpg")
    focal = float(true.focal[0, 0]) / 16 * 36
    lines = ["#cameras 6", f"#name,x,y,alt,heading,pitch,roll,f,{header}".rstrip(",")]
    others = "".join(",0" for name in header.split(",") if name)
    for view, name in enumerate(view_names()):
        pose = np.asarray(true.T_world_camera[view], np.float64)
        # Intrinsic: around z, then x, then y.
        yaw, pitch, roll = Rotation.from_matrix(pose[:3, :3]).as_euler("ZXY", degrees=True)
        numbers = [*pose[:3, 3], -yaw, pitch, roll, focal]
        lines.append(",".join([f"{name}.jpg", *map(repr, map(float, numbers))]) + others)
    (folder / "cameras.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return folder


def write_tiny_nerf(path: Path) -> Path:
    """The one file of NeRF's tiny example."""
    split = make_scene().splits["train"]
    images = split.images[..., :3].astype(np.float32) / 255.0
    poses = np.asarray(split.cameras.T_world_camera)
    np.savez(path, images=images, poses=poses, focal=np.float64(split.cameras.focal[0, 0]))
    return path


assert np.isclose(ANGLE, 2 * np.arctan(8.0 / float(true_cameras().focal[0, 0])))


MILLIMETERS = 1000.0


def z_depth(size: int = 16, wall: float = 5.0) -> np.ndarray:
    """Depth along the axis of a slanted wall, as the first camera sees it."""
    return wall + np.linspace(0.0, 1.0, size)[None] * np.ones((size, 1))


def write_depth_maps(folder: Path, size: int = 16, suffix: str = ".png") -> Path:
    """Depth maps of a slanted wall, in millimeters, with an unknown corner."""
    write_transforms(folder, ".png")
    listing = folder / "transforms.json"
    content = json.loads(listing.read_text())
    (folder / "depth").mkdir()
    depth = z_depth(size)
    depth[:2, :2] = 0.0
    for index, frame in enumerate(content["frames"]):
        path = f"depth/{index}{suffix}"
        frame["depth_file_path"] = path
        if suffix == ".npy":
            np.save(folder / path, (MILLIMETERS * depth).astype(np.float32))
        else:
            Image.fromarray((MILLIMETERS * depth).astype(np.uint16)).save(folder / path)
    listing.write_text(json.dumps(content))
    return folder
