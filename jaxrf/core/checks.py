"""Checks of options. They raise an InputError that names the option as on the command line."""

from collections.abc import Iterator
from typing import Any

from jaxrf.core.errors import InputError


def option_name(name: str, prefix: str = "") -> str:
    """An attribute's name as an option: `option_name("num_steps")` is "--num-steps"."""
    return "--" + (prefix + name).replace("_", "-")


def require_positive(options: Any, *names: str, prefix: str = "") -> None:
    """Requires attributes of `options` to be above 0; of a tuple, every element.

    None passes, as it stands for a default; NaN does not.

    Args:
      options: any object with the attributes `names`.
      prefix: precedes the names in the message, such as "video.".

    Raises:
      InputError: with the first option that is not above 0 and its value.
    """
    for name, value in _values(options, names):
        if not value > 0:
            raise InputError(f"{option_name(name, prefix)} is {value}: give a number above 0.")


def require_non_negative(options: Any, *names: str, prefix: str = "") -> None:
    """Like `require_positive`, but 0 passes too."""
    for name, value in _values(options, names):
        if not value >= 0:
            raise InputError(f"{option_name(name, prefix)} is {value}: give 0 or more.")


def require_port(options: Any, name: str, prefix: str = "") -> None:
    """Requires an attribute to be a TCP port, from 1 to 65535; raises an InputError."""
    for _, port in _values(options, (name,)):
        if not 0 < port < 2**16:
            raise InputError(
                f"{option_name(name, prefix)} is {port}: give a number from 1 to 65535."
            )


def _values(options: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yields pairs of name and value, one for each element of a tuple, and skips None."""
    for name in names:
        value = getattr(options, name)
        elements = value if isinstance(value, tuple) else (value,)
        yield from ((name, element) for element in elements if element is not None)
