"""jaxrf: neural radiance fields in JAX, as pure functions.

    import jaxrf

    scene = jaxrf.load_scene("data/nerf_synthetic/lego", downscale=4)
    result = jaxrf.fit(jaxrf.presets.voxels_small(), scene)
    image = result.render(scene.test.cameras[0])

Submodules and names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrf import (
        cameras,
        convert,
        core,
        data,
        evaluation,
        export,
        fields,
        models,
        parallel,
        presets,
        rendering,
        sampling,
        training,
        viewer,
    )
    from jaxrf.api import Result, fit, load, load_scene
    from jaxrf.cameras.base import Cameras
    from jaxrf.cameras.ray_convention import RayConvention
    from jaxrf.core.errors import InputError
    from jaxrf.core.rays import Rays
    from jaxrf.data.scene import Scene, Split
    from jaxrf.rendering.callables import render_packed
    from jaxrf.rendering.volume import Rendering
    from jaxrf.sampling.occupancy import OccupancyGrid
    from jaxrf.sampling.packed import PackedSamples
    from jaxrf.training.callbacks import NullCallback, TrainCallback
    from jaxrf.training.config import LossConfig, OptimizerConfig, TrainConfig
    from jaxrf.training.loop import DivergedError

__version__ = "0.1.0"

# The module of each public name.
_NAMES = {
    "load_scene": "api",
    "fit": "api",
    "load": "api",
    "Result": "api",
    "TrainConfig": "training.config",
    "OptimizerConfig": "training.config",
    "LossConfig": "training.config",
    "RayConvention": "cameras.ray_convention",
    "TrainCallback": "training.callbacks",
    "NullCallback": "training.callbacks",
    "DivergedError": "training.loop",
    "InputError": "core.errors",
    "Scene": "data.scene",
    "Split": "data.scene",
    "Cameras": "cameras.base",
    "Rays": "core.rays",
    "OccupancyGrid": "sampling.occupancy",
    "PackedSamples": "sampling.packed",
    "Rendering": "rendering.volume",
    "render_packed": "rendering.callables",
}
_PACKAGES = (
    "cameras",
    "convert",
    "core",
    "data",
    "evaluation",
    "export",
    "fields",
    "models",
    "parallel",
    "presets",
    "rendering",
    "sampling",
    "training",
    "viewer",
)

__all__ = [
    "Cameras",
    "DivergedError",
    "InputError",
    "LossConfig",
    "NullCallback",
    "OccupancyGrid",
    "OptimizerConfig",
    "PackedSamples",
    "RayConvention",
    "Rays",
    "Rendering",
    "Result",
    "Scene",
    "Split",
    "TrainCallback",
    "TrainConfig",
    "cameras",
    "convert",
    "core",
    "data",
    "evaluation",
    "export",
    "fields",
    "fit",
    "load",
    "load_scene",
    "models",
    "parallel",
    "presets",
    "render_packed",
    "rendering",
    "sampling",
    "training",
    "viewer",
]


def __getattr__(name: str) -> Any:
    """Imports a package or a name when it is first used."""
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
