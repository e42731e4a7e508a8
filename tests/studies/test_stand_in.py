"""Scenes without images: shapes as of real ones, and what prunings leave."""

import dataclasses

import jax
import numpy as np
import pytest
from scenes import tiny_hashgrid, tiny_voxels

from jaxrf.sampling.occupancy import OccupancyGrid
from jaxrf.studies import stand_in
from jaxrf.training import pixels, transitions


@pytest.mark.parametrize("scales", [1, 3])
def test_abstract_pixels_have_the_shapes_of_those_on_the_device(scales: int) -> None:
    config = dataclasses.replace(tiny_hashgrid(), num_train_scales=scales)
    scene = stand_in._make("small", (3, 16, 12), np.array([[-1.0] * 3, [1.0] * 3]), 4.0, False)
    split = dataclasses.replace(scene.train, images=np.zeros((3, 12, 16, 4), np.uint8))
    real = pixels.to_device(split, config.image_scales())
    abstract = stand_in.abstract_pixels(config, scene.train)
    assert jax.tree.structure(real) == jax.tree.structure(abstract)
    for a, b in zip(jax.tree.leaves(real), jax.tree.leaves(abstract), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_the_shell_is_some_percent_of_the_box() -> None:
    aabb = np.array([[-1.5] * 3, [1.5] * 3])
    grid = OccupancyGrid.create(aabb=aabb, resolution=48)
    inside = stand_in.in_shell(grid, aabb)
    volume = 4.0 / 3.0 * np.pi * (stand_in.SHELL[1] ** 3 - stand_in.SHELL[0] ** 3) / 8.0
    assert inside.mean() == pytest.approx(volume, rel=0.05)
    # The same from all sides, and nothing in the middle.
    assert np.array_equal(inside, inside[::-1, ::-1, ::-1]) and not inside[24, 24, 24]


def test_the_last_stage_has_been_subdivided_and_pruned() -> None:
    scene = stand_in._make("small", (3, 16, 12), np.array([[-1.5] * 3, [1.5] * 3]), 4.0, False)
    config = transitions.resolve_config(tiny_voxels(), scene)
    first = transitions.first_stage(config, scene.aabb)
    stage, state = stand_in.last_stage(config, scene, 1)
    assert transitions.plan_transitions(config)
    cells = np.prod(stage.grid_resolution)
    assert first.field.table_cells != stage.field.table_cells or stage.field.table_cells < cells
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
