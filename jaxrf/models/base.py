"""A model: a field, how its rays are sampled, and how they are rendered.

A model is a frozen dataclass of numbers. `render_train` renders a batch with random samples and is
differentiable; `render_eval` renders images. Letters in shapes: r rays, m samples, n intervals.
"""

import dataclasses
import math
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, Float, Int

from jaxrf.cameras import contraction
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.cameras.refinement import CameraAdjustment
from jaxrf.core.checks import require_non_negative, require_positive
from jaxrf.core.errors import InputError
from jaxrf.core.rays import Rays
from jaxrf.fields.base import Field, Params, label_params
from jaxrf.fields.checks import broadcast_groups
from jaxrf.models.color_correction import (
    ColorCorrection,
    color_matrices,
    correct_rgb,
    init_color_correction,
)
from jaxrf.rendering.volume import Rendering
from jaxrf.sampling.occupancy import OccupancyGrid


class Appearance(NamedTuple):
    """Per-image appearance: an offset of features, linear in a code for each image.

    codes: (images, dim).
    matrix: (dim, channels).
    """

    codes: Float[Array, "images dim"]
    matrix: Float[Array, "dim channels"]


class ModelParams(NamedTuple):
    """Everything that a model trains.

    field: of the network that images show.
    coarse: of the network that hierarchical sampling asks first, if there is one.
    proposals: of the proposal networks.
    appearance: of the images, if they have any.
    color_correction: of the images, if they have any (`init_color_correction`).
    cameras: changes of the training cameras, if they are refined.
    """

    field: Params
    coarse: Params | None = None
    proposals: tuple[Params, ...] = ()
    appearance: Appearance | None = None
    color_correction: Float[Array, "images *shape"] | None = None
    cameras: CameraAdjustment | None = None


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """The static shapes of training between two transitions; stored with every checkpoint.

    Attributes:
      field: with the shapes of this stage.
      grid_resolution: cells of the occupancy grid along x, y, z.
      num_rays: of a step, the sub-rays of its pixels.
      supersample: rays of a pixel along each axis.
      num_shards: parts of a step's rays that different devices may compute.
      num_microbatches: parts of a shard whose gradients are computed one after the other.
      max_blocks: blocks of steps along a ray; they reach across the box.
      block_budget: blocks entered in a training step.
      sample_budget: samples evaluated in a training step.
      color_budget: samples that get features; 0 if all do.
      dilation_cells: half a block of steps in cells, of a grid that is pooled while training.
      patch_size: pixels along each axis of the squares that a step's pixels form.
    """

    field: Field
    grid_resolution: tuple[int, int, int]
    num_rays: int
    supersample: int
    num_shards: int = 1
    num_microbatches: int = 1
    max_blocks: int = 0
    block_budget: int = 0
    sample_budget: int = 0
    color_budget: int = 0
    dilation_cells: float = 0.0
    patch_size: int = 1

    def num_pixels(self) -> int:
        """Pixels of a step."""
        return self.num_rays // self.supersample**2

    def num_patches(self) -> int:
        """Squares of pixels of a step, which no shard or microbatch divides."""
        return self.num_pixels() // self.patch_size**2

    def per_shard(self) -> "StageSpec":
        """The stage of one microbatch of one shard, with its share of rays and budgets."""
        return dataclasses.replace(
            self,
            num_rays=self.num_rays // (self.num_shards * self.num_microbatches),
            block_budget=math.ceil(self.block_budget / self.num_shards),
            sample_budget=math.ceil(self.sample_budget / self.num_shards),
            color_budget=math.ceil(self.color_budget / self.num_shards),
        )


class DepthTarget(NamedTuple):
    """Distances at which rays are known to end, in scene units.

    distance: (r,) NaN where it is not known.
    std: (r,) its standard deviation.
    """

    distance: Float[Array, "r"]
    std: Float[Array, "r"]


class TrainRendering(NamedTuple):
    """A rendered training batch.

    rgb: one (r, 3) per network that is compared with the images, the last being the result.
    opacities: one (r,) per network, as in `rgb`.
    overflowed: (r,) rays whose samples did not fit into the budgets.
    num_samples: () samples that the field was evaluated at.
    distortion_loss: (r,) of the last network's weights, s distances being 0 at near and 1 at far.
    interlevel_loss: (r,) weighted, of the proposals; None without any.
    depth_loss: (r,) of the last network's weights where depth is known, 0 elsewhere; None without
      any such ray.
    grid: the occupancy grid with the weights of these rays.
    """

    rgb: tuple[Float[Array, "r 3"], ...]
    opacities: tuple[Float[Array, "r"], ...]
    overflowed: Bool[Array, "r"]
    num_samples: Int[Array, ""]
    distortion_loss: Float[Array, "r"]
    interlevel_loss: Float[Array, "r"] | None
    depth_loss: Float[Array, "r"] | None
    grid: OccupancyGrid

    @property
    def opacity(self) -> Float[Array, "r"]:
        """Opacity of the last network's rays."""
        return self.opacities[-1]


@dataclasses.dataclass(frozen=True)
class Model:
    """Numbers that every model has."""

    contract: bool | None = None
    """Contract the space around the scene's box into a box twice as large, for scenes without
    bounds; rays then have no end. Start emptier, with a lower density-shift or -bias: thin fog
    hides everything over such lengths. Default: where the data has no bounds."""
    contraction_norm: contraction.Norm = "max"
    """Norm by which space is contracted: max keeps the box as it is (nerfacto), euclidean the
    ellipsoid in it (Mip-NeRF 360), whose border has no edges that show as kinks far away."""
    appearance_dim: int = 0
    """Numbers learned for each training image, which change colors (exposure, weather) but not
    geometry. Views are rendered with their mean. 0: none."""
    color_correction: ColorCorrection = "none"
    """Correction of the colors of each training image, after compositing: a gain for each channel
    (exposure), or an affine map (affine: 3 x 4 numbers). Their mean is the identity, with which
    views are rendered. EXIF exposures, if all images have them, are where gains begin."""
    num_appearances: Annotated[int | None, tyro.conf.Suppress] = None
    """Number of training images; set when training begins."""
    exposures: Annotated[tuple[float, ...], tyro.conf.Suppress] = ()
    """Exposure of each training image, if it is known; set when training begins."""
    coloring: Literal["per_sample", "per_ray"] | None = None
    """Color every sample, or once per ray from composited features (faster). Default: as the field
    suggests."""
    checkpoint_chunks: int = 1
    """Compute the samples of a step in so many chunks, and again for the gradient in place of
    storing activations: less memory for more time. 1 stores them."""

    def __post_init__(self) -> None:
        """Checks the numbers; InputError names the one that cannot be used."""
        require_positive(self, "checkpoint_chunks", prefix="model.")
        require_non_negative(self, "appearance_dim", prefix="model.")

    @property
    def name(self) -> str:
        """The name on the command line: that of its class without "Model", in lower case."""
        return type(self).__name__.removesuffix("Model").lower()

    # -- what a kind of model defines ----------------------------------------------------------

    def init_networks(self, field: Field, key: jax.Array) -> ModelParams:
        """Fresh parameters of all networks."""
        raise NotImplementedError(type(self).__name__)

    def render_train(
        self,
        stage: StageSpec,
        params: ModelParams,
        grid: OccupancyGrid,
        key: jax.Array,
        rays: Rays,
        background: Float[Array, "r 3"],
        convention: RayConvention,
        depth_target: DepthTarget | None = None,
    ) -> TrainRendering:
        """Renders a training batch with random samples; differentiable in the parameters.

        The key is one for all rays or one for each.
        """
        raise NotImplementedError(type(self).__name__)

    def render_eval(
        self,
        stage: StageSpec,
        params: ModelParams,
        grid: OccupancyGrid,
        rays: Rays,
        background: Float[Array, "r 3"],
        convention: RayConvention,
        *,
        num_samples: int,
        group_size: int = 1,
        aabb: Float[Array, "2 3"] | None = None,
        crop_aabb: Float[Array, "2 3"] | None = None,
    ) -> Rendering:
        """Renders rays (r,) without random numbers.

        Args:
          stage: its `max_blocks` have to reach across `aabb`.
          params: of the model.
          grid: the occupancy grid.
          rays: batch shape (r,).
          background: (r, 3) colors.
          convention: of rays and compositing.
          num_samples: evaluated together at most.
          group_size: r is a multiple of it, and as many consecutive rays are those of neighboring
            pixels, which may share work (`pixel_block`).
          aabb: the box that is marched through, by default the grid's, unless space is contracted.
          crop_aabb: density outside of it is left out.
        """
        raise NotImplementedError(type(self).__name__)

    def samples_per_ray(self) -> int | None:
        """Samples of each ray at which a network is evaluated; None if rays differ in it."""
        return None

    def pixel_block(self) -> int:
        """Pixels along each side of the blocks of an image whose rays share work."""
        return 1

    def grid_resolution(self, aabb: Float[np.ndarray, "2 3"]) -> tuple[int, int, int]:
        """Cells of the occupancy grid of a field that leaves them to the model."""
        del aabb
        return (1, 1, 1)

    def init_grid(
        self,
        stage: StageSpec,
        aabb: Float[np.ndarray, "2 3"],
        bounds: Float[Array, "2 3"] | None,
    ) -> OccupancyGrid:
        """The occupancy grid before the first step, in the box that the field fills."""
        raise NotImplementedError(type(self).__name__)

    def set_budgets(
        self,
        stage: StageSpec,
        batch_samples: int,
        microbatch_samples: int | None,
        aabb: Float[np.ndarray, "2 3"],
        bounds: Float[np.ndarray | Array, "2 3"] | None,
    ) -> StageSpec:
        """The stage with budgets for a grid in this box.

        Args:
          stage: with its number of rays.
          batch_samples: evaluated in a step at most, where rays differ in their number of samples.
          microbatch_samples: whose gradient is computed together, where they do not.
          aabb: of the grid.
          bounds: the scene's box where space is contracted.
        """
        raise NotImplementedError(type(self).__name__)

    def check(self, field: Field, convention: RayConvention) -> None:
        """Checks that field, model and convention fit together.

        Raises:
          InputError: naming the option to change.
        """
        if self.colors_per_ray(field) and not field.composites_features():
            raise InputError(
                f"{type(field).__name__} has no features to sum up along a ray as it is configured "
                "(composites_features): set --model.coloring to per_sample."
            )
        if convention.along_axis() and convention.range_along == "ray":
            raise InputError(
                "--ray-convention has lengths or directions along the axis, but its range along "
                "the ray: set --ray-convention.range-along to axis."
            )

    def update_grid(
        self,
        stage: StageSpec,
        params: ModelParams,
        grid: OccupancyGrid,
        key: jax.Array,
        cone_scales: tuple[int, ...],
    ) -> OccupancyGrid:
        """The occupancy grid after a training step."""
        del stage, params, key, cone_scales
        return grid

    def describe_grid(self, stage: StageSpec, grid: OccupancyGrid) -> str:
        """How fine and how full the grid of a stage is, in words; nothing if it does not matter."""
        del stage, grid
        return ""

    def eval_stage(
        self, stage: StageSpec, grid: OccupancyGrid, convention: RayConvention, crop: bool
    ) -> tuple[StageSpec, Float[np.ndarray, "2 3"]]:
        """The shapes that rendering depends on, and the box to march through.

        `crop` makes that the box of the occupied cells, with as few blocks as reach across it. Rays
        then march less, but every pruning makes another program.
        """
        del convention, crop
        bare = StageSpec(
            field=stage.field.for_rendering(),
            grid_resolution=stage.grid_resolution,
            num_rays=0,
            supersample=1,
            max_blocks=stage.max_blocks,
            color_budget=min(stage.color_budget, 1),
        )
        return bare, np.asarray(grid.aabb)

    # -- what all models share -----------------------------------------------------------------

    def colors_per_ray(self, field: Field) -> bool:
        """Whether rays are colored once, from composited features."""
        return (self.coloring or field.default_coloring) == "per_ray"

    def init_params(self, field: Field, key: jax.Array) -> ModelParams:
        """Fresh parameters of everything that is trained."""
        params = self.init_networks(field, key)
        params = params._replace(
            color_correction=init_color_correction(
                self.color_correction, self.num_appearances or 1, self.exposures
            )
        )
        if not self.appearance_dim:
            return params
        # Fields split the key itself.
        shape = (self.appearance_dim, field.appearance_channels())
        matrix = jax.random.normal(jax.random.fold_in(key, 0), shape)
        # Images look alike at first.
        codes = jnp.zeros((self.num_appearances or 1, self.appearance_dim))
        return params._replace(
            appearance=Appearance(codes, matrix / math.sqrt(self.appearance_dim))
        )

    def param_groups(self, field: Field, params: ModelParams) -> ModelParams:
        """The optimizer group of each parameter ("grid", "mlp" or "camera"), shaped like them."""
        return ModelParams(
            field=broadcast_groups(field, params.field),
            coarse=None if params.coarse is None else broadcast_groups(field, params.coarse),
            proposals=self.proposal_groups(params.proposals),
            appearance=label_params(params.appearance, "mlp"),
            color_correction=label_params(params.color_correction, "mlp"),
            cameras=jax.tree.map(lambda _: "camera", params.cameras),
        )

    @property
    def has_image_colors(self) -> bool:
        """Whether training images have colors that those of the field are fitted to."""
        return self.appearance_dim > 0 or self.color_correction != "none"

    def correct_colors(
        self,
        params: ModelParams,
        rendering: TrainRendering,
        camera_index: Int[Array, "r"],
        background: Float[Array, "r 3"],
    ) -> TrainRendering:
        """A rendered training batch in the colors of its images (`color_correction`)."""
        if params.color_correction is None:
            return rendering
        matrices = color_matrices(self.color_correction, params.color_correction)
        pairs = zip(rendering.rgb, rendering.opacities, strict=True)
        return rendering._replace(
            rgb=tuple(
                correct_rgb(matrices, camera_index, rgb, opacity, background)
                for rgb, opacity in pairs
            )
        )

    def proposal_groups(self, proposals: tuple[Params, ...]) -> tuple[Params, ...]:
        """The optimizer groups of the proposal networks."""
        return proposals

    def add_regularization(
        self,
        field: Field,
        params: ModelParams,
        grads: ModelParams,
        grid: OccupancyGrid,
        key: jax.Array,
        tv_decay: Float[Array, ""],
    ) -> tuple[Float[Array, ""], ModelParams]:
        """The field's penalty on each network, and the gradients with those of it added."""
        total = jnp.zeros(())
        for name in ("coarse", "field"):
            network = getattr(params, name)
            if network is None:
                continue
            penalty, added = field.add_regularization(
                network, getattr(grads, name), grid, key, tv_decay
            )
            total, grads = total + penalty, grads._replace(**{name: added})
        return total, grads

    def rays_per_chunk(self, num_samples: int) -> int:
        """Rays rendered together, such that their samples fit into memory."""
        samples = self.samples_per_ray()
        return num_samples if samples is None else max(64, num_samples // samples)


@dataclasses.dataclass(frozen=True)
class RenderSpec:
    """Static facts about rendering: they decide which program is compiled.

    Attributes:
      model: renders the rays.
      stage: of evaluation (`Model.eval_stage`).
      convention: of rays and compositing.
      num_samples: evaluated together at most.
      group_size: consecutive rays that are those of neighboring pixels (`Model.render_eval`).
    """

    model: Model
    stage: StageSpec
    convention: RayConvention
    num_samples: int
    group_size: int = 1


def render_rays(
    spec: RenderSpec,
    params: ModelParams,
    grid: OccupancyGrid,
    rays: Rays,
    background: Float[Array, "3"],
    aabb: Float[Array, "2 3"] | None = None,
    crop_aabb: Float[Array, "2 3"] | None = None,
) -> Rendering:
    """Renders rays (r,) over a background of one color; see `Model.render_eval`."""
    return spec.model.render_eval(
        spec.stage,
        params,
        grid,
        rays,
        jnp.broadcast_to(background, (*rays.near.shape, 3)),
        spec.convention,
        num_samples=spec.num_samples,
        group_size=spec.group_size,
        aabb=aabb,
        crop_aabb=crop_aabb,
    )
