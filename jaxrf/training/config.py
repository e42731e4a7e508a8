"""Configuration of a training: frozen dataclasses that check themselves."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.cameras.refinement import Refine
from jaxrf.core.checks import option_name, require_non_negative, require_port, require_positive
from jaxrf.core.errors import InputError
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.data.options import LoadOptions
from jaxrf.data.photos.prepare import PhotoOptions
from jaxrf.fields.base import Field
from jaxrf.fields.checks import check_definition
from jaxrf.models.base import Model
from jaxrf.models.packed import PackedModel

Background = Literal["white", "black", "random"]

# Attributes of `TrainConfig` that the command line uses and `loop.fit` does not.
COMMAND_ONLY = frozenset({field.name for field in dataclasses.fields(LoadOptions)} | {
    "data", "run_dir", "resume", "coordinator", "processes",
    "process_id", "budget", "validate_every", "budget_excludes_validation", "validation_views",
    "test_every", "lpips", "checkpoint_seconds", "keep_checkpoints", "photos",
    "synthetic_scene", "video", "view", "viewer", "schedule_knots", "field_source",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss, besides the regularization that belongs to a field."""

    rgb_loss: Literal["squared", "huber", "charbonnier"] = "squared"
    """Loss of a pixel's color."""
    source: str = ""
    """A function of your own instead, (rgb, target_rgb) -> loss of each pixel:
    path/to/file.py:function."""
    huber_delta: float = 0.1
    """Difference above which huber is linear."""
    charbonnier_epsilon: float = 1e-3
    """Difference below which charbonnier is not linear."""
    distortion_weight: float = 0.0
    """Weight of the rays' distortion, which pulls a ray's weights together."""
    entropy_weight: float = 0.0
    """Weight of the opacities' entropy, which pulls them to 0 or 1."""
    depth_weight: float = 0.0
    """Weight of the depth of COLMAP's points and of depth maps (DS-NeRF), such as 0.01. 0: not
    used."""
    depth_std: float = 0.02
    """Standard deviation of that depth, as a share of it."""
    depth_share: float = 0.25
    """Share of the pixels of a step that are pixels of known depth."""
    inlier_quantile: float = 0.0
    """Leave out what only few images show, such as people who walk through them (RobustNeRF): of
    the pixels that are computed together, this share fits best and is trained on, besides pixels
    among them. The paper takes 0.8. Meant for large batches, such as --batch-rays 16384; with
    small ones it scored lower than the plain loss. 0: all pixels are trained on."""
    inlier_warmup: float = 0.3
    """Fraction of all steps over which the quantile falls from 1 to inlier-quantile, as nothing
    fits at first."""
    patch_size: int = 16
    """Width and height in pixels of the squares that are sampled for inlier-quantile, in place of
    single pixels."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_positive(
            self, "huber_delta", "charbonnier_epsilon", "depth_std", "depth_share", prefix="loss."
        )
        require_positive(self, "patch_size", prefix="loss.")
        require_non_negative(
            self, "depth_weight", "inlier_quantile", "inlier_warmup", prefix="loss."
        )
        for name in ("depth_share", "inlier_quantile", "inlier_warmup"):
            if getattr(self, name) > 1.0:
                option = option_name(name, "loss.")
                raise InputError(f"{option} is {getattr(self, name)}: give 1 or less.")
        if self.inlier_quantile and self.depth_weight:
            raise InputError(
                "--loss.inlier-quantile samples patches, and --loss.depth-weight single pixels of "
                "known depth: leave one of them out."
            )

    @property
    def sampled_patch_size(self) -> int:
        """Width and height of the squares of pixels that steps sample; 1 for single pixels."""
        return self.patch_size if self.inlier_quantile else 1


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with one learning rate for grids, one for networks and one for cameras."""

    grid_lr: float = 0.02
    """Learning rate of grids: planes, lines, tables."""
    mlp_lr: float = 1e-3
    """Learning rate of networks."""
    camera_lr: float = 0.1
    """Learning rate of cameras, if they are refined: about the pixels by which a step may move what
    a camera shows."""
    camera_delay: float = 0.1
    """Fraction of all steps before cameras move, as an image that says nothing yet would move them
    at random."""
    camera_lr_final_mult: float = 0.03
    """The rate of cameras decays to this fraction over the last four fifths of the steps."""
    camera_pull: float = 3.0
    """Strength by which cameras are pulled back to where they began, so that right ones stay there;
    it lets go of those that move on by more than some tenths of a pixel. 0: none."""
    lr_final_mult: float = 0.1
    """All learning rates decay to this fraction at the last step."""
    lr_schedule: Literal["exponential", "cosine", "steps"] = "exponential"
    """Decay evenly in the logarithm, as half a cosine, or in three equal ratios at 50, 75 and 90 %
    of all steps."""
    warmup: float = 0.0
    """Fraction of all steps over which the rates rise from a hundredth to full."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.99
    """Decay of Adam's second moment."""
    epsilon: float = 1e-8
    """Adam's epsilon."""
    clip_norm: float = 10.0
    """Gradients are scaled down to this global norm if it is larger."""
    skip_zero_gradients: bool = False
    """Entries with a gradient of zero are not updated in a step, nor are their moments."""
    l2: float = 0.0
    """This times the weight matrices of networks is added to their gradients."""
    weight_decay: float = 0.0
    """Weight matrices of networks shrink by this times the rate (AdamW)."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of all parameters that is rendered; 0 renders the
    last. It warms up: step n, from 0, decays by (n + 1) / (n + 10) at most."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_positive(
            self, "grid_lr", "mlp_lr", "camera_lr", "camera_lr_final_mult", "lr_final_mult",
            "epsilon", "clip_norm",
            prefix="optimizer.",
        )  # fmt: skip
        require_non_negative(self, "camera_delay", "camera_pull", prefix="optimizer.")


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """The 360 video rendered at the end, and smaller ones on the way."""

    frames: int = 60
    """Number of frames; 0 renders no video."""
    size: int = 200
    """Width and height of a frame, in pixels."""
    every: float = 0.0
    """Also at every such fraction of all steps, for TensorBoard: a quarter of the frames, half as
    wide. 0: only at the end."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        if self.frames:
            require_positive(self, "frames", "size", prefix="video.")
        require_non_negative(self, "every", prefix="video.")


@dataclasses.dataclass(frozen=True)
class ViewerConfig:
    """The address of --view."""

    host: str = "127.0.0.1"
    """Address to listen at: this machine's own, or 0.0.0.0 for everybody who can reach it."""
    port: int = 8080
    """Port to listen at, or the next that is free."""
    bake: bool = False
    """With --view, serve another page at the next port that the browser's graphics card draws:
    voxels with a color per ray or a ternary network, as the last checkpoint has them."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_port(self, "port", prefix="viewer.")


@dataclasses.dataclass(frozen=True)
class ScheduleKnot:
    """A step at which the pace of progress changed, and the progress reached there."""

    step: int
    progress: float


@dataclasses.dataclass(frozen=True)
class TrainConfig(LoadOptions):
    """Train a radiance field from images with known cameras."""

    field: Field
    """The radiance field; --preset or --field chooses which."""
    model: Model = PackedModel()
    """How rays are sampled and rendered; --preset or --model chooses it."""
    data: Path | None = None
    """Folder with a data set: NeRF-synthetic (Blender), LLFF, nerfstudio or instant-ngp, COLMAP,
    DeepVoxels, or tiny_nerf_data.npz; or a folder of photos or a video, whose poses are found first
    (pip install 'jaxrf[photos]'). Default: ./data/nerf_synthetic/lego or the same under the
    folder in JAXRF_DATA, if present, else the built-in scene `bricks`."""
    background: Background = "white"
    """Color behind transparent pixels. `random` trains with a random color per ray and evaluates on
    white."""
    run_dir: Path | None = None
    """Folder to write the run to. Default: runs/<dataset>-<field>-<time>."""
    resume: bool = False
    """Continue the run in --run-dir (default: the newest run) from its last checkpoint, bit for
    bit as if it had never stopped. All settings come from the run itself."""
    num_steps: int = 30_000
    """Number of optimizer steps; all schedules scale with it."""
    schedule_knots: Annotated[tuple[ScheduleKnot, ...], tyro.conf.Suppress] = ()
    """Steps at which --budget changed the number of steps while training."""
    seed: int = 0
    """Seed of initialization, ray order and jitter."""
    batch_samples: int = 1 << 20
    """Samples evaluated per step; the number of rays per step follows from it."""
    batch_rays: int = 4096
    """Rays per step at most."""
    keep_images_on_host: bool | None = None
    """Keep the training images in host memory and send the device the pixels of each step, with the
    same results. Default: if they would take more than half of the device's free memory."""
    microbatch_samples: int | None = None
    """Samples whose gradient is computed together, where rays have a fixed number of them; the
    gradients of a step's microbatches are added. Default: 2048 on a CPU, which fit into its cache,
    else as many as fit into memory."""
    devices: int | None = None
    """Number of devices that share the rays of a step. Default: all."""
    coordinator: str | None = None
    """Train together with other processes: host:port of the first of them, or `auto` under SLURM,
    MPI or on a TPU pod. All of them get the same options besides."""
    processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Index of this process, from 0 on."""
    shards: int | None = None
    """Cut each step's rays into this number of parts, a power of two, on however many devices, and
    add their gradients in one fixed order: 1, 2, 4, ... up to as many devices then give the same
    bits. Default: one part for each device, added in the quickest order."""
    budget: float | None = None
    """Seconds after the start of the process by which training has to end; scoring the test views
    and the video come after that. The number of steps is fitted to the speed of the first steps,
    and again later, above all when the field has its final size."""
    supersample: int | None = None
    """Rays per pixel along each axis: a pixel is an area, so K x K rays are averaged, in training
    and in rendering. Default: 2 for voxels about as small as a pixel, else 1."""
    supersample_from: float = 0.3
    """Fraction of all steps before which a pixel is one ray nevertheless."""
    num_train_scales: int = 1
    """Train on this number of sizes of the images, each half the one before, pixels weighted by
    their area, and score them all."""
    train_scale_schedule: tuple[tuple[float, int], ...] = ()
    """Train on one size of the images after the other instead: pairs of the step, or the fraction
    of all steps if below 1, and the factor by which images are smaller from then on, as in
    0 8 2000 4 5000 2 10000 1. Those of --num-train-scales are scored nevertheless."""
    render_samples: int = 1 << 20
    """Samples evaluated together when rendering; lower it if memory runs out."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How parameters are updated."""
    loss: LossConfig = LossConfig()
    """The loss."""
    refine: Refine = "none"
    """Correct the training cameras while training: their poses, or poses and lenses (focal lengths,
    and distortion where the data has any). The test views are then scored as given and aligned."""
    refine_from: Literal["matches", "given"] = "matches"
    """Begin to correct poses with those that fit matched points of neighboring images, if they fit
    clearly better, or with the given ones."""
    refined: Annotated[tuple[int, int] | None, tyro.conf.Suppress] = None
    """Number of refined cameras and of the coefficients of their lens; set when training begins."""
    precrop_fraction: float = 0.0
    """Fraction of all steps in which pixels come from the center of the images only."""
    precrop_scale: float = 0.5
    """The center is this share of width and height."""
    filter_rays: bool = True
    """Leave out pixels whose rays cannot hit an occupied cell: those that miss the box at first, if
    many do, and more whenever cells were pruned."""
    steps_per_dispatch: int = 25
    """Steps per host synchronization; does not change results."""
    validate_every: float = 0.1
    """Fraction of all steps between validations on a few val views; 0 never validates."""
    budget_excludes_validation: bool = False
    """The seconds of validations do not count for --budget, as when a curve is drawn."""
    validation_views: int = 4
    """Number of val views that are rendered at each validation."""
    test_every: int = 1
    """Score every K-th test view at the end; 1 scores all."""
    lpips: Path | None = None
    """Weights of LPIPS as .npz, to score the test views by it too (see
    jaxrf/evaluation/lpips.py)."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints."""
    keep_checkpoints: int = 2
    """Number of latest checkpoints kept; the best is kept in addition."""
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    """Precision of float32 matrix products on accelerators."""
    photos: PhotoOptions = PhotoOptions()
    """How poses are found for photos or a video."""
    synthetic_scene: SyntheticSceneConfig = SyntheticSceneConfig()
    """The built-in scene."""
    video: VideoConfig = VideoConfig()
    """The videos."""
    view: bool = False
    """Show the field in a browser while it is trained, and afterwards until Ctrl-C."""
    viewer: ViewerConfig = ViewerConfig()
    """The viewer."""
    ray_convention: RayConvention = RayConvention()
    """How rays run and light is summed up, for weights of other programs."""
    field_source: Annotated[str, tyro.conf.Suppress] = ""
    """File and class of a field of the user's own, path/to/file.py:ClassName."""

    def __post_init__(self) -> None:
        """Checks the numbers and that they fit together; InputError names the option to change."""
        super().__post_init__()
        check_definition(self.field)
        if not isinstance(self.model, Model):
            raise InputError(
                f"model is {self.model!r}: give an instance, such as jaxrf.models.PackedModel()."
            )
        for name, kind in (
            ("optimizer", OptimizerConfig), ("loss", LossConfig), ("ray_convention", RayConvention)
        ):  # fmt: skip
            if not isinstance(getattr(self, name), kind):
                raise InputError(
                    f"{name} is {getattr(self, name)!r}: give an instance, such as "
                    f"jaxrf.{kind.__name__}()."
                )
        require_positive(
            self, "num_steps", "batch_samples", "batch_rays", "render_samples",
            "steps_per_dispatch", "validation_views", "checkpoint_seconds", "keep_checkpoints",
            "supersample", "budget", "test_every", "microbatch_samples", "devices", "processes",
            "shards", "num_train_scales",
        )  # fmt: skip
        require_non_negative(self, "validate_every")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed is {self.seed}: give a number from 0 to 2^32 - 1.")
        if self.shards is not None and self.shards & (self.shards - 1):
            raise InputError(f"--shards is {self.shards}: give a power of two.")
        if self.shards and self.model.color_correction != "none":
            # On 8 devices the compiler rounds the correction otherwise than on fewer.
            raise InputError(
                "--shards gives the same bits on any number of devices, and "
                "--model.color-correction does not: leave one of them out."
            )
        self._check_processes()
        self._check_scale_schedule()
        self.model.check(self.field, self.ray_convention)

    def _check_processes(self) -> None:
        address = self.coordinator
        if address not in (None, "auto") and not (address or "").rpartition(":")[2].isdigit():
            raise InputError(f"--coordinator is {address}: give host:port, or auto.")
        if address is None and (self.processes or self.process_id is not None):
            raise InputError(
                "--processes and --process-id are for processes that train together: add "
                "--coordinator host:port."
            )

    def _check_scale_schedule(self) -> None:
        schedule = self.train_scale_schedule
        starts = [start for start, _ in schedule]
        ascending = starts == sorted(set(starts)) and min(starts, default=0) == 0
        if not ascending or min((factor for _, factor in schedule), default=1) < 1:
            text = " ".join(f"{start:g} {factor}" for start, factor in schedule)
            raise InputError(
                f"--train-scale-schedule is {text}: give ascending steps from 0 on, each followed "
                "by a factor of 1 or more."
            )
        if max(starts, default=0) >= self.num_steps:
            raise InputError(
                f"--train-scale-schedule reaches step {max(starts):g}, but training ends at "
                f"{self.num_steps}: give earlier steps, or fractions of all steps."
            )

    def image_scales(self) -> tuple[int, ...]:
        """Factors by which images are smaller in each size that is trained on, ascending from 1."""
        halved = {2**halvings for halvings in range(self.num_train_scales)}
        return tuple(sorted({1} | halved | {factor for _, factor in self.train_scale_schedule}))
