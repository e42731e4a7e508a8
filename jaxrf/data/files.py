"""Paths in data sets, checked as untrusted input: which file of the folder a listing means."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

from jaxrf.core.errors import InputError
from jaxrf.core.json_files import shorten
from jaxrf.data.images import SUFFIXES

# Names in one folder that are looked at.
MAX_NAMES = 200_000
# Folders, and how deep, that are searched for files that lie elsewhere than a listing says.
MAX_FOLDERS = 1000
MAX_DEPTH = 4


class DataFolder:
    """The files of a data folder, found by the paths that listings give.

    A path may have another case, the separators of Windows, another suffix or none, and may be
    absolute, even from before the folder moved. Nothing outside of the folder is opened.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[str, dict[str, str]] = {}

    def find(self, path: PurePath) -> Path | None:
        """The file that a path inside the folder means, relative to the folder; None without.

        Tries the path itself, then another case, then the suffixes of images.
        """
        if os.path.isfile(self.root / path):
            return Path(path)
        parent = self._find_folder(path.parent)
        if parent is None:
            return None
        names, stem = self._list(parent), strip_suffix(path).name
        candidates = [path.name, *(base + s for base in (path.name, stem) for s in SUFFIXES)]
        existing = (names[name.lower()] for name in candidates if name.lower() in names)
        return next((parent / n for n in existing if os.path.isfile(self.root / parent / n)), None)

    def find_listed(self, value: object, where: str, key: str = "file_path") -> Path:
        """The path of a file that a listing names, relative to the folder.

        Of a path that is absolute or leads out of the folder, the longest part at its end that
        exists inside is taken, or its name, for `find_holders`. A path inside need not exist.

        Args:
          value: parsed from the listing.
          where: entry of the listing, for messages.
          key: of the entry, for messages.

        Raises:
          InputError: the value is not the path of a file.
        """
        described = f"{key} {shorten(value)} in {where}"
        path = parse_path(value, described)
        if path.parts and not path.is_absolute() and path.parts[0] not in ("..", *_drives(path)):
            return self.find(path) or Path(path)
        names = [name for name in path.parts if name not in ("/", "//", "..", *_drives(path))]
        for start in range(len(names)):
            file = self.find(PurePath(*names[start:]))
            if file is not None:
                return file
        if not names:
            raise InputError(f"{described} names no file; give a path relative to the data folder.")
        return Path(names[-1])

    def list_images(self, folder: PurePath) -> list[Path]:
        """Images in a subfolder, in natural order, without hidden files."""
        parent = self._find_folder(folder)
        if parent is None:
            return []
        names = [n for n in self._list(parent).values() if PurePath(n).suffix.lower() in SUFFIXES]
        return [parent / n for n in sorted(names, key=natural_key) if not n.startswith(".")]

    def find_holders(self, names: Sequence[str]) -> list[Path]:
        """The subfolders that hold the most images of some names, but at least half of them.

        Suffixes and case do not matter.
        """
        stems = {strip_suffix(PurePath(name)).name.lower() for name in names}
        counts: dict[Path, int] = {}
        for path, folders, files in os.walk(self.root):
            current = Path(path).relative_to(self.root)
            depth = len(current.parts)
            folders[:] = sorted(f for f in folders if not f.startswith(".") and depth < MAX_DEPTH)
            images = (PurePath(name) for name in files if name.lower().endswith(SUFFIXES))
            counts[current] = len(stems & {image.stem.lower() for image in images})
            if len(counts) >= MAX_FOLDERS:
                break
        largest = max(counts.values(), default=0)
        if 2 * largest < len(stems) or not largest:
            return []
        return [folder for folder, count in counts.items() if count == largest]

    def _find_folder(self, folder: PurePath) -> Path | None:
        if os.path.isdir(self.root / folder):
            return Path(folder)
        current = Path()
        for part in folder.parts:
            name = self._list(current).get(part.lower())
            if name is None or not os.path.isdir(self.root / current / name):
                return None
            current = current / name
        return current

    def _list(self, folder: Path) -> dict[str, str]:
        """Names in a folder by their lower case."""
        key = folder.as_posix()
        if key not in self._names:
            try:
                names = sorted(os.listdir(self.root / folder), reverse=True)[:MAX_NAMES]
            except OSError:
                names = []
            # Where names differ only by case, the first one in order stays.
            self._names[key] = {name.lower(): name for name in names}
        return self._names[key]


def parse_path(value: object, described: str) -> PurePath:
    """A normalized path from text in a listing; backslashes separate like slashes.

    Raises:
      InputError: it is not text, is empty, or has characters that no file name has.
    """
    if not isinstance(value, str) or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value):
        raise InputError(f"{described} is not a file's name; give one such as './train/r_0'.")
    path = PurePath(os.path.normpath(value.replace("\\", "/")))
    if not path.parts:
        raise InputError(f"{described} is not a file's name; give one such as './train/r_0'.")
    return path


def strip_suffix(path: PurePath) -> PurePath:
    """A path without the suffix of an image: "frame.0001" keeps what follows its dot."""
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorting key by which "r_2" comes before "r_10"."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in parts)


def image_names(paths: Sequence[PurePath]) -> tuple[str, ...]:
    """Names of images: file stems, or paths without suffix if stems repeat."""
    bare = [strip_suffix(path) for path in paths]
    stems = tuple(path.name for path in bare)
    if len(set(stems)) == len(stems):
        return stems
    return tuple(path.as_posix() for path in bare)


def read_head(path: Path, count: int) -> bytes:
    """The first bytes of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def find_file(folder: Path, matches: Callable[[Path], bool]) -> Path | None:
    """The first file of a folder, by name, that is of a kind; None without."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return None
    return next((folder / name for name in names if matches(folder / name)), None)


def check_folder(folder: Path) -> None:
    """Raises InputError if a folder does not exist."""
    if not os.path.exists(folder):  # Unlike Path.exists, this does not raise for invalid names.
        raise InputError(f"There is no folder {folder}; give the path of a scene's folder.")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give the path of the folder of a scene.")


def name_scene(folder: Path) -> str:
    """Name of a scene: that of its folder, also for "." and ".."."""
    return Path(os.path.abspath(folder)).name


def format_names(names: Sequence[str], limit: int = 3) -> str:
    """The first names of a list, for messages."""
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"


def format_count(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun, as "1 image" or "3 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def _drives(path: PurePath) -> tuple[str, ...]:
    """The first part of a path if it is a drive of Windows, such as "C:"."""
    first = path.parts[0] if path.parts else ""
    return (first,) if re.fullmatch(r"[A-Za-z]:", first) else ()
