"""Checkpoints: which are kept, and that states are restored exactly."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from scenes import differing_leaves, first_state, tiny_nerf, tiny_tensorf, tiny_voxels

from jaxrf.core.errors import InputError
from jaxrf.training import checkpoint


def make_state(step: int) -> dict[str, Any]:
    return {
        "params": {"planes": (jnp.full((3, 2), 0.1 * step), jnp.arange(4.0))},
        "occupied": jnp.array([True, False]),
        "step": jnp.asarray(step, jnp.int32),
    }


def save_all(folder: Path, keep: int, psnrs: dict[int, float | None]) -> list[int]:
    manager = checkpoint.open_checkpoints(folder, keep)
    for step, psnr in psnrs.items():
        checkpoint.save(manager, step, make_state(step), {"number": step}, psnr)
        manager.wait_until_finished()
    manager.close()
    manager = checkpoint.open_checkpoints(folder, keep)
    steps = sorted(manager.all_steps())
    manager.close()
    on_disk = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    assert on_disk == steps
    return steps


@pytest.mark.parametrize(
    ("keep", "psnrs", "expected"),
    [
        (2, {1: None, 2: None, 3: None, 4: None}, [3, 4]),
        (1, {1: None, 2: None, 3: None}, [3]),
        (2, {1: 20.0, 2: 25.0, 3: 22.0, 4: 23.0, 5: None, 6: None}, [2, 5, 6]),
        (2, {1: 20.0, 2: 25.0, 3: 26.0, 4: None}, [3, 4]),
        (1, {1: 30.0, 2: None, 3: 10.0}, [1, 3]),
        (3, {1: None, 2: 5.0, 3: None, 4: None, 5: None}, [2, 3, 4, 5]),
    ],
)
def test_open_checkpoints_keeps_the_last_few_and_the_best(
    tmp_path: Path, keep: int, psnrs: dict[int, float | None], expected: list[int]
) -> None:
    assert save_all(tmp_path, keep, psnrs) == expected


def test_open_checkpoints_keeps_the_best_after_a_resume(tmp_path: Path) -> None:
    save_all(tmp_path, 1, {1: 30.0, 2: 20.0})
    assert save_all(tmp_path, 1, {3: 25.0, 4: None}) == [1, 4]


def test_restore_returns_the_saved_state_and_metadata(tmp_path: Path) -> None:
    manager = checkpoint.open_checkpoints(tmp_path, 2)
    meta = {"scene": {"near": 2.0, "name": "ä"}, "stage": {"aabb": [[0.1, 1e-9, 3.0]], "p": True}}
    checkpoint.save(manager, 7, make_state(7), meta, None)
    manager.wait_until_finished()
    stored = checkpoint.read_meta(manager, 7)
    assert set(stored.pop(checkpoint.CHECKSUMS)) > {checkpoint.META}
    assert stored == meta
    target = jax.eval_shape(lambda: make_state(0))
    assert differing_leaves(checkpoint.restore(manager, 7, target), make_state(7)) == []
    manager.close()


@pytest.mark.parametrize(
    "make", [tiny_tensorf, tiny_nerf, tiny_voxels], ids=["tensorf", "nerf", "voxels"]
)
def test_restore_returns_the_bits_of_a_training_state(tmp_path: Path, make: Any) -> None:
    config = make()
    _, state = first_state(config)
    # Optimizer moments that are not all zero.
    keys = iter(jax.random.split(jax.random.key(0), 200))
    state = jax.tree.map(
        lambda x: jax.random.normal(next(keys), x.shape) if x.dtype == jnp.float32 else x, state
    )
    manager = checkpoint.open_checkpoints(tmp_path, 2)
    checkpoint.save(manager, 0, state, {}, None)
    manager.wait_until_finished()
    target = jax.eval_shape(lambda: state)
    checksums = checkpoint.read_meta(manager, 0)[checkpoint.CHECKSUMS]
    assert differing_leaves(checkpoint.restore(manager, 0, target, checksums), state) == []
    manager.close()


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool", "bfloat16", "uint8"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)])
def test_checksums_change_with_every_bit(shape: tuple[int, ...], dtype: str) -> None:
    array = jnp.zeros(shape, dtype)
    before = checkpoint.checksum_arrays({"a": array, "key": jax.random.key(3)})
    assert before == checkpoint.checksum_arrays({"a": jnp.array(array), "key": jax.random.key(3)})
    if array.size:
        changed = array.ravel().at[-1].set(1).reshape(shape)
        assert checkpoint.checksum_arrays({"a": changed, "key": jax.random.key(3)}) != before
    assert checkpoint.checksum_arrays({"a": array, "key": jax.random.key(4)}) != before


def test_changed_numbers_and_metadata_are_damage(tmp_path: Path) -> None:
    manager = checkpoint.open_checkpoints(tmp_path, 2)
    checkpoint.save(manager, 7, make_state(7), {"seconds": 12.5}, None)
    manager.wait_until_finished()
    target = jax.eval_shape(lambda: make_state(0))
    checksums = checkpoint.read_meta(manager, 7)[checkpoint.CHECKSUMS]
    other = {name: value ^ (name != checkpoint.META) for name, value in checksums.items()}
    with pytest.raises(checkpoint.DamagedCheckpointError, match=r"7 in .* is damaged: the num"):
        checkpoint.restore(manager, 7, target, other)
    (path,) = (tmp_path / "7" / "meta").glob("metadata")
    path.write_text(path.read_text().replace("12.5", "13.5"))
    with pytest.raises(checkpoint.DamagedCheckpointError, match=r"7 in .* is damaged: delete"):
        checkpoint.read_meta(manager, 7)
    manager.close()


@pytest.mark.parametrize(
    "target",
    [
        {**make_state(0), "occupied": jnp.array([True] * 3)},
        {**make_state(0), "more": jnp.zeros(2)},
        {k: v for k, v in make_state(0).items() if k != "occupied"},
        {**make_state(0), "params": {"planes": (jnp.zeros((2, 3)), jnp.arange(4.0))}},
        {**make_state(0), "params": {"lines": jnp.zeros(3)}},
    ],
    ids=["size", "more", "less", "transposed", "other names"],
)
def test_restore_rejects_a_state_of_another_shape(tmp_path: Path, target: Any) -> None:
    manager = checkpoint.open_checkpoints(tmp_path, 2)
    checkpoint.save(manager, 7, make_state(7), {}, None)
    manager.wait_until_finished()
    with pytest.raises(InputError, match=f"step 7 in {tmp_path}"):
        checkpoint.restore(manager, 7, jax.eval_shape(lambda: target))
    manager.close()


@pytest.mark.parametrize("cleans_up", [False, True])
def test_what_a_killed_process_began_to_write_is_removed_by_the_next_that_writes(
    tmp_path: Path, cleans_up: bool
) -> None:
    save_all(tmp_path, 2, {1: None})
    begun = tmp_path / "2.orbax-checkpoint-tmp"
    begun.mkdir()
    (begun / "array").write_bytes(b"half")
    manager = checkpoint.open_checkpoints(tmp_path, 2, cleans_up)
    assert manager.latest_step() == 1
    checkpoint.save(manager, 3, make_state(3), {"number": 3}, None)
    manager.wait_until_finished()
    manager.close()
    # Another process may be writing it, unless this one is the only one.
    assert begun.exists() != cleans_up
    assert (tmp_path / "3").is_dir()
