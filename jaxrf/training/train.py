"""Training: one linear loop from pictures to a field, read top to bottom in `fit`."""

import dataclasses
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, NamedTuple, Protocol, assert_never, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jaxrf.cameras.base import apply_ray_convention
from jaxrf.core import memory, user_code
from jaxrf.core.errors import InputError
from jaxrf.core.pytree import as_pytree
from jaxrf.data.scene import Scene
from jaxrf.fields.base import Params
from jaxrf.models import methods
from jaxrf.models.methods import Stage
from jaxrf.parallel import devices, processes, sums
from jaxrf.sampling import occupancy
from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.training import (
    losses,
    optim,
    schedule,
    transitions,
)
from jaxrf.training import (
    pixels as batches,
)
from jaxrf.training.config import LossConfig, TrainConfig
from jaxrf.training.losses import ErrorFn
from jaxrf.training.optim import Course, Scaled
from jaxrf.training.pixels import BACKGROUNDS, Batch, PixelDataset, PrefetchedPixels

# Of the free memory a step may ask for so much, lest what else happens finds none.
STEP_MEMORY_FRACTION = 0.9
# Pictures that take more of it are streamed.
IMAGE_MEMORY_FRACTION = 0.5


@as_pytree()
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training changes.

    Attributes:
      params: of the field.
      opt_state: of the optimiser.
      step: () number of steps done.
      grid: cells that may be occupied.
      average: running average of the parameters, if there is one.
    """

    params: Params
    opt_state: Any
    step: Int[Array, ""]
    grid: OccupancyGrid
    average: Params | None = None

    @property
    def shown(self) -> Params:
        """The parameters to render with."""
        return self.params if self.average is None else self.average


class Metrics(NamedTuple):
    """Means over the steps of one dispatch.

    loss, mse: of training; mse is of the last network's rgb.
    opacity: of the rays.
    truth_alpha: of their pixels.
    dropped: fraction of rays that overflowed the sample budget.
    samples: evaluated in a step.
    grad_norm: before clipping.
    grid_grad_norm, mlp_grad_norm: of each parameter group's part.
    kept: share of the steps that did not overflow; the means are over these.
    """

    loss: Float[Array, ""]
    mse: Float[Array, ""]
    opacity: Float[Array, ""]
    truth_alpha: Float[Array, ""]
    dropped: Float[Array, ""]
    samples: Float[Array, ""]
    grad_norm: Float[Array, ""]
    kept: Float[Array, ""]
    grid_grad_norm: Float[Array, ""]
    mlp_grad_norm: Float[Array, ""]

    @classmethod
    def zeros(cls) -> "Metrics":
        """What to add to."""
        return cls(*(jnp.zeros(()) for _ in cls._fields))


class Gradient(NamedTuple):
    """What some rays ask for.

    grads: of the mean loss, in the parameters.
    metrics: of these rays.
    memory: of cells, if the grid has one.
    """

    grads: Params
    metrics: Metrics
    memory: Float[Array, "slots"] | None

    def add(self, other: "Gradient") -> "Gradient":
        """The sum of both, and what is remembered of either."""
        grads, metrics = jax.tree.map(
            jnp.add, (self.grads, self.metrics), (other.grads, other.metrics)
        )
        return Gradient(grads, metrics, jax.tree.map(jnp.maximum, self.memory, other.memory))

    def psum(self) -> "Gradient":
        """The sum of those of all devices, in whatever order is quickest."""
        grads, metrics = jax.lax.psum((self.grads, self.metrics), devices.AXIS)
        return Gradient(grads, metrics, jax.lax.pmax(self.memory, devices.AXIS))


def _cut(tree: Any, parts: int) -> Any:
    """Arrays in so many parts of even length."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)


StepFn = Callable[..., tuple[TrainState, Metrics]]


def background_color(config: TrainConfig) -> Float[np.ndarray, "3"]:
    """Colour behind transparent pixels in evaluation."""
    return np.full(3, BACKGROUNDS[config.background], np.float32)


def split_ray_rngs(key: jax.Array, rays: int) -> Key[Array, "rays"]:
    """The keys of a step's rays."""
    return jax.random.split(jax.random.fold_in(key, 2), rays)


def step_rngs(course: Course, step: Int[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The keys of a step's pixels and of everything else in it."""
    key_batch, key = jax.random.split(jax.random.fold_in(course.key, step))
    return key_batch, key


def make_train_schedule(config: TrainConfig, grown: int = 0) -> Course:
    """The course that a configuration asks for once all growths before step `grown` are done."""
    steps, reached = schedule.schedule_table(config)
    restart = transitions.last_lr_reset(config, grown)
    return Course(
        jax.random.key(config.seed),
        jnp.asarray(steps),
        jnp.asarray(reached),
        jnp.asarray(restart, jnp.float32),
    )


def make_optimizer(
    config: TrainConfig, params: Params, course: Course
) -> optax.GradientTransformationExtraArgs:
    """The optimiser of a run; the parameters only tell which groups there are."""
    labels = methods.label_params(params)
    return optim.make_optimizer(config.optimizer, course, labels)


def init_params(config: TrainConfig, stage: Stage) -> tuple[Params, Any]:
    """Fresh parameters and their optimiser's state."""
    # Steps fold their own numbers into the same key, which never reach as far.
    key = jax.random.fold_in(jax.random.key(config.seed), np.uint32(2**32 - 1))
    params = methods.init_params(config.field, stage, key)
    return params, make_optimizer(config, params, make_train_schedule(config)).init(params)


def init_state(config: TrainConfig, stage: Stage, grid: OccupancyGrid) -> TrainState:
    """The state before the first step."""
    params, opt_state = init_params(config, stage)
    average = params if config.optimizer.average else None
    if config.field.compute == "float16":
        opt_state = Scaled(opt_state, optim.init_loss_scale())
    return TrainState(params, opt_state, jnp.zeros((), jnp.int32), grid, average)


_mark_invisible_cells = jax.jit(occupancy.mark_invisible_cells, static_argnums=2)
# One program instead of an operation at a time, each of which would be compiled by itself.
_init_state = jax.jit(init_state, static_argnums=(0, 1))


def choose_error(config: LossConfig) -> ErrorFn:
    """The error of a pixel's colour that a configuration asks for.

    Raises:
      InputError: if it is a function of the user's that is none.
    """
    if config.source:
        own = user_code.load(config.source, "--loss.source")
        try:
            error = jax.eval_shape(own, *(jax.ShapeDtypeStruct((5, 3), jnp.float32),) * 2)
            found = f"gives {error.shape}" if error.shape != (5,) else ""
        except Exception as error:
            found = user_code.describe(error, config.source.rpartition(":")[0])
        if found:
            raise InputError(
                f"--loss.source {config.source} is no loss ({found}): it must take two arrays "
                "(5, 3) and give one (5,)."
            )
        return own
    match config.error:
        case "squared":
            return losses.squared_error
        case "huber":
            return partial(losses.huber_error, delta=config.huber_delta)
        case "charbonnier":
            return partial(losses.charbonnier_error, epsilon=config.charbonnier_epsilon)
    assert_never(config.error)


def make_train_step(
    config: TrainConfig,
    stage: Stage,
    scene_range: tuple[float, float],
    error_fn: ErrorFn | None = None,
    mesh: Mesh | None = None,
) -> StepFn:
    """The pure function that does steps: (state, pixels, course, count) -> (state, metrics).

    Where pictures are not on the device, the pixels of that many steps are one more argument.

    `error_fn` is the error of a pixel's colour, by default that of the configuration.
    `mesh` are the devices that share the rays of a step, by default one.

    Any count runs in the same compiled loop, and the chance of each step is folded in from its
    number, so where a run is cut into dispatches changes no bit of the result. Each ray has a
    chance of its own, so that it does not matter either which are computed together.
    """

    parts = stage.supersample**2
    error_fn = error_fn or choose_error(config.loss)
    mesh = mesh or devices.make_mesh(1)
    some, whole_step = transitions.divide(stage), stage.shards * stage.passes == 1

    def loss_fn(
        params: Params,
        grid: OccupancyGrid,
        scale: float | Float[Array, ""],
        batch: Batch,
        key: jax.Array,
    ) -> tuple[Array, tuple[Metrics, Array | None]]:
        behind = jnp.repeat(batch.behind, parts, axis=0)
        predicted = methods.predict(config.field, some, params, grid, key, batch.rays, behind)
        used = ~jnp.any(predicted.dropped.reshape(-1, parts), axis=1)
        colors = [jnp.mean(rgb.reshape(-1, parts, 3), axis=1) for rgb in predicted.rgb]
        # A pixel four times as large counts four times as much (Mip-NeRF, section 4.2), relative to
        # all pixels of the step, whose mean is 1.
        mean = losses.masked_mean(batch.area, used) if whole_step else 1.0
        area = batch.area / jnp.maximum(mean, 1e-9)
        errors = [losses.masked_mean(area * error_fn(rgb, batch.truth), used) for rgb in colors]
        whole = ~predicted.dropped
        if missing := getattr(config.field, "interlevel_weight", 0.0):
            errors.append(missing * losses.masked_mean(predicted.missed, whole))
        if config.loss.distortion_weight:
            distortion = losses.masked_mean(predicted.distortion, whole)
            errors.append(config.loss.distortion_weight * distortion)
        if config.loss.entropy_weight:
            entropy = losses.masked_mean(losses.opacity_entropy(predicted.opacity), whole)
            errors.append(config.loss.entropy_weight * entropy)
        loss = sum(errors, jnp.zeros(()))
        metrics = Metrics(
            loss=loss,
            mse=losses.mean_squared_error(colors[-1], batch.truth, used),
            opacity=jnp.mean(predicted.opacity),
            truth_alpha=jnp.mean(batch.alpha),
            dropped=jnp.mean(predicted.dropped * 1.0),
            samples=predicted.samples * 1.0,
            grad_norm=jnp.zeros(()),
            kept=jnp.ones(()),
            grid_grad_norm=jnp.zeros(()),
            mlp_grad_norm=jnp.zeros(()),
        )
        return scale * loss, (metrics, occupancy.get_weight_memory(predicted.grid))

    def penalise(params: Params, grid: OccupancyGrid, key: jax.Array, done: Array) -> Array:
        # Total variation fades as the rates do (the authors' code of TensoRF).
        fade = config.optimizer.lr_final_mult**done
        return methods.regularization(config.field, stage, params, grid, key, fade)

    def differentiate(
        params: Params,
        grid: OccupancyGrid,
        scale: float | Float[Array, ""],
        batch: Batch,
        keys: jax.Array,
    ) -> Gradient:
        gradient = jax.grad(loss_fn, has_aux=True)
        if whole_step:
            grads, aside = gradient(params, grid, scale, batch, keys)
            return Gradient(grads, *aside)

        def on_device(
            params: Params,
            grid: OccupancyGrid,
            scale: float | Float[Array, ""],
            rays: tuple[Batch, Array],
        ) -> Gradient:
            zeros = jax.tree.map(jnp.zeros_like, params)
            nothing = Gradient(zeros, Metrics.zeros(), occupancy.get_weight_memory(grid))

            def add_passes(shard: tuple[Batch, Array]) -> Gradient:
                def add_pass(total: Gradient, rays: tuple[Batch, Array]) -> tuple[Gradient, None]:
                    grads, aside = gradient(params, grid, scale, *rays)
                    return total.add(Gradient(grads, *aside)), None

                return jax.lax.scan(add_pass, nothing, _cut(shard, stage.passes))[0]

            if config.shards is None:
                total = add_passes(rays)
                return total.psum() if mesh.size > 1 else total
            own = stage.shards // mesh.size
            total = sums.pairwise_sum(add_passes, _cut(rays, own), own, nothing, Gradient.add)
            return sums.recursive_doubling_allreduce(mesh, total, Gradient.add)

        shared = (False, False, False, True)
        total = devices.shard_rays(mesh, on_device, shared)(params, grid, scale, (batch, keys))
        count = stage.shards * stage.passes
        grads, metrics = jax.tree.map(lambda x: x / count, (total.grads, total.metrics))
        return Gradient(grads, metrics._replace(samples=total.metrics.samples), total.memory)

    def draw(
        pixels: PixelDataset,
        course: Course,
        number: Array,
        done: Array,
        streamed: PrefetchedPixels | None,
    ) -> tuple[Batch, jax.Array]:
        key_batch, key = step_rngs(course, number)
        batch = batches.make_batch(
            pixels,
            key_batch,
            stage.rays // parts,
            scene_range,
            config.background,
            stage.supersample,
            *batches.sampling_region(config, done),
            streamed,
        )
        batch = batch._replace(area=batch.area / jnp.mean(batch.area))
        return batch, split_ray_rngs(key, stage.rays)

    def learn(
        state: TrainState, gradient: Gradient, course: Course, done: Array
    ) -> tuple[TrainState, Metrics]:
        _, key = step_rngs(course, state.step)
        key_penalty, key_probe = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        inner, scale = optim.unscale(state.opt_state)
        grid = occupancy.set_weight_memory(state.grid, gradient.memory)
        penalty, more = jax.value_and_grad(penalise)(state.params, state.grid, key_penalty, done)
        grads = jax.tree.map(lambda g, m: g / scale + m, gradient.grads, more)
        optimizer = make_optimizer(config, state.params, course)
        updates, opt_state = optimizer.update(grads, inner, state.params)
        params = optax.apply_updates(state.params, updates)
        factors = batches.image_scales(config)
        grid = methods.refresh(config.field, stage, params, grid, key_probe, factors)
        loss, labels = gradient.metrics.loss + penalty, methods.label_params(grads)
        metrics = gradient.metrics._replace(
            loss=loss,
            grad_norm=optax.tree.norm(grads),
            grid_grad_norm=optim.group_norm(grads, labels, "grid"),
            mlp_grad_norm=optim.group_norm(grads, labels, "network"),
        )
        average = state.average
        if average is not None:
            # At first a shorter memory, lest the beginning be remembered for long.
            decay = jnp.minimum(config.optimizer.average, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(lambda a, b: decay * a + (1.0 - decay) * b, average, params)
        new = TrainState(params, opt_state, state.step + 1, grid, average)
        if not isinstance(state.opt_state, Scaled):
            return new, metrics
        # Nothing is learnt from what overflowed; at a scale of 1 that is another fault.
        finite = optim.all_finite(grads)
        metrics = jax.tree.map(lambda x: jnp.where(finite | (scale == 1.0), x, 0.0), metrics)
        old = dataclasses.replace(state, opt_state=inner)
        kept = jax.tree.map(partial(jnp.where, finite), new, old)
        adapted = optim.update_loss_scale(state.opt_state.scale, finite)
        opt_state = Scaled(kept.opt_state, adapted)
        return dataclasses.replace(kept, step=new.step, opt_state=opt_state), metrics

    def step(
        pixels: PixelDataset, course: Course, state: TrainState, streamed: PrefetchedPixels | None
    ) -> tuple[TrainState, Metrics]:
        done = jnp.interp(state.step * 1.0, course.steps, course.progress)
        drawn = draw(pixels, course, state.step, done, streamed)
        batch, keys = devices.constrain_replicated(mesh, drawn)
        _, scale = optim.unscale(state.opt_state)
        gradient = differentiate(state.params, state.grid, scale, batch, keys)
        if config.shards is not None:
            # What follows is not to be compiled into the last addition.
            gradient = jax.lax.optimization_barrier(gradient)
        return learn(state, gradient, course, done)

    def run(
        state: TrainState,
        pixels: PixelDataset,
        course: Course,
        count: Int[Array, ""],
        streamed: PrefetchedPixels | None = None,
    ) -> tuple[TrainState, Metrics]:
        def body(number: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, total = carry
            drawn = jax.tree.map(lambda x: x[number], streamed)
            state, metrics = step(pixels, course, state, drawn)
            return state, jax.tree.map(jnp.add, total, metrics)

        state, total = jax.lax.fori_loop(0, count, body, (state, Metrics.zeros()))
        means = jax.tree.map(lambda x: x / jnp.maximum(total.kept, 1.0), total)
        return state, means._replace(kept=total.kept / count)

    return run


def abstract_next_state(
    config: TrainConfig, stage: Stage, ahead: Stage, state: TrainState
) -> TrainState:
    """The shapes of the state in a stage that is to come; those of the present one if it stays."""
    if transitions.same_shapes(stage, ahead):
        return state
    grid = transitions.init_grid(config.field, ahead, np.asarray(state.grid.aabb))
    return jax.eval_shape(partial(init_state, config, ahead), grid)


def transition_stage(
    config: TrainConfig, stage: Stage, state: TrainState, growth: transitions.StageTransition
) -> tuple[Stage, TrainState]:
    """State and stage after a growth: parameters and moments on the new grid."""
    stage, grid, carry_over = transitions.grow(config, stage, growth, state.params, state.grid)
    params = carry_over(state.params)
    opt_state = optim.map_moments(carry_over, state.opt_state)
    if transitions.resets_lr(config.field, growth):
        opt_state = optim.reset_adam_moments(opt_state)
    average = None if state.average is None else carry_over(state.average)
    return stage, dataclasses.replace(
        state, params=params, opt_state=opt_state, grid=grid, average=average
    )


@runtime_checkable
class Observer(Protocol):
    """What `fit` tells of its progress; see `monitor.TrainMonitor`."""

    def should_wait_for_compile(self) -> bool:
        """Whether to go on waiting for a stage to be compiled; asked now and then."""
        ...

    def dispatch_seconds(self) -> float:
        """How long a dispatch may last, about; who asks to stop has to wait for its end."""
        ...

    def on_stage(self, stage: Stage, state: TrainState, pixels: int, seconds: float) -> None:
        """A stage begins, its step has been compiled in so many seconds."""
        ...

    def on_dispatch(self, state: TrainState, stage: Stage, metrics: Metrics, steps: int) -> bool:
        """Some steps are done; returns whether to stop here."""
        ...

    def replan(self, config: TrainConfig, step: int, growing: bool) -> TrainConfig:
        """May fit the number of steps, not below `step` + 1, to the time there is.

        Asked after every dispatch; `growing` tells whether growths are still to come.
        """
        ...

    def on_change(self, config: TrainConfig, step: int, reason: str) -> None:
        """The configuration is another one from this step on."""
        ...


class Silence:
    """An observer that neither says nor changes anything."""

    def should_wait_for_compile(self) -> bool:
        """Always."""
        return True

    def dispatch_seconds(self) -> float:
        """A second."""
        return 1.0

    def on_stage(self, stage: Stage, state: TrainState, pixels: int, seconds: float) -> None:
        """Nothing."""

    def on_dispatch(self, state: TrainState, stage: Stage, metrics: Metrics, steps: int) -> bool:
        """Goes on."""
        del state, stage, metrics, steps
        return False

    def replan(self, config: TrainConfig, step: int, growing: bool) -> TrainConfig:
        """Keeps the plan."""
        del step, growing
        return config

    def on_change(self, config: TrainConfig, step: int, reason: str) -> None:
        """Nothing."""


def compile_step(
    config: TrainConfig,
    stage: Stage,
    scene_range: tuple[float, float],
    state: TrainState,
    pixels: PixelDataset,
    error_fn: ErrorFn | None = None,
    streams: bool = False,
    mesh: Mesh | None = None,
) -> StepFn:
    """The training steps of a stage, compiled; the state that is passed in is used up."""
    run = jax.jit(make_train_step(config, stage, scene_range, error_fn, mesh), donate_argnums=0)
    arguments: list[Any] = [state, pixels, make_train_schedule(config), jnp.asarray(1, jnp.int32)]
    if streams:
        shape = (config.steps_per_dispatch, stage.rays // stage.supersample**2)
        flat: Any = jax.ShapeDtypeStruct(shape, jnp.int32)
        rgba: Any = jax.ShapeDtypeStruct((*shape, 4), jnp.uint8)
        arguments.append(PrefetchedPixels(flat, rgba))
    arguments = arguments if mesh is None else devices.replicated_shapes(mesh, arguments)
    return run.lower(*arguments).compile(
        sums.DETERMINISTIC_COMPILER_OPTIONS if config.shards else None
    )


class StepCompiler:
    """Compiles the steps of stages, those to come in the background."""

    def __init__(
        self,
        config: TrainConfig,
        scene_range: tuple[float, float],
        error_fn: ErrorFn | None = None,
        streams: bool = False,
        mesh: Mesh | None = None,
    ) -> None:
        self.config, self.scene_range, self.error_fn = config, scene_range, error_fn
        self.streams, self.mesh = streams, mesh
        self._pool = ThreadPoolExecutor(1)
        self._ahead: dict[Stage, Future[StepFn]] = {}

    def begin(self, stage: Stage, state: TrainState, pixels: PixelDataset) -> None:
        """Begins with a stage that will be asked for; shapes of the state and pixels suffice."""
        stage = transitions.canonical_stage(self.config.field, stage)
        if stage in self._ahead:
            return
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, pixels))
        some, given = shapes
        self._ahead[stage] = self._pool.submit(
            compile_step,
            self.config,
            stage,
            self.scene_range,
            some,
            given,
            self.error_fn,
            self.streams,
            self.mesh,
        )

    def is_ready(
        self,
        stage: Stage,
        state: TrainState,
        pixels: PixelDataset,
        should_wait_for_compile: Callable[[], bool],
    ) -> bool:
        """Waits for a stage to be compiled, as long as that may be waited for."""
        self.begin(stage, state, pixels)
        compiled = self._ahead[transitions.canonical_stage(self.config.field, stage)]
        # Of several processes all have to come to the same end.
        while jax.process_count() == 1 and not compiled.done():
            if not should_wait_for_compile():
                return False
            wait([compiled], timeout=0.1)
        return True

    def get(self, stage: Stage, state: TrainState, pixels: PixelDataset) -> StepFn:
        """The steps of a stage, as soon as they are compiled."""
        self.begin(stage, state, pixels)
        return self._ahead[transitions.canonical_stage(self.config.field, stage)].result()

    def __enter__(self) -> "StepCompiler":
        return self

    def __exit__(self, *_: object) -> None:
        """Drops what has not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class DivergedError(Exception):
    """Training cannot go on; the text says what happened and what to change."""


def check_health(metrics: Metrics, step: int, config: TrainConfig, best_mse: float) -> None:
    """Raises DivergedError if the last steps show NaN, divergence or an all-background field."""
    if not all(math.isfinite(float(value)) for value in metrics):
        raise DivergedError(
            f"The loss is not a number after step {step}: lower --optimizer.grid-lr and "
            "--optimizer.mlp-lr, or --optimizer.clip-norm."
        )
    if float(metrics.mse) > max(20.0 * best_mse, 0.05):
        raise DivergedError(
            f"Training diverged: the squared error rose from {best_mse:.4g} to "
            f"{float(metrics.mse):.4g} by step {step}; lower --optimizer.grid-lr and "
            "--optimizer.mlp-lr."
        )
    collapsed = float(metrics.opacity) < 1e-3 and float(metrics.truth_alpha) > 1e-2
    if collapsed and schedule.progress_at(config, step) > 0.1:
        raise DivergedError(
            f"The field is all background after step {step}, although "
            f"{float(metrics.truth_alpha):.0%} of the pictures is not: try another --seed, a lower "
            "learning rate, or check that the cameras look at the scene's box."
        )


def exceeds_memory(program: Any) -> bool:
    """Whether a compiled program needs more memory than some process has."""
    too_large = memory.needed_bytes(program) > STEP_MEMORY_FRACTION * memory.free_bytes()
    return processes.allreduce_max(too_large) > 0


def _describe_batch(config: TrainConfig, stage: Stage) -> str:
    if stage.passes > 1:
        return f"memory is short: {stage.passes} passes a step (--microbatch-samples)"
    return (
        f"memory is short: {config.batch_rays} rays and {config.batch_samples} samples a step "
        "(--batch-rays, --batch-samples)"
    )


def fit(
    config: TrainConfig,
    scene: Scene,
    observer: Observer | None = None,
    restored: tuple[Stage, TrainState] | None = None,
    error_fn: ErrorFn | None = None,
    mesh: Mesh | None = None,
) -> tuple[Stage, TrainState]:
    """Trains until `config.steps` or until the observer stops it.

    Args:
      config: what to train and how.
      scene: its training split is used.
      observer: told after every dispatch; by default nobody is.
      restored: stage and state to continue from, as they were saved.
      error_fn: error of a pixel's colour, a loss of your own; by default the configuration's.
      mesh: the devices to train on; by default the first.

    Returns:
      The last stage and state, the same on all devices.

    Raises:
      DivergedError: with what to change.
      InputError: if the devices cannot share the rays.
    """
    observer, mesh = observer or Silence(), mesh or devices.make_mesh(1)
    if config.shards is not None and config.shards % mesh.size:
        raise InputError(
            f"--shards is {config.shards}, which {mesh.size} devices cannot share: take --devices "
            f"1, 2, 4, ... up to {config.shards}, or leave --shards out."
        )

    def lean(pixels: PixelDataset) -> PixelDataset:
        return batches.drop_images(pixels) if streams else pixels

    scene_range = (scene.near, scene.far)
    split, factors = scene.splits["train"], batches.image_scales(config)
    cameras = apply_ray_convention(split.cameras, config.field.convention)
    split = dataclasses.replace(split, cameras=cameras)
    streams = config.stream
    if streams is None:
        many = batches.count_bytes(split, factors) > IMAGE_MEMORY_FRACTION * memory.free_bytes()
        streams = processes.allreduce_max(many) > 0
    every_pixel = batches.to_device(split, factors, streams)
    growths = transitions.plan_transitions(config)
    best_mse = math.inf
    pace = math.inf
    with (
        StepCompiler(config, scene_range, error_fn, streams, mesh) as compiler,
        batches.PixelPrefetcher(config.steps_per_dispatch) as stream,
    ):
        if restored is None:
            stage = transitions.first_stage(config, scene.aabb, mesh.size)
            grid = transitions.init_grid(config.field, stage, scene.aabb)
            shapes = jax.eval_shape(partial(init_state, config, stage), grid)
            compiler.begin(stage, shapes, lean(every_pixel))
            if isinstance(grid, occupancy.DensityEmaGrid):
                grid = _mark_invisible_cells(grid, every_pixel.cameras, stage.reach)
            state = _init_state(config, stage, grid)
        else:
            stage, state = restored
            stage = transitions.share_among(config, stage, state.grid, mesh.size)
        state = devices.replicate(mesh, state)
        step = int(state.step)
        course = make_train_schedule(config, step)
        pixels = every_pixel
        filters = config.filter_rays and methods.marches(config.field)
        begun = any(growth.step < step for growth in growths)
        if filters and (begun or batches.cameras_see_outside_aabb(every_pixel.cameras, scene.aabb)):
            pixels = batches.filter_pixels(every_pixel, state.grid, scene_range)

        while step < config.steps:
            # A state saved at the step of a growth is from before it.
            growth = next((growth for growth in growths if growth.step == step), None)
            before = stage, state
            if growth is not None:
                here = devices.to_local(mesh, state)
                stage, here = transition_stage(config, stage, here, growth)
                state = devices.replicate(mesh, here)
                course = make_train_schedule(config, step + 1)
                if filters:
                    pixels = batches.filter_pixels(every_pixel, state.grid, scene_range)

            started = time.perf_counter()
            shown = devices.replicate(mesh, lean(pixels))
            if not compiler.is_ready(stage, state, shown, observer.should_wait_for_compile):
                return before
            del before
            run = compiler.get(stage, state, shown)
            while exceeds_memory(run):
                smaller = transitions.halve_batch(config, stage)
                if smaller is config:
                    break
                config = smaller
                stage = transitions.set_budgets(
                    config, stage, np.asarray(state.grid.aabb), state.grid.bounds
                )
                observer.on_change(config, step, _describe_batch(config, stage))
                run = compiler.get(stage, state, shown)
            observer.on_stage(stage, state, int(pixels.total), time.perf_counter() - started)

            later = [growth for growth in growths if growth.step > step]
            coming = later[0] if later else None
            for ahead in transitions.predict_next_stages(config, stage, later, state.grid):
                compiler.begin(ahead, abstract_next_state(config, stage, ahead, state), shown)
            each = stage.rays // stage.supersample**2
            while step < (coming.step if coming else config.steps):
                end = coming.step if coming else config.steps
                longest = observer.dispatch_seconds()
                at_once = max(int(min(longest / pace, config.steps_per_dispatch)), 1)
                count = processes.broadcast_from_main(min(at_once, end - step))
                started = time.perf_counter()
                rest: list[Any] = [course, jnp.asarray(count, jnp.int32)]
                if streams:
                    rest.append(stream.take(config, pixels, course, each, step))
                state, metrics = run(state, shown, *devices.replicate(mesh, rest))
                step += count
                if streams:
                    stream.begin(config, pixels, course, each, step)
                metrics = jax.device_get(metrics)
                pace = (time.perf_counter() - started) / count
                if metrics.kept:
                    check_health(metrics, step, config, best_mse)
                    best_mse = min(best_mse, float(metrics.mse))
                stop = observer.on_dispatch(state, stage, metrics, count)
                fitted = observer.replan(config, step, coming is not None)
                if fitted is not config:
                    config, course = fitted, make_train_schedule(fitted, step)
                    growths = transitions.plan_transitions(config)
                    # A growth may be due at this very step now.
                    coming = next((growth for growth in growths if growth.step >= step), None)
                if stop:
                    return stage, state
    return stage, state
