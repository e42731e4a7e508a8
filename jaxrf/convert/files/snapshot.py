"""Reads snapshots of instant-ngp: msgpack, mostly packed with gzip or zlib."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxrf.convert.files.limits import (
    MAX_BYTES,
    MAX_COMPRESSION_RATIO,
    MIN_UNPACKED_BYTES,
    check_depth,
)

# A snapshot lists the cameras of its training images, and the state of an optimizer for each.
MAX_NODES, MAX_LIST_LENGTH = 1 << 22, 1 << 20
MAX_UNPACKED_BYTES = MAX_BYTES


def read_snapshot(path: Path) -> Any:
    """Returns the tree of a snapshot, its binary parts as arrays of bytes.

    Raises:
      ValueError: if it unpacks to more than any snapshot holds, or is damaged.
    """
    import msgpack

    nodes = 0

    def count(items: Any) -> Any:
        nonlocal nodes
        nodes += 1 + len(items)
        if nodes > MAX_NODES:
            raise ValueError("it holds more than any snapshot does")
        return items

    def read_map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        return {
            str(key): np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
            for key, value in count(pairs)
        }

    tree = msgpack.unpackb(
        _unpack(path.read_bytes()),
        strict_map_key=False,
        list_hook=count,
        object_pairs_hook=read_map,
        ext_hook=lambda code, data: None,
        max_array_len=MAX_LIST_LENGTH,
        max_map_len=MAX_LIST_LENGTH,
    )
    check_depth(tree)
    return tree


def _unpack(data: bytes) -> bytes:
    """Returns what gzip or zlib packed; other data as they are."""
    if not data.startswith((b"\x1f\x8b", b"\x78")):
        return data
    limit = min(MAX_COMPRESSION_RATIO * len(data) + MIN_UNPACKED_BYTES, MAX_UNPACKED_BYTES)
    # 32 detects the header of either.
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    unpacked = unpacker.decompress(data, limit)
    if unpacker.unconsumed_tail:
        raise ValueError("it unpacks to more than any snapshot holds")
    if not unpacker.eof:
        raise ValueError("its end is missing")
    return unpacked
