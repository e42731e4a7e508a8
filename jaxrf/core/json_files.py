"""JSON files of users, checked as far as any reader needs."""

import json
from pathlib import Path
from typing import Any

from jaxrf.core.errors import InputError

# Text of this size holds a hundred thousand camera poses.
MAX_JSON_BYTES = 1 << 28


def read_json(path: Path, must_hold: str) -> dict[str, Any]:
    """The JSON object of a file; all numbers are floats.

    Args:
      path: of the file.
      must_hold: contents that the object must have, for messages.

    Raises:
      InputError: the file cannot be read, is too large, or is not a JSON object.
    """
    value = _parse(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; it must hold {must_hold}.")
    return value


def read_json_array(path: Path, must_hold: str) -> list[Any]:
    """The JSON array of a file; arguments and errors as of `read_json`."""
    value = _parse(path)
    if not isinstance(value, list):
        raise InputError(f"{path} is not a JSON array; it must hold {must_hold}.")
    return value


def _parse(path: Path) -> object:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(
                f"{path} has more than {MAX_JSON_BYTES >> 20} MiB; it must be smaller."
            )
        # As floats, integers of any length are numbers (or inf).
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_int=float)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; save or copy it again.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not complete JSON ({error}); copy it again.") from error


def shorten(value: object) -> str:
    """A value as JSON, in one line of at most 60 characters, for messages."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
