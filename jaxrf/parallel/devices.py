"""A mesh of devices: arrays replicated over it, and functions of rays sharded over it.

Parameters, grids and images are replicated; rays are sharded along the mesh's only axis.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrf.core.errors import InputError

# The only axis of a mesh, along which rays are sharded.
AXIS = "rays"

Tree = TypeVar("Tree")


def make_mesh(num_devices: int | None) -> Mesh:
    """A mesh of the first `num_devices` devices, or of all devices of all processes.

    Raises:
      InputError: if there are fewer devices, or if some of several processes would have none.
    """
    available = jax.devices()
    count = len(available) if num_devices is None else num_devices
    if count > len(available):
        raise InputError(
            f"--devices asks for {count}, but there are {len(available)}: leave it out, or set "
            "XLA_FLAGS=--xla_force_host_platform_device_count to have more of a CPU."
        )
    if jax.process_count() > 1 and count != len(available):
        raise InputError(
            f"--devices asks for {count} of the {len(available)} of all processes: leave it out."
        )
    return jax.make_mesh((count,), (AXIS,), (AxisType.Auto,), devices=available[:count])


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """Copies of the arrays on every device of the mesh."""
    if mesh.size == 1:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def to_local(mesh: Mesh, tree: Tree) -> Tree:
    """Replicated arrays as arrays of this process's first device."""
    if mesh.size == 1:
        return tree
    device = jax.local_devices()[0]

    def take(leaf: Any) -> Any:
        shard = next((s for s in leaf.addressable_shards if s.device == device), None)
        return jax.device_put(leaf, device) if shard is None else shard.data

    return jax.tree.map(take, tree)


def to_host(mesh: Mesh | None, tree: Tree) -> Tree:
    """Replicated arrays in host memory; arrays of a mesh of one device are returned unchanged."""
    return tree if mesh is None or mesh.size == 1 else jax.device_get(tree)


def constrain_replicated(mesh: Mesh, tree: Tree) -> Tree:
    """Within a jitted function, arrays that every device computes in full.

    Without the constraint the compiler may shard their computation.
    """
    if mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def replicated_shapes(mesh: Mesh, tree: Any) -> Any:
    """Shapes and dtypes of replicated arrays, to compile ahead of time for.

    The devices may be absent, as those of a topology are.
    """
    # Without a sharding, JAX compiles for a device that it has.
    is_plain = mesh.size == 1 and mesh.devices.item() in jax.local_devices()
    sharding = None if is_plain else NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def device_index(mesh: Mesh) -> Any:
    """Index of the device that runs this, within a function given to `shard_rays`."""
    return jnp.int32(0) if mesh.size == 1 else jax.lax.axis_index(AXIS)


def shard_rays(
    mesh: Mesh,
    fn: Callable[..., Any],
    sharded: Sequence[bool],
    axis: int = 0,
    gather_outputs: bool = False,
) -> Callable[..., Any]:
    """A function of full arrays, of which each device computes its shard.

    Args:
      mesh: the devices.
      fn: takes the arguments of one device. Unless `gather_outputs`, it must return the same on
        every device.
      sharded: for each argument, whether it is sharded along `axis`; otherwise it is replicated.
      axis: the axis of arguments that is sharded, and of outputs that is gathered.
      gather_outputs: concatenate the outputs of all devices along `axis`, on every device.
    """
    if mesh.size == 1:
        return fn
    shard, replicated = PartitionSpec(*(None,) * axis, AXIS), PartitionSpec()

    def on_device(*arguments: Any) -> Any:
        result = fn(*arguments)
        if not gather_outputs:
            return result
        return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, axis=axis, tiled=True), result)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=tuple(shard if is_sharded else replicated for is_sharded in sharded),
        out_specs=replicated,
        check_vma=False,
    )
