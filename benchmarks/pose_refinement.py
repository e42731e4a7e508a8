"""Recovers disturbed poses of the built-in scene with `--refine`, and prints errors and scores.

python benchmarks/pose_refinement.py --degrees 0 0.5 1 2 --steps 1500

For each angle, the poses of the training images of `bricks` are turned by it around random axes and
moved by a share of the distance of the cameras in random directions; test poses stay exact. The
disturbed sets stay in --output, as folders to train on. Errors of poses are what is left after the
similarity that fits them to the exact ones best.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float

import jaxrf
from jaxrf import presets
from jaxrf.cameras.base import pinhole_cameras
from jaxrf.cameras.refinement import CameraAdjustment, Refine, adjust_cameras
from jaxrf.cameras.transforms import fit_pose_similarity, transform_poses
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.data.scene import Scene
from jaxrf.data.sources import ensure_bricks
from jaxrf.training import runs
from jaxrf.training.scene_metadata import refined_poses


@dataclasses.dataclass(frozen=True)
class Options:
    """Numbers of the benchmark."""

    degrees: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    """Angles by which poses are turned."""
    shift: float = 0.01
    """Share of the cameras' distance by which they are moved as well, unless the angle is 0."""
    steps: int = 1500
    """Steps of each training."""
    refine: tuple[Refine, ...] = ("none", "poses")
    """Trainings on each set."""
    camera_lr: float | None = None
    """Learning rate of cameras; by default the preset's."""
    camera_warmup: float | None = None
    """Warm-up of cameras; by default the preset's."""
    views: int = 8
    """Test views that are scored."""
    size: int = 128
    """Width and height of the images."""
    train_views: int = 30
    """Number of training images, the first of the scene's 100."""
    output: Path = Path("runs/pose_refinement")
    """Folder for the disturbed data sets."""


def disturb_poses(
    poses: Float[np.ndarray, "n 4 4"], degrees: float, distance: float, seed: int
) -> Float[np.ndarray, "n 4 4"]:
    """Poses turned around random axes and moved in random directions, all by the same amounts."""
    rng = np.random.default_rng(seed)
    axes, directions = rng.normal(size=(2, len(poses), 3))
    axes *= math.radians(degrees) / np.linalg.norm(axes, axis=-1, keepdims=True)
    directions *= distance / np.linalg.norm(directions, axis=-1, keepdims=True)
    cameras = dataclasses.replace(pinhole_cameras(poses, 1, 1, 1.0), T_world_camera=poses)
    changes = CameraAdjustment(np.concatenate([axes, directions], axis=-1))
    return np.asarray(adjust_cameras(cameras, changes, np).T_world_camera)


def write_disturbed(
    source: Path, folder: Path, degrees: float, shift: float, train_views: int
) -> None:
    """Writes a data set with disturbed training poses, whose images are those of another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        link = folder / split
        if not link.exists():
            link.symlink_to((source / split).absolute())
        content = json.loads((source / f"transforms_{split}.json").read_text())
        if split == "train":
            content["frames"] = content["frames"][:train_views]
            poses = np.array([frame["transform_matrix"] for frame in content["frames"]])
            radius = float(np.linalg.norm(poses[:, :3, 3], axis=-1).mean())
            poses = disturb_poses(poses, degrees, shift * radius, seed=0)
            for frame, pose in zip(content["frames"], poses, strict=True):
                frame["transform_matrix"] = pose.tolist()
        (folder / f"transforms_{split}.json").write_text(json.dumps(content, indent=1))


def measure_errors(
    poses: Float[np.ndarray, "n 4 4"], exact: Float[np.ndarray, "n 4 4"]
) -> tuple[float, float]:
    """Mean angle in degrees and mean distance as a share of the radius, after alignment."""
    aligned = transform_poses(fit_pose_similarity(poses, exact), poses)
    turns = np.einsum("nij,nkj->nik", aligned[:, :3, :3], exact[:, :3, :3])
    sine = np.linalg.norm(turns - np.eye(3), axis=(1, 2)) / math.sqrt(8.0)
    angles = np.degrees(2.0 * np.arcsin(np.clip(sine, 0.0, 1.0)))
    radius = np.linalg.norm(exact[:, :3, 3], axis=-1).mean()
    distances = np.linalg.norm(aligned[:, :3, 3] - exact[:, :3, 3], axis=-1)
    return float(angles.mean()), float(distances.mean() / radius)


def train(scene: Scene, exact: Float[np.ndarray, "n 4 4"], refine: Refine, options: Options) -> str:
    """Trains on a scene; a line of errors and scores."""
    config = presets.hashgrid_small()
    rates = {"camera_lr": options.camera_lr, "camera_warmup": options.camera_warmup}
    optimizer = dataclasses.replace(
        config.optimizer, **{name: value for name, value in rates.items() if value is not None}
    )
    result = jaxrf.fit(
        config, scene, num_steps=options.steps, refine=refine, optimizer=optimizer, progress=False
    )
    poses = np.asarray(scene.train.cameras.T_world_camera, np.float64)
    test = scene.test
    every = max(len(test) // options.views, 1)
    test = dataclasses.replace(
        test,
        names=test.names[::every],
        images=test.images[::every],
        cameras=test.cameras[::every],
        depth=None,
    )
    line = f"given {result.evaluate(test)['psnr']:6.2f} dB"
    if result.params.cameras is not None:
        _, poses = refined_poses(result.scene_metadata, result.params.cameras)
        aligned = runs.align_split(result.to_run("unused"), test)
        line += f", aligned {result.evaluate(aligned)['psnr']:6.2f} dB"
    angle, distance = measure_errors(poses, exact)
    return f"{angle:.3f} degrees, {distance:.2%} of the radius; {line}"


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Trains on every set with and without refinement, and prints a line for each."""
    synthetic = SyntheticSceneConfig(options.size)
    source = ensure_bricks(synthetic)
    exact = jaxrf.load_scene(source).train.cameras.T_world_camera.astype(np.float64)
    exact = exact[: options.train_views]
    for degrees in options.degrees:
        folder = options.output / f"bricks_{degrees:g}"
        shift = options.shift if degrees else 0.0
        write_disturbed(source, folder, degrees, shift, options.train_views)
        scene = jaxrf.load_scene(folder)
        before = measure_errors(scene.train.cameras.T_world_camera.astype(np.float64), exact)
        print(f"{degrees:g} degrees: {before[0]:.3f} degrees, {before[1]:.2%} of the radius")
        for refine in options.refine:
            print(f"  {refine:6}: {train(scene, exact, refine, options)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
