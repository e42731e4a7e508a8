"""The frames of paths and splits."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scenes import SIZE, VIEWS, make_scene

from jaxrf.core.errors import InputError
from jaxrf.export.render_options import RenderOptions
from jaxrf.export.render_plan import name_frames, path_cameras, plan_render
from jaxrf.training.runs import Run


@pytest.mark.parametrize("path", ["orbit", "ellipse", "spiral", "train"])
def test_plan_render_of_a_path_has_the_requested_number_of_frames(
    untrained_run: Run, path: str
) -> None:
    plan = plan_render(untrained_run, RenderOptions(path=path, frames=5, size=24))
    assert len(plan.cameras) == len(plan.names) == 5 and plan.split is None
    assert (plan.cameras.width, plan.cameras.height) == (24, 24)
    near, far = plan.depth_range
    distance = np.linalg.norm(np.asarray(plan.cameras.T_world_camera)[:, :3, 3], axis=-1)
    assert near < distance.min() and distance.max() < far


def test_plan_render_of_a_split_has_its_cameras_and_images(untrained_run: Run) -> None:
    plan = plan_render(untrained_run, RenderOptions(path="test", size=99, every=2))
    assert plan.split is not None and plan.names == ("r_0", "r_2")[: len(plan.names)]
    assert len(plan.names) == -(-VIEWS["test"] // 2)
    assert (plan.cameras.width, plan.cameras.height) == (SIZE, SIZE)
    expected = make_scene().splits["test"].cameras.T_world_camera[::2]
    np.testing.assert_allclose(plan.cameras.T_world_camera, expected, atol=1e-6)


@pytest.mark.parametrize("path", ["ellipse", "train"])
def test_path_cameras_refuses_training_paths_without_poses(untrained_run: Run, path: str) -> None:
    scene = dataclasses.replace(untrained_run.scene, poses=())
    run = dataclasses.replace(untrained_run, scene=scene, folder=Path("runs/one"))
    with pytest.raises(InputError, match=f"runs/one does not hold the poses.*path {path}"):
        path_cameras(run, RenderOptions(path=path))


def test_name_frames_gives_unique_file_names() -> None:
    assert name_frames(["a/b", "c\\d"]) == ("a_b", "c_d")
    assert name_frames(["a/b", "a_b"]) == ("0000-a_b", "0001-a_b")
