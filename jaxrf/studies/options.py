"""Options of the studies' commands. Imports no jax, so that --help is quick."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxrf.core.checks import require_positive
from jaxrf.core.errors import InputError

# Presets that are measured, and those that are compiled for accelerators, unless others are named.
MEASURED = ("voxels-small", "tensorf-small", "nerf-small")
COMPILED = (
    "voxels-small", "tensorf-vm192", "hashgrid-ngp", "capture", "pynerf-paper", "nerf-original",
)  # fmt: skip
# Of fewer steps, those that are recorded would be most.
MIN_PROFILE_STEPS = 80


@dataclasses.dataclass(frozen=True)
class ExperimentsOptions:
    """Train the six experiments of the seed study one after the other, and report on them."""

    data: Path | None = None
    """tiny_nerf_data.npz, or its folder. Default: as for training."""
    length: Literal["short", "full"] = "short"
    """full: the published 50 epochs of 8 layers of 256, for an accelerator. short: 8 layers of 64
    and 512 rays a step for as many steps, some minutes per experiment on a CPU."""
    only: tuple[str, ...] = ()
    """Presets to train, of those that begin with study-. Default: all."""
    seed: int = 0
    """Seed of every experiment."""
    output: Path = Path("runs/experiments")
    """Folder for the runs and the report."""


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Measure this machine, and how fast and how well each field trains on it."""

    data: Path | None = None
    """Folder of the data set. Default: as for training."""
    downscale: tuple[int, ...] = (1,)
    """Shrink the images by these whole factors, averaging areas."""
    presets: tuple[str, ...] = ()
    """Presets to train, each in its own process with an empty compilation cache; options of
    training may follow a name: "nerf-original --model packed". Default: voxels-small,
    tensorf-small and nerf-small; with --compile-for the published sizes of every family."""
    budget: tuple[float, ...] = (60.0,)
    """Seconds from the start of the process for each run; every preset is trained once for each of
    several budgets."""
    seeds: int = 1
    """Runs of each preset, with seeds 0, 1, ..."""
    every: int = 8
    """Score every K-th test view."""
    output: Path = Path("docs/benchmarks")
    """Folder to write to."""
    name: str = "bench"
    """Name of the files, after the date."""
    resume: bool = False
    """Keep the runs that the newest files of this name hold, and do the others."""
    compile_for: tuple[str, ...] = ()
    """Instead, compile a training step of each preset for accelerators that need not be there, such
    as h200:8 or v5e:4, count its kernels, bytes and operations, and predict its time. Kinds: h100,
    h200, a100, rtx4090 (pip install 'jax[cuda13]'), v5e, v5p, v6e ('jax[tpu]')."""
    compile_minutes: float = 60.0
    """Minutes after which the compilation of one step is given up."""
    profile: bool = False
    """Instead, train each preset for `profile_steps` steps and tell which functions and operations
    take the time of the last ones."""
    profile_steps: int = 300
    """Steps of each training that is profiled; stages and learning rates scale with it."""

    def __post_init__(self) -> None:
        require_positive(self, "downscale", "budget", "seeds", "every", "compile_minutes")
        if self.profile_steps < MIN_PROFILE_STEPS:
            raise InputError(
                f"--profile-steps is {self.profile_steps}: give at least {MIN_PROFILE_STEPS}."
            )

    @property
    def preset_names(self) -> tuple[str, ...]:
        """The presets, or the default ones."""
        return self.presets or (COMPILED if self.compile_for else MEASURED)
