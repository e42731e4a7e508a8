"""Checks of a user's field: mistakes that would otherwise show deep inside of the training step."""

import dataclasses
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
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
# Methods of a field that a class may define, with the arguments of `Field`.
METHODS = {
    name: inspect.signature(method)
    for name, method in vars(Field).items()
    if inspect.isfunction(method) and not name.startswith("_")
}
# Types whose values are hashed, compared and written as JSON.
PLAIN_TYPES = (bool, int, float, str, Path, type(None))
# Errors of what cannot be compiled: what the function does, and what to do instead.
UNTRACEABLE: tuple[tuple[type[Exception], str, str], ...] = (
    (jax.errors.TracerArrayConversionError, "gives an array to numpy", "use jax.numpy"),
    (
        jax.errors.TracerBoolConversionError,
        "decides by the value of an array, as with if or while",
        "use jnp.where",
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "selects elements by a mask",
        "use jnp.where, which keeps the shape",
    ),
    (
        jax.errors.ConcretizationTypeError,
        "needs the value of an array as a number",
        "compute with the array, and take sizes from shapes and the field's numbers",
    ),
    (
        jax.errors.TracerIntegerConversionError,
        "needs the value of an array as an integer",
        "compute with the array, and take sizes from shapes and the field's numbers",
    ),
)


def check_definition(field: object) -> None:
    """Requires a frozen dataclass of plain values, and an instance of it.

    Raises:
      InputError: if it is not; it names the class and the attribute or method.
    """
    if isinstance(field, type):
        raise InputError(f"The field is a class: give an instance, such as {field.__name__}().")
    if not isinstance(field, Field):
        raise InputError(
            f"The field is a {type(field).__name__}: give an instance of a jaxrf.fields.Field "
            f"({PAGE}), or a preset, such as jaxrf.presets.voxels_small()."
        )
    for kind in type(field).__mro__[: type(field).__mro__.index(Field)]:
        annotations = inspect.get_annotations(kind)
        if ("__init__" in vars(kind) or annotations) and "__dataclass_params__" not in vars(kind):
            raise InputError(
                f"{kind.__name__} is no dataclass: write @dataclasses.dataclass(frozen=True) above "
                "the class."
            )
        _require_annotations(kind, set(annotations))
    _require_methods(field)
    for attribute in dataclasses.fields(field):
        value = getattr(field, attribute.name)
        if not _is_plain(value):
            raise InputError(
                f"{type(field).__name__}.{attribute.name} is of type {type(value).__name__}: a "
                "field holds Python's numbers, strings and tuples; arrays belong to the parameters "
                "that its init returns."
            )


def _require_annotations(kind: type, annotated: set[str]) -> None:
    """Requires a type of each number of a class: without one it is no attribute of the dataclass.

    Constants in capitals and names that begin with an underscore need none.
    """
    options = {attribute.name for attribute in dataclasses.fields(Field)}
    for name, value in vars(kind).items():
        is_default = hasattr(Field, name) and name not in options
        if name in annotated or is_default or name.startswith("_") or name.isupper():
            continue
        if isinstance(value, bool | int | float | str | tuple):
            raise InputError(
                f"{kind.__name__}.{name} has no type, so it is no option and is not saved: write "
                f"`{name}: {type(value).__name__} = {value!r}`, or name a constant in capitals."
            )


def _require_methods(field: Field) -> None:
    """Requires what a class defines under the names of `Field`'s methods to take their arguments.

    They are passed by position, so that their names do not matter.
    """
    kind = type(field)
    for name, expected in METHODS.items():
        method = getattr(field, name)
        if not callable(method):
            raise InputError(
                f"{kind.__name__}.{name} hides the method {name} that every field has: give the "
                "attribute another name, or define the method."
            )
        if getattr(kind, name) is getattr(Field, name):
            continue
        arguments = [p for p in expected.parameters.values() if p.default is p.empty][1:]
        try:
            inspect.signature(method).bind(*arguments)
        except TypeError as error:
            raise InputError(
                f"{kind.__name__}.{name} takes {_describe_arguments(getattr(kind, name))}: it must "
                f"take {_describe_arguments(getattr(Field, name))}."
            ) from error


def _describe_arguments(method: Callable[..., Any]) -> str:
    return f"({', '.join(inspect.signature(method).parameters)})"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(element) for element in value)
    return isinstance(value, PLAIN_TYPES)


def check_functions(
    field: Field, grid: OccupancyGrid, aabb: Float[np.ndarray | Array, "2 3"]
) -> None:
    """Requires init, density, features and color to return what `Field` says, of m samples.

    Nothing is computed: only shapes are evaluated. Errors that a function raises by itself are
    passed on.

    Raises:
      InputError: if they do not; it names the method, and what it returned.
    """
    name = type(field).__name__
    for method in missing_methods(type(field)):
        raise InputError(f"{name} has no {method}: define it ({PAGE}).")
    key = jax.random.key(0)
    params = _trace(field, "init", lambda key: _require_parameters(name, field.init(key)), key)
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
    result = _trace(field, "density", field.density, params, vectors, context)
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
    features = latent
    if type(field).features is not Field.features:
        features = _trace(field, "features", field.features, params, latent)
    _require_features(field, features)
    color = _trace(field, "color", field.color, params, features, vectors)
    _require_shape(f"{name}.color", "colors", color, (3,), NUM_SAMPLES)
    zero = jnp.zeros(())
    penalty = _trace(field, "regularization", field.regularization, params, grid, key, zero)
    if jnp.shape(penalty) != ():
        shape = _describe(jnp.shape(penalty), NUM_SAMPLES)
        raise InputError(f"{name}.regularization must return one number; it returned {shape}.")


def _trace(field: Field, method: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The shapes that a method returns.

    Raises:
      InputError: if it does what cannot be compiled; it names the line.
    """
    try:
        return jax.eval_shape(function, *arguments)
    except tuple(kind for kind, _, _ in UNTRACEABLE) as error:
        does, instead = next(says for kind, *says in UNTRACEABLE if isinstance(error, kind))
        line = _find_line(error, getattr(field, method))
        raise InputError(
            f"{type(field).__name__}.{method} {does}{line}, but jax.jit compiles it before there "
            f"are values: {instead}."
        ) from error


def _find_line(error: Exception, method: Callable[..., Any]) -> str:
    """The last line of an error in the file of a method, for a sentence; "" if unknown."""
    file = getattr(getattr(inspect.unwrap(method), "__code__", None), "co_filename", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f" in line {frames[-1].lineno}, `{frames[-1].line}`" if frames else ""


def _require_parameters(name: str, params: Any) -> Any:
    """The parameters themselves, all of them arrays of floating-point numbers."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise InputError(
            f"{name}.init returns no parameters: return arrays to train, such as a dictionary of "
            "them."
        )
    for path, leaf in leaves:
        where = f"{name}.init returns params{jax.tree_util.keystr(path)}"
        dtype = getattr(leaf, "dtype", None)
        if dtype is None and not isinstance(leaf, bool | int | float):
            raise InputError(
                f"{where} of type {type(leaf).__name__}: return float32 arrays; other values are "
                "attributes of the dataclass."
            )
        # Numbers of numpy in float64 become float32, as everywhere in JAX.
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize < 4:
            raise InputError(
                f"{where} of type {dtype.name}: parameters are float32, as all of them are "
                "trained; make other arrays in the method that uses them."
            )
    return params


def _require_features(field: Field, features: Any) -> None:
    """Requires features of shape (m, c); by default they are the latent."""
    name = type(field).__name__
    shape = getattr(features, "shape", None)
    if shape is not None and len(shape) == 2 and shape[0] == NUM_SAMPLES:
        return
    actual = f"a {type(features).__name__}" if shape is None else _describe(shape, NUM_SAMPLES)
    if type(field).features is Field.features:
        raise InputError(
            f"{name}.density returns {actual} as the latent, and {name} has no features: define "
            "features, which returns an (m, c) array for color, or return a latent of that shape."
        )
    raise InputError(f"{name}.features must return an array of shape (m, c); it returned {actual}.")


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
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(
            f"{method} must return {what} as floating-point numbers; it returned {array.dtype}."
        )


def _describe(shape: tuple[int, ...], count: int) -> str:
    sizes = ["m" if size == count else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
