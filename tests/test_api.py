"""The public API: train presets and a user's field, render, score, save and load them again."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import make_scene, write_scene

import jaxrf
from jaxrf.core.errors import InputError
from jaxrf.fields.base import Field
from jaxrf.training import runs

FEW = {"num_steps": 4, "batch_rays": 64, "batch_samples": 2048, "progress": False}


@dataclasses.dataclass(frozen=True)
class NeRF(Field):
    """A fog of one color, whose class has the name of a built-in field."""

    start: float = 0.0

    def init(self, key: jax.Array) -> Any:
        return {"raw": jnp.full((), self.start), "color": jax.random.normal(key, (3,))}

    def density(self, params: Any, positions: Any, context: Any) -> Any:
        ones = jnp.ones(positions.shape[0])
        return jax.nn.softplus(params["raw"]) * ones, ones[:, None]

    def color(self, params: Any, features: Any, directions: Any) -> Any:
        return jax.nn.sigmoid(features * params["color"][None])


@pytest.fixture(scope="module")
def fog() -> jaxrf.Result:
    return jaxrf.fit(NeRF(start=0.5), make_scene(), **FEW)


def test_a_saved_field_of_a_user_renders_the_same_bits_when_it_is_loaded(
    fog: jaxrf.Result, tmp_path: Path
) -> None:
    camera = make_scene().test.cameras[1]
    image = fog.render(camera)
    assert image.rgb.shape == (16, 16, 3) and image.depth.shape == image.opacity.shape == (16, 16)
    fog.save(tmp_path / "run")
    again = jaxrf.load(tmp_path / "run", field=NeRF)
    assert again.field == NeRF(start=0.5) and type(again.field) is NeRF
    np.testing.assert_array_equal(again.render(camera).rgb, image.rgb)
    with pytest.raises(InputError, match="exists already: save under another name"):
        fog.save(tmp_path / "run")


def test_a_steps_number_of_a_result_is_that_of_the_fit(fog: jaxrf.Result) -> None:
    assert int(fog.state.step) == FEW["num_steps"] and fog.config.num_steps == FEW["num_steps"]
    assert fog.params is fog.state.eval_params


def test_evaluate_is_the_mean_over_every_kth_image(fog: jaxrf.Result) -> None:
    split = make_scene().test
    score = fog.evaluate(split)
    assert [image["name"] for image in score["per_image"]] == list(split.names)
    mean = np.mean([image["psnr"] for image in score["per_image"]])
    np.testing.assert_allclose(score["psnr"], mean, rtol=1e-6)
    assert len(fog.evaluate(split, every=2)["per_image"]) == 1


def test_two_fits_with_one_seed_give_the_same_bits_and_another_seed_does_not(
    fog: jaxrf.Result,
) -> None:
    same = jaxrf.fit(NeRF(start=0.5), make_scene(), **FEW)
    other = jaxrf.fit(NeRF(start=0.5), make_scene(), seed=1, **FEW)
    assert np.array_equal(same.params.field["color"], fog.params.field["color"])
    assert not np.array_equal(other.params.field["color"], fog.params.field["color"])


def test_a_saved_run_keeps_where_and_how_its_images_were_loaded(tmp_path: Path) -> None:
    write_scene(tmp_path / "ball")
    scene = jaxrf.load_scene(tmp_path / "ball", downscale=2)
    assert scene.train.cameras.width == 8
    result = jaxrf.fit(NeRF(), scene, **FEW)
    result.save(tmp_path / "run")
    run = runs.open_run(tmp_path / "run", config=runs.read_config(tmp_path / "run", NeRF))
    assert run.config.downscale == 2 and run.scene.data == str(tmp_path / "ball")


def test_load_scene_loads_the_splits_that_there_are(tmp_path: Path) -> None:
    write_scene(tmp_path / "ball")
    assert set(jaxrf.load_scene(tmp_path / "ball").splits) == {"train", "val", "test"}
    assert set(jaxrf.load_scene(tmp_path / "ball", splits=["test"]).splits) == {"test"}
    with pytest.raises(InputError, match="does not exist"):
        jaxrf.load_scene(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ({"num_step": 3}, "no argument 'num_step': did you mean 'num_steps'?"),
        ({"coloring": "per_ray"}, "no argument 'coloring': give model=PackedModel(coloring=...)."),
        ({"grid_lr": 0.1}, "no argument 'grid_lr': give optimizer=OptimizerConfig(grid_lr=...)."),
        ({"budget": 60.0}, "does not use 'budget': leave it out, or train with the command"),
        ({"resume": True}, "does not use 'resume'"),
        ({"num_steps": 0}, "--num-steps is 0"),
        ({"frobnicate": 1}, "no argument 'frobnicate': jaxrf.TrainConfig lists them."),
    ],
)
def test_arguments_that_cannot_work_are_refused(override: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        jaxrf.fit(NeRF(), make_scene(), **override)
    assert sentence in str(caught.value)


def test_a_callback_sees_every_dispatch_and_stops_training() -> None:
    class Stop(jaxrf.NullCallback):
        steps = 0

        def on_dispatch(self, state: Any, stage: Any, metrics: Any, steps: int) -> bool:
            self.steps += steps
            return self.steps >= 2

    callback = Stop()
    options = FEW | {"steps_per_dispatch": 1}
    result = jaxrf.fit(NeRF(), make_scene(), callback=callback, **options)
    assert int(result.state.step) == callback.steps == 2


def test_scenes_and_splits_show_sizes_instead_of_arrays() -> None:
    scene = make_scene()
    assert repr(scene.test) == "Split('test', 2 images of 16x16)"
    assert repr(scene).startswith("Scene('ball', [Split('train', 6 images of 16x16), ")
    assert "array" not in repr(scene)
