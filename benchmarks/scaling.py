"""Growth of a training step's time and memory with rays, samples, resolution and views.

python benchmarks/scaling.py               prints tables in Markdown

Each size is doubled three times while the others stay. Time is the median of a step in the compiled
loop; memory is that of the compiled program's arguments, results and temporaries. The slope is that
of a line through the logarithms: 1 means proportional to the size.
"""

import argparse
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from random_scene import make_scene

from jaxrf.fields.nerf import NeRF
from jaxrf.fields.tensorf import TensoRF
from jaxrf.fields.voxels import Voxels
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.parallel import devices
from jaxrf.presets import make_preset
from jaxrf.training import schedule, transitions
from jaxrf.training.compile_ahead import compile_steps
from jaxrf.training.config import TrainConfig
from jaxrf.training.losses import make_rgb_loss_fn
from jaxrf.training.pixels import to_device
from jaxrf.training.state import init_state
from jaxrf.training.step import StepSpec

FACTORS = (1, 2, 4, 8)
PRESETS = {"voxels": "voxels-small", "tensorf": "tensorf-small", "nerf": "nerf-small"}
SMALL_NERF = NeRF(layers=4, width=64, skip=2, color_width=32)
COARSE_SAMPLES = 16


def measure(config: TrainConfig, views: int, steps: int) -> tuple[float, float]:
    """Returns the milliseconds of a step and the MiB of the program."""
    scene = make_scene(views, size=64)
    stage = transitions.first_stage(config, scene.aabb)
    grid = transitions.init_grid(config, stage, scene.aabb)
    state = init_state(config, stage, grid)
    pixels = to_device(scene.splits["train"], config.image_scales())
    near_far, mesh = (scene.near, scene.far), devices.make_mesh(1)
    spec = StepSpec(config, stage, near_far, make_rgb_loss_fn(config.loss), mesh)
    run: Any = compile_steps(spec, state, pixels)
    inputs = schedule.training_key(config), schedule.make_train_schedule(config), jnp.asarray(steps)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(run(state, pixels, *inputs))
        times.append((time.perf_counter() - started) / steps)
    memory: Any = run.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    # Donated arguments share memory with results.
    used += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return 1e3 * float(np.median(times[1:])), used / 2**20


def make_config(kind: str, factor: int, grown: str) -> tuple[TrainConfig, int]:
    """Returns a configuration with one of its sizes multiplied, and the number of images."""
    rays, samples, side, views = 1024, 1 << 15, 48, 16
    rays *= factor if grown == "rays" else 1
    # The sample budget per ray stays the same.
    samples *= factor if grown in ("rays", "samples") else 1
    side = round(side * factor ** (1 / 3)) if grown == "voxels" else side
    views *= factor if grown == "views" else 1
    base = make_preset(PRESETS[kind])
    field: Any = base.field
    model = base.model
    match field:
        case Voxels():
            field = dataclasses.replace(field, initial_resolution=side, num_subdivisions=0)
        case TensoRF():
            field = dataclasses.replace(
                field, initial_voxels=side**3, final_voxels=side**3, upsample_at=()
            )
        case NeRF():
            coarse = COARSE_SAMPLES * (factor if grown == "samples" else 1)
            field = SMALL_NERF
            model = HierarchicalModel(num_coarse_samples=coarse, num_fine_samples=coarse)
    if grown == "samples" and kind != "nerf":
        field = dataclasses.replace(field, step_ratio=field.step_ratio / factor)
    config = dataclasses.replace(
        base,
        field=field,
        model=model,
        batch_rays=rays,
        batch_samples=samples,
        microbatch_samples=transitions.CACHED_SAMPLES,
    )
    return config, views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="per dispatch")
    steps = parser.parse_args().steps
    print(f"{jax.devices()[0]}\n")
    heads = [f"x{factor}" for factor in FACTORS]
    print("| field | grows | ms " + " | ".join([*heads, "slope"]) + " | MiB ", end="")
    print(" | ".join([*heads, "slope"]) + " |\n" + "|---" * (2 * len(FACTORS) + 4) + "|")
    for kind in PRESETS:
        for grown in ("rays", "samples", "voxels", "views"):
            if kind == "nerf" and grown == "voxels":
                continue
            measured = [measure(*make_config(kind, f, grown), steps) for f in FACTORS]
            cells = []
            for values in zip(*measured, strict=True):
                slope = np.polyfit(np.log(FACTORS), np.log(values), 1)[0]
                cells += [f"{value:.1f}" for value in values] + [f"{slope:.2f}"]
            print(f"| {kind} | {grown} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
