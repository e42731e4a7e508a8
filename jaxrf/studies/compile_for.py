"""Compiles a preset's training step for accelerators that need not be there, and counts it.

Each step is compiled in a process of its own: compilers of TPUs read their settings only once, and
end the process where they fail.
"""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh

from jaxrf.data.scene import Scene
from jaxrf.models.base import StageSpec
from jaxrf.models.proposal import ProposalModel
from jaxrf.parallel.devices import AXIS
from jaxrf.studies import hlo, hlo_counts, predict, profile, stand_in, targets
from jaxrf.studies.targets import Slice, Target
from jaxrf.training import transitions
from jaxrf.training.compile_ahead import compile_steps
from jaxrf.training.config import TrainConfig
from jaxrf.training.loop import IMAGE_MEMORY_FRACTION
from jaxrf.training.losses import make_rgb_loss_fn
from jaxrf.training.pixels import count_bytes, drop_images
from jaxrf.training.step import StepSpec

# Rounds of a segmented sum over the samples of rays, the longest of which has up to 2^7.
SUM_ROUNDS = 7.0
SUMS = ("_sum_before", "compute_packed_weights")
# Longest time for one step to compile, in seconds.
TIME_LIMIT = 3600.0


def compile_preset(config: TrainConfig, devices: Slice, time_limit: float = TIME_LIMIT) -> Any:
    """Compiles the last stage's step in another process; its counts, or why there are none.

    Args:
      config: of the preset.
      devices: to compile for.
      time_limit: in seconds.

    Returns:
      The dictionary that `count_preset` makes, or {"error": sentence}.
    """
    targets.require_packages(devices.target)
    with tempfile.TemporaryDirectory(prefix="jaxrf-compile-") as folder:
        task, result = Path(folder) / "task", Path(folder) / "result.json"
        task.write_bytes(pickle.dumps((config, devices.name)))
        environment = {**os.environ, **targets.compiler_environment(devices)}
        command = [sys.executable, "-m", "jaxrf.studies.compile_for", str(task), str(result)]
        try:
            done = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=time_limit,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not compiled within {time_limit:.0f} s"}
        if not result.exists():
            return {"error": summarize_failure(done.stderr, done.returncode)}
        return json.loads(result.read_text())


def summarize_failure(stderr: str, returncode: int) -> str:
    """The line of a failed compilation's output that says most, shortened."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if "RESOURCE_EXHAUSTED" in line or "Error" in line]
    return (telling or lines or [f"exit code {returncode}"])[-1][:300]


def choose_scene(config: TrainConfig) -> Scene:
    """A scene of the size that the preset is for: a capture for proposals, else an object."""
    is_capture = isinstance(config.model, ProposalModel)
    return stand_in.make_capture() if is_capture else stand_in.make_object()


def count_preset(config: TrainConfig, devices: Slice) -> dict[str, Any]:
    """Compiles the last stage's step in this process and counts it; as the report stores it.

    Args:
      config: of a preset.
      devices: to compile for; `compiler_environment` is set.
    """
    mesh = Mesh(np.array(targets.find_devices(devices)), (AXIS,), axis_types=(AxisType.Auto,))
    return count_on_mesh(config, choose_scene(config), mesh, devices.target)


def count_on_mesh(config: TrainConfig, scene: Scene, mesh: Mesh, target: Target) -> dict[str, Any]:
    """Compiles the last stage's step for the devices of a mesh, and counts it.

    Args:
      config: of a training.
      scene: whose sizes count.
      mesh: of devices, which may be absent.
      target: the rates of each of them.
    """
    started = time.perf_counter()
    config = transitions.resolve_config(config, scene, mesh.devices.flat[0].platform)
    stage, state = stand_in.last_stage(config, scene, mesh.size)
    pixels = stand_in.abstract_pixels(config, scene.train)
    limit = IMAGE_MEMORY_FRACTION * target.memory_bytes
    prefetches = config.keep_images_on_host
    if prefetches is None:
        prefetches = count_bytes(scene.train, config.image_scales()) > limit
    pixels = drop_images(pixels) if prefetches else pixels
    loss = make_rgb_loss_fn(config.loss)
    spec = StepSpec(config, stage, (scene.near, scene.far), loss, mesh)
    program: Any = compile_steps(spec, state, pixels, prefetches)
    seconds = time.perf_counter() - started
    return {
        "scene": scene.name,
        "num_steps": config.num_steps,
        "compile_seconds": round(seconds, 1),
        **measure_memory(program.memory_analysis(), target),
        **summarize_count(program.as_text(), config, stage, target, mesh.size),
    }


def measure_memory(analysis: Any, target: Target) -> dict[str, Any]:
    """Bytes on each device that a compiled program needs, and whether it has as many."""
    new_outputs = max(analysis.output_size_in_bytes - analysis.alias_size_in_bytes, 0)
    needed = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + new_outputs
    return {
        "argument_bytes": int(analysis.argument_size_in_bytes),
        "temporary_bytes": int(analysis.temp_size_in_bytes),
        "fits": bool(needed <= target.memory_bytes),
    }


def summarize_count(
    text: str, config: TrainConfig, stage: StageSpec, target: Target, num_devices: int
) -> dict[str, Any]:
    """Counts of a step and the predicted time, out of a compiled program's text."""
    program = hlo.parse_program(text)
    functions = profile.locate_operations(text)
    count = hlo_counts.count_step(program, guess_rounds(functions, config))
    prediction = predict.predict_step(count, target, num_devices)
    kernels = count.kernels
    return {
        "samples": stage.sample_budget,
        "kernels": len(kernels),
        "launches": count.launches,
        "host_reads": count.host_reads if target.read_seconds else 0.0,
        "open_loops": sorted({functions.get(loop, "") for loop in count.open_loops}),
        "matmul_flops": sum(k.repeats * k.matmul_flops for k in kernels),
        "element_ops": sum(k.repeats * k.element_ops for k in kernels),
        "moved_bytes": sum(k.repeats * k.moved_bytes(target.granule) for k in kernels),
        "rows": sum(k.repeats * k.rows for k in kernels),
        "collectives": count.collectives(),
        "prediction": dataclasses.asdict(prediction),
        "step_seconds": prediction.total,
        "training_seconds": prediction.total * config.num_steps,
    }


def guess_rounds(functions: Mapping[str, str], config: TrainConfig) -> dict[str, float]:
    """Rounds a step of the loops that end when their data say so, by the loop's name.

    Args:
      functions: of jaxrf that each operation comes from (`profile.locate_operations`).
      config: of the training.
    """
    interval = getattr(config.model, "occupancy_update_interval", 1)
    rounds = {}
    for name, function in functions.items():
        qualified = function.partition(",")[0].rpartition(".")[2]
        if qualified in SUMS:
            rounds[name] = SUM_ROUNDS
        elif qualified == "maybe_update":
            rounds[name] = 1.0 / interval
    return rounds


def main(task: str, result: str) -> None:
    """Compiles for the task that `compile_preset` wrote."""
    config, name = pickle.loads(Path(task).read_bytes())
    counts = count_preset(config, targets.parse_slice(name))
    Path(result).write_text(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
