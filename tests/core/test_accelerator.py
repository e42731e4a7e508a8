"""Whether an accelerator is expected, judged by environment, device files and plugins."""

import fnmatch
import glob
import importlib.util

import pytest

from jaxrf.core.accelerator import expects_accelerator


@pytest.mark.parametrize(
    ("platforms", "expected"),
    [("cpu", False), ("cuda", True), ("cuda,cpu", True), ("tpu", True), ("cpu,cuda", False)],
)
def test_expects_accelerator_follows_jax_platforms(
    monkeypatch: pytest.MonkeyPatch, platforms: str, expected: bool
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert expects_accelerator() is expected


@pytest.mark.parametrize(
    ("files", "modules", "visible", "expected"),
    [
        ([], [], None, False),
        (["/dev/nvidia0"], ["jax_cuda12_plugin"], None, True),
        (["/dev/nvidia0"], ["jax_cuda13_plugin"], "0,1", True),
        (["/dev/nvidia0"], [], None, False),
        ([], ["jax_cuda12_plugin"], None, False),
        (["/dev/nvidia0"], ["jax_cuda12_plugin"], "", False),
        (["/dev/nvidia0"], ["jax_cuda12_plugin"], "-1", False),
        (["/dev/nvidia0"], ["libtpu"], None, False),
        (["/dev/kfd"], ["jax_rocm7_plugin"], None, True),
        (["/dev/accel0"], ["libtpu"], None, True),
        (["/dev/accel0"], ["jax_cuda12_plugin"], None, False),
    ],
)
def test_expects_accelerator_needs_a_device_file_and_its_plugin(
    monkeypatch: pytest.MonkeyPatch,
    files: list[str],
    modules: list[str],
    visible: str | None,
    expected: bool,
) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(glob, "glob", lambda pattern: fnmatch.filter(files, pattern))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in modules else None)
    assert expects_accelerator() is expected
