"""Registration of frozen dataclasses as JAX pytrees."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def as_pytree(*static: str) -> Callable[[type[T]], type[T]]:
    """Class decorator that registers a frozen dataclass as a pytree.

    JAX's own registration rebuilds a node through its constructor. Transformations fill nodes with
    objects that are not arrays, which would fail the shape checks of the constructor, so this
    registration bypasses it.

    Args:
      static: names of the static fields; the others are children.
    """

    return partial(_register, static)


def _register(static: tuple[str, ...], cls: type[T]) -> type[T]:
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    children = [name for name in names if name not in static]

    def flatten_with_keys(node: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in children]
        return keyed, tuple(getattr(node, name) for name in static)

    def flatten(node: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(node, name) for name in children], tuple(
            getattr(node, name) for name in static
        )

    def unflatten(meta: tuple[Any, ...], leaves: Any) -> Any:
        node = object.__new__(cls)
        for name, value in zip((*children, *static), (*leaves, *meta), strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
