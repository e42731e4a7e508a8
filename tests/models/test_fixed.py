"""Models whose rays all have the same number of samples."""

from typing import Any

import numpy as np
import pytest
from scenes import BOX, change, first_state, proposing_hashgrid, tiny_nerf

from jaxrf import presets
from jaxrf.cameras.ray_convention import RayConvention
from jaxrf.core.errors import InputError
from jaxrf.fields.tensorf import TensoRF
from jaxrf.fields.voxels import Voxels
from jaxrf.models.fixed import divide_evenly
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.models.proposal import ProposalModel


@pytest.mark.parametrize("field", [TensoRF(), Voxels()], ids=["tensorf", "voxels"])
@pytest.mark.parametrize("model", [HierarchicalModel, ProposalModel])
def test_fixed_samples_are_refused_by_fields_that_prune_their_grid(model: Any, field: Any) -> None:
    complaint = f"model {model().name} does not march, and {field.name} drops cells"
    with pytest.raises(InputError, match=complaint):
        model().check(field, RayConvention())
    with pytest.raises(InputError, match="leave model out"):
        change(presets.make_preset("nerf-small"), field=field, model=model())


@pytest.mark.parametrize("crop", [False, True])
def test_eval_stage_marches_through_the_full_box(crop: bool) -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    _, box = config.model.eval_stage(stage, state.grid, config.ray_convention, crop)
    np.testing.assert_array_equal(box, BOX)


def test_rays_per_chunk_keeps_their_samples_below_a_number() -> None:
    for samples in (1 << 12, 1 << 16, 1 << 20):
        assert tiny_nerf().model.rays_per_chunk(samples) == max(64, samples // (12 + 12 + 8))


@pytest.mark.parametrize("make", [tiny_nerf, proposing_hashgrid])
def test_the_grid_has_one_occupied_cell(make: Any) -> None:
    stage, state = first_state(make())
    assert stage.grid_resolution == (1, 1, 1)
    np.testing.assert_array_equal(state.grid.occupied, np.ones((1, 1, 1), bool))


@pytest.mark.parametrize(
    ("pixels", "wanted", "parts"),
    [(64, 1, 1), (64, 3, 4), (64, 33, 64), (64, 100, 64), (30, 4, 5), (7, 2, 7), (1, 9, 1)],
)
def test_divide_evenly_finds_the_fewest_equal_parts(pixels: int, wanted: int, parts: int) -> None:
    assert divide_evenly(pixels, wanted) == parts
