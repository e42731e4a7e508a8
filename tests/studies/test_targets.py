"""Names of accelerators, their slices, and the settings with which their compilers start."""

import pytest

from jaxrf.core.errors import InputError
from jaxrf.studies import targets


@pytest.mark.parametrize(
    ("text", "name", "count"), [("h200:8", "h200", 8), ("V5E:4", "v5e", 4), ("a100", "a100", 1)]
)
def test_parse_slice_reads_kind_and_number(text: str, name: str, count: int) -> None:
    devices = targets.parse_slice(text)
    assert (devices.target.name, devices.count) == (name, count)
    assert devices.name == f"{name}:{count}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h300:1", "give one of h100, h200"),
        ("h200:0", "has no number of devices: write h200:1"),
        ("h200:x", "has no number of devices"),
        ("v5e:3", "is no slice: give v5e: and one of 1, 4, 8"),
    ],
)
def test_parse_slice_refuses_others_in_a_sentence(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        targets.parse_slice(text)


def test_missing_packages_are_named_with_what_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs libtpu: pip install 'jax\[tpu\]'"):
        targets.require_packages(targets.TARGETS["v5e"])
    with pytest.raises(InputError, match=r"jax\[cuda13\]"):
        targets.require_packages(targets.TARGETS["h100"])


def test_compilers_of_tpus_are_told_the_slice() -> None:
    environment = targets.compiler_environment(targets.parse_slice("v5e:8"))
    assert environment["TPU_ACCELERATOR_TYPE"] == "v5litepod-8"
    assert environment["JAX_PLATFORMS"] == "cpu"
    assert targets.slice_shape(targets.parse_slice("v5e:1")) == (2, 2)
    assert targets.slice_shape(targets.parse_slice("v5p:8")) == (2, 4, 1)
    assert "TPU_ACCELERATOR_TYPE" not in targets.compiler_environment(targets.parse_slice("h200"))


@pytest.mark.parametrize("name", targets.GPUS)
def test_gpus_are_described_with_their_numbers(name: str) -> None:
    target = targets.TARGETS[name]
    text = targets.describe_gpu(target)
    assert f"memory_bandwidth: {int(target.bandwidth)} " in text
    assert f"core_count: {targets.GPUS[name].cores} " in text
    assert text.count("{") == text.count("}")
