"""Models: a field, how its rays are sampled, and how they are rendered for training and images."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrf.models.base import Model, ModelParams
    from jaxrf.models.hierarchical import HierarchicalModel
    from jaxrf.models.packed import PackedModel
    from jaxrf.models.proposal import ProposalModel

# The module of each public name, imported when the name is first used.
_MODULES = {
    "Model": "base",
    "ModelParams": "base",
    "PackedModel": "packed",
    "HierarchicalModel": "hierarchical",
    "ProposalModel": "proposal",
}
MODELS = ("PackedModel", "HierarchicalModel", "ProposalModel")
# Class by the name that `--model` and runs have, `Model.name`.
CLASS_OF_NAME = {name.removesuffix("Model").lower(): name for name in MODELS}

__all__ = [
    "MODELS",
    "HierarchicalModel",
    "Model",
    "ModelParams",
    "PackedModel",
    "ProposalModel",
]


def __getattr__(name: str) -> Any:
    """Imports a model when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
