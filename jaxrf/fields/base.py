"""The contract of a radiance field, and defaults for everything optional in it.

A field is a frozen dataclass whose numbers are its configuration, and a few pure functions of
explicit parameters. It needs `init`, `density` and `color`; every other method has a default here.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.core.errors import InputError
from jaxrf.core.rays import ConicalFrusta, Multisamples, Rays
from jaxrf.fields.mlp import ComputeType
from jaxrf.rendering.volume import RaySums
from jaxrf.sampling.density_tracking import track_density
from jaxrf.sampling.occupancy import OccupancyGrid, make_full_grid

FieldT = TypeVar("FieldT", bound="Field")
# A pytree of arrays: nested dicts, tuples and dataclasses.
Params = Any
# The optimizer group of a parameter: grids and networks have a learning rate each.
Group = Literal["grid", "mlp"]
# Channels of a row in which lookups are counted.
ROW_CHANNELS = 8


class FieldContext(NamedTuple):
    """Inputs of a field beside its parameters, for m positions.

    radii: (m,) of the pixels' cones at the positions, in the units of the positions.
    aabb: (2, 3) the box that the field fills: the scene's, or that of contracted space.
    frusta: the parts of cones that the positions stand for; None where cones have no simple form,
      as in contracted space, or where there is no ray.
    grid: the occupancy grid.
    noise: (m,) standard normal numbers while training, if `noise_std` is above 0.
    multisamples: points of the same cones, if `multisamples_per_sample` is above 1.
    """

    radii: Float[Array, "m"]
    aabb: Float[Array, "2 3"]
    frusta: ConicalFrusta | None = None
    grid: OccupancyGrid | None = None
    noise: Float[Array, "m"] | None = None
    multisamples: Multisamples | None = None


class SceneInfo(NamedTuple):
    """Facts about a scene that a field may fit its numbers to before training.

    aabb: (2, 3) the box that the field will fill, in scene units.
    pixel_size: width of a pixel at the center of the scene, in scene units.
    is_ndc: whether the scene is in normalized device coordinates.
    rays_per_image: rays of a training step as a share of the pixels of an image.
    """

    aabb: Float[np.ndarray, "2 3"]
    pixel_size: float
    is_ndc: bool
    rays_per_image: float


class StageTransition(NamedTuple):
    """A change of the field's shapes or cells between two stages of training.

    step: before which it happens.
    prune: whether empty cells are dropped.
    num_voxels: number of voxels from then on; None leaves them.
    supersample: rays of a pixel along each axis from then on.
    """

    step: int
    prune: bool
    num_voxels: int | None
    supersample: int = 1


class Transitioned(NamedTuple):
    """A field after a transition.

    field: with the shapes of the new stage.
    grid: its occupancy grid.
    carry_over: takes anything shaped like the field's parameters, such as an optimizer's moments,
      to the new stage.
    """

    field: "Field"
    grid: OccupancyGrid
    carry_over: Callable[[Params], Params]


class SampleCost(NamedTuple):
    """Operations that one sample costs in training, gradient included.

    flops: in dense layers.
    rows: of `ROW_CHANNELS` numbers that are gathered, and scattered in the backward pass.
    """

    flops: float = 0.0
    rows: float = 0.0


def label_params(params: Params, group: Group) -> Params:
    """One optimizer group for all parameters, shaped like them."""
    return jax.tree.map(lambda _: group, params)


def keep_params(params: Params) -> Params:
    """The parameters as they are: the `carry_over` of a transition without new shapes."""
    return params


@dataclasses.dataclass(frozen=True)
class Field:
    """A radiance field: a frozen dataclass of numbers, and pure functions of explicit parameters.

    `density` returns a latent beside the density. `features` makes of it what may be composited
    along a ray, and `color` the color of features seen from a direction. So colors are computed
    only for samples that matter, once per sample or once per ray.

    Every field of the dataclass is a command-line option, with its default and docstring.
    """

    compute_dtype: ComputeType = dataclasses.field(default="float32", kw_only=True)
    """Type that networks are computed in, where accelerators are several times faster in 16 bits;
    weights are kept, and positions, encodings and transmittance computed, in float32. With float16
    the loss is scaled such that gradients neither vanish nor overflow."""

    prunes_grid: ClassVar[bool] = False
    """Whether the field itself decides, at its transitions, which cells of its grid are kept. The
    occupancy grid of any other field follows its density."""
    default_coloring: ClassVar[Literal["per_sample", "per_ray"]] = "per_sample"
    """How its samples are colored unless the model says so."""

    @classmethod
    def match(cls: type[FieldT], field: "Field") -> FieldT | None:
        """The field itself if it is of this very class; else None."""
        return field if type(field) is cls else None

    @property
    def name(self) -> str:
        """The name of its class in lower case, as runs and their files have it."""
        return type(self).__name__.lower()

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters: any pytree of float32 arrays."""
        raise NotImplementedError(f"{type(self).__name__} has no init")

    def density(
        self, params: Params, positions: Float[Array, "m 3"], context: FieldContext
    ) -> tuple[Float[Array, "m"], Any]:
        """Density per scene unit at positions, at least 0, and a latent that begins with m."""
        raise NotImplementedError(f"{type(self).__name__} has no density")

    def features(self, params: Params, latent: Any) -> Float[Array, "m c"]:
        """Features of samples with this latent; by default the latent itself."""
        del params
        return latent

    def color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Color in [0, 1] of features seen along unit directions."""
        raise NotImplementedError(f"{type(self).__name__} has no color")

    def param_groups(self, params: Params) -> Params:
        """The optimizer group, "grid" or "mlp", of each array or of a whole part of the tree."""
        return label_params(params, "mlp")

    def noise_std(self) -> float:
        """Standard deviation of the noise on the raw density while training; 0 draws none."""
        return 0.0

    def multisamples_per_sample(self) -> int:
        """Points of each sample's cone that are looked up; 1 is its middle alone."""
        return 1

    def composites_features(self) -> bool:
        """Whether features may be summed up along a ray, to be colored once (`per_ray`)."""
        return True

    def needs_intervals(self) -> bool:
        """Whether a sample has to stand for an interval of the ray, not for a point."""
        return False

    def quantizes_activations(self) -> bool:
        """Whether activations are rounded to few levels, which amplifies rounding errors."""
        return False

    def appearance_channels(self) -> int:
        """Number of leading feature channels that an image's appearance is added to.

        Raises:
          InputError: if the field does not say so.
        """
        raise InputError(
            f"The field {type(self).__name__} has no appearance_channels: define it, returning the "
            "number of its feature channels, or leave --model.appearance-dim at 0."
        )

    def regularization(
        self, params: Params, grid: OccupancyGrid, key: jax.Array, tv_decay: Float[Array, ""]
    ) -> Float[Array, ""]:
        """The penalty on the parameters that is added to the loss.

        Args:
          params: of one network.
          grid: the occupancy grid.
          key: of what is drawn at random.
          tv_decay: factor of the weights of total variation, which fall as learning rates do.
        """
        del params, grid, key, tv_decay
        return jnp.zeros(())

    def add_regularization(
        self,
        params: Params,
        grads: Params,
        grid: OccupancyGrid,
        key: jax.Array,
        tv_decay: Float[Array, ""],
    ) -> tuple[Float[Array, ""], Params]:
        """The penalty, and the gradients of one network with its gradient added.

        A field whose penalty touches few rows of a table adds to those alone. See `regularization`.
        """
        penalty, added = jax.value_and_grad(self.regularization)(params, grid, key, tv_decay)
        return penalty, jax.tree.map(jnp.add, grads, added)

    def ray_compositor(
        self, params: Params, grid: OccupancyGrid, crop_aabb: Float[Array, "2 3"] | None = None
    ) -> Callable[[Rays, Float[Array, ""], int, float], RaySums] | None:
        """A kernel for CPUs that composites whole rays for an image; None if the field has none.

        Nothing is rendered outside of `crop_aabb`, if there is one.

        It takes rays clipped to the grid's box, the length of a step, the blocks of steps of a ray
        and the transmittance at which it is finished.
        """
        del params, grid, crop_aabb
        return None

    def step_size(self, aabb: Float[Array | np.ndarray, "2 3"]) -> Float[Array, ""] | None:
        """Length of a marching step in a box, in scene units; None leaves it to the model."""
        del aabb
        return None

    def resolve(self, scene: SceneInfo) -> "Field":
        """The field with numbers that were left open settled for a scene."""
        del scene
        return self

    def min_voxel_size(self, aabb: Float[np.ndarray, "2 3"]) -> float:
        """Side of the smallest voxel that training will reach, in scene units; infinite if none."""
        del aabb
        return float("inf")

    def begin(self, aabb: Float[np.ndarray, "2 3"]) -> "Field":
        """The field with the array shapes of the first stage, in this box."""
        del aabb
        return self

    def grid_aabb(self, aabb: Float[np.ndarray, "2 3"]) -> Float[np.ndarray, "2 3"]:
        """The box of its occupancy grid at the first stage, in a scene with this box."""
        return aabb

    def grid_resolution(self, aabb: Float[np.ndarray, "2 3"]) -> tuple[int, int, int] | None:
        """Cells of its occupancy grid at the present stage; None leaves it to the model."""
        del aabb
        return None

    def init_grid(
        self,
        aabb: Float[np.ndarray, "2 3"],
        resolution: tuple[int, int, int],
        dilation_cells: float,
        bounds: Float[Array, "2 3"] | None,
    ) -> OccupancyGrid:
        """The occupancy grid before the first step: everything in the box may be occupied.

        Args:
          aabb: the box that the field fills.
          resolution: cells of the grid.
          dilation_cells: half a block of steps, in cells (`max_pool_occupancy`).
          bounds: the scene's box where space is contracted.
        """
        full = make_full_grid(resolution, jnp.asarray(aabb), bounds)
        return jax.jit(track_density, static_argnums=1)(full, dilation_cells)

    def plan_transitions(self, step_at: Callable[[float], int]) -> list[StageTransition]:
        """Transitions of a training in order; `step_at` converts a fraction of it to a step."""
        del step_at
        return []

    def delay_transitions(self, transitions: Sequence[StageTransition]) -> list[StageTransition]:
        """All transitions of a training, those of supersampling included, moved if need be."""
        return list(transitions)

    def predict_transition(
        self, transition: StageTransition, grid: OccupancyGrid
    ) -> tuple["Field", Float[np.ndarray, "2 3"]] | None:
        """The field and its box after a transition, as far as known before; None if it is not.

        Serves to compile ahead of time, and may turn out otherwise.
        """
        del transition
        return self, np.asarray(grid.aabb)

    def apply_transition(
        self, transition: StageTransition, params: Params, grid: OccupancyGrid
    ) -> Transitioned:
        """The field, its grid, and what carries parameters over, after a transition."""
        del transition, params
        return Transitioned(self, grid, keep_params)

    def resets_lr(self, transition: StageTransition) -> bool:
        """Whether learning rates and the optimizer's moments begin anew at a transition."""
        del transition
        return False

    def canonical(self) -> "Field":
        """The field as its training step sees it: equal for stages that share a program."""
        return self

    def for_rendering(self) -> "Field":
        """The field as images are rendered: equal for stages that share a program to render."""
        return self

    def shape_key(self) -> tuple[Any, ...]:
        """Numbers that the shapes of parameters and grid depend on; equal if shapes stay."""
        return ()

    def describe_grid(self, grid: OccupancyGrid) -> str:
        """How fine and how full the grid of the present stage is, in words."""
        return f"{float(jnp.mean(grid.occupied * 1.0)):.1%} of the box occupied"

    def sample_cost(self, colored_fraction: float = 1.0) -> SampleCost:
        """Operations that a sample costs in training, if a fraction of samples is colored."""
        del colored_fraction
        return SampleCost()

    def debug_outputs(
        self,
        params: Params,
        positions: Float[Array, "m 3"],
        directions: Float[Array, "m 3"],
        aabb: Float[Array, "2 3"],
    ) -> dict[str, Array]:
        """Outputs of the layers before activations, by name, to compare a port with its original.

        Of these: "encoding" of positions, "trunk", "features", raw "density" (m,) and raw "color"
        (m, 3).
        """
        del params, positions, directions, aabb
        raise InputError(f"The field {type(self).__name__} has no debug_outputs to compare.")
