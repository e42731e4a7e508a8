"""Limits on what a file may hold, so that a small file cannot fill the memory."""

from collections.abc import Mapping
from typing import Any

# Weights of radiance fields are far smaller than this.
MAX_BYTES = 16 << 30
# Dicts, lists, arrays and numbers in a file; how deeply they are nested; items of one list.
MAX_NODES, MAX_DEPTH, MAX_LIST_LENGTH = 1 << 16, 32, 1 << 12
# A file may unpack to this multiple of its size; a small file to at least this number of bytes.
MAX_COMPRESSION_RATIO, MIN_UNPACKED_BYTES = 8, 64 << 20


class SizeBudget:
    """Counts the nodes and bytes that a file may still hold, given its size."""

    def __init__(self, file_size: int) -> None:
        self._nodes = MAX_NODES
        self._bytes = MAX_COMPRESSION_RATIO * file_size + MIN_UNPACKED_BYTES

    def spend(self, nodes: int, num_bytes: int = 0) -> None:
        """Subtracts nodes and bytes; ValueError once the budget is exceeded."""
        self._nodes, self._bytes = self._nodes - nodes, self._bytes - num_bytes
        if min(self._nodes, self._bytes) < 0:
            raise ValueError("it holds more than any checkpoint does")


def check_depth(tree: Any) -> None:
    """ValueError if dicts and lists are nested more than `MAX_DEPTH` levels deep."""
    level, depth = [tree], 0
    while level:
        if (depth := depth + 1) > MAX_DEPTH:
            raise ValueError("it nests deeper than any checkpoint does")
        children = [list(p.values()) if isinstance(p, Mapping) else p for p in level]
        level = [x for child in children if isinstance(child, list | tuple) for x in child]
