"""Checks of a user's field: mistakes that would otherwise show deep inside of the training step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.core.errors import InputError
from jaxrf.core.rays import ConicalFrusta
from jaxrf.fields.base import Field, FieldContext
from jaxrf.sampling.occupancy import OccupancyGrid

# Samples of the shapes that a field is tried with; no other dimension is as large by chance.
NUM_SAMPLES = 17
PAGE = "docs/howto/your_field.md"


def check_definition(field: object) -> None:
    """Requires a frozen dataclass that can be hashed, and an instance of it.

    Raises:
      InputError: if it is not; it names the class and the attribute.
    """
    if isinstance(field, type):
        raise InputError(f"The field is a class: give an instance, such as {field.__name__}().")
    if not isinstance(field, Field):
        raise InputError(
            f"The field is a {type(field).__name__}: give a jaxrf.fields.Field ({PAGE})."
        )
    for kind in type(field).__mro__[: type(field).__mro__.index(Field)]:
        adds = "__init__" in vars(kind) or vars(kind).get("__annotations__")
        if adds and "__dataclass_params__" not in vars(kind):
            raise InputError(
                f"{kind.__name__} is no dataclass: write @dataclasses.dataclass(frozen=True) above "
                "the class."
            )
    for attribute in dataclasses.fields(field):
        value = getattr(field, attribute.name)
        try:
            hash(value)
        except TypeError as error:
            raise InputError(
                f"{type(field).__name__}.{attribute.name} is of type {type(value).__name__}: a "
                "field holds numbers, strings and tuples; arrays belong to the parameters that its "
                "init returns."
            ) from error


def check_functions(
    field: Field, grid: OccupancyGrid, aabb: Float[np.ndarray | Array, "2 3"]
) -> None:
    """Requires init, density, features and color to return what `Field` says, of m samples.

    Nothing is computed: only shapes are evaluated.

    Raises:
      InputError: if they do not; it names the method, and what it returned.
    """
    name = type(field).__name__
    for method in missing_methods(type(field)):
        raise InputError(f"{name} has no {method}: define it ({PAGE}).")
    params = jax.eval_shape(field.init, jax.random.key(0))
    groups = jax.tree.leaves(broadcast_groups(field, params))
    unknown = sorted({str(group) for group in groups} - {"grid", "mlp"})
    if unknown:
        raise InputError(
            f"{name}.param_groups returns the group {unknown[0]!r}: the groups are 'grid' and "
            "'mlp'."
        )
    vectors, scalars = jnp.zeros((NUM_SAMPLES, 3)), jnp.zeros((NUM_SAMPLES,))
    context = FieldContext(
        scalars,
        jnp.asarray(aabb, jnp.float32),
        ConicalFrusta(vectors, scalars, scalars, scalars),
        grid,
        scalars,
    )
    result: Any = jax.eval_shape(field.density, params, vectors, context)
    if not isinstance(result, tuple) or len(result) != 2:
        raise InputError(
            f"{name}.density must return a tuple of two: densities of shape (m,), and a latent for "
            "features."
        )
    density, latent = result
    _require_shape(f"{name}.density", "densities", density, (), NUM_SAMPLES)
    for leaf in jax.tree.leaves(latent):
        if leaf.shape[:1] != (NUM_SAMPLES,):
            shape = _describe(leaf.shape, NUM_SAMPLES)
            raise InputError(
                f"{name}.density must return a latent whose arrays begin with m; one has shape "
                f"{shape}."
            )
    features = jax.eval_shape(field.features, params, latent)
    color = jax.eval_shape(field.color, params, features, vectors)
    _require_shape(f"{name}.color", "colors", color, (3,), NUM_SAMPLES)


def missing_methods(field_class: type[Field]) -> list[str]:
    """The names of the methods without a default that a field does not define."""
    required = ("init", "density", "color")
    return [name for name in required if getattr(field_class, name) is getattr(Field, name)]


def broadcast_groups(field: Field, params: Any) -> Any:
    """The optimizer group of every parameter, where the field may give one for a whole subtree.

    Raises:
      InputError: if its groups do not have the structure of the parameters.
    """
    groups = field.param_groups(params)
    try:
        return jax.tree.map(
            lambda group, subtree: jax.tree.map(lambda _: group, subtree), groups, params
        )
    except ValueError as error:
        raise InputError(
            f"{type(field).__name__}.param_groups must return the structure of the parameters, "
            "with 'grid' or 'mlp' for each array or for a whole part."
        ) from error


def _require_shape(
    method: str, what: str, array: Any, after_m: tuple[int, ...], count: int
) -> None:
    shape = getattr(array, "shape", None)
    if shape != (count, *after_m):
        expected = _describe((count, *after_m), count)
        actual = "no array" if shape is None else _describe(shape, count)
        raise InputError(f"{method} must return {what} of shape {expected}; it returned {actual}.")


def _describe(shape: tuple[int, ...], count: int) -> str:
    sizes = ["m" if size == count else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
