"""render.ipynb, run from top to bottom."""

import base64
import shutil
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.as_used

ROOT = Path(__file__).resolve().parent.parent


def run_notebook(folder: Path) -> nbformat.NotebookNode:
    shutil.copy(ROOT / "render.ipynb", folder)
    notebook = nbformat.read(folder / "render.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": folder}}
    ).execute()
    return notebook


def pictures_of(notebook: nbformat.NotebookNode, kind: str) -> list[bytes]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    data = [output["data"] for output in outputs if output["output_type"] == "display_data"]
    return [base64.b64decode(entry[kind]) for entry in data if kind in entry]


@pytest.mark.slow
def test_notebook_without_a_run_trains_one_and_shows_a_view_and_an_orbit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXRF_DATA", raising=False)
    notebook = run_notebook(tmp_path)
    assert (tmp_path / "runs/notebook/metrics.json").exists()

    (view,) = pictures_of(notebook, "image/png")
    (tmp_path / "view.png").write_bytes(view)
    image = np.asarray(Image.open(tmp_path / "view.png"), np.float64)
    assert image.shape == (200, 400, 3)
    # The model covers the middle and not the corners, in colour as well as in depth.
    for half in (image[:, :200], image[:, 200:]):
        assert half[2, 2].min() > 235
        assert half[90:110, 90:110].mean() < 220

    (orbit,) = pictures_of(notebook, "image/gif")
    (tmp_path / "orbit.gif").write_bytes(orbit)
    with Image.open(tmp_path / "orbit.gif") as frames:
        assert frames.n_frames == 24 and frames.size == (320, 160)

    second = run_notebook(tmp_path)
    assert "runs/notebook: voxels on bricks, 300 steps" in str(second.cells[1].outputs)
    assert list((tmp_path / "runs").iterdir()) == [tmp_path / "runs/notebook"]
