"""Data of a training: validation views, and the background of opaque images."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from data_formats import write_llff
from scenes import make_scene, tiny_nerf, write_scene

from jaxrf.cli import training_data
from jaxrf.core.errors import InputError
from jaxrf.presets import make_preset

pytestmark = pytest.mark.as_used


def test_load_val_returns_validation_views_if_there_are_any(tmp_path: Path) -> None:
    config = make_preset("nerf-small")
    held_out = training_data.load_val(write_llff(tmp_path / "capture"), config)
    assert held_out is not None and held_out.name == "val" and len(held_out) == 1
    folder = write_scene(tmp_path / "ball")
    assert training_data.load_val(folder, dataclasses.replace(config, validate_every=0.0)) is None
    (folder / "transforms_val.json").write_text("{")
    with pytest.raises(InputError, match=r"transforms_val\.json is not complete JSON"):
        training_data.load_val(folder, config)
    # Validation takes the test views where it has none.
    (folder / "transforms_val.json").unlink()
    assert len(training_data.load_val(folder, config) or ()) == 2


def test_background_warning_names_the_color_of_opaque_images() -> None:
    scene = make_scene()
    split = scene.splits["train"]
    images = np.zeros((2, 8, 8, 4), np.uint8)
    images[..., 3] = 255
    images[:, 2:6, 2:6, 0] = 200
    black = dataclasses.replace(scene, splits={"train": dataclasses.replace(split, images=images)})
    warning = training_data.background_warning(tiny_nerf(background="white"), black)
    assert warning is not None and warning.endswith("; use --background black.")
    for background in ("black", "random"):
        assert training_data.background_warning(tiny_nerf(background=background), black) is None
    # Transparent images take any background.
    assert training_data.background_warning(tiny_nerf(background="white"), scene) is None
