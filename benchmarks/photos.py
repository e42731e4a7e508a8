"""Poses that are found for images alone, against the true ones.

python benchmarks/photos.py video [--frames 60] [--size 480]   a video around the built-in scene
python benchmarks/photos.py DATA                               the images of a data set with poses

Prints a row in Markdown: images placed, minutes, mean reprojection error, and the mean and largest
errors of rotation (degrees) and position (percent of the mean distance of the cameras from their
middle), after the similarity that brings the positions closest to the true ones. The clip and the
data set stay in --output.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from jaxrf.cameras.poses import look_at
from jaxrf.cameras.transforms import (
    fit_similarity,
    invert_transform,
    transform_poses,
)
from jaxrf.core.errors import InputError
from jaxrf.data import sources
from jaxrf.data.bricks.model import build_model
from jaxrf.data.bricks.rendering import render_view
from jaxrf.data.colmap_files import read_reconstruction
from jaxrf.data.photos.prepare import PhotoOptions, prepare_photos


def orbit_poses(count: int) -> np.ndarray:
    """A walk around the built-in scene that rises and comes back to where it began."""
    angles = 2.0 * np.pi * np.arange(count) / count
    heights = 1.6 + 0.5 * np.sin(2.0 * angles)
    return np.stack(
        [
            look_at(np.array([3.6 * np.cos(a), 3.6 * np.sin(a), z]), np.array([0.0, 0.0, 0.2]))
            for a, z in zip(angles, heights, strict=True)
        ]
    )


def write_video(path: Path, poses: np.ndarray, size: int) -> None:
    """Renders views of the built-in scene on gray, as a video."""
    model, frames = build_model(), []
    # Encoders take even sizes only.
    width, height = size // 2 * 2, size * 3 // 8 * 2
    for pose in poses:
        rgba, _ = render_view(model, pose, width, height)
        alpha = rgba[..., 3:] / 255.0
        frames.append(np.rint(rgba[..., :3] * alpha + 190.0 * (1.0 - alpha)).astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, np.stack(frames), fps=15, codec="libx264", quality=9, macro_block_size=1)


def pose_errors(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of rotation in degrees and of position in percent, after alignment."""
    aligned = transform_poses(fit_similarity(found[:, :3, 3], true[:, :3, 3]), found)
    turns = aligned[:, :3, :3] @ true[:, :3, :3].transpose(0, 2, 1)
    cosine = 0.5 * (np.trace(turns, axis1=1, axis2=2) - 1.0)
    degrees = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    positions = true[:, :3, 3]
    radius = np.linalg.norm(positions - positions.mean(axis=0), axis=-1).mean()
    return degrees, 100.0 * np.linalg.norm(aligned[:, :3, 3] - positions, axis=-1) / radius


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", help="video, or a data set")
    parser.add_argument("--frames", type=int, default=60, help="of the video (60)")
    parser.add_argument("--size", type=int, default=480, help="width of the video (480)")
    parser.add_argument("--output", type=Path, default=Path("runs/photos"), help="(runs/photos)")
    parser.add_argument("--camera-model", default=PhotoOptions().camera_model)
    options = parser.parse_args()
    if options.data == "video":
        poses, source = orbit_poses(options.frames), options.output / "bricks.mp4"
        write_video(source, poses, options.size)
        true = {f"frame_{index:05d}.jpg": pose for index, pose in enumerate(poses)}
    else:
        source, true = options.output / "photos", {}
        scene = sources.load_scene(sources.find_data(Path(options.data)), ["train", "test"])
        assert scene.folder is not None
        for split in scene.splits.values():
            back = invert_transform(scene.frame)
            cameras = transform_poses(back, np.asarray(split.cameras.T_world_camera, np.float64))
            for name, pose in zip(split.names, cameras, strict=True):
                (photo,) = (p for p in scene.folder.rglob(f"{name}.*") if p.suffix != ".npy")
                true[photo.name] = pose
                source.mkdir(parents=True, exist_ok=True)
                shutil.copy(photo, source)
    started = time.monotonic()
    photos = PhotoOptions(frames=options.frames, camera_model=options.camera_model)
    try:
        report = prepare_photos(source, options.output / "set", photos)
    except InputError as error:
        sys.exit(str(error))
    minutes = (time.monotonic() - started) / 60.0
    model = read_reconstruction(options.output / "set" / "sparse" / "0")
    found = np.stack([image.pose for image in model.images])
    degrees, percent = pose_errors(found, np.stack([true[image.name] for image in model.images]))
    print("| data | placed | minutes | error (px) | rotation (deg) | position (%) |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {options.data} | {len(report.placed)} of {len(true)} | {minutes:.1f} | "
        f"{report.error:.2f} | {degrees.mean():.3f}, {degrees.max():.3f} | "
        f"{percent.mean():.2f}, {percent.max():.2f} |"
    )


if __name__ == "__main__":
    main()
