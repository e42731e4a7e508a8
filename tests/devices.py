"""Trains on one and on several devices of a CPU and prints how far the results differ.

    python tests/devices.py 2,4,8 KIND ...
    JAX_ENABLE_X64=1 python tests/devices.py 2,4,8 KIND ...

Runs in its own process, as the number of devices is fixed when JAX starts.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

COUNT = 8
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={COUNT}"
)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from scenes import (  # noqa: E402
    Recorder,
    differing_leaves,
    make_scene,
    tiny_bitnerf,
    tiny_hashgrid,
    tiny_nerf,
    tiny_pynerf,
    tiny_tensorf,
    tiny_voxels,
)

from jaxrf.evaluation import scoring  # noqa: E402
from jaxrf.evaluation.camera_renderer import TrainedField  # noqa: E402
from jaxrf.models.base import StageSpec  # noqa: E402
from jaxrf.parallel import devices  # noqa: E402
from jaxrf.training import loop, optim, pixels, schedule, transitions  # noqa: E402
from jaxrf.training.config import TrainConfig  # noqa: E402
from jaxrf.training.losses import make_rgb_loss_fn  # noqa: E402
from jaxrf.training.state import TrainState, init_state  # noqa: E402
from jaxrf.training.step import StepSpec, train_steps  # noqa: E402

KINDS: dict[str, Callable[..., TrainConfig]] = {
    "nerf": tiny_nerf,
    "bitnerf": tiny_bitnerf,
    "tensorf": tiny_tensorf,
    "voxels": tiny_voxels,
    "hashgrid": tiny_hashgrid,
    "pynerf": tiny_pynerf,
    "refined": partial(tiny_nerf, refine="poses", refined=(6, 0)),
}


def make_config(kind: str, **changes: Any) -> TrainConfig:
    """A tiny field with a batch so small that no device drops rays."""
    batch = {"background": "random", "batch_samples": 1 << 15, "batch_rays": 128}
    return dataclasses.replace(KINDS[kind](), **batch | changes)


def train_on(
    config: TrainConfig, num_devices: int, steps: int | None
) -> tuple[StageSpec, TrainState]:
    """Stage and state after training on some of the devices, until a step."""
    mesh = devices.make_mesh(num_devices)
    stage, state = loop.fit(config, make_scene(), Recorder(steps), mesh=mesh)
    return stage, jax.device_get(state)


def first_moment(state: TrainState) -> np.ndarray:
    """Adam's first moment, which after one step is proportional to the gradient."""
    adam = [
        node
        for node in jax.tree.leaves(state.opt_state, is_leaf=optim._is_adam)
        if optim._is_adam(node)
    ]
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(adam[0].mu)])


def compare(kind: str, counts: Sequence[int]) -> dict[str, Any]:
    """Differences of the first gradient, and with shards of the final bits and of an image."""
    config = make_config(kind)
    differences: dict[str, Any] = {"gradient": {}, "bits": {}, "image": {}}
    first = first_moment(train_on(config, 1, 1)[1])
    ordered = make_config(kind, shards=COUNT)
    stage, state = train_on(ordered, 1, None)
    for num_devices in counts:
        other = first_moment(train_on(config, num_devices, 1)[1])
        error = np.linalg.norm(other - first) / np.linalg.norm(first)
        differences["gradient"][str(num_devices)] = float(error)
        again = train_on(ordered, num_devices, None)[1]
        differences["bits"][str(num_devices)] = list(differing_leaves(again, state))
    images = [
        scoring.make_render_fn(
            TrainedField(
                ordered, stage, state.eval_params, state.grid, (2.0, 6.0), np.ones(3, np.float32)
            ),
            mesh=devices.make_mesh(num_devices),
        )(make_scene().splits["test"].cameras, 0)
        for num_devices in (1, counts[-1])
    ]
    differences["image"] = float(np.abs(images[0].rgb - images[1].rgb).max())
    return differences


def as_doubles(tree: Any) -> Any:
    """The tree with float32 arrays converted to float64."""
    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree)


def follow(kind: str, counts: Sequence[int], steps: int = 100) -> dict[str, Any]:
    """Relative differences of parameters after many steps of one stage in float64."""
    scene, ends = make_scene(), {}
    config = make_config(kind, num_steps=2 * steps)
    near_far = (scene.near, scene.far)
    for num_devices in (1, *counts):
        mesh = devices.make_mesh(num_devices)
        stage = transitions.first_stage(config, scene.aabb, num_devices)
        grid = transitions.init_grid(config, stage, scene.aabb)
        state = as_doubles(init_state(config, stage, grid))
        dataset = as_doubles(pixels.to_device(scene.splits["train"]))
        inputs = (
            state,
            dataset,
            schedule.training_key(config),
            as_doubles(schedule.make_train_schedule(config)),
        )
        spec = StepSpec(config, stage, near_far, make_rgb_loss_fn(config.loss), mesh)
        run = jax.jit(partial(train_steps, spec))
        end, metrics = run(*devices.replicate(mesh, inputs), np.int32(steps))
        assert metrics.overflowed == 0.0 and end.step == steps
        leaves = jax.tree.leaves(jax.device_get(end.params))
        assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float64)}
        ends[num_devices] = np.concatenate([np.ravel(leaf) for leaf in leaves])
    size = np.linalg.norm(ends[1])
    return {str(n): float(np.linalg.norm(ends[n] - ends[1]) / size) for n in counts}


if __name__ == "__main__":
    counts = [int(count) for count in sys.argv[1].split(",")]
    work = follow if jax.config.jax_enable_x64 else compare
    print(json.dumps({kind: work(kind, counts) for kind in sys.argv[2:] or KINDS}))
