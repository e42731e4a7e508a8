"""The check allows what the other program rounds by itself, measured, and nothing else."""

import numpy as np
import pytest
import torch
from foreign import NUM_POSITION_FREQUENCIES, write_nerf_pytorch
from mistakes import CAMERA, change_ray_convention

from jaxrf.convert import check, formats
from jaxrf.convert.files.read import Content, read_file
from jaxrf.convert.formats import FormatOptions
from jaxrf.convert.networks import Converted

OPTIONS = FormatOptions()


@pytest.mark.parametrize("judge", ["raw", "pixels"])
def test_compare_allows_three_times_the_rounding_of_the_program(judge: str) -> None:
    reference = np.random.default_rng(0).uniform(size=(50, 50))
    rounding = np.full(2500, 1e-3)

    def passes(error: float, rounding: np.ndarray | None) -> bool | None:
        array = reference + error
        return check.compare("x", array, reference, judge, rounding).passed  # type: ignore[arg-type]

    assert not passes(2e-3, None) and passes(2e-3, rounding) and not passes(4e-3, rounding)
    assert not passes(2e-3, np.full(2500, np.nan)) and not passes(2e-3, np.full(2500, np.inf))
    assert passes(9e-6, None)


def test_compare_shows_the_rounding() -> None:
    row = check.compare("x", np.ones(2000), np.ones(2000), None, np.arange(2000.0))
    assert row.rounding == pytest.approx(1998, abs=1) and row.passed is None
    assert "rounding" in check.format_rows([row]) and "2.00e+03" in check.format_rows([row])


@pytest.fixture(scope="module")
def steep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Converted, Content]:
    """Networks whose density rises so fast that the last bit of a position changes pixels."""
    path = write_nerf_pytorch(tmp_path_factory.mktemp("foreign") / "steep.tar")
    file = torch.load(path, weights_only=True)
    for name in ("network_fn_state_dict", "network_fine_state_dict"):
        for layer in (0, 5):
            for octave in range(NUM_POSITION_FREQUENCIES):
                columns = slice(3 + 6 * octave, 9 + 6 * octave)
                file[name][f"pts_linears.{layer}.weight"][:, columns] *= 4.0**octave
    torch.save(file, path)
    content = read_file(path)
    return formats.convert(content, OPTIONS), content


def test_check_raises_no_false_alarm_where_density_is_steep(
    steep: tuple[Converted, Content],
) -> None:
    rows = check.check_images(*steep, OPTIONS, CAMERA, double=False)
    assert check.passes(rows), check.format_rows(rows)
    assert max(row.quantile_error for row in rows if row.passed) > check.QUANTILE_TOLERANCE
    wrong = change_ray_convention(lengths_along="axis")(steep[0])
    rows = check.check_images(wrong, steep[1], OPTIONS, CAMERA, double=False)
    assert not check.passes(rows), check.format_rows(rows)


@pytest.mark.slow
def test_check_allows_nothing_in_float64_where_density_is_steep(
    steep: tuple[Converted, Content],
) -> None:
    rows = check.check_images(*steep, OPTIONS, CAMERA, double=True)
    assert check.passes(rows), check.format_rows(rows)
    assert all(row.rounding == 0.0 for row in rows)
