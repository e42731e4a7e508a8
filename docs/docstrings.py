"""Extension of griffe, so that mkdocstrings shows the shapes and NamedTuples of jaxrf correctly."""

import re
from typing import Any

import griffe

SHAPED = {"Float", "Int", "Bool", "UInt8", "Int8", "Int32", "UInt32", "Num", "Shaped"}
# A line that begins with "name: " or "name, name: " describes fields of a NamedTuple.
FIELD_LINE = re.compile(r"^[a-z_]+(, [a-z_]+)*: ", re.MULTILINE)


class JaxrfDocstrings(griffe.Extension):
    """Keeps shapes as strings, and lists the fields of NamedTuples as attributes."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Inserts "Attributes:" before the fields of a NamedTuple."""
        is_documented = cls.docstring and any(str(base) == "NamedTuple" for base in cls.bases)
        if not is_documented or "Attributes:" in cls.docstring.value:
            return
        text, first = cls.docstring.value, FIELD_LINE.search(cls.docstring.value)
        if first:
            fields = text[first.start() :].replace("\n", "\n  ")
            cls.docstring.value = f"{text[: first.start()]}Attributes:\n  {fields}"

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Restores the shapes of parameters and return values."""
        for parameter in func.parameters:
            restore_shapes(parameter.annotation)
        restore_shapes(func.returns)

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Restores the shape of an attribute."""
        restore_shapes(attr.annotation)


def restore_shapes(annotation: Any) -> None:
    """Turns shapes such as "m" back into strings; griffe parses them as forward references."""
    if not isinstance(annotation, griffe.Expr) or isinstance(annotation, griffe.ExprName):
        return
    for part in annotation.iterate(flat=False):
        restore_shapes(part)
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) in SHAPED:
        inside = annotation.slice
        if isinstance(inside, griffe.ExprTuple) and isinstance(inside.elements[-1], griffe.Expr):
            elements = list(inside.elements)
            inside.elements = [*elements[:-1], repr(str(elements[-1]))]
