"""The state of a training: everything that its steps change."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxrf.cameras.refinement import CameraAdjustment, zero_adjustment
from jaxrf.core.pytree import as_pytree
from jaxrf.models.base import ModelParams, StageSpec
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training import optim
from jaxrf.training.config import TrainConfig
from jaxrf.training.pixels import BACKGROUNDS
from jaxrf.training.schedule import TrainSchedule, make_train_schedule, training_key


@as_pytree()
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes.

    Attributes:
      params: of the model.
      opt_state: of the optimizer.
      step: () number of steps done.
      grid: the occupancy grid.
      ema_params: exponential moving average of the parameters, if there is one.
    """

    params: ModelParams
    opt_state: Any
    step: Int[Array, ""]
    grid: OccupancyGrid
    ema_params: ModelParams | None = None

    @property
    def eval_params(self) -> ModelParams:
        """The parameters to render with."""
        return self.params if self.ema_params is None else self.ema_params

    def with_cameras(self, adjustment: CameraAdjustment) -> "TrainState":
        """The state with other changes of the cameras."""
        average = self.ema_params
        return dataclasses.replace(
            self,
            params=self.params._replace(cameras=adjustment),
            ema_params=None if average is None else average._replace(cameras=adjustment),
        )


class Metrics(NamedTuple):
    """Means over the steps of one dispatch.

    loss, mse: of training; mse is of the last network's rgb.
    opacity: of the rays.
    target_alpha: of their pixels.
    overflowed: fraction of rays whose samples did not fit into the budgets.
    num_samples: evaluated in a step.
    grad_norm: before clipping.
    finite_fraction: share of the steps with finite gradients; the means are over these.
    grid_grad_norm, mlp_grad_norm: of each parameter group.
    """

    loss: Float[Array, ""]
    mse: Float[Array, ""]
    opacity: Float[Array, ""]
    target_alpha: Float[Array, ""]
    overflowed: Float[Array, ""]
    num_samples: Float[Array, ""]
    grad_norm: Float[Array, ""]
    finite_fraction: Float[Array, ""]
    grid_grad_norm: Float[Array, ""]
    mlp_grad_norm: Float[Array, ""]

    @classmethod
    def zeros(cls) -> "Metrics":
        """Metrics to add others to."""
        return cls(*(jnp.zeros(()) for _ in cls._fields))


def background_color(config: TrainConfig) -> Float[np.ndarray, "3"]:
    """Color behind transparent pixels in evaluation."""
    return np.full(3, BACKGROUNDS[config.background], np.float32)


def step_rngs(rng: Key[Array, ""], step: Int[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The keys of a step's pixels and of everything else in it, from the key of the training."""
    key_batch, key = jax.random.split(jax.random.fold_in(rng, step))
    return key_batch, key


def split_ray_rngs(key: Key[Array, ""], rays: int) -> Key[Array, "rays"]:
    """The keys of a step's rays, one each, whatever is computed beside it."""
    return jax.random.split(jax.random.fold_in(key, 2), rays)


def make_stage_optimizer(
    config: TrainConfig, stage: StageSpec, params: ModelParams, schedule: TrainSchedule
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a training; of the parameters only their groups matter."""
    groups = config.model.param_groups(stage.field, params)
    return optim.make_optimizer(config.optimizer, schedule, groups)


def init_state(config: TrainConfig, stage: StageSpec, grid: OccupancyGrid) -> TrainState:
    """The state before the first step."""
    # Steps fold their own numbers into the same key, which never reach as far.
    key = jax.random.fold_in(training_key(config), np.uint32(2**32 - 1))
    params = config.model.init_params(stage.field, key)
    params = params._replace(cameras=zero_adjustment(config.refine, *(config.refined or (0, 0))))
    optimizer = make_stage_optimizer(config, stage, params, make_train_schedule(config))
    opt_state = optimizer.init(params)
    ema_params = params if config.optimizer.ema_decay else None
    if stage.field.compute_dtype == "float16":
        opt_state = optim.LossScaledState(opt_state, optim.init_loss_scale())
    return TrainState(params, opt_state, jnp.zeros((), jnp.int32), grid, ema_params)
