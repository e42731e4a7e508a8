"""Configurations as JSON text, and back: types are checked, unknown keys are refused."""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxrf import fields, models
from jaxrf.core import user_code
from jaxrf.core.errors import InputError
from jaxrf.fields.base import Field
from jaxrf.fields.checks import missing_methods
from jaxrf.models.base import Model
from jaxrf.training.config import TrainConfig


def to_json(config: Any) -> str:
    """A configuration as readable text that `from_json` reads."""
    return json.dumps(encode(config), indent=2) + "\n"


def from_json(text: str, field_class: type[Field] | None = None) -> TrainConfig:
    """The training configuration that `to_json` wrote; see `from_content`."""
    return from_content(json.loads(text), field_class)


def from_content(content: Any, field_class: type[Field] | None = None) -> TrainConfig:
    """The training configuration in parsed JSON.

    Args:
      content: parsed JSON.
      field_class: of a field of the user's that the content names; by default it is loaded from its
        file, or found in a module that has been imported.

    Raises:
      ValueError: saying what does not fit.
      InputError: if the user's field cannot be loaded, or `field_class` is not its class.
    """
    source = content.get("field_source") if isinstance(content, dict) else None
    if field_class is not None and isinstance(content, dict):
        _require_same_class(field_class, content.get("field"))
    elif isinstance(source, str) and source:
        field_class = load_field_class(source)
    return decode(TrainConfig, content, "config", field_class)


def load_field_class(source: str) -> type[Field]:
    """The class of a user's field.

    Args:
      source: path/to/file.py:ClassName.

    Raises:
      InputError: if there is no such file or class, or if it is no field that defines the methods
        without a default.
    """
    loaded = user_code.load(source, "--field")
    path, _, name = source.rpartition(":")
    if not isinstance(loaded, type):
        raise InputError(f"{name} in {path} is no class: name one in --field.")
    if not issubclass(loaded, Field):
        raise InputError(
            f"{name} in {path} is no field: derive it from jaxrf.fields.Field, as in "
            "docs/howto/your_field.md."
        )
    for method in missing_methods(loaded):
        raise InputError(
            f"{name} in {path} is no field, it has no {method!r}: define it, as in "
            "docs/howto/your_field.md."
        )
    return loaded


def make_user_field(source: str) -> Field:
    """A user's field with its default numbers (`load_field_class`).

    Raises:
      InputError: if it cannot be made without arguments.
    """
    field_class = load_field_class(source)
    path, _, name = source.rpartition(":")
    try:
        field = field_class()
        hash(field)
    except Exception as error:
        raise InputError(
            f"{name} in {path} cannot be made without arguments, as a frozen dataclass of numbers "
            f"can ({user_code.describe(error, path)}): correct it."
        ) from error
    return field


def encode(value: Any) -> Any:
    """Dataclasses, tuples, paths and plain values as values of JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        encoded = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        kind = _type_name(value)
        return {"type": kind, **encoded} if kind else encoded
    if isinstance(value, tuple | list):
        return [encode(element) for element in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot write {value!r} as JSON")


def option_values(value: Any) -> dict[str, Any]:
    """The numbers of a dataclass that are options, by name; others are set while training."""
    hints = typing.get_type_hints(type(value), include_extras=True)
    return {
        f.name: getattr(value, f.name)
        for f in dataclasses.fields(value)
        if tyro.conf.Suppress not in getattr(hints[f.name], "__metadata__", ())
    }


def _type_name(value: Any) -> str | None:
    """The name that tells fields and models apart; None for other dataclasses."""
    if isinstance(value, Model):
        return value.name
    if isinstance(value, Field):
        kind = type(value)
        return value.name if fields.is_builtin(kind) else _full_name(kind)
    return None


def _full_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def decode(expected: Any, value: Any, where: str, field_class: type[Field] | None = None) -> Any:
    """A value of the expected type out of parsed JSON; ValueError says what does not fit."""
    origin = typing.get_origin(expected)
    if origin is Annotated:
        return decode(typing.get_args(expected)[0], value, where, field_class)
    if origin in (typing.Union, types.UnionType):
        return _decode_optional(typing.get_args(expected), value, where, field_class)
    if origin is Literal:
        if value not in typing.get_args(expected):
            raise ValueError(f"{where} is {value!r}, not one of {typing.get_args(expected)}")
        return value
    if origin is tuple:
        return _decode_tuple(typing.get_args(expected), value, where, field_class)
    if dataclasses.is_dataclass(expected):
        return _decode_dataclass(expected, value, where, field_class)
    if expected is Path and isinstance(value, str):
        return Path(value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ValueError(f"{where} is {value!r}, not a value of type {expected.__name__}")
    return value


def _decode_optional(
    members: tuple[Any, ...], value: Any, where: str, field_class: type[Field] | None
) -> Any:
    if value is None and type(None) in members:
        return None
    (member,) = (m for m in members if m is not type(None))
    return decode(member, value, where, field_class)


def _decode_tuple(
    parts: tuple[Any, ...], value: Any, where: str, field_class: type[Field] | None
) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {value!r}, not a list")
    if parts[-1] is Ellipsis:
        parts = parts[:1] * len(value)
    if len(parts) != len(value):
        raise ValueError(f"{where} is {value!r}, not a list of {len(parts)}")
    return tuple(decode(p, v, where, field_class) for p, v in zip(parts, value, strict=True))


def _decode_dataclass(
    expected: Any, value: Any, where: str, field_class: type[Field] | None
) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}, not an object")
    if expected in (Field, Model):
        kind = value.get("type")
        expected = _find_class(expected, kind, where, field_class)
        value = {key: part for key, part in value.items() if key != "type"}
    hints = typing.get_type_hints(expected, include_extras=True)
    names = {f.name for f in dataclasses.fields(expected)}
    if unknown := set(value) - names:
        raise ValueError(f"{where} has the unknown key {sorted(unknown)[0]!r}")
    if missing := [name for name in _required(expected) if name not in value]:
        raise ValueError(f"{where} has no {missing[0]!r}")
    return expected(
        **{k: decode(hints[k], v, f"{where}.{k}", field_class) for k, v in value.items()}
    )


def _required(kind: Any) -> list[str]:
    """The attributes of a dataclass that have no default."""
    return [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]


def _require_same_class(field_class: type[Field], field: Any) -> None:
    """Requires the class that the user gives to be that of a field in parsed JSON.

    Raises:
      InputError: if it has another name or other attributes, or the field is built in.
    """
    kind = field.get("type") if isinstance(field, Mapping) else None
    if not isinstance(kind, str):
        return
    name = kind.rpartition(":")[2].rpartition(".")[2]
    if ":" not in kind:
        raise InputError(
            f"The field of this run is {name}, which is built in, not {field_class.__name__}: "
            "leave field out."
        )
    if name != field_class.__name__:
        raise InputError(
            f"The field of this run is {name}, not {field_class.__name__}: give its class."
        )
    saved = set(field) - {"type"}
    unknown = saved - {f.name for f in dataclasses.fields(field_class)}
    differing = sorted(unknown) or [name for name in _required(field_class) if name not in saved]
    if differing:
        had = "had the" if unknown else "had no"
        raise InputError(
            f"The class {name} {had} attribute {differing[0]!r} when this run was trained: give it "
            "as it was then."
        )


def _find_class(expected: Any, kind: Any, where: str, field_class: type[Field] | None) -> Any:
    """The class of a field or a model by the name that `encode` gave it."""
    if expected is Model:
        if isinstance(kind, str) and kind in models.CLASS_OF_NAME:
            return getattr(models, models.CLASS_OF_NAME[kind])
        raise ValueError(f"{where}.type is {kind!r}, which is no model of this version")
    known = {name.lower(): name for name in fields.FIELDS}
    if isinstance(kind, str) and kind in known:
        return getattr(fields, known[kind])
    if field_class is not None:
        return field_class
    module, _, name = str(kind).partition(":")
    loaded = getattr(sys.modules.get(module), name, None)
    if isinstance(loaded, type) and issubclass(loaded, Field):
        return loaded
    if module == "__main__":
        raise InputError(
            f"The field {name} of this run was defined in a notebook or at a prompt: run that "
            f"code, and load the run there, by jaxrf.load(folder, field={name})."
        )
    raise ValueError(f"{where}.type is {kind!r}, which is no field of this version")
