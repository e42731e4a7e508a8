"""Sums whose order of additions, and so whose bits, do not depend on the number of devices."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from jaxrf.parallel.devices import AXIS

# Options with which the compiler rounds a function alike in every program and on any number of
# devices. Its algebraic simplifications depend on the surrounding operations.
DETERMINISTIC_COMPILER_OPTIONS: dict[str, str | bool] = {
    "xla_disable_hlo_passes": "algsimp",
    "xla_gpu_deterministic_ops": True,
}

Tree = TypeVar("Tree")


def pairwise_sum(
    fn: Callable[[Any], Tree], parts: Any, count: int, zero: Tree, add: Callable[..., Tree]
) -> Tree:
    """The sum of `fn` over parts: the sum over the first half plus that over the second half.

    The order of additions depends only on the number of parts. It is the same whether one device
    computes all parts or, with `recursive_doubling_allreduce`, several share them.

    Args:
      fn: a function of one part.
      parts: arrays whose leading axis counts the parts.
      count: the number of parts, a power of two.
      zero: the neutral element of `add`.
      add: a commutative function of two results.
    """
    if count == 1:
        # The barriers keep the compiler from fusing a part with its surroundings, which could
        # round it differently.
        part = jax.lax.optimization_barrier(jax.tree.map(lambda x: x[0], parts))
        return jax.lax.optimization_barrier(fn(part))
    halves = jax.tree.map(lambda x: x.reshape(2, count // 2, *x.shape[1:]), parts)

    def add_half(total: Tree, half: Any) -> tuple[Tree, None]:
        return add(total, pairwise_sum(fn, half, count // 2, zero, add)), None

    return jax.lax.scan(add_half, zero, halves)[0]


def recursive_doubling_allreduce(mesh: Mesh, tree: Tree, add: Callable[..., Tree]) -> Tree:
    """The sum of every device's result, on all devices, in the order of `pairwise_sum`.

    Each device adds the result of a neighbor at distance 1, then 2, 4 and so on. Both devices of a
    pair compute the same bits, as `add` is commutative.
    """
    distance = 1
    while distance < mesh.size:
        pairs = [(device, device ^ distance) for device in range(mesh.size)]
        tree = add(tree, jax.lax.ppermute(tree, AXIS, pairs))
        distance *= 2
    return tree
