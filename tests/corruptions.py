"""Corrupts files: values in their trees, and their bytes."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np

# Values that replace those in files.
HOSTILE: list[Any] = [
    None, True, "", "x", [], {}, [[]], -1, 0, 1, 3, 10**30, 10**400, -(10**30), 1e-300, 1e300,
    1e38, math.nan, math.inf, -math.inf, "NaN", "../../secret/secret.png", "/etc/passwd", "a\0b",
    "\ud800", "images", ".", "~", "x" * 10_000, [1] * 1000, [[0] * 4] * 4, {"a": {"b": []}},
    "C:\\x.png",
]  # fmt: skip


def corrupt_tree(tree: Any, chance: random.Random) -> None:
    """Replaces, removes or shortens values, and changes arrays, in place."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node.keys() if isinstance(node, dict) else range(len(node))):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(tree)
    for _ in range(chance.choice((1, 1, 2, 5))):
        node, key = chance.choice(places)
        kind = chance.random()
        if kind < 0.15 and isinstance(node, dict):
            node.pop(key, None)
        elif kind < 0.25 and isinstance(node, list):
            node[:] = node[: len(node) // 2]
        elif key in (node if isinstance(node, dict) else range(len(node))):
            value = node[key]
            if isinstance(value, np.ndarray) and value.size and chance.random() < 0.7:
                node[key] = change_array(value, chance)
            else:
                node[key] = chance.choice(HOSTILE)


def change_array(array: np.ndarray, chance: random.Random) -> np.ndarray:
    """Returns an array of another type, shape or size, or with a number that is none."""
    match chance.randrange(6):
        case 0:
            return array.astype(chance.choice(["f8", "i8", "f2", "u1"]))
        case 1:
            return array.reshape(-1)[: chance.randrange(array.size)]
        case 2:
            return array[None]
        case 3:
            return np.moveaxis(np.atleast_1d(array), 0, -1)
        case 4:
            return np.concatenate([np.atleast_1d(array)] * 2)
    changed = array.astype(np.float32)
    changed.flat[chance.randrange(changed.size)] = chance.choice([np.nan, np.inf, 1e38])
    return changed


def corrupt_json(path: Path, chance: random.Random) -> None:
    """Replaces, removes or repeats values."""
    tree = json.loads(path.read_text())
    corrupt_tree(tree, chance)
    text = json.dumps(tree)
    bombs = [
        "[" * 200_000,
        '{"frames": ' * 50_000,
        "9" * 1_000_000,
        '{"frames": [' + "{}," * 99_999,
    ]
    path.write_text(
        chance.choice(bombs) if chance.random() < 0.05 else text, errors="surrogatepass"
    )


def corrupt_bytes(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    kind = chance.randrange(7)
    if kind == 0:
        data = data[: chance.randrange(len(data) + 1)]
    elif kind == 1:
        data = bytearray()
    elif kind == 2:
        data = bytearray(chance.randbytes(len(data)))
    elif kind == 3:
        for _ in range(chance.choice((1, 4, 64))):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif kind == 4:
        place = chance.randrange(max(len(data) - 8, 1))
        data[place : place + 8] = chance.choice([b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7])
    elif kind == 5:
        data = data + data
    else:
        place = chance.randrange(len(data) + 1)
        data[place:place] = chance.randbytes(chance.choice((1, 8, 1000)))
    path.write_bytes(bytes(data))
