"""The user's folder for what is costly to make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`jaxrf` in `$XDG_CACHE_HOME`, if that is absolute, or in `~/.cache`."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "jaxrf"
