"""Corrupted weights of other programs: reading them ends in a field or in one sentence."""

import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from corruptions import corrupt_bytes, corrupt_tree
from foreign import WRITERS, write_instant_ngp
from scenes import slow

from jaxrf.convert import formats
from jaxrf.convert.files.read import read_file
from jaxrf.convert.formats import FormatOptions
from jaxrf.convert.networks import list_arrays
from jaxrf.core.errors import InputError

# Corrupted files of each kind; more are tried with JAXRF_CORRUPTIONS=100.
EACH = int(os.environ.get("JAXRF_CORRUPTIONS", "40"))
SECONDS, BYTES = 10.0, 2 << 30
QUICK = ("nerf-pytorch", "tensorf", "nerfstudio, tiny-cuda-nn", "instant-ngp")


def as_arrays(tree: Any) -> Any:
    """The tree with arrays in place of tensors, its dicts and lists copied."""
    if isinstance(tree, torch.Tensor):
        return tree.numpy()
    if isinstance(tree, dict):
        return {key: as_arrays(value) for key, value in tree.items()}
    return [as_arrays(value) for value in tree] if isinstance(tree, list | tuple) else tree


def as_tensors(tree: Any) -> Any:
    if isinstance(tree, np.ndarray):
        return torch.tensor(np.ascontiguousarray(tree))
    if isinstance(tree, dict):
        return {key: as_tensors(value) for key, value in tree.items()}
    return [as_tensors(value) for value in tree] if isinstance(tree, list) else tree


def corrupt(path: Path, chance: random.Random) -> None:
    """Changes values of a file of PyTorch, else its bytes."""
    try:
        tree = as_arrays(torch.load(path, weights_only=False))
    except Exception:
        tree = None
    if not isinstance(tree, dict) or chance.random() < 0.3:
        corrupt_bytes(path, chance)
        return
    corrupt_tree(tree, chance)
    torch.save(as_tensors(tree), path)


def read(path: Path) -> str:
    """How a conversion ended: "field", or its sentence."""
    try:
        converted = formats.convert(read_file(path), FormatOptions())
    except InputError as error:
        return str(error)
    arrays = list_arrays(converted.params)
    assert arrays and all(np.all(np.isfinite(np.asarray(a))) for a in arrays.values())
    return "field"


@pytest.mark.parametrize("name", [n if n in QUICK else slow(n) for n in WRITERS])
def test_corrupted_weights_end_in_one_sentence_or_a_field(name: str, tmp_path: Path) -> None:
    whole = WRITERS[name][1](tmp_path / "weights.pt")
    # Some programs write a file for each of two networks.
    contents = {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}
    before, sentences = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, 0
    for number in range(EACH):
        chance = random.Random(f"{name} {number}")
        for path, content in contents.items():
            path.write_bytes(content)
        corrupt(chance.choice(list(contents)), chance)
        started = time.monotonic()
        ended = read(whole)
        assert time.monotonic() - started < SECONDS, number
        assert ended == "field" or (10 < len(ended) < 1500 and "\n" not in ended), number
        sentences += ended != "field"
    assert sentences > EACH // 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < BYTES


def test_snapshots_with_other_values_end_in_one_sentence_or_a_field(tmp_path: Path) -> None:
    whole = msgpack.unpackb(write_instant_ngp(tmp_path / "x", packing=bytes).read_bytes())
    sentences = 0
    for number in range(EACH):
        chance = random.Random(number)
        tree = msgpack.unpackb(msgpack.packb(whole))
        corrupt_tree(tree, chance)
        try:
            packed = msgpack.packb(tree)
        except (OverflowError, UnicodeEncodeError):
            continue
        (tmp_path / "x").write_bytes(packed)
        ended = read(tmp_path / "x")
        assert ended == "field" or (10 < len(ended) < 1500 and "\n" not in ended), number
        sentences += ended != "field"
    assert sentences > EACH // 4
