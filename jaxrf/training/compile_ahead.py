"""Compiles the steps of coming stages in the background."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxrf.core import memory
from jaxrf.models.base import StageSpec
from jaxrf.parallel import devices, processes, sums
from jaxrf.training.pixels import PixelDataset, SampledPixels
from jaxrf.training.schedule import make_train_schedule, training_key
from jaxrf.training.state import Metrics, TrainState
from jaxrf.training.step import StepSpec, train_steps
from jaxrf.training.transitions import canonical_stage

# Share of the free memory that a step may need, so that some is left for everything else.
STEP_MEMORY_FRACTION = 0.9


@runtime_checkable
class StepFn(Protocol):
    """Compiled `train_steps` of a stage; the state that is passed in is used up."""

    def __call__(
        self, state: TrainState, pixels: PixelDataset, *inputs: Any
    ) -> tuple[TrainState, Metrics]:
        """The state after some steps, given key, schedule, count and prefetched pixels."""
        ...


def compile_steps(
    spec: StepSpec, state: TrainState, pixels: PixelDataset, prefetches: bool = False
) -> StepFn:
    """Compiles the steps of a stage.

    Args:
      spec: static facts.
      state, pixels: arrays, or their shapes.
      prefetches: whether the pixels of the steps are passed in.
    """
    config = spec.config
    run = jax.jit(partial(train_steps, spec), donate_argnums=0)
    arguments: list[Any] = [
        state,
        pixels,
        training_key(config),
        make_train_schedule(config),
        jnp.asarray(1, jnp.int32),
    ]
    if prefetches:
        shape = (config.steps_per_dispatch, spec.stage.num_pixels())
        pixel_ids: Any = jax.ShapeDtypeStruct(shape, jnp.int32)
        rgba: Any = jax.ShapeDtypeStruct((*shape, 4), jnp.uint8)
        mask: Any = jax.ShapeDtypeStruct(shape, bool) if spec.stage.patch_size > 1 else None
        arguments.append(SampledPixels(pixel_ids, rgba, mask))
    arguments = devices.replicated_shapes(spec.mesh, arguments)
    options = sums.DETERMINISTIC_COMPILER_OPTIONS if config.shards else None
    # Set here, as settings of JAX hold for one thread, and stages compile in another one.
    with jax.default_matmul_precision(config.matmul_precision):
        return run.lower(*arguments).compile(options)


class StepCompiler:
    """Compiles the steps of stages, one after the other, in the background."""

    def __init__(self, make_spec: Callable[[StageSpec], StepSpec], prefetches: bool) -> None:
        """`make_spec` gives the static facts of a stage's steps."""
        self._make_spec, self._prefetches = make_spec, prefetches
        self._pool = ThreadPoolExecutor(1)
        self._futures: dict[StageSpec, Future[StepFn]] = {}

    def begin(self, stage: StageSpec, state: TrainState, pixels: PixelDataset) -> None:
        """Begins with a stage; shapes of state and pixels suffice."""
        stage = canonical_stage(stage)
        if stage in self._futures:
            return
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, pixels))
        spec = self._make_spec(stage)
        state, pixels = shapes
        compile_stage = partial(compile_steps, spec, state, pixels, self._prefetches)
        self._futures[stage] = self._pool.submit(compile_stage)

    def is_ready(
        self,
        stage: StageSpec,
        state: TrainState,
        pixels: PixelDataset,
        should_wait: Callable[[], bool],
    ) -> bool:
        """Waits for a stage to be compiled for as long as `should_wait` says so."""
        self.begin(stage, state, pixels)
        future = self._futures[canonical_stage(stage)]
        # Several processes must all come to the same end.
        while jax.process_count() == 1 and not future.done():
            if not should_wait():
                return False
            wait([future], timeout=0.1)
        return True

    def get(self, stage: StageSpec, state: TrainState, pixels: PixelDataset) -> StepFn:
        """The compiled steps of a stage; waits for them."""
        self.begin(stage, state, pixels)
        return self._futures[canonical_stage(stage)].result()

    def __enter__(self) -> "StepCompiler":
        return self

    def __exit__(self, *_: object) -> None:
        """Drops stages that have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def exceeds_memory(program: Any) -> bool:
    """Whether a compiled program needs more memory than some process has."""
    too_large = memory.needed_bytes(program) > STEP_MEMORY_FRACTION * memory.free_bytes()
    return processes.allreduce_max(too_large) > 0
