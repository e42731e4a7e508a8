"""Bytes that a step on several devices sends, and its time on host devices.

    python benchmarks/devices.py --data data/nerf_synthetic/lego --downscale 4

Each number of devices is measured in its own process, which may use one core per device, as far as
there are cores.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

PRESETS = (
    "nerf-tiny", "bitnerf-tiny", "tensorf-small", "voxels-small", "hashgrid-small", "pynerf-small",
)  # fmt: skip
SIZES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "pred": 1}
SENT = re.compile(
    r"= \(?([a-z0-9]+\[[^=]*?) (all-reduce|collective-permute|all-gather)(?:-start)?\("
)
SHAPE = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")


def count_sent(program: str) -> dict[str, int]:
    """Returns the bytes that the collectives of a compiled step produce, by kind."""
    sent: dict[str, int] = {}
    program = re.sub(r"/\*.*?\*/", "", program)
    for shapes, kind in SENT.findall(program):
        size = sum(
            SIZES[name] * math.prod(int(n) for n in sides.split(",") if n)
            for name, sides in SHAPE.findall(shapes)
            if name in SIZES
        )
        sent[kind] = sent.get(kind, 0) + size
    return sent


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures bytes and seconds of a step of one preset in this process."""
    import dataclasses

    # One core per device; otherwise a single device would use all cores.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: arguments.devices])
    import jax
    import jax.numpy as jnp

    from jaxrf.data import sources
    from jaxrf.parallel import devices
    from jaxrf.presets import make_preset
    from jaxrf.training import pixels as train_pixels
    from jaxrf.training import schedule, transitions
    from jaxrf.training.compile_ahead import compile_steps
    from jaxrf.training.losses import make_rgb_loss_fn
    from jaxrf.training.state import Metrics, init_state
    from jaxrf.training.step import StepSpec

    scene = sources.load_scene(arguments.data, ["train"], arguments.downscale)
    config = make_preset(arguments.preset)
    factor = arguments.devices if arguments.weak else 1
    config = dataclasses.replace(
        config,
        data=arguments.data,
        batch_rays=factor * config.batch_rays,
        batch_samples=factor * config.batch_samples,
        shards=arguments.shards,
    )
    config = transitions.resolve_config(config, scene)
    mesh = devices.make_mesh(arguments.devices)
    stage = transitions.first_stage(config, scene.aabb, mesh.size)
    grid = transitions.init_grid(config, stage, scene.aabb)
    state = devices.replicate(mesh, jax.jit(init_state, static_argnums=(0, 1))(config, stage, grid))
    pixels = train_pixels.to_device(scene.splits["train"], config.image_scales())
    pixels = devices.replicate(mesh, pixels)
    near_far = (scene.near, scene.far)
    spec = StepSpec(config, stage, near_far, make_rgb_loss_fn(config.loss), mesh)
    run: Any = compile_steps(spec, state, pixels)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    memory = 0 if state.grid.weight_memory is None else state.grid.weight_memory.size
    seconds, done = [], 0
    while done < arguments.steps:
        count = 1 if not done else max(arguments.steps // 5, 1)
        inputs = (
            schedule.training_key(config),
            schedule.make_train_schedule(config),
            jnp.asarray(count, jnp.int32),
        )
        started = time.perf_counter()
        state, metrics = run(state, pixels, *devices.replicate(mesh, inputs))
        jax.block_until_ready(metrics)
        if done:
            seconds.append((time.perf_counter() - started) / count)
        done += count
    return {
        "preset": arguments.preset,
        "devices": mesh.size,
        "rays": stage.num_rays,
        "seconds": min(seconds),
        "sent": count_sent(run.as_text()),
        # Gradients, metrics, and the largest weight of each cell.
        "expected": 4 * (numbers + len(Metrics._fields) + memory),
    }


PUBLISHED = ("nerf-original", "tensorf-vm192", "hashgrid-ngp", "pynerf-paper")
# Bytes per second that an accelerator sends, by the number of accelerators: eight with NVLink
# (H100, 450 GB/s each way), and nodes of eight with 400 Gbit/s each (NVIDIA DGX H100 data sheet).
BANDWIDTHS = {8: 450e9, 128: 50e9}


def predict() -> None:
    """Prints the bytes that published sizes of fields send per step, and the time that takes."""
    import dataclasses

    import jax
    import numpy as np

    from jaxrf.fields.tensorf import TensoRF
    from jaxrf.presets import make_preset

    aabb = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    key = jax.random.key(0)
    counts = [f"{count} accelerators" for count in BANDWIDTHS]
    print(f"| field | numbers | gradients | {' | '.join(counts)} |")
    print("|---|---|---|" + "---|" * len(counts))
    for preset in PUBLISHED:
        config = make_preset(preset)
        field = config.field
        if (tensorf := TensoRF.match(field)) is not None:
            # The final grid.
            field = dataclasses.replace(tensorf, initial_voxels=tensorf.final_voxels)
        shapes = jax.eval_shape(partial(config.model.init_params, field.begin(aabb)), key)
        numbers = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        times = [
            f"{1e3 * 2 * (count - 1) / count * 4 * numbers / bandwidth:.2f} ms"
            for count, bandwidth in BANDWIDTHS.items()
        ]
        print(
            f"| {preset} | {numbers / 1e6:.2f} M | {4 * numbers / 1e6:.1f} MB "
            f"| {' | '.join(times)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a data set; without it, predictions")
    parser.add_argument("--downscale", type=int, default=4)
    parser.add_argument("--presets", nargs="*", default=PRESETS)
    parser.add_argument("--counts", type=int, nargs="*", default=(1, 2, 4))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shards", type=int)
    parser.add_argument("--preset", help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--weak", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.preset:
        print(json.dumps(measure(arguments)))
        return
    if not arguments.data:
        predict()
        return
    print("| field | devices | rays | step ms, same batch | a batch each | sent | computed |")
    print("|---|---|---|---|---|---|---|")
    for preset in arguments.presets:
        for count in arguments.counts:
            strong, weak = (run(arguments, preset, count, extra) for extra in ([], ["--weak"]))
            sent = ", ".join(f"{kind} {size / 1e6:.3f} MB" for kind, size in strong["sent"].items())
            print(
                f"| {preset} | {count} | {strong['rays']} | {1e3 * strong['seconds']:.0f} "
                f"| {1e3 * weak['seconds']:.0f} | {sent or '-'} "
                f"| {strong['expected'] / 1e6:.3f} MB |",
                flush=True,
            )


def run(arguments: argparse.Namespace, preset: str, count: int, extra: list[str]) -> dict[str, Any]:
    """Measures in another process with `count` devices."""
    command = [
        sys.executable, __file__, "--data", str(arguments.data), "--preset", preset,
        "--downscale", str(arguments.downscale), "--devices", str(count),
        "--steps", str(arguments.steps), *extra,
    ]  # fmt: skip
    if arguments.shards:
        command += ["--shards", str(arguments.shards)]
    flags = f"--xla_force_host_platform_device_count={count}"
    environment = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
