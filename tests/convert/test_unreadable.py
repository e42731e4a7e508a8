"""Files that are not weights are called by their names, in a sentence that says what is read."""

import gzip
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jaxrf.cli import main as cli
from jaxrf.convert.files.unreadable import READ_PROGRAMS, name_unreadable


def to_npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def to_torch(data: Any) -> bytes:
    file = io.BytesIO()
    torch.save(data, file)
    return file.getvalue()


SPLATS = b"ply\nformat binary_little_endian 1.0\nelement vertex 2\n" + b"".join(
    f"property float {name}\n".encode() for name in ("x", "y", "z", "f_dc_0", "opacity", "scale_0")
)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
# 40 MB of links, which a file of a few KB unpacks to.
LINKS = np.full((215,) * 3, -1, np.int32)
FILES: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "is empty"),
    "a pointer": (POINTER, "pointer of Git LFS and not the file itself: fetch.*git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
    "a page in capitals": (b"<HTML><head></head></HTML>", "is a web page"),
    "another gzip file": (gzip.compress(b"weights"), r"is compressed \(gzip or zlib\): unpack"),
    "splats": (SPLATS + b"end_header\n" + bytes(48), r"is Gaussian splats \(PLY\)"),
    "points": (b"ply\nformat ascii 1.0\nend_header\n", r"a mesh or points \(PLY\)"),
    "Plenoxels": (
        to_npz(links=LINKS, density_data=np.zeros((4, 1)), sh_data=np.zeros((4, 27))),
        r"a grid of Plenoxels \(svox2\)",
    ),
    "an octree": (
        to_npz(child=np.zeros(8), parent_depth=np.zeros(2), data_dim=np.array(28)),
        r"an octree \(PlenOctrees\)",
    ),
    "DVGO": (
        to_torch(
            {
                "global_step": 20_000,
                "model_kwargs": {"num_voxels": 160**3},
                "model_state_dict": {
                    "density.grid": torch.zeros(1, 1, 4, 4, 4),
                    "k0.grid": torch.zeros(1, 12, 4, 4, 4),
                },
            }
        ),
        "is a checkpoint of DVGO",
    ),
    "splatfacto": (
        to_torch({"step": 1, "pipeline": {"_model.gauss_params.means": torch.zeros(4, 3)}}),
        "nerfstudio's splatfacto",
    ),
    "another nerfstudio method": (
        to_torch({"step": 1, "pipeline": {"_model.mlp.weight": torch.zeros(4, 3)}}),
        "nerfstudio of another method than nerfacto",
    ),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), r"a picture \(PNG\)"),
    "a tar archive": (b"weights".ljust(257, b"\0") + b"ustar" + bytes(250), r"an archive \(tar\)"),
    "JSON": (b'{"camera_angle_x": 0.69, "frames": []}', "is text"),
    "text longer than the start": (("xä" * 30_000).encode(), "is text"),
    "text": ("naïve — text".encode(), "is text"),
    "noise": (np.random.default_rng(0).bytes(4096), "is damaged, or of an unknown program"),
}


@pytest.mark.parametrize("name", list(FILES))
def test_convert_says_what_a_file_is_and_what_is_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, pattern = FILES[name]
    file = tmp_path / "weights.pt"
    file.write_bytes(data)
    assert cli.main(["convert", str(file)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {file} ") and message.count("\n") == 1
    assert re.search(pattern, message), message
    if not any(word in name for word in ("empty", "pointer", "page")):
        assert READ_PROGRAMS in message


def test_files_that_may_be_weights_are_not_named() -> None:
    path = Path("weights")
    for head in (b"\x93NUMPY", b"\x80\x02", b"\x81\xa6target\x80", b"PK\x03\x04"):
        assert name_unreadable(path, head + bytes(32)) is None
