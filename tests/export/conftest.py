"""Runs that several tests of this folder export."""

import pytest
from ball_run import make_ball_run
from scenes import first_state, make_scene, tiny_nerf, write_scene

from jaxrf.training.runs import Run
from jaxrf.training.scene_metadata import SceneMetadata


@pytest.fixture(scope="session")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose field is an exact ball; see `ball_run`."""
    return make_ball_run(tmp_path_factory.mktemp("ball"))


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An untrained NeRF with a data set on disk."""
    folder = tmp_path_factory.mktemp("untrained")
    config = tiny_nerf()
    stage, state = first_state(config)
    scene = SceneMetadata.from_scene(make_scene(), write_scene(folder / "ball"))
    return Run(folder / "run", config, scene, stage, state, 0.0)
