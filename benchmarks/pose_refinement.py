"""Recovers disturbed poses with `--refine`, and prints errors and scores.

python benchmarks/pose_refinement.py --degrees 0 0.5 1 2
python benchmarks/pose_refinement.py --data FOX

For each angle, the poses of the training images are turned by it around random axes and moved by a
share of the distance of the cameras in random directions; test poses stay as they are. Errors of
poses are what is left after the similarity that fits them to the given ones best. Scores are of
views with their given poses, and with poses fitted to their images (`runs.align_split`), which a
field trained on given poses gets as well, to be compared with.
"""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from jaxtyping import Float

import jaxrf
from jaxrf import presets
from jaxrf.cameras.base import pinhole_cameras
from jaxrf.cameras.refinement import CameraAdjustment, Refine, adjust_cameras
from jaxrf.cameras.transforms import fit_pose_similarity, transform_poses
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.data.scene import Scene, Split
from jaxrf.data.sources import ensure_bricks
from jaxrf.training import runs
from jaxrf.training.scene_metadata import refined_poses


@dataclasses.dataclass(frozen=True)
class Options:
    """Numbers of the benchmark."""

    data: Path | None = None
    """A capture; without it, 30 views of the built-in scene at 128x128."""
    preset: str | None = None
    """By default capture-small for data, and hashgrid-small for the built-in scene."""
    degrees: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    """Angles by which poses are turned."""
    shift: float = 0.01
    """Share of the cameras' distance by which they are moved as well, unless the angle is 0."""
    steps: int = 2000
    """Steps of each training."""
    refine: tuple[Refine, ...] = ("none", "poses")
    """Trainings with each set of poses."""
    refine_from: Literal["matches", "given"] = "matches"
    """What refinement begins with."""
    camera_lr: float | None = None
    """Learning rate of cameras; by default the preset's."""
    split: str = "test"
    """Views that are scored."""
    views: int = 8
    """Number of views that are scored, at most."""
    seed: int = 0
    """Of the trainings."""


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


def load(options: Options) -> Scene:
    """The scene with poses as given."""
    if options.data is not None:
        return jaxrf.load_scene(options.data)
    scene = jaxrf.load_scene(ensure_bricks(SyntheticSceneConfig(128)))
    return with_train(scene, take(scene.train, range(30)))


def take(split: Split, indices: Sequence[int]) -> Split:
    """Some images of a split."""
    chosen = np.asarray(indices)
    return dataclasses.replace(
        split,
        names=tuple(split.names[index] for index in indices),
        images=split.images[chosen],
        cameras=split.cameras[chosen],
        masks=None if split.masks is None else split.masks[chosen],
        sizes=None if split.sizes is None else split.sizes[chosen],
        depth=None,
        known_depth=None,
        paths=(),
        exposures=None,
    )


def with_train(scene: Scene, train: Split) -> Scene:
    """A scene with another training split."""
    return dataclasses.replace(scene, splits={**scene.splits, "train": train})


def with_poses(split: Split, poses: Float[np.ndarray, "n 4 4"]) -> Split:
    """A split with other poses."""
    cameras = dataclasses.replace(split.cameras, T_world_camera=poses.astype(np.float32))
    return dataclasses.replace(split, cameras=cameras)


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
    preset = options.preset or ("hashgrid-small" if options.data is None else "capture-small")
    config = presets.make_preset(preset)
    optimizer = config.optimizer
    if options.camera_lr is not None:
        optimizer = dataclasses.replace(optimizer, camera_lr=options.camera_lr)
    started = time.monotonic()
    result = jaxrf.fit(
        config,
        scene,
        num_steps=options.steps,
        refine=refine,
        refine_from=options.refine_from,
        optimizer=optimizer,
        seed=options.seed,
        progress=False,
    )
    seconds = time.monotonic() - started
    poses = np.asarray(scene.train.cameras.T_world_camera, np.float64)
    if result.params.cameras is not None:
        _, poses = refined_poses(result.scene_metadata, result.params.cameras)
    split = scene.splits[options.split]
    split = take(split, range(0, len(split), max(len(split) // options.views, 1)))
    aligned = runs.align_split(result.to_run("unused"), split)
    angle, distance = measure_errors(poses, exact)
    scores = (result.evaluate(views) for views in (split, aligned))
    numbers = (f"{score['psnr']:6.2f} dB, {score['ssim']:.3f}" for score in scores)
    return f"{angle:.3f} degrees, {distance:.2%}; {'; '.join(numbers)}; {seconds:.0f} s"


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Trains with all poses with and without refinement, and prints a line for each."""
    scene = load(options)
    exact = np.asarray(scene.train.cameras.T_world_camera, np.float64)
    center = np.mean(scene.aabb, axis=0)
    radius = float(np.linalg.norm(exact[:, :3, 3] - center, axis=-1).mean())
    print("rotation, position in shares of the radius; PSNR and SSIM as given; aligned; training")
    for degrees in options.degrees:
        shift = options.shift * radius if degrees else 0.0
        poses = disturb_poses(exact, degrees, shift, seed=0)
        disturbed = with_train(scene, with_poses(scene.train, poses))
        angle, distance = measure_errors(poses, exact)
        print(f"{degrees:g} degrees: {angle:.3f} degrees, {distance:.2%}")
        for refine in options.refine:
            print(f"  {refine:6}: {train(disturbed, exact, refine, options)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
