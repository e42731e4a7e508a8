"""`jaxrf export`: where geometry is written, and which options are refused."""

from pathlib import Path

import pytest

from jaxrf.cli import main as cli

pytestmark = pytest.mark.as_used


def test_export_writes_a_page_of_voxels_that_learn_from_the_run(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(run_copy), "--format", "web", "--views", "12", "--bake-steps", "30"]
    assert cli.run_command("export", options) == 0
    assert (run_copy / "web.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    printed = capsys.readouterr().out
    assert "Open " in printed and "dB PSNR against the run's" in printed
    folder = tmp_path / "page"
    assert cli.run_command("export", [*options, "--output", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "scene.bin"]
    assert cli.run_command("export", [*options, "--max-size", "0"]) == 2
    assert "--max-size is 0.0: give a number above 0" in capsys.readouterr().err


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
