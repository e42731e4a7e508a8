"""Training, rendering, saving and loading from Python, in a few calls."""

import dataclasses
import difflib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxrf import fields, presets
from jaxrf.cameras.base import Cameras
from jaxrf.core.errors import InputError
from jaxrf.data import sources
from jaxrf.data.options import LoadOptions
from jaxrf.data.photos.prepare import PhotoOptions
from jaxrf.data.scene import Scene, Split
from jaxrf.evaluation import scoring
from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.evaluation.scoring import RenderFn, score_split, summarize
from jaxrf.fields.base import Field
from jaxrf.models.base import ModelParams, StageSpec
from jaxrf.parallel import devices
from jaxrf.rendering.image import HostRendering
from jaxrf.training import loop, runs, transitions
from jaxrf.training.callbacks import ProgressCallback, TrainCallback
from jaxrf.training.config import COMMAND_ONLY, TrainConfig
from jaxrf.training.losses import RgbLossFn
from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import SceneMetadata, near_far_fn
from jaxrf.training.state import TrainState, background_color


def load_scene(
    data: str | Path,
    *,
    splits: Sequence[Literal["train", "val", "test"]] | None = None,
    **options: Any,
) -> Scene:
    """Loads a data set of any format that jaxrf knows.

    Args:
      data: folder, or tiny_nerf_data.npz; relative to ".", "./data" or the folder in JAXRF_DATA.
      splits: to load; by default all that there are.
      **options: attributes of `LoadOptions`: `downscale` shrinks the images by a whole factor,
        `skip_missing` leaves out images that are listed but missing, `near`, `far`, `box`,
        `center`, `scale_to`, `axes` and `ndc` place the scene.

    Raises:
      InputError: if there is no such data set, it is damaged, or there is no such option.
    """
    known = [option.name for option in dataclasses.fields(LoadOptions)]
    for name in options:
        if name not in known:
            raise InputError(f"load_scene has no option {name}: it has {', '.join(known)}.")
    chosen = LoadOptions(**options)
    path = sources.ensure_poses(sources.find_data(Path(data)), PhotoOptions())
    existing = [name for name in ("train", "val", "test") if sources.has_split(path, name, chosen)]
    return sources.load_scene(path, existing if splits is None else list(splits), chosen)


def fit(
    field: Field | TrainConfig,
    scene: Scene,
    *,
    callback: TrainCallback | None = None,
    rgb_loss_fn: RgbLossFn | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
    **overrides: Any,
) -> "Result":
    """Trains a field on a scene.

    Args:
      field: a preset such as `jaxrf.presets.voxels_small()`, or an instance of any field, which is
        then trained on an occupancy grid with budgets for a CPU (`jaxrf.presets.for_field`).
      scene: its training split is used.
      callback: called after every dispatch, in place of a progress bar.
      rgb_loss_fn: loss of each pixel's color, (rgb, target_rgb) -> (r,).
      mesh: the devices to train on; by default as many as `devices`, or the first alone.
      progress: show a progress bar.
      **overrides: attributes of `TrainConfig` to use in place of the preset's, such as
        `num_steps`, `seed`, `batch_rays`, `background` or `model`.

    Raises:
      InputError: if an override cannot be used; it names the option and what to change.
      DivergedError: if training diverges.

    Examples:
      >>> import jaxrf
      >>> jaxrf.presets.hashgrid_small().field.num_levels
      8
    """
    if not isinstance(scene, Scene):
        raise InputError(_describe_no_scene(scene))
    if "train" not in scene.splits:
        raise InputError(
            f"The scene has the splits {', '.join(scene.splits)}: training needs train; load it "
            "too."
        )
    config = field if isinstance(field, TrainConfig) else presets.for_field(field)
    config = transitions.resolve_config(_override(config, overrides), scene)
    config = dataclasses.replace(
        config,
        field_source=config.field_source or _find_source(type(config.field)),
        **vars(scene.options),
    )
    mesh = mesh or devices.make_mesh(config.devices or 1)
    if callback is None:
        callback = ProgressCallback(config.num_steps, enabled=progress)
    stage, state = loop.fit(config, scene, callback, rgb_loss_fn=rgb_loss_fn, mesh=mesh)
    return Result(config, SceneMetadata.from_scene(scene, scene.folder), stage, state)


def load(
    folder: str | Path, *, step: int | None = None, field: type[Field] | None = None
) -> "Result":
    """Loads a run that `Result.save` or the command line wrote.

    Args:
      folder: of the run.
      step: of a checkpoint; by default the last.
      field: the user's class, if it was defined in a notebook or at a prompt; its numbers are those
        of the run.

    Raises:
      InputError: if there is no such run or checkpoint, it is of another version, or its field is
        of another class.
    """
    if isinstance(field, Field):
        raise InputError(
            f"The field to load is an instance: give its class, field={type(field).__name__}; its "
            "numbers are those of the run."
        )
    if field is not None and not (isinstance(field, type) and issubclass(field, Field)):
        raise InputError(f"The field to load is {field!r}: give the class of the run's field.")
    config = runs.read_config(Path(folder), field)
    run = runs.open_run(Path(folder), step, config)
    return Result(run.config, run.scene, run.stage, run.state)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """A trained field.

    Attributes:
      config: configuration of the training, resolved for the scene.
      scene_metadata: the facts about the scene that rendering needs, without its images.
      stage: static shapes at the end of training; `stage.field` is the field with its shapes.
      state: parameters, optimizer state and occupancy grid.
    """

    config: TrainConfig
    scene_metadata: SceneMetadata
    stage: StageSpec
    state: TrainState
    _render_fns: dict[int | None, RenderFn] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def field(self) -> Field:
        """The field, with the shapes of the last stage."""
        return self.stage.field

    @property
    def params(self) -> ModelParams:
        """The parameters to render with."""
        return self.state.eval_params

    def render(
        self, cameras: Cameras, index: int = 0, *, supersample: int | None = None
    ) -> HostRendering:
        """Renders the image of a camera, in host memory.

        Args:
          cameras: such as `scene.test.cameras[0]`.
          index: of the camera.
          supersample: rays of a pixel along each axis, averaged; by default as in training.

        Returns:
          rgb (h, w, 3) in [0, 1], opacity (h, w) in [0, 1], and depth and median_depth (h, w) in
          scene units along each ray.
        """
        return self._render_fn(supersample)(cameras, index)

    def evaluate(self, split: Split, *, every: int = 1) -> dict[str, Any]:
        """Scores renderings of a split against its images.

        Args:
          split: such as `scene.test`.
          every: score every K-th image; 1 scores all.

        Returns:
          "psnr" in dB and "ssim", means over the images, and "per_image", a list with "name",
          "psnr" and "ssim" of each. "psnr_cc" and "ssim_cc" too, after a color correction, if the
          model fits colors to each training image.
        """
        indices = range(0, len(split), every)
        corrects = self.config.model.has_image_colors
        views = score_split(
            self._render_fn(None), split, self._background(), indices, correct_colors=corrects
        )
        return summarize(list(views))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Saves a run that `jaxrf.load` and the command line open.

        A user's field is saved with the file that defines it. If it was defined in a notebook or at
        a prompt, `jaxrf.load` needs the class (`field=`), and the command line cannot open the run.

        Args:
          folder: of the run.
          overwrite: replace a run that is there, with everything in its folder; the new one is
            complete before the old one is removed.

        Raises:
          InputError: if the folder exists and is not empty, unless it is a run and `overwrite` is
            true; or if it cannot be written to.
        """
        path = Path(folder)
        if not (path.is_file() or (path.is_dir() and any(path.iterdir()))):
            runs.make_writable(path, "folder")
            self._write(path, path)
        elif not overwrite:
            raise InputError(
                f"{path} exists already: save under another name, or give overwrite=True."
            )
        else:
            with runs.replace_run(path) as new:
                self._write(new, path)

    def _write(self, folder: Path, final_folder: Path) -> None:
        """Writes configuration, the user's code and a checkpoint into an empty folder."""
        runs.write_config(folder, runs.vendor_user_code(folder, self.config, final_folder))
        manager = runs.open_checkpoints(folder, self.config)
        try:
            runs.save(manager, self.scene_metadata, self.stage, self.state, seconds=0.0, psnr=None)
            manager.wait_until_finished()
        finally:
            manager.close()

    def to_run(self, folder: str | Path) -> Run:
        """The same as a `Run`, which `jaxrf.export` takes; nothing is written to `folder`."""
        return Run(Path(folder), self.config, self.scene_metadata, self.stage, self.state, 0.0)

    def _background(self) -> Float[np.ndarray, "3"]:
        return background_color(self.config)

    def _render_fn(self, supersample: int | None) -> RenderFn:
        if supersample not in self._render_fns:
            self._render_fns[supersample] = scoring.make_render_fn(
                TrainedField(
                    self.config,
                    self.stage,
                    self.params,
                    self.state.grid,
                    near_far_fn(self.scene_metadata, self.state.grid),
                    self._background(),
                ),
                supersample,
            )
        return self._render_fns[supersample]


def _describe_no_scene(scene: object) -> str:
    if isinstance(scene, str | Path):
        return f"The scene is a path: load it first, jaxrf.load_scene({str(scene)!r})."
    return f"The scene is a {type(scene).__name__}: give what jaxrf.load_scene returns."


def _override(config: TrainConfig, overrides: dict[str, Any]) -> TrainConfig:
    names = [f.name for f in dataclasses.fields(config)]
    for name in overrides:
        option = "--" + name.replace("_", "-")
        if name in COMMAND_ONLY:
            raise InputError(
                f"jaxrf.fit does not use {name!r}: leave it out, or train with the command "
                f"`jaxrf train {option}`."
            )
        if name not in names:
            raise InputError(f"jaxrf.fit has no argument {name!r}: {_hint(config, name, names)}")
    return dataclasses.replace(config, **overrides)


def _hint(config: TrainConfig, name: str, names: list[str]) -> str:
    """Says where an argument that does not exist may belong."""
    for part in ("field", "model", "optimizer", "loss"):
        owner = getattr(config, part)
        if name in [f.name for f in dataclasses.fields(owner)]:
            return f"give {part}={_find_public_name(type(owner))}({name}=...)."
    close = difflib.get_close_matches(name, [n for n in names if n not in COMMAND_ONLY], n=1)
    return f"did you mean {close[0]!r}?" if close else "jaxrf.TrainConfig lists them."


def _find_public_name(kind: type) -> str:
    """The name of a class as it is written after `import jaxrf`."""
    for package in ("", "models.", "fields."):
        module = sys.modules[f"jaxrf.{package}".rstrip(".")]
        if getattr(module, kind.__name__, None) is kind:
            return f"jaxrf.{package}{kind.__name__}"
    return kind.__name__


def _find_source(kind: type[Field]) -> str:
    """File and class of a user's field, if it was defined in a module; else an empty text."""
    if fields.is_builtin(kind) or kind.__module__ in ("__main__", "builtins"):
        return ""
    module = sys.modules.get(kind.__module__)
    path = inspect.getsourcefile(module) if module is not None else None
    if path is None or not Path(path).is_file() or "." in kind.__qualname__:
        return ""
    return f"{path}:{kind.__name__}"
