"""Several devices, of one process or of many: who computes what, and how results are added up.

Parameters, grids and pictures are everywhere the same; rays are shared out. What one process alone
may decide, by its clock or its signals, it tells the others (`agree`).
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrf.core import memory
from jaxrf.core.errors import InputError

# The one axis of a mesh: rays are shared out along it.
AXIS = "rays"
# Options of a compiler that rounds alike whatever is around and on however many devices: what it
# would simplify depends on that.
DETERMINISTIC_COMPILER_OPTIONS: dict[str, str | bool] = {
    "xla_disable_hlo_passes": "algsimp",
    "xla_gpu_deterministic_ops": True,
}
# Seconds without a word from a process after which it counts as lost.
LOST_AFTER = 30

Tree = TypeVar("Tree")


def connect(coordinator: str, processes: int | None, process_id: int | None) -> None:
    """Joins this process to others, before anything is computed.

    Args:
      coordinator: host:port of process 0, or "auto" under SLURM, MPI or on a TPU pod.
      processes: how many there are.
      process_id: which this is, from 0 on.

    Raises:
      InputError: if they do not find each other.
    """
    named: dict[str, Any] = {}
    if coordinator != "auto":
        if processes is None or process_id is None:
            raise InputError(
                "--coordinator names a host, but not how many processes there are and which this "
                "is: add --processes and --process-id."
            )
        named = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process_id,
        }
    try:
        jax.distributed.initialize(
            **named, initialization_timeout=120, heartbeat_timeout_seconds=LOST_AFTER
        )
    except (ValueError, IndexError, RuntimeError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise InputError(
            f"The processes did not find each other through --coordinator {coordinator} "
            f"({reason}): name host:port of process 0, which all must reach."
        ) from error
    _report_abnormal_exit(
        f"Process {jax.process_index()} of {jax.process_count()} has ended early. If nothing above "
        "says what to change, it or another one was lost: start all of them again with --resume, "
        "from the last checkpoint."
    )


def _report_abnormal_exit(text: str) -> None:
    """Has something said when this process ends otherwise than by coming to its end.

    JAX aborts a process that cannot reach process 0 any more, which then cannot say what to do.
    """
    program = "import sys; sys.stdin.read() or sys.exit(sys.argv[1])"
    heir = subprocess.Popen(
        [sys.executable, "-S", "-c", program, text],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )

    def end_well() -> None:
        heir.communicate(b"well")

    atexit.register(end_well)


def leads() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def agree(decision: Tree) -> Tree:
    """What process 0 has decided: anything that JSON can hold."""
    if jax.process_count() == 1:
        return decision
    from jax.experimental import multihost_utils

    text = json.dumps(decision).encode() if leads() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    told = np.zeros(size, np.uint8)
    told[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(told))))


def once(action: Callable[[], object]) -> None:
    """Lets process 0 do something before the others go on; what it stumbles over stops all.

    Raises:
      InputError: that of process 0.
    """
    problem = None
    if leads():
        try:
            action()
        except (InputError, OSError) as error:
            problem = str(error)
    problem = agree(problem)
    if problem is not None:
        raise InputError(problem)


def largest(number: int) -> int:
    """The largest of the numbers of all processes."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


@contextlib.contextmanager
def silence_non_main() -> Iterator[None]:
    """What other processes than 0 would print is not printed; errors are."""
    with contextlib.ExitStack() as stack:
        if not leads():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield


@contextlib.contextmanager
def abort_on_peer_failure() -> Iterator[None]:
    """Ends this process with one sentence if it or another one cannot go on, waiting for none."""
    try:
        yield
    except InputError as error:
        if jax.process_count() == 1:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    # A connection that breaks while a program is dispatched comes as a ValueError.
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or memory.ran_out(error):
            raise
        reason = str(error).strip().split("\n", 1)[0][:200]
        print(
            f"\nerror: Process {jax.process_index()} of {jax.process_count()} cannot go on with "
            f"the others ({reason}).",
            file=sys.stderr,
            flush=True,
        )
        # What JAX does when Python ends would wait for the lost one.
        os._exit(1)


def make_mesh(devices: int | None) -> Mesh:
    """The devices to compute on: so many, or all of all processes.

    Raises:
      InputError: if there are not so many, or several processes would not all take part.
    """
    known = jax.devices()
    count = len(known) if devices is None else devices
    if count > len(known):
        raise InputError(
            f"--devices asks for {count}, but there are {len(known)}: leave it out, or set "
            "XLA_FLAGS=--xla_force_host_platform_device_count to have more of a CPU."
        )
    if jax.process_count() > 1 and count != len(known):
        raise InputError(
            f"--devices asks for {count} of the {len(known)} of all processes: leave it out."
        )
    return jax.make_mesh((count,), (AXIS,), (AxisType.Auto,), devices=known[:count])


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """The same arrays on every device."""
    if mesh.size == 1:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, everywhere)

    def put(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(put, tree)


def to_local(mesh: Mesh, tree: Tree) -> Tree:
    """The same arrays on this process's first device alone."""
    if mesh.size == 1:
        return tree
    here = jax.local_devices()[0]

    def take(leaf: Any) -> Any:
        shard = next((s for s in leaf.addressable_shards if s.device == here), None)
        return jax.device_put(leaf, here) if shard is None else shard.data

    return jax.tree.map(take, tree)


def hold(mesh: Mesh, tree: Tree) -> Tree:
    """What is computed on every device alike, within a program, lest the compiler divide it."""
    if mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def fetch(mesh: Mesh | None, tree: Tree) -> Tree:
    """Arrays that are everywhere, in host memory; those of one device as they are."""
    return tree if mesh is None or mesh.size == 1 else jax.device_get(tree)


def replicated_shapes(mesh: Mesh, tree: Any) -> Any:
    """Shapes and types of arrays that are everywhere, to compile for."""
    everywhere = NamedSharding(mesh, PartitionSpec()) if mesh.size > 1 else None
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)


def shard_rays(
    mesh: Mesh, fn: Callable[..., Any], shared: Sequence[bool], axis: int = 0, joins: bool = False
) -> Callable[..., Any]:
    """A function whose arguments are whole, and which each device computes for its part.

    Args:
      mesh: the devices.
      fn: of one device's arguments; what it returns is everywhere the same unless it `joins`.
      shared: for each argument, whether it is cut along `axis` or everywhere the same.
      axis: see there.
      joins: what it returns is joined along `axis`, and then everywhere the same.
    """
    if mesh.size == 1:
        return fn
    cut, whole = PartitionSpec(*(None,) * axis, AXIS), PartitionSpec()

    def on_device(*arguments: Any) -> Any:
        result = fn(*arguments)
        if not joins:
            return result
        return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=axis, tiled=True), result)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=tuple(cut if each else whole for each in shared),
        out_specs=whole,
        check_vma=False,
    )


def pairwise_sum(
    fn: Callable[[Any], Tree], parts: Any, count: int, nothing: Tree, add: Callable[..., Tree]
) -> Tree:
    """The sum of a function of parts: that of the first half and that of the second, and so on.

    The order of additions depends on nothing but the number of parts, be they computed one after
    the other or, with `recursive_doubling_allreduce`, side by side.

    Args:
      fn: of one part.
      parts: arrays that begin with the parts.
      count: of parts, a power of two.
      nothing: what changes no result that it is added to.
      add: two results, whose order does not matter.
    """
    if count == 1:
        # Nothing of what is around is to be compiled into it, lest it be rounded otherwise.
        part = jax.lax.optimization_barrier(jax.tree.map(lambda x: x[0], parts))
        return jax.lax.optimization_barrier(fn(part))
    halves = jax.tree.map(lambda x: x.reshape(2, count // 2, *x.shape[1:]), parts)

    def add_half(total: Tree, half: Any) -> tuple[Tree, None]:
        return add(total, pairwise_sum(fn, half, count // 2, nothing, add)), None

    return jax.lax.scan(add_half, nothing, halves)[0]


def recursive_doubling_allreduce(mesh: Mesh, tree: Tree, add: Callable[..., Tree]) -> Tree:
    """The sum of each device's result, on all of them, in the order of `pairwise_sum`.

    Every device adds that of a neighbour, then that of a neighbour of twice the distance, and so
    on: the sums of two are the same bits on both (recursive doubling).
    """
    distance = 1
    while distance < mesh.size:
        pairs = [(device, device ^ distance) for device in range(mesh.size)]
        tree = add(tree, jax.lax.ppermute(tree, AXIS, pairs))
        distance *= 2
    return tree
