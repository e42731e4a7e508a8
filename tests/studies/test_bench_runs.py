"""Results of single runs of the benchmark."""

import pytest

from jaxrf.studies import bench_runs

pytestmark = pytest.mark.as_used


@pytest.mark.parametrize(
    ("level", "expected"), [(20.0, 10.0), (25.0, 10.0), (26.0, 15.0), (29.0, 35.0), (31.0, None)]
)
def test_first_time_interpolates_between_validations(level: float, expected: float | None) -> None:
    curve = [(10.0, 25.0), (20.0, 27.0), (30.0, 26.5), (40.0, 31.0 - 1e-3)]
    reached = bench_runs.first_time(curve, level)
    if level == 29.0:
        # Between the dip at 30 s and the end: 2.5 of 4.499 dB.
        expected = 30.0 + 10.0 * 2.5 / (31.0 - 1e-3 - 26.5)
    assert reached == (None if expected is None else pytest.approx(expected, abs=0.05))
    assert bench_runs.first_time([], level) is None
