"""Memory: what is free, what was used, what a program needs."""

import errno
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from jaxrf.core import memory


def test_host_peak_bytes_is_of_this_process() -> None:
    before = memory.peak_bytes()
    block = np.ones(1 << 25)  # 256 MiB
    assert memory.peak_bytes() >= max(before, block.nbytes)


def test_free_bytes_is_at_most_the_total() -> None:
    assert 0 < memory.free_bytes() <= psutil.virtual_memory().total


@pytest.mark.parametrize(("limit", "free"), [("3000000", 2_100_000), ("max\n", None), ("x", None)])
def test_free_bytes_respects_container_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, free: int | None
) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\nactive_file 7\n")
    result = memory.free_bytes()
    assert result == free if free else result > 10_000_000


def test_free_and_peak_bytes_of_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 100, "bytes_in_use": 30, "peak_bytes_in_use": 80}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert memory.free_bytes() == 70 and memory.peak_bytes() == 80


def test_needed_bytes_includes_large_temporaries() -> None:
    def total(x: jax.Array) -> jax.Array:
        # A product has to be there as a whole before its sine is multiplied once more; what a loop
        # hands on is part of no other computation.
        return jnp.sum(jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y @ y), x))

    program = jax.jit(total).lower(jnp.zeros((1024, 1024))).compile()
    assert 4 * 1024**2 <= memory.needed_bytes(program) < 64 * 1024**2
    large = jax.jit(lambda x: jnp.outer(x, x)).lower(jnp.zeros(2048)).compile()
    assert memory.needed_bytes(large) >= 4 * 2048**2
    given = jax.jit(lambda x: x + 1.0, donate_argnums=0).lower(jnp.zeros(1 << 20)).compile()
    assert memory.needed_bytes(given) < 1 << 20


def test_ran_out_recognizes_memory_errors() -> None:
    assert memory.ran_out(RuntimeError("RESOURCE_EXHAUSTED: out of memory while trying"))
    assert memory.ran_out(MemoryError())
    assert not memory.ran_out(RuntimeError("INVALID_ARGUMENT"))


def test_a_full_disk_is_not_taken_for_memory() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    told = ValueError(f"RESOURCE_EXHAUSTED: Failed to write: {os.strerror(errno.ENOSPC)}")
    caused = RuntimeError("Checkpoint save failed.")
    caused.__cause__ = full
    circular = RuntimeError("a")
    circular.__cause__ = circular
    for error in (full, told, caused, OSError(errno.EFBIG, "File too large")):
        assert memory.disk_ran_out(error) and not memory.ran_out(error)
    for error in (MemoryError(), circular, OSError(errno.ENOENT, "No such file")):
        assert not memory.disk_ran_out(error)
