"""Any run as voxels: they learn from its renderings, in the place of photos.

Renderings may be of any view, have no noise, and know their opacity, so that voxels come close to
the run in little time. Hedman et al. (SNeRG, ICCV 2021) and Reiser et al. (MERF, SIGGRAPH 2023)
prepare fields for browsers likewise.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf import presets
from jaxrf.cameras.base import Cameras, pinhole_cameras
from jaxrf.core.errors import InputError
from jaxrf.data.scene import KnownDepth, Scene, Split
from jaxrf.evaluation import metrics
from jaxrf.evaluation.scoring import evenly_spaced_indices
from jaxrf.export.progress import ProgressFn, no_progress
from jaxrf.export.training_views import distances_in_space
from jaxrf.fields.voxels import Voxels
from jaxrf.rendering.image import HostRendering
from jaxrf.training import loop, runs, transitions
from jaxrf.training.callbacks import TrainCallback
from jaxrf.training.config import TrainConfig
from jaxrf.training.runs import Run
from jaxrf.training.state import background_color

# Views by which voxels are compared with the run; they do not learn from these.
NUM_CHECKED_VIEWS = 8
# Size of the renderings of a scene that goes on beyond them, in sizes of its images.
BORDER = 1.2
# Weight of the renderings' depth (`LossConfig.depth_weight`), from which voxels learn where
# surfaces are, and the pixels that it is known of at most.
DEPTH_WEIGHT, MAX_KNOWN_DEPTHS = 0.01, 2_000_000
# Pixels of less opacity show no surface.
MIN_SURFACE_OPACITY = 0.9
# Neighbors of a camera, of which one is chosen for a view between the two.
NUM_NEIGHBORS = 4


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """How voxels learn from a run.

    Attributes:
      num_views: renderings to learn from, training cameras first, then views between them.
      num_steps: of training.
      divisions: how often voxels are divided into eight, more or less often than is usual.
      max_size: of the longer side of a rendering, in pixels.
      seed: of the views between cameras, and of training.
    """

    num_views: int = 120
    num_steps: int = 2500
    divisions: int = 0
    max_size: int = 400
    seed: int = 0


def distill_voxels(
    run: Run,
    config: DistillConfig,
    progress: ProgressFn = no_progress,
    callback: TrainCallback | None = None,
) -> tuple[Run, float]:
    """Voxels that look like a run, and how much they do.

    Args:
      run: of any field and model, with the poses of its training cameras.
      config: how they learn.
      progress: reports the renderings.
      callback: reports the training.

    Returns:
      A run of voxels with the scene of the other one; and the mean PSNR, in dB, of its views
      against those of the other one, from poses between training cameras.

    Raises:
      InputError: the run does not hold the poses of its training cameras.
    """
    cameras = _choose_cameras(run, config)
    render_fn = runs.make_render_fn(run)
    is_object = _is_object(run)
    background = background_color(run.config)
    renderings = [render_fn(cameras, i) for i in progress(range(len(cameras)), "render views")]
    images = np.stack([_to_rgba(rendering, background, is_object) for rendering in renderings])
    learned = slice(NUM_CHECKED_VIEWS, None)
    known_depth = None
    if not is_object:
        # Opacity shows where an object is, and with depths it was 7 dB worse.
        known_depth = _list_surface(run, cameras[learned], renderings[learned], config.seed)
    scene = _make_scene(run, cameras[learned], images[learned], known_depth)
    pixel_size = run.scene.radius / float(cameras.focal[0, 0])
    train_config = _choose_voxels(config, scene, pixel_size)
    if not is_object:
        train_config = dataclasses.replace(train_config, background=run.config.background)
    if known_depth is not None:
        loss = dataclasses.replace(train_config.loss, depth_weight=DEPTH_WEIGHT)
        train_config = dataclasses.replace(train_config, loss=loss)
    stage, state = loop.fit(train_config, scene, callback)
    page_config = dataclasses.replace(train_config, background=run.config.background)
    voxels = dataclasses.replace(run, config=page_config, stage=stage, state=state)
    render_voxels = runs.make_render_fn(voxels)
    scores = [
        metrics.psnr(np.asarray(render_voxels(cameras, i).rgb), np.asarray(renderings[i].rgb))
        for i in range(NUM_CHECKED_VIEWS)
    ]
    return voxels, float(np.mean(scores))


def _choose_voxels(config: DistillConfig, scene: Scene, pixel_size: float) -> TrainConfig:
    """The preset of voxels, divided until they are no wider than a pixel, and as `config` says."""
    preset = dataclasses.replace(
        presets.voxels_small(), num_steps=config.num_steps, seed=config.seed
    )
    resolved = transitions.resolve_config(preset, scene)
    field, usual = preset.field, resolved.field
    assert isinstance(field, Voxels) and isinstance(usual, Voxels)
    usual_divisions = usual.num_subdivisions or 0
    is_wide = not scene.unbounded and usual.min_voxel_size(scene.aabb) > pixel_size
    divisions = max(usual_divisions + is_wide + config.divisions, 0)
    if divisions == usual_divisions:
        return resolved
    # One division after the other, a tenth of the training each.
    times = tuple(0.1 * (1 + division) for division in range(divisions))
    field = dataclasses.replace(
        field, upsample_at=times, num_subdivisions=divisions, prune_at=(0.04, *times)
    )
    return transitions.resolve_config(dataclasses.replace(preset, field=field), scene)


def _choose_cameras(run: Run, config: DistillConfig) -> Cameras:
    """Cameras to compare views of, then those to learn from, without lens distortion."""
    scene = run.scene
    if len(scene.poses) < 2:
        raise InputError(
            f"{run.folder} does not hold the poses of its training images, from which voxels learn "
            "how it looks: convert it again with --data."
        )
    poses = scene.pose_matrices()
    trained = poses[evenly_spaced_indices(len(poses), config.num_views)]
    others = config.num_views - len(trained) + NUM_CHECKED_VIEWS
    between = poses_between(poses, others, np.random.default_rng(config.seed))
    ordered = np.concatenate([between[:NUM_CHECKED_VIEWS], trained, between[NUM_CHECKED_VIEWS:]])
    scale = min(config.max_size / max(scene.width, scene.height), 1.0)
    width, height = (max(round(scale * side), 1) for side in (scene.width, scene.height))
    if not _is_object(run):
        # Lenses and cameras between these see beyond their borders.
        width, height = round(BORDER * width), round(BORDER * height)
    cameras = pinhole_cameras(ordered, width, height, scale * scene.focal)
    return dataclasses.replace(cameras, ndc=scene.ndc)


def _is_object(run: Run) -> bool:
    """Whether the scene ends in its box, so that images can have its opacity."""
    return run.state.grid.bounds is None and run.scene.ndc is None


def poses_between(
    poses: Float[np.ndarray, "n 4 4"], count: int, rng: np.random.Generator
) -> Float[np.ndarray, "count 4 4"]:
    """Random poses between a camera and one of those that stand next to it, of two or more."""
    from scipy.spatial.transform import Rotation, Slerp

    result = np.tile(np.eye(4), (count, 1, 1))
    for pose in result:
        first = poses[rng.integers(len(poses))]
        distance = np.linalg.norm(poses[:, :3, 3] - first[:3, 3], axis=-1)
        second = poses[rng.choice(np.argsort(distance)[1 : 1 + NUM_NEIGHBORS])]
        share = rng.uniform(0.2, 0.8)
        pose[:3, 3] = (1.0 - share) * first[:3, 3] + share * second[:3, 3]
        ends = Rotation.from_matrix(np.stack([first[:3, :3], second[:3, :3]]))
        pose[:3, :3] = Slerp([0.0, 1.0], ends)(share).as_matrix()
    return result


def _to_rgba(
    rendering: HostRendering, background: Float[np.ndarray, "3"], is_object: bool
) -> UInt8[np.ndarray, "h w 4"]:
    """A rendering as an image: with its opacity if it is of an object, else opaque."""
    rgb, opacity = np.asarray(rendering.rgb), np.asarray(rendering.opacity)[..., None]
    if is_object:
        rgb = (rgb - (1.0 - opacity) * background) / np.maximum(opacity, 1e-3)
    else:
        opacity = np.ones_like(opacity)
    rgba = np.concatenate([rgb, opacity], axis=-1)
    return np.rint(255.0 * np.clip(rgba, 0.0, 1.0)).astype(np.uint8)


def _list_surface(
    run: Run, cameras: Cameras, renderings: Sequence[HostRendering], seed: int
) -> KnownDepth | None:
    """Median depths of pixels that show a surface, `MAX_KNOWN_DEPTHS` at most; None without any."""
    scene, parts = run.scene, []
    for image, rendering in enumerate(renderings):
        opacity, median = np.asarray(rendering.opacity), np.asarray(rendering.median_depth)
        # The median of what reaches to the end of rays is no surface.
        row, column = np.nonzero((opacity > MIN_SURFACE_OPACITY) & (median < 0.95 * scene.far))
        distance = distances_in_space(scene, cameras, image, median)[row, column]
        parts.append(KnownDepth(np.full_like(row, image), row, column, distance))
    known = KnownDepth(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    count = len(known.distance)
    if count > MAX_KNOWN_DEPTHS:
        chosen = np.random.default_rng(seed).choice(count, MAX_KNOWN_DEPTHS, replace=False)
        known = KnownDepth(*(numbers[np.sort(chosen)] for numbers in known))
    return known if count else None


def _make_scene(
    run: Run,
    cameras: Cameras,
    images: UInt8[np.ndarray, "n h w 4"],
    known_depth: KnownDepth | None,
) -> Scene:
    """The renderings as a data set, in the scene's own coordinates."""
    grid = run.state.grid
    names = tuple(str(index) for index in range(len(images)))
    return Scene(
        name=run.scene.name,
        splits={"train": Split("train", names, images, cameras, known_depth=known_depth)},
        aabb=np.asarray(grid.aabb if grid.bounds is None else grid.bounds),
        near=run.scene.near,
        far=run.scene.far,
        unbounded=grid.bounds is not None,
    )
