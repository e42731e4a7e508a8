"""Radiance fields: a class for each, with its configuration, functions and rules of growth.

A field is one file, with its data structure in another where that stands alone: `voxel_grid` of
`voxels`, `tensor_factors` of `tensorf`. Networks that several use are in `mlp`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrf.fields.base import Field, FieldContext
    from jaxrf.fields.bitnerf import BitNeRF
    from jaxrf.fields.hashgrid import HashGrid
    from jaxrf.fields.nerf import NeRF
    from jaxrf.fields.pynerf import PyNeRF
    from jaxrf.fields.tensorf import TensoRF
    from jaxrf.fields.voxels import Voxels

# The module of each public name, imported when the name is first used.
_MODULES = {
    "Field": "base",
    "FieldContext": "base",
    "Voxels": "voxels",
    "TensoRF": "tensorf",
    "NeRF": "nerf",
    "BitNeRF": "bitnerf",
    "HashGrid": "hashgrid",
    "PyNeRF": "pynerf",
}
FIELDS = ("Voxels", "TensoRF", "NeRF", "BitNeRF", "HashGrid", "PyNeRF")

__all__ = [
    "FIELDS",
    "BitNeRF",
    "Field",
    "FieldContext",
    "HashGrid",
    "NeRF",
    "PyNeRF",
    "TensoRF",
    "Voxels",
    "is_builtin",
]


def is_builtin(field_class: type["Field"]) -> bool:
    """Whether a field's class is one of `FIELDS`, and not a user's of the same name."""
    return f"{field_class.__module__}.{field_class.__name__}" in {
        f"{__name__}.{_MODULES[name]}.{name}" for name in FIELDS
    }


def __getattr__(name: str) -> Any:
    """Imports a field when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
