"""What mkdocstrings has to be told about the docstrings and annotations of jaxrf."""

import re
from typing import Any

import griffe

SHAPED = {"Float", "Int", "Bool", "UInt8", "Int8", "Int32", "UInt32", "Num", "Shaped"}
# "view, name: which." at the beginning of a line: parts of a NamedTuple.
PART = re.compile(r"^[a-z_]+(, [a-z_]+)*: ", re.MULTILINE)


class Manners(griffe.Extension):
    """Shapes stay strings, and the parts of NamedTuples become a list."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Puts "Attributes:" before the parts of a NamedTuple."""
        found = cls.docstring and any(str(base) == "NamedTuple" for base in cls.bases)
        if not found or "Attributes:" in cls.docstring.value:
            return
        text, first = cls.docstring.value, PART.search(cls.docstring.value)
        if first:
            parts = text[first.start() :].replace("\n", "\n  ")
            cls.docstring.value = f"{text[: first.start()]}Attributes:\n  {parts}"

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Restores the shapes of parameters and results."""
        for parameter in func.parameters:
            restore_shapes(parameter.annotation)
        restore_shapes(func.returns)

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Restores the shape of an attribute."""
        restore_shapes(attr.annotation)


def restore_shapes(annotation: Any) -> None:
    """Shapes such as "m" that griffe took for names in quotes, as strings again."""
    if not isinstance(annotation, griffe.Expr) or isinstance(annotation, griffe.ExprName):
        return
    for part in annotation.iterate(flat=False):
        restore_shapes(part)
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) in SHAPED:
        inside = annotation.slice
        if isinstance(inside, griffe.ExprTuple) and isinstance(inside.elements[-1], griffe.Expr):
            elements = list(inside.elements)
            inside.elements = [*elements[:-1], repr(str(elements[-1]))]
