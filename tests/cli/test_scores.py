"""Scores of a run: LPIPS, where its weights and the images allow it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import tiny_tensorf

from jaxrf.cli import scores

pytestmark = pytest.mark.as_used


@pytest.mark.parametrize("size", [(25, 40), (31, 31), (None, None)])
def test_load_lpips_returns_weights_or_prints_why_not(
    size: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = {"1": 0, "2": 3, "3": 6, "4": 8, "5": 10}
    arrays = {
        f"net.slice{part}.{layer}.{kind}": np.zeros(1)
        for part, layer in layers.items()
        for kind in ("weight", "bias")
    } | {f"lin{number}.model.1.weight": np.zeros(1) for number in range(5)}
    np.savez(tmp_path / "alex.npz", **arrays)
    path = tmp_path / "alex.npz" if size[0] else None
    config = tiny_tensorf(lpips=path)
    weights = scores.load_lpips(config, size if size[0] else (100, 100))
    said = capsys.readouterr().out
    assert (weights is not None) == (size == (31, 31)) == (said == "")
    if size[0] == 25:
        assert "pictures of 31 pixels or more along each side, these have 25x40" in said
    elif size[0] is None:
        assert "it needs its weights, --lpips FILE" in said
