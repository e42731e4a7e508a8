"""Which images to match: those that show the same things, found by their strongest features."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

# Of so few images, all pairs are matched.
MAX_EXHAUSTIVE = 25
# Features of each image that are compared: those of the largest scale, which are the most stable.
NUM_STRONGEST = 384
# Partners of each image: by likeness, and, in a video or a walk, the following ones.
NUM_ALIKE, NUM_FOLLOWING = 10, 5
# Cosine of the angle between descriptors above which they may be of one point, as Lowe's ratio.
MIN_COSINE = 0.85


def strongest_features(
    descriptors: UInt8[np.ndarray, "k 128"], scales: Float[np.ndarray, "k"]
) -> Float[np.ndarray, "m 128"]:
    """Unit descriptors of the features of the largest scale."""
    chosen = np.argsort(-scales, kind="stable")[:NUM_STRONGEST]
    vectors = descriptors[chosen].astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


def count_mutual(a: Float[np.ndarray, "m 128"], b: Float[np.ndarray, "k 128"]) -> int:
    """Number of features of two images that are each other's nearest and close enough."""
    if not len(a) or not len(b):
        return 0
    cosine = a @ b.T
    forward, backward = cosine.argmax(axis=1), cosine.argmax(axis=0)
    mutual = backward[forward] == np.arange(len(a))
    return int(np.sum(mutual & (cosine.max(axis=1) > MIN_COSINE)))


def likeness(features: Sequence[np.ndarray]) -> Int[np.ndarray, "n n"]:
    """Number of mutual features of all pairs of images; of each, (m, 128) unit descriptors."""
    count = len(features)
    table = np.zeros((count, count), np.int64)
    for i in range(count):
        for j in range(i):
            table[i, j] = table[j, i] = count_mutual(features[i], features[j])
    return table


def choose_pairs(table: Int[np.ndarray, "n n"], in_order: bool) -> list[tuple[int, int]]:
    """Pairs of images to match: all of few, else the most alike, and neighbors in an order.

    Args:
      table: mutual features of all pairs.
      in_order: whether the images are those of a video or a walk.
    """
    count = len(table)
    if count <= MAX_EXHAUSTIVE:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    chosen: Bool[np.ndarray, "n n"] = np.zeros((count, count), bool)
    alike = np.argsort(-table, axis=1, kind="stable")[:, :NUM_ALIKE]
    chosen[np.arange(count)[:, None], alike] = True
    following = NUM_FOLLOWING if in_order else 1
    for step in range(1, following + 1):
        chosen[np.arange(count - step), np.arange(step, count)] = True
    chosen |= chosen.T
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(chosen, 1)), strict=True)]


def is_in_order(table: Int[np.ndarray, "n n"]) -> bool:
    """Whether following images are much more alike than others, as in a video or a walk."""
    if len(table) < 4:
        return True
    following = float(np.mean(np.diagonal(table, 1)))
    others = float(np.mean(table[np.triu_indices(len(table), 2)]))
    return following > 2.0 * others
