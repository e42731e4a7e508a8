"""Where the time of a training step goes: by operation, and by the function that asks for it.

XLA records when each operation of a compiled program runs, and the program's text says from which
line each of them comes. Both are put together here.
"""

import collections
import dataclasses
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import jax

from jaxrf.data.scene import Scene
from jaxrf.models.base import StageSpec
from jaxrf.studies.roofline import Roofline
from jaxrf.studies.work import count_work
from jaxrf.training import transitions
from jaxrf.training.callbacks import NullCallback
from jaxrf.training.config import TrainConfig
from jaxrf.training.loop import Trainer
from jaxrf.training.state import Metrics, TrainState

# Steps of the last stage that are recorded, at least.
TRACED_STEPS = 32
# Rows of each table of a report.
MAX_ROWS = 12
# Operations that consist of others, which are recorded themselves.
CONTROL_FLOW = ("while", "conditional", "call")
PACKAGE = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a compiled step.

    Attributes:
      name: in the program.
      function: of jaxrf that it comes from, with file and line.
      seconds: per step, on the clock.
    """

    name: str
    function: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """The time of the last steps of a training.

    Attributes:
      stage: the last one.
      step_seconds: of a step, on the clock.
      busy_cores: cores that this process kept busy meanwhile.
      samples: used in a step.
      operations: the slowest first.
    """

    stage: StageSpec
    step_seconds: float
    busy_cores: float
    samples: float
    operations: tuple[Operation, ...]


class _Tracer(NullCallback):
    """Records from some step on."""

    def __init__(self, first_step: int, folder: Path) -> None:
        self.first_step, self.folder = first_step, folder
        self.steps, self.samples, self.is_tracing = 0, 0.0, False

    def on_dispatch(
        self, state: TrainState, stage: StageSpec, metrics: Metrics, steps: int
    ) -> bool:
        """Begins the record after the first step; counts the steps that follow."""
        del stage
        jax.block_until_ready(state)
        if self.is_tracing:
            self.steps += steps
            self.samples += float(metrics.num_samples) * steps
        elif int(state.step) >= self.first_step:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(str(self.folder), profiler_options=options)
            self.is_tracing = True
            self.clock, self.cpu = time.perf_counter(), time.process_time()
        return False


def profile_training(config: TrainConfig, scene: Scene) -> Profile:
    """Trains, and records the last steps.

    Args:
      config: of a training that is at least twice as long as the record.
      scene: to train on.
    """
    config = transitions.resolve_config(config, scene)
    assert config.num_steps >= 2 * TRACED_STEPS
    config = dataclasses.replace(config, steps_per_dispatch=min(8, config.steps_per_dispatch))
    with tempfile.TemporaryDirectory(prefix="jaxrf-profile-") as folder:
        tracer = _Tracer(config.num_steps - TRACED_STEPS - 8, Path(folder))
        with Trainer(config, scene, tracer, None, None) as trainer:
            trainer.begin(None)
            while trainer.step < trainer.config.num_steps:
                trainer.enter_stage()
                trainer.run_stage()
            seconds = time.perf_counter() - tracer.clock
            cpu = time.process_time() - tracer.cpu
            jax.profiler.stop_trace()
            program = cast(jax.stages.Compiled, trainer.run)
            functions = locate_operations(program.as_text() or "")
        durations = read_durations(Path(folder), functions)
    operations = [
        Operation(name, functions[name], total / tracer.steps)
        for name, total in durations.items()
        if not name.startswith(CONTROL_FLOW)
    ]
    operations.sort(key=lambda operation: -operation.seconds)
    return Profile(
        trainer.stage,
        seconds / tracer.steps,
        cpu / seconds,
        tracer.samples / tracer.steps,
        tuple(operations),
    )


def read_durations(folder: Path, names: Mapping[str, object]) -> dict[str, float]:
    """Seconds in which each of some operations ran, by name, out of a record of JAX's profiler."""
    durations: dict[str, float] = collections.defaultdict(float)
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in names:
                        durations[event.name] += 1e-9 * event.duration_ns
    return dict(durations)


def locate_operations(text: str) -> dict[str, str]:
    """The function of jaxrf that each operation of a compiled program comes from.

    Args:
      text: of the program, with XLA's tables of files, functions, locations and stack frames.

    Returns:
      "function, file:line" of the innermost frame in jaxrf by operation; empty where there is none.
    """
    files, functions = _read_names(text, "FileNames"), _read_names(text, "FunctionNames")
    locations = _read_numbers(text, "FileLocations")
    frames = _read_numbers(text, "StackFrames")

    def describe(frame: int) -> str:
        while frame in frames:
            location = locations[frames[frame]["file_location_id"]]
            # Programs of a cache may have been compiled in another copy of jaxrf.
            _, separator, path = files[location["file_name_id"]].rpartition("/jaxrf/")
            if separator and (PACKAGE / path).is_file():
                function = re.sub(r"\.<\w+>", "", functions[location["function_name_id"]])
                return f"{function}, {path}:{location['line']}"
            # A frame that is its own parent is the outermost.
            parent = frames[frame].get("parent_frame_id", 0)
            frame = parent if parent != frame else 0
        return ""

    result = {}
    for match in re.finditer(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", text, re.MULTILINE):
        frame = re.search(r"stack_frame_id=(\d+)", match[2])
        result[match[1]] = describe(int(frame[1])) if frame else ""
    return result


def _read_table(text: str, heading: str) -> list[str]:
    match = re.search(rf"^{heading}\n((?:\d+ .*\n)+)", text, re.MULTILINE)
    return match[1].splitlines() if match else []


def _read_names(text: str, heading: str) -> dict[int, str]:
    rows = (row.split(" ", 1) for row in _read_table(text, heading))
    return {int(number): name.strip('"') for number, name in rows}


def _read_numbers(text: str, heading: str) -> dict[int, dict[str, int]]:
    rows = (row.split(" ", 1) for row in _read_table(text, heading))
    return {
        int(number): {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", content)}
        for number, content in rows
    }


def format_profile(preset: str, profile: Profile, roofline: Roofline) -> str:
    """A profile as Markdown: its sums, the slowest functions, the slowest operations."""
    step = profile.step_seconds
    ideal = profile.samples * count_work(profile.stage).ideal_seconds(roofline)
    known = sum(operation.seconds for operation in profile.operations)
    lines = [
        f"## {preset}",
        "",
        f"{1e3 * step:.1f} ms per step, {profile.busy_cores:.2f} cores busy, "
        f"{profile.samples / 1e3:.1f} thousand samples; {len(profile.operations)} operations take "
        f"{1e3 * known:.1f} ms. At the rates above, look-ups and dense layers alone would take "
        f"{1e3 * ideal:.1f} ms, {step / max(ideal, 1e-9):.1f} times less.",
        "",
        "| function | ms | of the step | operations |",
        "|---|---|---|---|",
    ]
    by_function: dict[str, list[float]] = collections.defaultdict(list)
    for operation in profile.operations:
        by_function[operation.function.partition(",")[0] or "(XLA's own)"].append(operation.seconds)
    slowest = sorted(by_function.items(), key=lambda item: -sum(item[1]))
    lines += [
        f"| `{name}` | {1e3 * sum(times):.2f} | {sum(times) / step:.0%} | {len(times)} |"
        for name, times in slowest[:MAX_ROWS]
    ]
    lines += ["", "| operation | asked for by | ms |", "|---|---|---|"]
    lines += [
        f"| `{operation.name}` | {_format_function(operation.function)} "
        f"| {1e3 * operation.seconds:.2f} |"
        for operation in profile.operations[:MAX_ROWS]
    ]
    return "\n".join(lines) + "\n"


def _format_function(function: str) -> str:
    name, _, line = function.partition(", ")
    return f"`{name}`, {line}" if line else "XLA"
