"""The crop box: slider ranges and edges."""

import numpy as np
import pytest

from jaxrf.viewer.crop_panel import list_edges, round_outwards


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.703125, 0.703125, (-0.71, 0.71, 0.01)),
        (-1.0, 1.5, (-1.0, 1.5, 0.01)),
        (-20.34, 12.1, (-20.4, 12.1, 0.1)),
        (3.0, 1203.2, (0.0, 1210.0, 10.0)),
        (0.0, 0.0234, (0.0, 0.0234, 0.0001)),
        (0.5, 0.5, (0.5, 0.5, 1e-8)),
    ],
)
def test_round_outwards_gives_round_limits(
    low: float, high: float, expected: tuple[float, float, float]
) -> None:
    assert round_outwards(low, high) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_list_edges_gives_twelve_edges_along_the_axes() -> None:
    box = np.array([[0.0, 1.0, 2.0], [3.0, 5.0, 9.0]], np.float32)
    edges = list_edges(box)
    vectors = [tuple(vector) for vector in edges[:, 1] - edges[:, 0]]
    assert vectors == [(3, 0, 0)] * 4 + [(0, 4, 0)] * 4 + [(0, 0, 7)] * 4
    assert len({tuple(corner) for corner in edges.reshape(-1, 3)}) == 8
    assert len({tuple(edge.ravel()) for edge in edges}) == 12
