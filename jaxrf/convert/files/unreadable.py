"""Names files that hold no weights jaxrf reads, where that can be told, and says what to do."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

READ_PROGRAMS = (
    "nerf-pytorch, NeRF (TensorFlow), jaxnerf, nerfmlp, NeRF-experiments, NeRF-from-scratch, "
    "TensoRF, nerfstudio's nerfacto or instant-ngp"
)
_NAME_OTHER = f"name weights of {READ_PROGRAMS}"
_UNPACK = f"unpack it and {_NAME_OTHER}"
# Bytes at the start of a file that are looked at.
HEAD_BYTES = 1 << 16
# (first bytes, description, what to do).
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs.github.com/",
        "is a pointer of Git LFS and not the file itself",
        "fetch the file with `git lfs pull`",
    ),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, which no program has whose weights jaxrf reads", ""),
    (b"\x89PNG\r\n\x1a\n", "is a picture (PNG)", ""),
    (b"\xff\xd8\xff", "is a picture (JPEG)", ""),
    (b"%PDF", "is a document (PDF)", ""),
    (b"glTF", "is a mesh (glTF)", ""),
    (b"7z\xbc\xaf\x27\x1c", "is an archive (7z)", _UNPACK),
    (b"Rar!\x1a\x07", "is an archive (RAR)", _UNPACK),
    (b"\xfd7zXZ\x00", "is compressed (xz)", _UNPACK),
    (b"BZh", "is compressed (bzip2)", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd)", _UNPACK),
)
# The parts of a zip file of arrays that a program writes, and its name.
_ARRAYS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"links.npy", "density_data.npy", "sh_data.npy"}), "a grid of Plenoxels (svox2)"),
    (frozenset({"child.npy", "parent_depth.npy", "data_dim.npy"}), "an octree (PlenOctrees)"),
)


def name_unreadable(path: Path, head: bytes) -> str | None:
    """Returns a sentence on a file whose first bytes or parts tell that jaxrf cannot read it.

    Args:
      path: of the file.
      head: its first `HEAD_BYTES`.

    Returns:
      What the file is and what to do; None if it may be weights, or nothing is known about it.
    """
    if not head:
        return f"{path} is empty: copy or download it again."
    for start, description, remedy in _STARTS:
        if head.startswith(start):
            return f"{path} {description}: {remedy or _NAME_OTHER}."
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return f"{path} is a web page that was saved instead of a file: download the file itself."
    description, remedy = _name_content(path, head)
    return f"{path} is {description}: {remedy}." if description else None


def _name_content(path: Path, head: bytes) -> tuple[str, str]:
    """Returns what a file is and what to do; empty texts if nothing is known about it."""
    if head.startswith((b"ply\n", b"ply\r\n")):
        header = head.split(b"end_header")[0]
        splats = b"f_dc_0" in header and b"scale_0" in header
        return ("Gaussian splats (PLY)" if splats else "a mesh or points (PLY)"), _NAME_OTHER
    if head.startswith(b"PK"):
        return _name_zip(path), _NAME_OTHER
    if head[257:262] == b"ustar":
        return "an archive (tar)", _UNPACK
    if is_snapshot(head):
        return "", ""
    if _decompress(head):
        return "compressed (gzip or zlib)", _UNPACK
    if b"\0" not in head and _is_text(head):
        return "text", _NAME_OTHER
    return "", ""


def _name_zip(path: Path) -> str:
    """Returns what a zip file of arrays is; an empty text if nothing is known about it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return ""
    return next((description for parts, description in _ARRAYS if parts <= names), "")


def _decompress(head: bytes) -> bytes:
    """Returns the start of what gzip or zlib packed; empty if neither did."""
    if not head.startswith((b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")):
        return b""
    try:
        # 32 detects the header of either.
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""


def is_snapshot(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a snapshot of instant-ngp.

    That is a msgpack map, packed or not, with the keys of a configuration and of a snapshot.
    """
    head = _decompress(head) or head
    is_map = head[:1] in (b"\xde", b"\xdf") or 0x80 <= head[0] < 0x90
    # Lengths of strings come before them.
    return is_map and b"\xa8snapshot" in head and b"\xa8encoding" in head


def _is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8, but for a character that their end may cut."""
    try:
        head[: max(len(head) - 3, 1)].decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 7 and error.start > 0
    return True


def name_tree(tree: Any) -> str | None:
    """Returns what the tree of a file is that no converter takes; None if nothing is known."""
    if not isinstance(tree, Mapping):
        return None
    state = tree.get("model_state_dict")
    if isinstance(state, Mapping) and _has_prefixes(state, ("density", "k0")):
        return "a checkpoint of DVGO"
    if isinstance(pipeline := tree.get("pipeline"), Mapping):
        if any(".gauss_params." in str(name) for name in pipeline):
            return "a checkpoint of nerfstudio's splatfacto, Gaussian splats"
        return "a checkpoint of nerfstudio of another method than nerfacto"
    return None


def _has_prefixes(names: Mapping[str, Any], prefixes: Sequence[str]) -> bool:
    return all(any(name.startswith(prefix) for name in names) for prefix in prefixes)
