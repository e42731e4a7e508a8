"""Reads flax checkpoints in msgpack."""

from pathlib import Path
from typing import Any

from jaxrf.convert.files.limits import MAX_LIST_LENGTH, MAX_NODES, SizeBudget, check_depth


def read_msgpack(path: Path) -> Any:
    """Returns the tree of a flax checkpoint; ValueError if it exceeds the limits."""
    import msgpack
    from flax import serialization

    data = path.read_bytes()
    budget = SizeBudget(len(data))

    def count(items: Any) -> None:
        budget.spend(1 + len(items))

    # A first pass counts the nodes and keeps nothing.
    msgpack.unpackb(
        data,
        strict_map_key=False,
        list_hook=count,
        object_pairs_hook=count,
        ext_hook=lambda code, data: None,
        max_array_len=MAX_LIST_LENGTH,
        max_map_len=MAX_NODES,
    )
    tree = serialization.msgpack_restore(data)
    check_depth(tree)
    return tree
