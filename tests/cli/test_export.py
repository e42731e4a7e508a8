"""`jaxrf export`: where geometry is written, and which options are refused."""

from pathlib import Path

import pytest

from jaxrf.cli import main as cli

pytestmark = pytest.mark.as_used


def test_export_writes_a_mesh_and_refuses_unusable_options(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [str(run_copy), "--views", "2"]
    mesh = [*run, "--format", "mesh", "--resolution", "12", "--level", "0.001", "--keep-hidden"]
    assert cli.run_command("export", mesh) == 0
    assert (run_copy / "mesh.glb").read_bytes()[:4] == b"glTF"
    assert "vertices" in capsys.readouterr().out
    assert cli.run_command("export", [*mesh, "--output", str(tmp_path / "mesh.stl")]) == 2
    assert ".glb, .ply or .obj" in capsys.readouterr().err
    assert cli.run_command("export", [*mesh, "--level", "0"]) == 2
    assert "--level is 0: give a number between 0 and 1" in capsys.readouterr().err
    assert cli.run_command("export", [*mesh, "--level", "0.9999"]) == 2
    assert "No point is as opaque as --level 0.9999" in capsys.readouterr().err
