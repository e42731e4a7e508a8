"""Bits of masks, ranks and packs of samples, and sums within runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_rendering import INTERVALS, RAYS, make_mask

from jaxrf.core.packing import find_bit, pack, pack_bits, rank_samples, sum_before

summed = jax.jit(sum_before)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_find_bit_equals_loop(size: int, share: float) -> None:
    mask = np.random.default_rng(size).uniform(size=(20, size)) < share
    words = jax.jit(pack_bits)(jnp.asarray(mask))
    assert words.shape == (20, -(-size // 32)) and words.dtype == jnp.uint32
    find = jax.jit(find_bit, static_argnums=2)
    for start in range(size + 1):
        result = find(words, jnp.full((20,), start, jnp.int32), 777)
        expected = [next((i for i in range(start, size) if row[i]), 777) for row in mask]
        assert result.tolist() == expected


# Sums before each value within runs of one owner.


def sum_before_slowly(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    sums = []
    for i, mine in enumerate(owner):
        total = 0.0
        for j in range(i):
            if owner[j] == mine:
                total += float(values[j])
        sums.append(total)
    return np.array(sums)


def make_owner(runs: list[int], seed: int = 0) -> np.ndarray:
    """Runs of these lengths, of owners that ascend with gaps from 0 on."""
    gaps = np.random.default_rng(seed).integers(1, 4, len(runs))
    return np.repeat(np.cumsum(gaps) - gaps[:1].sum(), runs).astype(np.int32)


RUNS = {
    "nothing": [],
    "one value": [1],
    "one owner": [37],
    "all owners different": [1] * 41,
    "odd lengths": [3, 1, 1, 7, 2, 16, 17, 5],
    "a long run at the start": [130, 1, 2],
    "a long run at the end": [1, 2, 131],
}


@pytest.mark.parametrize("name", RUNS)
def test_sum_before_equals_loop(name: str) -> None:
    owner = make_owner(RUNS[name])
    values = np.random.default_rng(1).normal(size=len(owner)).astype(np.float32)
    sums = summed(jnp.asarray(values), jnp.asarray(owner))
    assert sums.shape == owner.shape and sums.dtype == jnp.float32
    np.testing.assert_allclose(sums, sum_before_slowly(values, owner), atol=1e-5)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(0, 99))
def test_sum_before_restarts_with_every_owner(runs: list[int], seed: int) -> None:
    owner = make_owner(runs, seed)
    values = np.random.default_rng(seed).uniform(size=len(owner)).astype(np.float32)
    # Padded to one length, so that there is one program: the last owner has many zeros more.
    padded = jnp.asarray(np.pad(values, (0, 240 - len(owner))))
    sums = summed(padded, jnp.asarray(np.pad(owner, (0, 240 - len(owner)), mode="edge")))
    np.testing.assert_allclose(
        sums[: len(owner)], sum_before_slowly(values, owner), rtol=1e-5, atol=1e-6
    )
    starts = np.cumsum([0, *runs[:-1]])
    np.testing.assert_array_equal(np.asarray(sums)[starts], 0.0)


def test_sum_before_is_accurate_for_long_segments() -> None:
    runs = [5000, 1, 3000]
    owner = make_owner(runs)
    values = np.random.default_rng(2).uniform(size=len(owner)).astype(np.float32)
    expected = [
        np.cumsum(part) - part for part in np.split(values.astype(np.float64), [5000, 5001])
    ]
    sums = summed(jnp.asarray(values), jnp.asarray(owner))
    # Sums of a tree: their error grows with the logarithm of the length, not with the length.
    np.testing.assert_allclose(sums, np.concatenate(expected), rtol=1e-6)


def test_sum_before_large_values_do_not_affect_the_next_owner() -> None:
    values = [1e10, 1e10, 1e-3, 1e10, 1e-3, 2e-3, 4e-3]
    owner = jnp.asarray([0, 0, 0, 1, 2, 2, 2], jnp.int32)
    sums = summed(jnp.asarray(values, jnp.float32), owner)
    np.testing.assert_allclose(sums, [0, 1e10, 2e10, 0, 0, 1e-3, 3e-3], rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.dot(sum_before(x, owner), jnp.asarray(values, jnp.float32)))
    expected = [1e10 + 1e-3, 1e-3, 0, 0, 6e-3, 4e-3, 0]
    np.testing.assert_allclose(gradient(jnp.ones(7)), expected, rtol=1e-6)


def test_sum_before_infinity_does_not_leave_its_segment() -> None:
    values = jnp.asarray([1.0, jnp.inf, 2.0, 3.0, 4.0])
    sums = summed(values, jnp.asarray([0, 0, 0, 5, 5], jnp.int32))
    np.testing.assert_array_equal(sums, [0.0, 1.0, jnp.inf, 0.0, 3.0])


@pytest.mark.parametrize("name", [name for name in RUNS if RUNS[name]])
def test_sum_before_gradient_equals_dense_jacobian(name: str) -> None:
    owner = make_owner(RUNS[name])
    count = len(owner)
    values = jnp.asarray(np.random.default_rng(3).normal(size=count), jnp.float32)
    jacobian = jax.jacrev(summed)(values, jnp.asarray(owner))
    expected = (owner[:, None] == owner[None]) & np.tri(count, k=-1, dtype=bool)
    np.testing.assert_array_equal(jacobian, expected)


def test_sum_before_gradient_composes_with_other_functions() -> None:
    owner = make_owner([4, 1, 9])
    rng = np.random.default_rng(4)
    values, factors = rng.uniform(size=14), rng.normal(size=14)

    def total(values: jax.Array) -> jax.Array:
        sums = sum_before(jnp.square(values), jnp.asarray(owner))
        return jnp.dot(jnp.exp(-sums), jnp.asarray(factors, jnp.float32))

    gradient = jax.jit(jax.grad(total))(jnp.asarray(values, jnp.float32))
    for i in range(14):
        ends = []
        for sign in (-1, 1):
            moved = values.copy()
            moved[i] += sign * 1e-5
            ends.append(np.dot(np.exp(-sum_before_slowly(moved**2, owner)), factors))
        assert float(gradient[i]) == pytest.approx((ends[1] - ends[0]) / 2e-5, rel=1e-3, abs=1e-5)


# Ranking and packing.


def test_rank_samples_counts_masked_samples_before_each() -> None:
    mask = make_mask()
    rank, before = rank_samples(mask), 0
    for r in range(RAYS):
        for i in range(INTERVALS):
            assert int(rank[r, i]) == before
            before += int(mask[r, i])


@pytest.mark.parametrize("budget", [1, 4, 1000])
def test_successive_packs_hold_every_masked_sample_once(budget: int) -> None:
    mask = make_mask()
    expected = [r * INTERVALS + i for r in range(RAYS) for i in range(INTERVALS) if mask[r, i]]
    rank, samples = rank_samples(mask), []
    for start in range(0, len(expected), budget):
        packed = pack(mask, rank, budget, start)
        assert packed.sample.shape == packed.valid.shape == (budget,)
        taken = np.asarray(packed.sample)[np.asarray(packed.valid)]
        assert np.all(np.asarray(packed.sample)[~np.asarray(packed.valid)] == mask.size)
        samples += taken.tolist()
    assert samples == expected


def test_pack_of_an_empty_mask_is_empty() -> None:
    mask = jnp.zeros((3, 4), bool)
    packed = pack(mask, rank_samples(mask), 5)
    assert not np.any(np.asarray(packed.valid))
