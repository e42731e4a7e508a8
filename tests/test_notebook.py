"""render.ipynb, run from top to bottom."""

import base64
import io
import shutil
from pathlib import Path
from typing import Any

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


def displays_of(notebook: nbformat.NotebookNode, kind: str) -> list[Any]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = ("display_data", "execute_result")
    data = [output["data"] for output in outputs if output["output_type"] in kinds]
    return [entry[kind] for entry in data if kind in entry]


def pictures_of(notebook: nbformat.NotebookNode, kind: str) -> list[np.ndarray]:
    pictures = []
    for data in displays_of(notebook, kind):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            pictures.append(np.asarray(image.convert("RGB"), np.float64))
    return pictures


@pytest.mark.slow
def test_notebook_trains_a_run_if_there_is_none_and_opens_it_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXRF_DATA", raising=False)
    notebook = run_notebook(tmp_path)
    assert (tmp_path / "runs/notebook/metrics.json").exists()
    (table,) = [text for text in displays_of(notebook, "text/markdown")]
    assert "PSNR" in table and "4 of 64x64 on white" in table

    loss, quality, view, paths, truth = pictures_of(notebook, "image/png")
    for plot in (loss, quality):
        assert plot.std() > 10.0
    assert view.shape == (200, 600, 3)
    # The model covers the center and not the corners, in color, in depth and in opacity.
    for third, background in zip(np.split(view, 3, axis=1), (255, 255, 0), strict=True):
        assert abs(third[2, 2].mean() - background) < 20
        assert abs(third[90:110, 90:110].mean() - background) > 35
    assert paths.std() > 10.0
    sheets = truth.reshape(-1, 64, 4, 64, 3)
    rendered, expected = sheets[:, :, 1], sheets[:, :, 0]
    assert np.abs(rendered - expected).mean() < 15 < np.abs(expected - 255).mean()

    (orbit,) = displays_of(notebook, "image/gif")
    with Image.open(io.BytesIO(base64.b64decode(orbit))) as frames:
        assert frames.n_frames == 24 and frames.size == (320, 160)
    sliders = displays_of(notebook, "application/vnd.jupyter.widget-view+json")
    assert len(sliders) == 1

    second = run_notebook(tmp_path)
    assert "runs/notebook: voxels on bricks, 300 steps" in str(second.cells[1].outputs)
    assert list((tmp_path / "runs").iterdir()) == [tmp_path / "runs/notebook"]


def test_notebook_is_committed_with_its_outputs_and_no_local_paths() -> None:
    notebook = nbformat.read(ROOT / "render.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len(pictures_of(notebook, "image/png")) == 5
    assert len(displays_of(notebook, "image/gif")) == 1
    text = (ROOT / "render.ipynb").read_text(encoding="utf-8")
    assert len(text) < 3_000_000 and str(Path.home()) not in text
    for cell in notebook.cells:
        kinds = [output.output_type for output in cell.get("outputs", [])]
        assert "error" not in kinds
