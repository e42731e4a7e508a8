"""The folder of a run: how it is created, found, opened and rendered.

config.json    the training configuration
checkpoints/   training states
events.*       TensorBoard events
train.log      events in words, with the time
log.jsonl      scalars, a line of JSON per step
metrics.json   results
cameras.json   the training cameras, if they were refined
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrf.core import user_code
from jaxrf.core.errors import InputError
from jaxrf.data.scene import Split
from jaxrf.evaluation import pose_fitting, scoring
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.evaluation.scoring import RenderFn
from jaxrf.fields.base import Field
from jaxrf.models.base import StageSpec
from jaxrf.parallel import devices
from jaxrf.training import checkpoint, config_json, transitions
from jaxrf.training.checkpoint import DamagedCheckpointError
from jaxrf.training.config import TrainConfig
from jaxrf.training.logs import LOG_FILE
from jaxrf.training.scene_metadata import SceneMetadata, near_far_fn, refined_frame
from jaxrf.training.state import TrainState, background_color, init_state

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.json"
# Of config.json and checkpoints; to be raised when names in them change.
FORMAT_VERSION = 4


@dataclasses.dataclass(frozen=True)
class Run:
    """A run opened at one of its checkpoints.

    Attributes:
      folder: of the run.
      config: of the training.
      scene: metadata of the scene.
      stage, state: the training stage and state at the checkpoint.
      seconds: training time so far.
    """

    folder: Path
    config: TrainConfig
    scene: SceneMetadata
    stage: StageSpec
    state: TrainState
    seconds: float


def create_folder(folder: Path) -> None:
    """Creates the folder of a new run.

    Raises:
      InputError: if the folder exists and is not empty, or cannot be written to.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(
            f"The run folder {folder} exists already: name another one with --run-dir, or continue "
            "it with --resume."
        )
    make_writable(folder, "--run-dir")


def make_writable(folder: Path, option: str) -> None:
    """Creates a folder unless it exists, and checks that files can be written there.

    Raises:
      InputError: if they cannot; the message names the `option` that gives another folder.
    """
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
def replace_run(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of a run once it is filled without an error.

    Raises:
      InputError: if the folder holds something else than a run.
    """
    if not _is_run(folder):
        raise InputError(
            f"{folder} exists and is not a run of jaxrf: save under another name, or remove it."
        )
    # The run itself, if the folder is a link to it.
    folder = folder.resolve()
    make_writable(folder.parent, "folder")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new, old = Path(temporary, folder.name), Path(temporary, "old")
        new.mkdir()
        yield new
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a configuration and checkpoints, as training and `save` write them."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    has_config = isinstance(content, dict) and {"field", "model", "num_steps"} <= set(content)
    return has_config and (folder / "checkpoints").is_dir()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file that replaces `path` once it is written without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_config(folder: Path, config: TrainConfig) -> None:
    """Writes the configuration of a run, with the version of its format."""
    content = {"version": FORMAT_VERSION, **config_json.encode(config)}
    write_text(folder / CONFIG_FILE, to_text(content))


def vendor_user_code(
    folder: Path, config: TrainConfig, final_folder: Path | None = None
) -> TrainConfig:
    """Copies the user's modules into a run's folder; returns a config that names the copies.

    Args:
      folder: to copy into.
      config: of the run.
      final_folder: where the copies will be, if the folder is moved.
    """

    def copy(source: str) -> str:
        path, _, name = user_code.copy_into(folder, source).rpartition(":")
        return f"{(final_folder or folder).absolute() / Path(path).name}:{name}"

    field_source, loss = config.field_source, config.loss
    if field_source:
        field_source = copy(field_source)
    if loss.source:
        loss = dataclasses.replace(loss, source=copy(loss.source))
    return dataclasses.replace(config, field_source=field_source, loss=loss)


def find_newest(root: Path) -> Path:
    """The run under a folder whose configuration was written last.

    Raises:
      InputError: if there is none.
    """
    configs_by_age = sorted(root.glob(f"*/{CONFIG_FILE}"), key=lambda path: path.stat().st_mtime)
    if not configs_by_age:
        raise InputError(
            f"There is no run under {root.absolute()}: train one first (python train_lego.py), or "
            "name its folder."
        )
    return configs_by_age[-1].parent


def read_config(folder: Path, field_class: type[Field] | None = None) -> TrainConfig:
    """The configuration of a run.

    Args:
      folder: of the run.
      field_class: of a field of the user's that no file holds.

    Raises:
      InputError: if it is missing, cannot be parsed, or is of another version.
    """
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content = _use_copies(folder, _check_version(content))
        config = config_json.from_content(content, field_class)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is not a run: it has no {CONFIG_FILE}; name a folder that training wrote."
        ) from error
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error).split("\n", 1)[0][:300]
        raise InputError(
            f"{path} cannot be used ({reason}): restore it, or train the run anew."
        ) from error
    return config


def _check_version(content: Any) -> Any:
    """A configuration without its version; refuses one of another version.

    Raises:
      ValueError: if it is of another version.
    """
    if not isinstance(content, dict) or "field" not in content:
        return content
    version = content.get("version", 1)
    if version != FORMAT_VERSION:
        age = "a newer" if isinstance(version, int) and version > FORMAT_VERSION else "an older"
        raise ValueError(f"it is of {age} version of jaxrf, which this one does not read")
    return {name: value for name, value in content.items() if name != "version"}


def _use_copies(folder: Path, content: Any) -> Any:
    """A configuration that names the copies of the user's modules in the run's folder.

    The run may have been moved since they were copied.
    """
    if not isinstance(content, dict):
        return content
    source, loss = content.get("field_source"), content.get("loss")
    if isinstance(source, str):
        content = content | {"field_source": user_code.find_copy(folder, source)}
    if isinstance(loss, dict) and isinstance(loss.get("source"), str):
        copy = user_code.find_copy(folder, loss["source"])
        content = content | {"loss": loss | {"source": copy}}
    return content


def open_checkpoints(folder: Path, config: TrainConfig, cleans_up: bool = False) -> Any:
    """The manager of a run's checkpoints; `cleans_up` as in `checkpoint.open_checkpoints`."""
    return checkpoint.open_checkpoints(folder / "checkpoints", config.keep_checkpoints, cleans_up)


class LazyCheckpointManager:
    """The manager of the checkpoints of a run in training, opened when the first is saved."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self._folder, self._config = folder, config
        self._manager: Any = None

    def save(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the manager's `save`."""
        self._manager = self._manager or open_checkpoints(
            self._folder, self._config, cleans_up=True
        )
        return self._manager.save(*args, **kwargs)

    def wait_until_finished(self) -> None:
        """Waits until all checkpoints are on disk."""
        if self._manager:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Closes the manager if it is open."""
        if self._manager:
            self._manager.close()


def save(
    manager: Any,
    scene: SceneMetadata,
    stage: StageSpec,
    state: TrainState,
    seconds: float,
    psnr: float | None,
) -> None:
    """Starts writing a checkpoint of the state with the metadata needed to restore it.

    `seconds` is the training time so far, `psnr` that of a validation at this step, if any.
    """
    meta = to_metadata(scene, stage, seconds)
    checkpoint.save(manager, int(state.step), state, meta, psnr)


def to_metadata(scene: SceneMetadata, stage: StageSpec, seconds: float) -> dict[str, Any]:
    """Metadata of a checkpoint, as JSON: from it follow the shapes of the state."""
    return {
        "scene": config_json.encode(scene),
        "stage": config_json.encode(stage),
        "seconds": seconds,
    }


def parse_metadata(
    meta: dict[str, Any], field_class: type[Field] | None = None
) -> tuple[SceneMetadata, StageSpec, float]:
    """The arguments from which `to_metadata` made the metadata.

    Raises:
      ValueError, KeyError, TypeError: if it did not make them.
    """
    scene = config_json.decode(SceneMetadata, meta["scene"], "scene")
    stage = config_json.decode(StageSpec, meta["stage"], "stage", field_class)
    return scene, stage, float(meta["seconds"])


def open_run(folder: Path, step: int | None = None, config: TrainConfig | None = None) -> Run:
    """Opens a run at a checkpoint.

    Args:
      folder: of the run.
      step: of the checkpoint, by default the last that is whole.
      config: replaces the configuration that the run has stored.

    Raises:
      InputError: if the folder is not a run, has no such checkpoint, or if the checkpoint does not
        fit the configuration.
    """
    config = config or read_config(folder)
    if not (folder / "checkpoints").is_dir():
        raise InputError(
            f"The run {folder} has no checkpoint yet: nothing can be rendered; train it with "
            f"--resume --run-dir {folder}."
        )
    manager = open_checkpoints(folder, config)
    try:
        known = sorted(manager.all_steps(), reverse=True)
        if not known or (step is not None and step not in known):
            listed = ", ".join(str(s) for s in reversed(known)) or "none"
            raise InputError(
                f"The run {folder} has no checkpoint{'' if step is None else f' of step {step}'} "
                f"(there are: {listed}): choose another, or train the run anew."
            )
        if step is not None:
            return _open_step(manager, folder, step, config)
        return _open_newest(manager, folder, known, config)
    finally:
        manager.close()


def has_checkpoints(folder: Path) -> bool:
    """Whether a run has a checkpoint that was written to its end."""
    return last_step(folder) >= 0


def last_step(folder: Path) -> int:
    """Step of the last checkpoint of a run that was written to its end; -1 without."""
    names = (path.name for path in (folder / "checkpoints").glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=-1)


def _open_newest(manager: Any, folder: Path, steps: Sequence[int], config: TrainConfig) -> Run:
    """The run at the first of these steps that is whole, and says so if it is not the first.

    Raises:
      DamagedCheckpointError: none is; of the first.
    """
    damage: list[DamagedCheckpointError] = []
    for step in steps:
        try:
            run = _open_step(manager, folder, step, config)
        except DamagedCheckpointError as error:
            damage.append(error)
            continue
        for one in damage:
            print(f"{one.for_command_line} Step {step} is used in its place.", file=sys.stderr)
        return run
    raise damage[0]


def _open_step(manager: Any, folder: Path, step: int, config: TrainConfig) -> Run:
    meta = checkpoint.read_meta(manager, step)
    try:
        scene, stage, seconds = parse_metadata(meta, type(config.field))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(
            f"The checkpoint of step {step} in {folder} is damaged: delete its folder "
            f"{folder / 'checkpoints' / str(step)} to fall back on an earlier one."
        ) from error
    _check_field(folder, step, stage.field, config.field)
    # Only the shapes of the target matter, which do not depend on the box.
    aabb = np.array([[0.0] * 3, [1.0] * 3], np.float32)
    grid = transitions.init_grid(config, stage, aabb)
    target = jax.eval_shape(lambda: init_state(config, stage, grid))
    if jax.process_count() > 1:
        # Arrays in host memory, so that every process reads all of them.
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), target)
    state = checkpoint.restore(manager, step, target, meta.get(checkpoint.CHECKSUMS))
    if jax.process_count() == 1:
        # A state saved by several devices is restored in host memory.
        state = jax.tree.map(jnp.asarray, state)
    return Run(folder, config, scene, stage, state, seconds)


def set_newer_aside(folder: Path, step: int) -> None:
    """Moves checkpoints after a step, which are damaged, to where they are in nobody's way."""
    for path in sorted((folder / "checkpoints").iterdir()):
        if path.name.isdigit() and int(path.name) > step:
            aside = folder / "damaged" / path.name
            aside.parent.mkdir(exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            path.replace(aside)


def _check_field(folder: Path, step: int, trained: Field, configured: Field) -> None:
    """Requires a checkpoint's field to have the numbers of the configuration.

    Raises:
      InputError: if it has not.
    """
    expected = config_json.option_values(configured) | {"type": configured.name}
    stored = config_json.option_values(trained) | {"type": trained.name}
    for name, value in expected.items():
        if stored.get(name) != value:
            raise InputError(
                f"The checkpoint of step {step} in {folder / 'checkpoints'} has field.{name} "
                f"{stored.get(name)}, but {folder / CONFIG_FILE} has {value}: restore that file, "
                "or train the run anew."
            )


def make_render_fn(run: Run, supersample: int | None = None) -> RenderFn:
    """A function (cameras, index) -> rendering of the run's field, on all devices.

    `supersample` is the number of rays per pixel along each axis, by default as in training.
    """
    return scoring.make_render_fn(_trained_field(run), supersample, mesh=devices.make_mesh(None))


def align_split(run: Run, split: Split) -> Split:
    """A split whose cameras fit a field whose training cameras were refined.

    They are moved as the training cameras were, all of them alike, and their poses then fitted to
    their images, one by one (`pose_fitting`).
    """
    trained = _trained_field(run)
    mesh = devices.make_mesh(None)
    params, grid = devices.to_local(mesh, (trained.params, trained.grid))
    frame = refined_frame(run.scene, params)
    split = dataclasses.replace(split, cameras=pose_fitting.move_cameras(frame, split.cameras))
    cameras = pose_fitting.fit_poses(trained._replace(params=params, grid=grid), split)
    return dataclasses.replace(split, cameras=cameras)


def _trained_field(run: Run) -> TrainedField:
    return TrainedField(
        run.config,
        run.stage,
        run.state.eval_params,
        run.state.grid,
        near_far_fn(run.scene, run.state.grid),
        background_color(run.config),
    )


def read_metrics(folder: Path) -> dict[str, Any]:
    """The contents of metrics.json; empty if it is missing or cannot be parsed."""
    try:
        values = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def read_curve(folder: Path, tag: str) -> list[tuple[float, float]]:
    """The scalars of a tag that a run has logged, as (step, value); empty without a log.

    Of a step that was logged twice, as by a resumed run, the later value counts.
    """
    try:
        lines = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        # A crash may have left an incomplete line.
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    values = {float(entry["step"]): entry.get(tag) for entry in entries if tag in entry}
    # Values that were not finite are logged as null.
    return [(step, values[step]) for step in sorted(values) if values[step] is not None]


def write_metrics(folder: Path, values: dict[str, Any]) -> None:
    """Writes metrics.json."""
    write_text(folder / METRICS_FILE, to_text(values))


def to_text(values: dict[str, Any]) -> str:
    """Values as indented JSON."""
    return json.dumps(values, indent=2) + "\n"


def name_run(config: TrainConfig, dataset: str) -> Path:
    """The default folder of a new run: runs/<dataset>-<field>-<time>."""
    timestamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{dataset}-{config.field.name}-{timestamp}"
