"""Which images are matched: all of few, neighbors in an order, and those that close a loop."""

import numpy as np
import pytest

from jaxrf.data.photos import pairs


def count_mutual_slowly(a: np.ndarray, b: np.ndarray) -> int:
    count = 0
    for i, descriptor in enumerate(a):
        cosines = [float(descriptor @ other) for other in b]
        j = int(np.argmax(cosines))
        back = int(np.argmax([float(b[j] @ other) for other in a]))
        count += back == i and cosines[j] > pairs.MIN_COSINE
    return count


@pytest.mark.parametrize("seed", range(3))
def test_count_mutual_equals_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (40, 128), np.uint8), rng.integers(0, 256, (30, 128), np.uint8)
    b[:12] = np.clip(a[5:17] + rng.integers(0, 3, (12, 128)), 0, 255)
    a, b = (pairs.strongest_features(d, np.ones(len(d))) for d in (a, b))
    assert pairs.count_mutual(a, b) == count_mutual_slowly(a, b) >= 10
    assert pairs.count_mutual(a, b[:0]) == 0


def test_strongest_features_are_those_of_the_largest_scale() -> None:
    data = np.eye(600, 128, dtype=np.uint8) * 200
    scales = np.arange(600.0)
    chosen = pairs.strongest_features(data, scales)
    assert len(chosen) == pairs.NUM_STRONGEST
    np.testing.assert_allclose(np.linalg.norm(chosen[data[::-1][: len(chosen)].any(1)], axis=1), 1)


def loop_table(count: int) -> np.ndarray:
    """Images around a loop: likeness falls with the distance around it."""
    index = np.arange(count)
    apart = np.abs(index[:, None] - index[None])
    apart = np.minimum(apart, count - apart)
    return np.where(apart > 0, np.maximum(100 - 20 * apart, 0), 0)


def test_few_images_are_matched_exhaustively() -> None:
    assert len(pairs.choose_pairs(loop_table(20), in_order=True)) == 190


@pytest.mark.parametrize("in_order", [True, False])
def test_many_images_are_matched_with_neighbors_and_across_the_loop(in_order: bool) -> None:
    count = 120
    chosen = set(pairs.choose_pairs(loop_table(count), in_order))
    assert all((i, i + 1) in chosen for i in range(count - 1))
    assert (0, count - 1) in chosen and (1, count - 1) in chosen
    assert len(chosen) < count * (pairs.NUM_ALIKE + pairs.NUM_FOLLOWING)
    assert all(i < j for i, j in chosen)


def test_shuffled_images_still_find_their_neighbors() -> None:
    count, rng = 100, np.random.default_rng(0)
    order = rng.permutation(count)
    table = loop_table(count)[order][:, order]
    assert pairs.is_in_order(loop_table(count)) and not pairs.is_in_order(table)
    chosen = set(pairs.choose_pairs(table, in_order=False))
    place = np.argsort(order)
    for i in range(count):
        a, b = sorted((int(place[i]), int(place[(i + 1) % count])))
        assert (a, b) in chosen
