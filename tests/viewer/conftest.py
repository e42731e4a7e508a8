"""A renderer that several tests of this folder show."""

import numpy as np
import pytest
from scenes import first_state, tiny_nerf

from jaxrf.evaluation.camera_renderer import TrainedField
from jaxrf.evaluation.interactive import InteractiveRenderer, make_interactive_renderer

BACKGROUND = np.ones(3, np.float32)


@pytest.fixture(scope="session")
def renderer() -> InteractiveRenderer:
    """A renderer of an untrained NeRF on white."""
    config = tiny_nerf()
    stage, state = first_state(config)
    return make_interactive_renderer(
        TrainedField(config, stage, state.eval_params, state.grid, (2.0, 6.0), BACKGROUND)
    )
