"""Presets: named configurations, a file per family, each with its source or measured result."""

import dataclasses
from collections.abc import Callable, Sequence

from jaxrf.core.accelerator import expects_accelerator
from jaxrf.core.errors import InputError
from jaxrf.fields.base import Field
from jaxrf.presets.capture import capture, capture_small
from jaxrf.presets.hashgrid import (
    hashgrid_f4,
    hashgrid_ngp,
    hashgrid_small,
    multiscale_small,
)
from jaxrf.presets.nerf import bitnerf_small, bitnerf_tiny, nerf_original, nerf_small, nerf_tiny
from jaxrf.presets.pynerf import pynerf_growing, pynerf_paper, pynerf_small
from jaxrf.presets.tensorf import (
    tensorf_cp384,
    tensorf_cp_small,
    tensorf_small,
    tensorf_vm48,
    tensorf_vm192,
)
from jaxrf.presets.voxels import voxels_large, voxels_small
from jaxrf.training.config import TrainConfig

Preset = Callable[[], TrainConfig]

# Seconds of training on two cores, for each pixel, from which on voxels-small learns the pictures
# by heart and voxels-large does better (docs/fields/voxels.md).
SECONDS_PER_PIXEL = 240e-6
# However few pixels there are, the steps of a larger field take this time to pay.
LONG_SECONDS = 240.0

PRESETS: tuple[Preset, ...] = (
    voxels_small,
    voxels_large,
    tensorf_small,
    tensorf_cp_small,
    tensorf_vm48,
    tensorf_vm192,
    tensorf_cp384,
    hashgrid_small,
    multiscale_small,
    hashgrid_ngp,
    hashgrid_f4,
    capture_small,
    capture,
    pynerf_small,
    pynerf_paper,
    pynerf_growing,
    nerf_small,
    nerf_tiny,
    nerf_original,
    bitnerf_small,
    bitnerf_tiny,
)


def for_field(field: Field) -> TrainConfig:
    """Any field on an occupancy grid, with budgets for a CPU: a start for one of your own."""
    small = hashgrid_small()
    return dataclasses.replace(
        small, field=field, model=dataclasses.replace(small.model, coloring=None)
    )


def preset_name(preset: Preset) -> str:
    """Name of a preset as given to --preset: that of its constructor with dashes."""
    return preset.__name__.replace("_", "-")


def make_preset(name: str, presets: Sequence[Preset] = PRESETS) -> TrainConfig:
    """The preset of this name; InputError if there is none."""
    for preset in presets:
        if preset_name(preset) == name:
            return preset()
    known = ", ".join(preset_name(p) for p in presets)
    raise InputError(f"--preset {name} is unknown: choose one of {known}.")


def default_preset(
    is_capture: bool = False, budget: float | None = None, num_pixels: int = 0
) -> str:
    """The preset that fits the data, the machine and the time.

    The full recipe on an accelerator, and a small one without.

    Args:
      is_capture: whether the scene has no bounds or faces forward.
      budget: seconds of the training, if they are limited.
      num_pixels: of all training images; 0 if not known.
    """
    is_long = num_pixels > 0 and (budget or 0.0) >= max(
        LONG_SECONDS, SECONDS_PER_PIXEL * num_pixels
    )
    small = voxels_large if is_long else voxels_small
    full, small = (capture, capture_small) if is_capture else (tensorf_vm192, small)
    return preset_name(full if expects_accelerator() else small)
