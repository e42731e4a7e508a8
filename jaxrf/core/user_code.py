"""Loads fields and losses from Python files of the user, and copies these files into runs."""

import functools
import hashlib
import importlib.util
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from jaxrf.core.errors import InputError, describe_for_command_line


def load(source: str, option: str) -> Any:
    """The object of a given name in a Python file, which is run once, and again if it changes.

    Args:
      source: path/to/file.py:name.
      option: option that gave the source, for messages.

    Raises:
      InputError: there is no such file or name, or the file cannot be run.
    """
    path = source.rpartition(":")[0]
    if not path or not Path(path).is_file():
        raise InputError(
            f"{option} is {source!r}: give a Python file and a name in it, such as my_file.py:name."
        )
    return _load(source, option, hashlib.sha1(Path(path).read_bytes()).hexdigest())


@functools.cache
def _load(source: str, option: str, digest: str) -> Any:
    """`load` for a file with this content."""
    del digest
    path, _, name = source.rpartition(":")
    # Dataclasses look up their module by its name, and two files may have the same name.
    unique = f"{Path(path).stem}_{hashlib.sha1(str(Path(path).resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{option} is {source!r}: {path} must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[unique]
        raise InputError(f"{path} cannot be run ({describe(error, path)}): correct it.") from error
    if not hasattr(module, name):
        raise InputError(f"{path} has no {name!r}: give a name that it defines in {option}.")
    return getattr(module, name)


def describe(error: Exception, path: str) -> str:
    """An error raised in a file as one line: its type, its message and the line in the file."""
    reason = f"{type(error).__name__}: {describe_for_command_line(error).split(chr(10), 1)[0]}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == path]  # fmt: skip
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    return f"{reason}, line {lines[-1]}" if lines else reason


def copy_into(folder: Path, source: str) -> str:
    """Copies the file of a source into a folder; returns the source in the copy.

    Raises:
      InputError: the folder has another file of that name.
    """
    path, _, name = source.rpartition(":")
    copy = folder.absolute() / Path(path).name
    if copy.exists() and copy.read_bytes() != Path(path).read_bytes():
        raise InputError(
            f"{folder} already has another {copy.name} than {path}: give the files of a field "
            "and of a loss different names."
        )
    if Path(path).absolute() != copy:
        shutil.copyfile(path, copy)
    return f"{copy}:{name}"


def find_copy(folder: Path, source: str) -> str:
    """The source in the folder's copy of its file; the source itself if there is no copy."""
    path, _, name = source.rpartition(":")
    copy = folder.absolute() / Path(path).name
    return f"{copy}:{name}" if path and copy.is_file() else source
