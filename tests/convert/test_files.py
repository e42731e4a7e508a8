"""Reading files of other programs: valid ones are read, and nothing in hostile ones is run."""

import io
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import (
    Touch,
    as_tensors,
    basic_state,
    pickle_as_npy,
    write_basic,
    write_jaxnerf,
    write_nerf_pytorch,
    write_nerfstudio,
    write_tensorf,
    write_tensorflow,
    write_tiny,
)

from jaxrf.cli import main as cli
from jaxrf.convert import formats
from jaxrf.convert.files.arrays import describe, find_state_dicts
from jaxrf.convert.files.read import read_file
from jaxrf.core.errors import InputError


def to_torch_bytes(data: Any) -> bytes:
    file = io.BytesIO()
    torch.save(data, file)
    return file.getvalue()


def make_zip(name: str, data: bytes, size: int | None = None) -> bytes:
    """Returns a zip file of one part, which may claim another size."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    archive_bytes = file.getvalue()
    if size is None:
        return archive_bytes
    return archive_bytes.replace(len(data).to_bytes(4, "little"), size.to_bytes(4, "little"))


def npy_header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HUGE = "(25000000000,)"  # 100 GB


class FalseArray:
    """Pickles as a numpy array of a shape with arbitrary data."""

    def __init__(self, shape: tuple[int, ...], data: Any) -> None:
        self.state = (1, shape, np.dtype("<f4"), False, data)

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        return rebuild, (np.ndarray, (0,), b"b"), self.state


def pickle_large_memo_index() -> bytes:
    """Returns a pickle of an empty list with memo index 2^28."""
    return pickle_as_npy([])[:-3] + b"]r" + (1 << 28).to_bytes(4, "little") + b"."


def nest(depth: int) -> Any:
    return {"x": nest(depth - 1)} if depth else torch.zeros(2)


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "a torch pickle that touches a file": lambda path: to_torch_bytes({"x": Touch(path)}),
    "a bare pickle that touches a file": lambda path: pickle.dumps(Touch(path)),
    "an array of objects that touches a file": lambda path: pickle_as_npy([Touch(path)] * 24),
    "arrays with a header of 100 GB": lambda _: npy_header(HUGE) + b"\0" * 64,
    "an npz with a header of 100 GB": lambda _: make_zip("x.npy", npy_header(HUGE) + b"\0" * 64),
    "a zip bomb": lambda _: make_zip("x.npy", b"\0" * (200 << 20)),
    "a zip that claims 4 GB": lambda _: make_zip("x.npy", b"\0" * 1000, (1 << 32) - 2),
    "half a torch file": lambda _: to_torch_bytes(as_tensors(basic_state()))[:5000],
    "half an npz": lambda _: make_zip("x.npy", npy_header("(3,)") + b"\0" * 12)[:60],
    "half a pickle": lambda _: pickle.dumps({"a": [1.0] * 1000})[:500],
    "an empty file": lambda _: b"",
    "text": lambda _: b"these are no weights",
    "noise": lambda _: np.random.default_rng(0).bytes(4096),
    "deep lists": lambda _: b"\x91" * 100_000 + b"\xc0",
    "an array of 16 GB of one number": lambda _: pickle_as_npy(
        [FalseArray((65_536, 65_536), 1 << 34)] * 24
    ),
    "an array with too little data": lambda _: pickle_as_npy(
        [FalseArray((1 << 20,), b"1234")] * 24
    ),
    "a memo index of 2^28": lambda _: pickle_large_memo_index(),
    "dicts in dicts": lambda _: to_torch_bytes(nest(60)),
    "a million lists": lambda _: (
        b"\xdf\x00\x0f\x42\x40"
        + b"".join(b"\xce" + i.to_bytes(4, "big") + b"\x90" for i in range(1_000_000))
    ),
    "lists without end": lambda _: b"\x81\xa1x" + b"\xdc\xff\xff" * 3000,
    "msgpack that claims 4 GB": lambda _: b"\xc6\xff\xff\xff\xff" + b"\0" * 64,
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_convert_refuses_hostile_files_in_one_sentence_and_runs_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touched = tmp_path / "touched"
    file = tmp_path / "weights.pt"
    file.write_bytes(HOSTILE[name](touched))
    assert cli.main(["convert", str(file), "--run-dir", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and str(file) in message
    assert not touched.exists() and not (tmp_path / "run").exists()


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Changes the content of a torch file."""
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step_ratio", 0.0),
        ("step_ratio", float("nan")),
        ("step_ratio", 1e-7),
        ("step_ratio", "half"),
        ("distance_scale", float("inf")),
        ("fea_pe", 10**9),
        ("gridSize", [1, 11, 9]),
        ("gridSize", [10**6, 11, 9]),
        ("aabb", torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])),
        ("aabb", torch.full((2, 3), float("nan"))),
        ("near_far", [6.0, 2.0]),
    ],
)
def test_convert_names_invalid_numbers_of_tensorf(key: str, value: Any, tmp_path: Path) -> None:
    file = edit(write_tensorf(tmp_path / "x.th"), lambda c: c["kwargs"].update({key: value}))
    with pytest.raises(InputError, match=f"{key} in .*x.th"):
        formats.convert(read_file(file), formats.FormatOptions())


def test_convert_refuses_an_alpha_mask_with_a_tiny_box(tmp_path: Path) -> None:
    box = torch.tensor([[0.0, 0.0, 0.0], [1e-6, 1e-6, 1e-6]])
    file = edit(write_tensorf(tmp_path / "x.th"), lambda c: c.update({"alphaMask.aabb": box}))
    with pytest.raises(InputError, match=r"alphaMask.aabb in .* far smaller"):
        formats.convert(read_file(file), formats.FormatOptions())


@pytest.mark.parametrize("tcnn", [False, True])
@pytest.mark.parametrize(
    ("key", "value"), [("num_levels", 10**9), ("num_levels", 0), ("log2_hashmap_size", 10**10)]
)
def test_convert_names_invalid_sizes_of_hash_grids(
    tcnn: bool, key: str, value: int, tmp_path: Path
) -> None:
    def change(content: dict[str, Any]) -> None:
        content["pipeline"][f"_model.field.{key}"] = torch.tensor(value)

    file = edit(write_nerfstudio(tmp_path / "x.ckpt", tcnn), change)
    if key == "log2_hashmap_size" and not tcnn:
        # In this layout the size follows from the table.
        converted = formats.convert(read_file(file), formats.FormatOptions())
        assert converted.format.endswith("(torch)")
        return
    with pytest.raises(InputError, match=f"{key} in .*x.ckpt"):
        formats.convert(read_file(file), formats.FormatOptions())


def test_convert_refuses_a_network_of_a_thousand_layers(tmp_path: Path) -> None:
    state = {f"layers.{2 * i}.weight": torch.zeros(3, 3) for i in range(1000)}
    state |= {f"layers.{2 * i}.bias": torch.zeros(3) for i in range(1000)}
    state["layers.1998.weight"], state["layers.1998.bias"] = torch.zeros(4, 3), torch.zeros(4)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(InputError, match="999 layers"):
        formats.convert(read_file(tmp_path / "x.pt"), formats.FormatOptions())


def test_convert_refuses_to_choose_among_several_networks(tmp_path: Path) -> None:
    basic = as_tensors(basic_state())
    torch.save({"best": basic, "last": basic}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="holds 2 networks"):
        formats.convert(read_file(tmp_path / "x.pt"), formats.FormatOptions())
    file = write_nerf_pytorch(tmp_path / "y.tar")

    def add(content: dict[str, Any]) -> None:
        content["ema"] = content["network_fn_state_dict"]

    with pytest.raises(InputError, match=r"holds 3 networks.*ema"):
        formats.convert(read_file(edit(file, add)), formats.FormatOptions())


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_convert_refuses_weights_that_are_not_finite(number: float, tmp_path: Path) -> None:
    state = basic_state()
    state["fc_3.weight"][1, 2] = number
    torch.save(as_tensors(state), tmp_path / "weights.pt")
    with pytest.raises(InputError, match="not finite"):
        formats.convert(read_file(tmp_path / "weights.pt"), formats.FormatOptions())


@pytest.mark.parametrize(
    "write", [write_nerf_pytorch, write_tensorflow, write_jaxnerf, write_basic, write_tiny]
)
def test_describe_lists_the_arrays_of_a_file(write: Callable[[Path], Path], tmp_path: Path) -> None:
    content = read_file(write(tmp_path / "weights.pt"))
    text = describe(content)
    assert str(content.path) in text and text.count("\n") > 4
    if content.file_format != "npy":
        assert max(len(arrays) for _, arrays in find_state_dicts(content.tree)) > 5


def test_read_file_reads_numpy_arrays_and_numbers_beside_tensors(tmp_path: Path) -> None:
    extras = {
        "mask": np.packbits(np.arange(64) % 3 == 0),
        "number": np.float64(2.5),
        "device": torch.device("cpu"),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    torch.save(extras, tmp_path / "x.pt")
    tree = read_file(tmp_path / "x.pt").tree
    np.testing.assert_array_equal(tree["mask"], extras["mask"])
    assert tree["number"] == 2.5 and tree["device"] == "cpu"
    np.testing.assert_array_equal(tree["half"], np.float32([1.5]))


def test_convert_without_torch_refuses_its_files_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_basic(tmp_path / "weights.pt")
    arrays = write_tiny(tmp_path / "tiny.npz")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "jaxrf.convert.torch_reference.programs", raising=False)
    assert cli.main(["convert", str(file)]) == 2
    assert "PyTorch, which is not installed" in capsys.readouterr().err
    # Other files are converted without PyTorch.
    assert cli.main(["convert", str(arrays), "--run-dir", str(tmp_path / "run")]) == 0
    assert cli.main(["convert", str(arrays), "--check"]) == 2
    assert "PyTorch, which is not installed" in capsys.readouterr().err
