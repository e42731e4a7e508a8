"""A run's folder: what is where, how one is made, found and opened.

config.json    what was trained, as text
checkpoints/   the state at some steps
events.*       for TensorBoard
train.log      what happened
log.jsonl      all scalars
metrics.json   what came out
"""

import contextlib
import dataclasses
import json
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrf.cameras.poses import SceneRange, focus_point, shift_near_far
from jaxrf.cameras.transforms import identity_transform, pack_transform
from jaxrf.core import user_code
from jaxrf.core.errors import InputError
from jaxrf.data.scene import Scene
from jaxrf.evaluation import scoring
from jaxrf.evaluation.scoring import RenderFn
from jaxrf.models.methods import Stage
from jaxrf.parallel import devices as parallel
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training import checkpoint, train, transitions
from jaxrf.training import config as configs
from jaxrf.training.config import TrainConfig
from jaxrf.training.logs import LOG_FILE
from jaxrf.training.train import TrainState

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
# Of more training poses a run keeps only some.
MOST_POSES = 1000
# Share of their distance by which cameras may leave that of the training cameras and still see
# between the same distances.
SPARE = 0.05


@dataclasses.dataclass(frozen=True)
class SceneMetadata:
    """What rendering needs to know of the scene once the pictures are gone.

    Attributes:
      name: of the data set.
      data: folder it was read from.
      near, far: as in `Scene`.
      width, height, focal: of the training cameras, in pixels.
      focus: point that the training cameras look at.
      radius: mean distance of the training cameras from it.
      train_views: number of training pictures.
      checksum: CRC-32 of the training pictures.
      ndc: as in `Cameras`.
      spread: how far the training cameras are apart from their middle, along each axis.
      poses: of the training cameras, 12 numbers each, or of every k-th if they are very many.
      frame: out of the coordinates of the data set's files, as `frames.pack_transform` gives it.
    """

    name: str
    data: str
    near: float
    far: float
    width: int
    height: int
    focal: float
    focus: tuple[float, float, float]
    radius: float
    train_views: int
    checksum: int
    ndc: tuple[float, float, float] | None = None
    spread: tuple[float, float, float] = (0.0, 0.0, 0.0)
    poses: tuple[tuple[float, ...], ...] = ()
    frame: tuple[float, ...] = pack_transform(identity_transform())


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained (or half-trained) run."""

    folder: Path
    config: TrainConfig
    scene: SceneMetadata
    stage: Stage
    state: TrainState
    seconds: float


def scene_metadata(scene: Scene, data: Path) -> SceneMetadata:
    """The summary of a scene that was read from `data`."""
    split = scene.splits["train"]
    poses = np.asarray(split.cameras.T_world_camera)
    x, y, z = (float(v) for v in focus_point(poses))
    distances = np.linalg.norm(poses[:, :3, 3] - np.array([x, y, z]), axis=-1)
    # As far as nine of ten cameras are.
    spread = np.percentile(np.abs(poses[:, :3, 3] - poses[:, :3, 3].mean(axis=0)), 90, axis=0)
    return SceneMetadata(
        name=scene.name,
        data=str(data.absolute()),
        near=scene.near,
        far=scene.far,
        width=split.cameras.width,
        height=split.cameras.height,
        focal=float(split.cameras.focal[0, 0]),
        focus=(x, y, z),
        radius=float(distances.mean()),
        train_views=len(split),
        checksum=zlib.crc32(split.images.tobytes()),
        ndc=split.cameras.ndc,
        spread=(float(spread[0]), float(spread[1]), float(spread[2])),
        poses=tuple(
            tuple(float(v) for v in pose[:3].ravel())
            for pose in poses[:: 1 + len(poses) // MOST_POSES]
        ),
        frame=pack_transform(scene.frame),
    )


def create_folder(folder: Path) -> None:
    """Makes a new run's folder; InputError if it exists with something in it or cannot be made."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(
            f"The run folder {folder} exists already: name another one with --run-dir, or continue "
            "it with --resume."
        )
    make_writable(folder, "--run-dir")


def make_writable(folder: Path, option: str) -> None:
    """Makes a folder if need be and tries to write there; InputError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"The folder {folder} cannot be written to ({error.strerror}): name another one with "
            f"{option}."
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A file to write to that takes the place of another one wholly or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file such that it is there wholly or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_config(folder: Path, config: TrainConfig) -> None:
    """Writes a run's configuration."""
    write_text(folder / CONFIG_FILE, configs.to_json(config))


def vendor_user_code(folder: Path, config: TrainConfig) -> TrainConfig:
    """Copies the user's own code into a run's folder; the configuration then names the copies."""

    def keep(part: Any) -> Any:
        source = getattr(part, "source", "")
        if not source:
            return part
        return dataclasses.replace(part, source=user_code.copy_into(folder, source))

    return dataclasses.replace(config, field=keep(config.field), loss=keep(config.loss))


def find_newest(root: Path) -> Path:
    """The newest run under a folder, by its config file; InputError if there is none."""
    found = sorted(root.glob(f"*/{CONFIG_FILE}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(
            f"There is no run under {root.absolute()}: train one first (python train_lego.py), or "
            "name its folder."
        )
    return found[-1].parent


def read_config(folder: Path) -> TrainConfig:
    """The configuration of a run; InputError if it is missing or does not fit this version."""
    path = folder / CONFIG_FILE
    try:
        config = configs.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is not a run: it has no {CONFIG_FILE}; name a folder that training wrote."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"{path} cannot be used ({reason}): restore it, or train the run anew."
        ) from error

    def find(part: Any) -> Any:
        source = user_code.find_copy(folder, getattr(part, "source", ""))
        return dataclasses.replace(part, source=source) if source else part

    # A run may have been moved, and its code with it.
    return dataclasses.replace(config, field=find(config.field), loss=find(config.loss))


def open_checkpoints(folder: Path, config: TrainConfig) -> Any:
    """The manager of a run's checkpoints."""
    return checkpoint.open_checkpoints(folder / "checkpoints", config.keep_checkpoints)


class LazyCheckpointManager:
    """The checkpoints of a run, whose manager is opened by the first to be saved."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self._folder, self._config = folder, config
        self._manager: Any = None

    def save(self, *arguments: Any, **named: Any) -> Any:
        """As the manager's."""
        self._manager = self._manager or open_checkpoints(self._folder, self._config)
        return self._manager.save(*arguments, **named)

    def wait_until_finished(self) -> None:
        """Waits for what was saved to be on disk."""
        if self._manager:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Closes the manager if it was opened."""
        if self._manager:
            self._manager.close()


def save(
    manager: Any,
    scene: SceneMetadata,
    stage: Stage,
    state: TrainState,
    seconds: float,
    psnr: float | None,
) -> None:
    """Starts writing a checkpoint of the state, with what is needed to restore it.

    `seconds` is the training time so far, `psnr` the last validation's.
    """
    meta = describe(scene, stage, seconds)
    checkpoint.save(manager, int(state.step), state, meta, psnr)


def _freeze(value: Any) -> Any:
    """JSON's lists as tuples, all the way down."""
    return tuple(_freeze(v) for v in value) if isinstance(value, list) else value


def describe(scene: SceneMetadata, stage: Stage, seconds: float) -> dict[str, Any]:
    """What has to be known before a state can be restored, as JSON can hold it."""
    return {
        "scene": dataclasses.asdict(scene),
        "stage": dataclasses.asdict(stage),
        "seconds": seconds,
    }


def parse_metadata(meta: dict[str, Any]) -> tuple[SceneMetadata, Stage, float]:
    """What `describe` was given; ValueError, KeyError or TypeError if it did not make this."""
    scene, stage = (
        {name: _freeze(value) for name, value in dict(meta[part]).items()}
        for part in ("scene", "stage")
    )
    return SceneMetadata(**scene), Stage(**stage), float(meta["seconds"])


def open_run(folder: Path, step: int | None = None, config: TrainConfig | None = None) -> Run:
    """A run at its last (or the given) checkpoint.

    Args:
      folder: of the run.
      step: which checkpoint.
      config: used instead of the run's own.

    Raises:
      InputError: if the folder is no run, has no checkpoint, or holds one that does not fit.
    """
    config = config or read_config(folder)
    if not (folder / "checkpoints").is_dir():
        raise InputError(
            f"The run {folder} has no checkpoint yet: nothing can be rendered or resumed; train it "
            "anew under another name."
        )
    manager = open_checkpoints(folder, config)
    try:
        if step is None:
            step = manager.latest_step()
        if step is None or step not in manager.all_steps():
            known = ", ".join(str(s) for s in sorted(manager.all_steps())) or "none"
            raise InputError(
                f"The run {folder} has no checkpoint{'' if step is None else f' of step {step}'} "
                f"(there are: {known}): choose another, or train the run anew."
            )
        try:
            scene, stage, seconds = parse_metadata(checkpoint.read_meta(manager, step))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(
                f"The checkpoint of step {step} in {folder} is damaged: delete its folder "
                f"{folder / 'checkpoints' / str(step)} to fall back on an earlier one."
            ) from error
        # Of the state only shapes are needed, which do not depend on the box.
        box = np.array([[0.0] * 3, [1.0] * 3], np.float32)
        grid = transitions.init_grid(config.field, stage, box)
        target = jax.eval_shape(lambda: train.init_state(config, stage, grid))
        if jax.process_count() > 1:
            # Each process reads everything into its own memory.
            target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), target)
        state = checkpoint.restore(manager, step, target)
        if jax.process_count() == 1:
            # What several devices have saved comes back in host memory.
            state = jax.tree.map(jnp.asarray, state)
    finally:
        manager.close()
    return Run(folder, config, scene, stage, state, seconds)


def near_far_fn(scene: SceneMetadata, grid: OccupancyGrid) -> SceneRange:
    """Near and far of any camera: of an object in a box they move with it, `cameras.shift_near_far`."""
    same = (scene.near, scene.far)
    if scene.ndc is not None or grid.bounds is not None:
        # There is something to be seen from the near plane to far out.
        return same
    focus, usual = np.array(scene.focus, np.float64), camera_distance_range(scene)
    return lambda cameras, index: shift_near_far(cameras, index, same, focus, usual)


def camera_distance_range(scene: SceneMetadata) -> tuple[float, float]:
    """How near to and how far from the focus cameras are that see between near and far."""
    places = np.array(scene.poses, np.float64).reshape(-1, 3, 4)[:, :, 3]
    away = np.append(np.linalg.norm(places - np.array(scene.focus), axis=-1), scene.radius)
    return (1.0 - SPARE) * float(away.min()), (1.0 + SPARE) * float(away.max())


def make_render_fn(run: Run, supersample: int | None = None) -> RenderFn:
    """A function (cameras, index) -> picture of what the run has learnt.

    `supersample` are those per pixel along each axis, by default as many as in training. All devices
    share the rays.
    """
    return scoring.make_render_fn(
        run.config,
        run.stage,
        run.state.shown,
        run.state.grid,
        near_far_fn(run.scene, run.state.grid),
        train.background_color(run.config),
        supersample,
        mesh=parallel.make_mesh(None),
    )


def read_metrics(folder: Path) -> dict[str, Any]:
    """What metrics.json holds; nothing if it is missing or cannot be read."""
    try:
        values = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def read_curve(folder: Path, tag: str) -> list[tuple[float, float]]:
    """What a run has logged of something, by step; nothing if it has no log."""
    try:
        lines = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        # A machine that lost its power may have left half a line.
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    # A resumed run has some steps twice, and one that overflowed has no loss.
    found = {float(entry["step"]): entry.get(tag) for entry in entries if tag in entry}
    return [(step, found[step]) for step in sorted(found) if found[step] is not None]


def write_metrics(folder: Path, values: dict[str, Any]) -> None:
    """Writes metrics.json."""
    write_text(folder / METRICS_FILE, to_text(values))


def to_text(values: dict[str, Any]) -> str:
    """Metrics as readable JSON."""
    return json.dumps(values, indent=2) + "\n"


def name_run(config: TrainConfig, dataset: str) -> Path:
    """The default folder of a new run: runs/<dataset>-<field>-<time>."""
    moment = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{dataset}-{config.field.kind}-{moment}"
