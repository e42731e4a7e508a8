"""Configurations: frozen dataclasses and named presets. Imports no jax, so that --help is quick."""

import dataclasses
import glob
import importlib.util
import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal

import tyro

from jaxrf.core.errors import InputError

Background = Literal["white", "black", "random"]


@dataclasses.dataclass(frozen=True)
class RayConvention:
    """Where other programs place rays and add up light otherwise; their weights ask for it."""

    pixel_centre: float = 0.5
    """Where in a pixel, along both axes, its ray passes; 0 is its top left corner."""
    range_along: Literal["ray", "axis"] = "ray"
    """Whether near and far are distances along the ray or along the camera's axis."""
    lengths_along: Literal["ray", "axis"] = "ray"
    """hierarchical: along which of them the lengths are measured that light is absorbed over."""
    view_directions: Literal["unit", "axis"] = "unit"
    """hierarchical: whether fields see directions of unit length, or such that they reach one unit
    along the camera's axis."""
    transmittance: Literal["exclusive", "inclusive"] = "exclusive"
    """hierarchical: light that reaches a sample has passed those before it, or also itself."""
    samples_at: Literal["middle", "start"] = "middle"
    """Marching: whether the field is evaluated in the middle of steps or where they start, when a
    picture is rendered."""
    stop: float = 1e-3
    """Marching: a ray is done when less light than this would pass."""


@dataclasses.dataclass(frozen=True)
class CaptureConfig:
    """What captured scenes need of any field."""

    contract: bool | None = None
    """Space around the scene's box is contracted into a box twice as large, for scenes without
    bounds; rays then have no end. Start emptier, with a lower density-shift or -bias: fog that is
    thin in a box hides everything over such lengths. Default: where the data has no bounds."""
    appearance_dim: int = 0
    """Numbers learnt for each training picture, which change the look of what it shows (exposure,
    weather) but not its shape. Views are rendered with their mean. 0: pictures look alike."""
    num_appearances: Annotated[int | None, tyro.conf.Suppress] = None
    """How many there are; settled when training begins."""
    compute: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type that networks are computed in, where accelerators are several times faster in 16 bits;
    weights are kept, and positions, encodings and light along rays computed, in float32. With
    float16 the loss is scaled such that gradients neither vanish nor overflow. Fields of your own
    decide for themselves."""
    checkpoint_in_chunks: int = 1
    """Compute the samples of a step in so many parts, and once more for the gradient instead of
    remembering what is within the field: less memory for more time. 1 remembers."""
    convention: RayConvention = RayConvention()
    """How rays are laid out and light is summed up, for weights of other programs."""


@dataclasses.dataclass(frozen=True)
class TensoRFConfig(CaptureConfig):
    """TensoRF and how its grid grows. Times are fractions of all steps."""

    kind: Annotated[Literal["tensorf"], tyro.conf.Suppress] = "tensorf"
    factors: Literal["vm", "cp"] = "vm"
    """A component is a plane times a line, for each axis, or the product of three lines."""
    density_components: int = 16
    """Rank of the density, per axis."""
    feature_components: int = 48
    """Rank of the features, per axis."""
    feature_dim: int = 27
    """Channels of the features that the colour MLP sees."""
    width: int = 128
    """Width of the colour MLP's hidden layers."""
    layers: int = 2
    """Number of the colour MLP's hidden layers."""
    color: Literal["mlp", "harmonics"] = "mlp"
    """Colour by an MLP, or features as coefficients of spherical harmonics: their number is then 3
    times 1, 4, 9 or 16."""
    init_scale: float = 0.1
    """Standard deviation of planes and lines at the start."""
    num_feature_frequencies: int = 2
    """Fourier octaves of the features."""
    num_direction_frequencies: int = 2
    """Fourier octaves of the view direction."""
    density_shift: float = -10.0
    """Added to the raw density before its softplus: lower starts emptier."""
    density_scale: float = 25.0
    """Factor of the density."""
    activation: Literal["softplus", "relu"] = "softplus"
    """Of the raw density; relu leaves the shift out."""
    initial_voxels: int = 128**3
    """Number of voxels at the start."""
    final_voxels: int = 300**3
    """Number of voxels after the last upsampling."""
    upsample_at: tuple[float, ...] = (2 / 30, 3 / 30, 4 / 30, 5.5 / 30, 7 / 30)
    """When the grid is upsampled, log-spaced in the number of voxels."""
    prune_at: tuple[float, ...] = (2 / 30, 4 / 30)
    """When empty cells are dropped and rays that hit nothing are left out. The next upsampling
    shrinks the box to what is left."""
    min_steps_before_refine: int = 0
    """Steps before the first of these, and between upsamplings, at least."""
    occupancy_voxels: int = 128**3
    """Cells of the occupancy grid at most; it has as many as there are voxels."""
    prune_by: Literal["alpha", "weight"] = "alpha"
    """What has to reach the threshold: the alpha of one step through a cell, `density_scale` left
    out, or the weight that some ray gave it, which drops what is hidden too."""
    prune_threshold: float = 1e-4
    """A cell is kept if it, or a cell next to it, reaches this."""
    step_ratio: float = 0.5
    """Length of a step in voxels."""
    shading: Literal["per_sample", "per_ray"] = "per_sample"
    """Colour every sample that matters, or once per ray from composited features (much faster)."""
    color_threshold: float = 1e-4
    """Samples of less weight are not coloured."""
    max_shaded_fraction: float = 0.5
    """Part of the sample budget that can be coloured; 1 colours all samples."""
    l1_weight: float = 8e-5
    """Weight of the density factors' L1 norm."""
    l1_weight_pruned: float = 4e-5
    """The same after the first pruning."""
    density_tv_weight: float = 0.0
    """Weight of the total variation of the density's planes, or of its lines in cp; it fades as the
    rates do."""
    feature_tv_weight: float = 0.0
    """The same of the features."""
    orthogonality_weight: float = 0.0
    """Weight of how far from orthogonal the lines of different components are."""
    reset_lr: bool = False
    """Rates start anew at every upsampling, and so do the moments of the optimiser."""


@dataclasses.dataclass(frozen=True)
class SampledConfig(CaptureConfig):
    """How the rays of a field that has no grid of its own are sampled."""

    sampler: Literal["hierarchical", "occupancy", "proposal"] = "hierarchical"
    """Coarse and fine samples with a network for each; steps through the cells of an occupancy
    grid that may hold anything, packed, with one network (much faster); or samples where small
    hash grids propose them, which learn from the field."""
    num_coarse_samples: int = 64
    """hierarchical: stratified samples per ray."""
    num_fine_samples: int = 128
    """hierarchical: importance samples per ray, in addition; 0 trains the coarse network alone."""
    quadrature: Literal["intervals", "points"] = "intervals"
    """hierarchical: intervals that tile the ray within the box, each evaluated in its middle; or
    points on the whole ray, each standing for what follows up to the next, the last for all that is
    behind it, as in NeRF's original code."""
    spacing: Literal["linear", "disparity"] = "linear"
    """hierarchical, proposal: what the first samples are spread evenly in, distance or its
    inverse."""
    num_proposal_samples: tuple[int, ...] = (128, 64)
    """proposal: samples of each proposal."""
    num_nerf_samples: int = 32
    """proposal: samples of the field."""
    proposal_resolutions: tuple[int, ...] = (64, 128)
    """proposal: finest cells of each proposal's hash grid, along a side."""
    interlevel_weight: float = 1.0
    """proposal: weight of what the proposals miss."""
    occupancy_resolution: int = 128
    """occupancy: cells along the longest side of the box."""
    occupancy_update_interval: int = 16
    """occupancy: steps between two looks at the density in cells."""
    occupancy_warmup_steps: int = 256
    """occupancy: steps in which such a look is one into all cells; later it is one into a quarter
    of them and as many that are occupied."""
    occupancy_decay: float = 0.95
    """occupancy: what a cell's optical depth is multiplied with before it is compared with what was
    found now."""
    occupancy_threshold: float = 0.01
    """occupancy: optical depth of a step above which a cell is occupied, or the mean, if that is
    less."""
    max_steps: int = 1024
    """occupancy: steps that reach across the box."""
    shading: Literal["per_sample", "per_ray"] = "per_sample"
    """Colour every sample, or once per ray from composited features (faster)."""
    color_threshold: float = 1e-4
    """occupancy: samples of less weight are not coloured."""
    max_shaded_fraction: float = 1.0
    """occupancy: part of the sample budget that can be coloured; 1 colours all samples."""


@dataclasses.dataclass(frozen=True)
class EncodedMLPConfig(SampledConfig):
    """An MLP of encoded positions and directions."""

    encoding: Literal["fourier", "integrated"] = "fourier"
    """Positions are encoded as points, or as the part of the cone that they stand for (mip-NeRF),
    which fades out what is finer than a pixel or a step."""
    use_directions: bool = True
    """Whether colour depends on the view direction."""
    activation: Literal["softplus", "relu"] = "softplus"
    """Of the raw density."""
    density_bias: float = 0.0
    """Added to the raw density: lower starts emptier."""
    density_noise: float = 0.0
    """Standard deviation of the noise added to the raw density while training."""
    layers: int = 8
    """Layers of the trunk."""
    width: int = 256
    """Width of the trunk."""
    skip: int = 5
    """Index of the layer that takes the encoded position again."""
    color_width: int = 128
    """Width of the colour head."""
    num_position_frequencies: int = 10
    """Fourier octaves of the position."""
    num_direction_frequencies: int = 4
    """Fourier octaves of the view direction."""
    encode_input: bool = True
    """Whether the encodings hold what they encode too, besides sines and cosines."""
    frequency: float = 1.0
    """The lowest frequency of the encodings: 1, as in NeRF's code, or pi, as in its paper."""
    project: bool = False
    """A linear layer, without activation, before the trunk."""


@dataclasses.dataclass(frozen=True)
class NeRFConfig(EncodedMLPConfig):
    """The original NeRF."""

    kind: Annotated[Literal["nerf"], tyro.conf.Suppress] = "nerf"


@dataclasses.dataclass(frozen=True)
class BitNeRFConfig(EncodedMLPConfig):
    """A NeRF whose layers have ternary weights and 8-bit activations."""

    kind: Annotated[Literal["bitnerf"], tyro.conf.Suppress] = "bitnerf"
    norm_gain: bool = False
    """What is normalised before a layer is scaled by a learnt gain of each channel."""
    norm_epsilon: float = 1e-6
    """Epsilon of that normalisation."""
    full_precision_io: bool = False
    """The projection before the trunk and the heads have full weights."""


@dataclasses.dataclass(frozen=True)
class HashedConfig(SampledConfig):
    """A table of hashed features with small MLPs."""

    sampler: Literal["hierarchical", "occupancy", "proposal"] = "occupancy"
    """Coarse and fine samples with a field for each; steps through the cells of an occupancy grid
    that may hold anything, packed; or samples where small hash grids propose them."""
    levels: int = 16
    """Levels of the grid."""
    channels: int = 2
    """Channels of a level."""
    coarsest: int = 16
    """Cells along a side of the coarsest level."""
    finest: int = 2048
    """Cells along a side of the finest level."""
    log2_hashmap_size: int = 19
    """A level has at most 2 to the power of this rows."""
    read_as: Literal["float32", "bfloat16"] = "float32"
    """Type of the table as it is read: bfloat16 halves what look-ups move where they are bound by
    memory. It is trained and summed up in float32."""
    width: int = 64
    """Width of the MLPs."""
    feature_dim: int = 15
    """Channels that the density MLP hands on to the colour MLP."""
    color_layers: int = 2
    """Hidden layers of the colour MLP."""
    num_sh_bands: int = 4
    """Bands of the direction's spherical harmonics."""
    density_shift: float = -1.0
    """Added to the raw density before its exponential: lower starts emptier."""


@dataclasses.dataclass(frozen=True)
class HashGridConfig(HashedConfig):
    """Instant-NGP's hash grid with two small MLPs."""

    kind: Annotated[Literal["hashgrid"], tyro.conf.Suppress] = "hashgrid"
    density_layers: int = 1
    """Hidden layers of the density MLP."""
    density_scale: float = 1.0
    """Factor of the density."""
    rule: Literal["faces", "hashed", "centred"] = "faces"
    """How levels lie in the table: corners on the box's faces and a row for each where they fit;
    all of them hashed, as nerfstudio's PyTorch code has it; or as tiny-cuda-nn has it."""
    bias: bool = False
    """Whether the MLPs' layers add one."""
    normalize_dirs_01: bool = False
    """Harmonics are taken at (direction + 1) / 2, as nerfstudio's PyTorch code does."""


@dataclasses.dataclass(frozen=True)
class PyNeRFConfig(HashedConfig):
    """PyNeRF: a pyramid of heads on hash grids, the head chosen by a sample's size."""

    kind: Annotated[Literal["pynerf"], tyro.conf.Suppress] = "pynerf"
    heads: int = 8
    """Levels of the pyramid, each a density MLP; the finest level of the grid is the last's."""
    factor: float = 2.0
    """Ratio of two heads' cells."""
    tables: Literal["shared", "separate"] = "shared"
    """One hash grid for all heads, or one for each that ends at the head's own cells."""
    blend: Literal["features", "results"] = "features"
    """Blend the outputs of neighbouring heads, or their densities and colours."""
    color_width: int = 128
    """Width of the colour MLP."""
    consistency_weight: float = 0.0
    """Weight of the difference between neighbouring heads' outputs."""
    consistency_points: int = 1024
    """Points drawn per step for it."""


@dataclasses.dataclass(frozen=True)
class CustomConfig(SampledConfig):
    """A field of your own: a class with the methods of `jaxrf.fields.base.Field`."""

    kind: Annotated[Literal["custom"], tyro.conf.Suppress] = "custom"
    source: str = ""
    """Where the class is: path/to/file.py:ClassName."""


@dataclasses.dataclass(frozen=True)
class VoxelsConfig(CaptureConfig):
    """Packed voxels, refined and pruned. Times are fractions of all steps."""

    kind: Annotated[Literal["voxels"], tyro.conf.Suppress] = "voxels"
    feature_dim: int = 7
    """Channels of the features that the colour MLP sees. With the density they make a row; rows of
    8 numbers are several times faster on a CPU than rows of 9."""
    width: int = 64
    """Width of the colour MLP's hidden layers."""
    layers: int = 1
    """Number of the colour MLP's hidden layers."""
    num_direction_frequencies: int = 2
    """Fourier octaves of the view direction."""
    density_shift: float = -4.0
    """Added to the raw density before its softplus: lower starts emptier."""
    density_scale: float = 25.0
    """Factor of the density."""
    density_gain: float = 6.0
    """Factor of the raw density, which then learns so much faster than the features."""
    initial_resolution: int = 64
    """Voxels along the longest side of the box at the start."""
    num_subdivisions: int | None = None
    """How often voxels are divided into eight. Default: until they are about as small as a pixel at
    the scene's distance, as far as upsample_at allows."""
    upsample_at: tuple[float, ...] = (0.1, 0.2)
    """When voxels are divided, the first `num_subdivisions` of these."""
    prune_at: tuple[float, ...] = (0.04, 0.1, 0.2, 0.3)
    """When the cells that matter to no ray are dropped, and pixels that see none are left out."""
    min_steps_before_refine: int = 60
    """Steps before the first of these at least: density takes some to form, however short the
    training is."""
    min_steps_before_prune: tuple[int, ...] = ()
    """Steps for which voxels of each size are looked at before any are dropped. Default: until each
    was met by some 16 rays, which depends on the size of the pictures."""
    prune_threshold: float | None = None
    """A cell is kept if some ray has given it, or a cell next to it, this weight. Default: 0.05, or
    0.01 in normalised device coordinates, where surfaces stay foggy for longer."""
    step_ratio: float = 1.0
    """Length of a step in voxels."""
    shading: Literal["per_sample", "per_ray"] = "per_ray"
    """Colour every sample, or once per ray from composited features (faster)."""
    density_tv_weight: float = 0.0
    """Weight of the density's total variation; it fades as the rates do."""
    feature_tv_weight: float = 0.0
    """The same of the features."""
    tv_cells: int = 8192
    """Cells drawn per step for the total variation."""


FieldConfig = (
    VoxelsConfig
    | TensoRFConfig
    | NeRFConfig
    | BitNeRFConfig
    | HashGridConfig
    | PyNeRFConfig
    | CustomConfig
)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised, besides what belongs to a field."""

    error: Literal["squared", "huber", "charbonnier"] = "squared"
    """Of a pixel's colour."""
    source: str = ""
    """A function of your own instead, (predicted, truth) -> error of each pixel:
    path/to/file.py:function."""
    huber_delta: float = 0.1
    """Difference from which on huber is linear."""
    charbonnier_epsilon: float = 1e-3
    """Difference below which charbonnier is no longer linear."""
    distortion_weight: float = 0.0
    """Weight of the rays' distortion, which pulls what a ray sees together."""
    entropy_weight: float = 0.0
    """Weight of the opacities' entropy, which pulls them to 0 or 1."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with one learning rate for grids and one for networks."""

    grid_lr: float = 0.02
    """Learning rate of grids: planes, lines, tables."""
    mlp_lr: float = 1e-3
    """Learning rate of networks."""
    lr_final_mult: float = 0.1
    """Both rates decay to this fraction at the last step."""
    decay: Literal["exponential", "cosine", "steps"] = "exponential"
    """How: evenly in the logarithm, as half a cosine, or in three equal ratios at 50, 75 and 90 %
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
    """Entries without a gradient in a step are left alone in it, as are their moments."""
    l2: float = 0.0
    """This times the weight matrices of networks is added to their gradients."""
    weight_decay: float = 0.0
    """Weight matrices of networks shrink by this times the rate (AdamW)."""
    average: float = 0.0
    """Decay of the running average of all parameters that is rendered; 0 renders the last. The
    average is shorter at first: step n, from 0, decays by (n + 1) / (n + 10) at most."""


@dataclasses.dataclass(frozen=True)
class SyntheticSceneConfig:
    """The built-in scene `bricks`, used when there is no data set."""

    size: int = 128
    """Width and height of its pictures, in pixels."""
    train_views: int = 100
    """Number of training pictures."""
    test_views: int = 25
    """Number of test pictures."""


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


@dataclasses.dataclass(frozen=True)
class ViewerConfig:
    """Where --view can be watched."""

    host: str = "127.0.0.1"
    """Address to listen at: this machine's own, or 0.0.0.0 for everybody who can reach it."""
    port: int = 8080
    """Port to listen at, or the next that is free."""


@dataclasses.dataclass(frozen=True)
class ScheduleKnot:
    """A step at which the pace of progress changed, and the progress reached there."""

    step: int
    progress: float


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a radiance field from pictures with known cameras."""

    field: tyro.conf.AvoidSubcommands[FieldConfig]
    """What is trained; --preset chooses its kind."""
    data: Path | None = None
    """Folder with a data set: NeRF-synthetic (Blender), LLFF, nerfstudio or instant-ngp, COLMAP,
    DeepVoxels, or tiny_nerf_data.npz. Default: ./data/nerf_synthetic/lego or the same under the
    folder in JAXRF_DATA, if present, else the built-in scene `bricks`."""
    skip_missing: bool = False
    """Leave out pictures that the data set names but that are not there."""
    downscale: int = 1
    """Shrink the pictures by this whole factor, averaging areas."""
    background: Background = "white"
    """Behind transparent pixels. `random` trains with a random colour per ray and evaluates on
    white."""
    run_dir: Path | None = None
    """Folder to write the run to. Default: runs/<dataset>-<field>-<time>."""
    resume: bool = False
    """Continue the run in --run-dir (default: the newest run) from its last checkpoint, bit for
    bit as if it had never stopped. All settings come from the run itself."""
    steps: int = 30_000
    """Number of optimiser steps; all schedules scale with it."""
    knots: Annotated[tuple[ScheduleKnot, ...], tyro.conf.Suppress] = ()
    """Where --budget has changed the number of steps while training."""
    seed: int = 0
    """Seed of initialisation, ray order and jitter."""
    batch_samples: int = 1 << 20
    """Samples evaluated per step; the number of rays per step follows from it."""
    batch_rays: int = 4096
    """Most rays per step."""
    stream: bool | None = None
    """Leave the training pictures in host memory and send the device the pixels of each step, with
    the same results. Default: if they would take more than half of the device's free memory."""
    microbatch_samples: int | None = None
    """Samples whose gradient is computed at once, where rays have a fixed number of them; the
    gradients of a step's passes are added. Default: 2048 on a CPU, which its cache holds, else as
    many as fit into memory."""
    devices: int | None = None
    """How many devices share the rays of a step. Default: all that there are."""
    coordinator: str | None = None
    """Train together with other processes: host:port of the first of them, or `auto` under SLURM,
    MPI or on a TPU pod. All of them get the same options besides."""
    processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0 on."""
    shards: int | None = None
    """Cut each step's rays into so many parts, a power of two, on however many devices, and add
    their gradients up in one fixed order: 1, 2, 4, ... up to so many devices then give the same
    bits. Default: one part for each device, added up as is quickest."""
    budget: float | None = None
    """Seconds after the start of the process by which training is to be done; scoring the test
    views and the video come after that. The number of steps is fitted to the speed of the first
    steps, and again later, above all when the field has its final size."""
    supersample: int | None = None
    """Rays per pixel along each axis: a pixel is an area, so K x K rays are averaged, in training
    and in rendering. Default: 2 for voxels about as small as a pixel, else 1."""
    supersample_from: float = 0.3
    """Fraction of all steps before which a pixel is one ray nevertheless."""
    scales: int = 1
    """Train on so many sizes of the pictures, each half the one before, pixels weighted by their
    area, and score them all."""
    train_scale_schedule: tuple[tuple[float, int], ...] = ()
    """Train on one size of the pictures after the other instead: pairs of the step, or the fraction
    of all steps if below 1, from which on they are so many times smaller, as in
    0 8 2000 4 5000 2 10000 1. Those of `scales` are scored nevertheless."""
    render_samples: int = 1 << 20
    """Samples evaluated at once when rendering; lower it if memory runs out."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How parameters are updated."""
    loss: LossConfig = LossConfig()
    """What is minimised."""
    precrop_fraction: float = 0.0
    """Fraction of all steps in which only the middle of the pictures is drawn from."""
    crop: float = 0.5
    """The middle is so much of width and height."""
    filter_rays: bool = True
    """Leave out pixels whose rays cannot hit an occupied cell: those that miss the box at first, if
    many do, and more whenever cells were pruned."""
    steps_per_dispatch: int = 25
    """Steps that run on the device between two looks from outside; does not change results."""
    validate_every: float = 0.1
    """Fraction of all steps between validations on a few val views; 0 never validates."""
    validate_apart: bool = False
    """The seconds of validations do not count for the budget, as when a curve is drawn."""
    validation_views: int = 4
    """Number of val views that are rendered at each validation."""
    test_every: int = 1
    """Score every K-th test view at the end; 1 scores all."""
    lpips: Path | None = None
    """Weights of LPIPS as .npz, to score the test views by it too (see jaxrf/lpips.py)."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints."""
    keep_checkpoints: int = 2
    """Number of latest checkpoints kept; the best is kept in addition."""
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    """Precision of float32 matrix products on accelerators."""
    bricks: SyntheticSceneConfig = SyntheticSceneConfig()
    """The built-in scene."""
    video: VideoConfig = VideoConfig()
    """The videos."""
    view: bool = False
    """Show the field in a browser while it is trained, and afterwards until Ctrl-C."""
    viewer: ViewerConfig = ViewerConfig()
    """Where it is shown."""


def voxels_small() -> TrainConfig:
    """Packed voxels, coloured once per ray: the quickest to a good picture, made for a CPU."""
    return TrainConfig(
        field=VoxelsConfig(),
        background="random",
        steps=2500,
        batch_samples=1 << 16,
        batch_rays=4096,
        render_samples=1 << 15,
        validate_every=0.25,
        optimizer=OptimizerConfig(grid_lr=0.05, mlp_lr=4e-3, lr_final_mult=0.05),
    )


def tensorf_small() -> TrainConfig:
    """TensoRF-VM for a CPU: few components, a grid up to 128^3, one colour per ray.

    Random backgrounds keep the empty space empty, so that the box soon fits the object.
    """
    return TrainConfig(
        field=TensoRFConfig(
            density_components=8,
            feature_components=16,
            feature_dim=24,
            width=64,
            layers=1,
            density_shift=-4.0,
            initial_voxels=64**3,
            final_voxels=128**3,
            upsample_at=(0.15, 0.35),
            prune_at=(0.05, 0.15, 0.35),
            min_steps_before_refine=60,
            prune_by="weight",
            prune_threshold=0.05,
            step_ratio=1.0,
            shading="per_ray",
            color_threshold=1e-3,
            l1_weight=0.0,
            l1_weight_pruned=0.0,
        ),
        background="random",
        steps=1500,
        supersample_from=0.35,
        batch_samples=1 << 16,
        render_samples=1 << 15,
        validate_every=0.5,
        optimizer=OptimizerConfig(grid_lr=0.06, mlp_lr=4e-3, lr_final_mult=0.05),
    )


def tensorf_vm48() -> TrainConfig:
    """TensoRF VM-48 as published: 30,000 steps, final grid 300^3 (32.39 dB mean, V100 14 min)."""
    return _change_field(tensorf_vm192(), density_components=8, feature_components=8)


def tensorf_vm192() -> TrainConfig:
    """TensoRF VM-192 as published: 30,000 steps, final grid 300^3 (33.14 dB mean, V100 17 min)."""
    return TrainConfig(field=TensoRFConfig(occupancy_voxels=256**3, reset_lr=True))


def tensorf_cp384() -> TrainConfig:
    """TensoRF CP-384 as published: 30,000 steps, final grid 500^3 (31.56 dB mean, V100 25 min)."""
    return TrainConfig(
        field=TensoRFConfig(
            factors="cp",
            density_components=96,
            feature_components=288,
            final_voxels=500**3,
            init_scale=0.2,
            l1_weight=1e-5,
            l1_weight_pruned=1e-5,
            occupancy_voxels=256**3,
            reset_lr=True,
        )
    )


def tensorf_cp_small() -> TrainConfig:
    """TensoRF-CP for a CPU: 24 + 48 components, a grid up to 128^3, one colour per ray."""
    return _change_field(
        tensorf_small(),
        factors="cp",
        density_components=24,
        feature_components=48,
        init_scale=0.2,
    )


def hashgrid_ngp() -> TrainConfig:
    """Instant-NGP: 16 levels of 2 channels, 2^19 rows, to 4096^3 (35.67 dB on lego, nerfacc)."""
    return TrainConfig(
        field=HashGridConfig(finest=4096),
        background="random",
        steps=20_000,
        batch_samples=1 << 18,
        batch_rays=16_384,
        optimizer=OptimizerConfig(
            grid_lr=0.01,
            mlp_lr=0.01,
            lr_final_mult=0.036,
            decay="steps",
            warmup=0.005,
            epsilon=1e-15,
            skip_zero_gradients=True,
            l2=1e-6,
            average=0.95,
        ),
        loss=LossConfig(error="huber"),
    )


def hashgrid_f4() -> TrainConfig:
    """Instant-NGP's other shape: 8 levels of 4 channels."""
    return _change_field(hashgrid_ngp(), levels=8, channels=4, finest=2048)


def pynerf_paper() -> TrainConfig:
    """PyNeRF on multi-scale Blender: 8 heads, 16 levels of 4 channels, 50,000 steps."""
    return TrainConfig(
        field=PyNeRFConfig(
            tables="separate", channels=4, finest=4096, log2_hashmap_size=20, color_layers=3
        ),
        steps=50_000,
        batch_samples=1 << 18,
        batch_rays=8192,
        scales=4,
        optimizer=OptimizerConfig(grid_lr=5e-3, mlp_lr=5e-3, lr_final_mult=0.02, epsilon=1e-15),
    )


def pynerf_growing() -> TrainConfig:
    """PyNeRF on pictures of growing size, neighbouring heads held consistent: 30,000 steps."""
    paper = _change_field(pynerf_paper(), tables="shared", consistency_weight=0.1)
    schedule = ((0.0, 8), (2000.0, 4), (5000.0, 2), (10_000.0, 1))
    return dataclasses.replace(paper, steps=30_000, train_scale_schedule=schedule)


def nerf_small() -> TrainConfig:
    """A small NeRF (4 layers of 64) on an occupancy grid, for a CPU."""
    return TrainConfig(
        field=NeRFConfig(
            layers=4,
            width=64,
            skip=2,
            color_width=64,
            num_position_frequencies=8,
            num_direction_frequencies=2,
            density_bias=-2.0,
            sampler="occupancy",
            occupancy_resolution=64,
            occupancy_warmup_steps=0,
            max_steps=192,
        ),
        background="random",
        steps=4000,
        batch_samples=1 << 14,
        batch_rays=2048,
        render_samples=1 << 15,
        validate_every=0.5,
        optimizer=OptimizerConfig(mlp_lr=4e-3, lr_final_mult=0.05, warmup=0.02),
    )


def bitnerf_small() -> TrainConfig:
    """The small NeRF with ternary weights and 8-bit activations."""
    small: Any = nerf_small()
    shared = {f.name: getattr(small.field, f.name) for f in dataclasses.fields(EncodedMLPConfig)}
    return dataclasses.replace(small, field=BitNeRFConfig(**shared))


def nerf_tiny() -> TrainConfig:
    """The NeRF of the tiny_nerf experiments: 16 octaves, 8 layers of 64, no directions."""
    return TrainConfig(
        field=NeRFConfig(
            layers=8,
            width=64,
            skip=5,
            num_position_frequencies=16,
            use_directions=False,
            num_coarse_samples=32,
            num_fine_samples=0,
        ),
        steps=10_000,
        optimizer=OptimizerConfig(mlp_lr=1e-3, beta2=0.999),
    )


def _change_field(config: TrainConfig, **changes: Any) -> TrainConfig:
    field: Any = config.field
    return dataclasses.replace(config, field=dataclasses.replace(field, **changes))


def bitnerf_tiny() -> TrainConfig:
    """The BitNeRF of the same experiments: 16 octaves, 8 layers of 256, AdamW."""
    tiny = nerf_tiny()
    shared = {f.name: getattr(tiny.field, f.name) for f in dataclasses.fields(EncodedMLPConfig)}
    field = BitNeRFConfig(**shared | {"width": 256})
    rates = dataclasses.replace(tiny.optimizer, mlp_lr=5e-5, weight_decay=0.05)
    return dataclasses.replace(tiny, field=field, optimizer=rates)


def study_base() -> TrainConfig:
    """Seed study, base: 8 layers of 256, 32 samples, Adam, 4 pictures' worth of rays a step."""
    return TrainConfig(
        field=NeRFConfig(
            layers=8,
            width=256,
            skip=4,
            project=True,
            num_position_frequencies=16,
            use_directions=False,
            num_coarse_samples=32,
            num_fine_samples=0,
        ),
        background="black",
        steps=1250,
        batch_rays=40_000,
        devices=1,
        optimizer=OptimizerConfig(mlp_lr=1e-3, beta2=0.999, lr_final_mult=1.0),
    )


def study_mixed() -> TrainConfig:
    """Seed study, mixed precision: the base with its network computed in bfloat16."""
    return _change_field(study_base(), compute="bfloat16")


def study_mixed_large() -> TrainConfig:
    """Seed study, mixed precision and 8 pictures' worth of rays a step, AdamW."""
    mixed = study_mixed()
    rates = dataclasses.replace(mixed.optimizer, weight_decay=0.05)
    return dataclasses.replace(mixed, steps=625, batch_rays=80_000, optimizer=rates)


def study_bitnerf() -> TrainConfig:
    """Seed study, BitNeRF: ternary weights between the projection and the heads, AdamW at 5e-5."""
    base = study_base()
    shared = {f.name: getattr(base.field, f.name) for f in dataclasses.fields(EncodedMLPConfig)}
    field = BitNeRFConfig(**shared, norm_gain=True, full_precision_io=True)
    rates = dataclasses.replace(base.optimizer, mlp_lr=5e-5, weight_decay=0.05)
    return dataclasses.replace(base, field=field, optimizer=rates)


def study_parallel() -> TrainConfig:
    """Seed study, data-parallel: the base with its rays shared by two devices."""
    return dataclasses.replace(study_base(), devices=2)


def study_bitnerf_parallel() -> TrainConfig:
    """Seed study, data-parallel BitNeRF: its rays shared by two devices."""
    return dataclasses.replace(study_bitnerf(), devices=2)


def nerf_original() -> TrainConfig:
    """The NeRF of the paper: 8 layers of 256, 64 + 128 samples, 200,000 steps of 4096 rays.

    As in its original code, the first 500 steps see the middle of the pictures alone, lest all
    become background. Softplus instead of ReLU makes the density, as in Mip-NeRF: a ray along which
    every raw density is negative would never learn.
    """
    return TrainConfig(
        field=NeRFConfig(quadrature="points"),
        steps=200_000,
        precrop_fraction=0.0025,
        optimizer=OptimizerConfig(mlp_lr=5e-4, beta2=0.999),
    )


def hashgrid_small() -> TrainConfig:
    """A hash grid of 8 levels on an occupancy grid, for a CPU."""
    return TrainConfig(
        field=HashGridConfig(
            levels=8,
            channels=4,
            finest=256,
            log2_hashmap_size=15,
            occupancy_resolution=64,
            occupancy_warmup_steps=0,
            max_steps=256,
            color_layers=1,
            shading="per_ray",
        ),
        background="random",
        steps=4000,
        batch_samples=1 << 14,
        batch_rays=1024,
        render_samples=1 << 15,
        validate_every=0.5,
        optimizer=OptimizerConfig(grid_lr=0.04, mlp_lr=0.01, lr_final_mult=0.05, epsilon=1e-15),
    )


def pynerf_small() -> TrainConfig:
    """A PyNeRF of 4 heads on one hash grid, trained on 4 sizes of the pictures, for a CPU."""
    return dataclasses.replace(
        hashgrid_small(),
        field=PyNeRFConfig(
            heads=4,
            levels=8,
            channels=4,
            finest=128,
            log2_hashmap_size=15,
            occupancy_resolution=64,
            occupancy_warmup_steps=0,
            max_steps=256,
            color_width=64,
            color_layers=1,
            shading="per_ray",
        ),
        scales=4,
    )


def custom() -> TrainConfig:
    """A field of your own on an occupancy grid: name its class with --field.source."""
    return dataclasses.replace(
        hashgrid_small(),
        field=CustomConfig(
            sampler="occupancy", occupancy_resolution=64, occupancy_warmup_steps=0, max_steps=256
        ),
    )


PRESETS = (
    voxels_small,
    tensorf_small,
    tensorf_cp_small,
    tensorf_vm48,
    tensorf_vm192,
    tensorf_cp384,
    hashgrid_small,
    hashgrid_ngp,
    hashgrid_f4,
    pynerf_small,
    pynerf_paper,
    pynerf_growing,
    nerf_small,
    nerf_tiny,
    nerf_original,
    bitnerf_small,
    bitnerf_tiny,
    study_base,
    study_mixed,
    study_mixed_large,
    study_bitnerf,
    study_parallel,
    study_bitnerf_parallel,
    custom,
)


def preset_name(preset: Any) -> str:
    """Name of a preset as given to --preset: that of its constructor with dashes."""
    return preset.__name__.replace("_", "-")


def make_preset(name: str) -> TrainConfig:
    """The preset of this name; InputError if there is none."""
    for preset in PRESETS:
        if preset_name(preset) == name:
            return preset()
    known = ", ".join(preset_name(p) for p in PRESETS)
    raise InputError(f"--preset {name} is unknown: choose one of {known}.")


def expects_accelerator() -> bool:
    """Whether JAX will find a GPU or TPU, judged without starting JAX.

    Needs an accelerator's device file and a JAX plugin for it; the variable JAX_PLATFORMS decides
    where it is set.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    cuda = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin")
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1"):
        devices = glob.glob("/dev/nvidia[0-9]*") + glob.glob("/dev/kfd")
        if devices and any(importlib.util.find_spec(name) for name in cuda):
            return True
    tpu = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(tpu and importlib.util.find_spec("libtpu"))


def default_preset() -> str:
    """The preset that fits the machine: the full recipe on an accelerator, a small one without."""
    return preset_name(tensorf_vm192 if expects_accelerator() else voxels_small)


def to_json(config: Any) -> str:
    """A configuration as readable text, from which `from_json` makes it again."""

    def encode(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"cannot write {value!r} as JSON")

    return json.dumps(dataclasses.asdict(config), indent=2, default=encode) + "\n"


def from_json(text: str) -> TrainConfig:
    """The training configuration that `to_json` wrote; ValueError says what does not fit."""
    return _build(TrainConfig, json.loads(text), "config")


def _build(expected: Any, value: Any, where: str) -> Any:
    """A value of the expected type out of parsed JSON."""
    origin = typing.get_origin(expected)
    if origin is Annotated:
        return _build(typing.get_args(expected)[0], value, where)
    if origin in (typing.Union, UnionType):
        return _build_union(typing.get_args(expected), value, where)
    if origin is Literal:
        if value not in typing.get_args(expected):
            raise ValueError(f"{where} is {value!r}, not one of {typing.get_args(expected)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}, not a list")
        parts = typing.get_args(expected)
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        if len(parts) != len(value):
            raise ValueError(f"{where} is {value!r}, not a list of {len(parts)}")
        return tuple(_build(part, v, where) for part, v in zip(parts, value, strict=True))
    if dataclasses.is_dataclass(expected):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}, not an object")
        hints = typing.get_type_hints(expected, include_extras=True)
        if unknown := set(value) - set(hints):
            raise ValueError(f"{where} has the unknown key {sorted(unknown)[0]!r}")
        required = [
            f.name for f in dataclasses.fields(expected) if f.default is dataclasses.MISSING
        ]
        if missing := [name for name in required if name not in value]:
            raise ValueError(f"{where} has no {missing[0]!r}")
        built: Any = expected
        return built(**{k: _build(hints[k], v, f"{where}.{k}") for k, v in value.items()})
    if expected is Path and isinstance(value, str):
        return Path(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {value!r}, not a value of type {expected.__name__}")
    return value


def _build_union(members: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in members:
        return None
    members = tuple(m for m in members if m is not type(None))
    if len(members) == 1:
        return _build(members[0], value, where)
    kind = value.get("kind") if isinstance(value, Mapping) else None
    for member in members:
        if kind == next(f.default for f in dataclasses.fields(member) if f.name == "kind"):
            return _build(member, value, where)
    raise ValueError(f"{where}.kind is {kind!r}, which is no field of this version")
