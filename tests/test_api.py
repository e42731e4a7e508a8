"""The public API: train presets and a user's field, render, score, save and load them again."""

import dataclasses
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes import make_scene, tiny_voxels, write_scene
from training.test_runs import make_run

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
    with pytest.raises(InputError, match="exists already: save under another name, or give overw"):
        fog.save(tmp_path / "run")


def test_a_run_is_replaced_if_asked_and_nothing_else_is(fog: jaxrf.Result, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fog.save(folder, overwrite=True)
    (folder / "old.txt").write_text("old")
    dataclasses.replace(fog, state=dataclasses.replace(fog.state, step=jnp.asarray(9))).save(
        folder, overwrite=True
    )
    assert int(jaxrf.load(folder, field=NeRF).state.step) == 9
    assert not (folder / "old.txt").exists()
    assert list(tmp_path.iterdir()) == [folder]
    for other in ("notes", "model"):
        (tmp_path / other / "checkpoints").mkdir(parents=True)
        (tmp_path / other / "file.txt").write_text("mine")
    (tmp_path / "model" / "config.json").write_text('{"field": 1}')
    (tmp_path / "file").write_text("mine")
    for other in ("notes", "model", "file"):
        with pytest.raises(InputError, match=f"{other} exists and is not a run of jaxrf: save und"):
            fog.save(tmp_path / other, overwrite=True)
    assert (tmp_path / "notes" / "file.txt").exists() and (tmp_path / "file").exists()


def test_a_run_that_cannot_be_replaced_stays(
    fog: jaxrf.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    fog.save(folder)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "save", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fog.save(folder, overwrite=True)
    assert list(tmp_path.iterdir()) == [folder]
    assert jaxrf.load(folder, field=NeRF).field == NeRF(start=0.5)


def test_a_run_with_a_file_of_a_field_is_replaced_by_itself_and_by_a_changed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "my_fog.py"
    monkeypatch.syspath_prepend(tmp_path)
    for number in (1, 22):
        source.write_text(
            "from test_api import NeRF\n\n\nclass Fog(NeRF):\n    " + f"CHANGES = {number}\n"
        )
        monkeypatch.delitem(sys.modules, "my_fog", raising=False)
        importlib.invalidate_caches()
        fog_class = importlib.import_module("my_fog").Fog
        jaxrf.fit(fog_class(), make_scene(), **FEW).save(tmp_path / "run", overwrite=True)
        loaded = jaxrf.load(tmp_path / "run")
        assert number == loaded.field.CHANGES  # type: ignore[attr-defined]
    loaded.save(tmp_path / "run", overwrite=True)
    config = runs.read_config(tmp_path / "run")
    assert config.field_source == f"{tmp_path / 'run' / 'my_fog.py'}:Fog"
    assert config.field_source in (tmp_path / "run" / "config.json").read_text()


class Mist(NeRF):
    """A subclass of the field that was saved."""


@dataclasses.dataclass(frozen=True)
class Other(Field):
    """A field that has nothing to do with the one that was saved."""


Renamed = dataclasses.make_dataclass("NeRF", [], bases=(Other,), frozen=True)
Extended = dataclasses.make_dataclass(
    "NeRF", [("end", float, dataclasses.field(kw_only=True))], bases=(NeRF,), frozen=True
)


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (NeRF(), "The field to load is an instance: give its class, field=NeRF; its numbers are"),
        (Mist, "The field of this run is NeRF, not Mist: give its class."),
        (Other, "The field of this run is NeRF, not Other: give its class."),
        (Renamed, "The class NeRF had the attribute 'start' when this run was trained: give it as"),
        (
            Extended,
            "The class NeRF had no attribute 'end' when this run was trained: give it as it",
        ),
        ("NeRF", "The field to load is 'NeRF': give the class of the run's field."),
        (int, "The field to load is <class 'int'>: give the class of the run's field."),
    ],
)
def test_another_class_than_the_runs_is_refused(
    fog: jaxrf.Result, tmp_path: Path, field: Any, sentence: str
) -> None:
    fog.save(tmp_path / "run")
    with pytest.raises(InputError) as caught:
        inspect.unwrap(jaxrf.load)(tmp_path / "run", field=field)
    assert sentence in str(caught.value)


def test_a_class_for_a_run_of_a_built_in_field_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run", make=tiny_voxels)
    assert jaxrf.load(tmp_path / "run").field.name == "voxels"
    with pytest.raises(InputError, match="is voxels, which is built in, not NeRF: leave field"):
        jaxrf.load(tmp_path / "run", field=NeRF)


@pytest.mark.parametrize(
    ("scene", "sentence"),
    [
        ("data/lego", "The scene is a path: load it first, jaxrf.load_scene('data/lego')."),
        (Path("lego"), "The scene is a path: load it first, jaxrf.load_scene('lego')."),
        (make_scene().train, "The scene is a Split: give what jaxrf.load_scene returns."),
        (
            dataclasses.replace(make_scene(), splits={"test": make_scene().test}),
            "The scene has the splits test: training needs train; load it too.",
        ),
    ],
)
def test_what_is_no_scene_to_train_on_is_refused(scene: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        inspect.unwrap(jaxrf.fit)(NeRF(), scene, **FEW)
    assert str(caught.value) == sentence


def test_a_field_is_tried_before_training() -> None:
    class Negative(NeRF):
        def density(self, params: Any, positions: Any, context: Any) -> Any:
            density, latent = super().density(params, positions, context)
            return -density, latent

    steps: list[int] = []

    class Count(jaxrf.NullCallback):
        def on_dispatch(self, state: Any, stage: Any, metrics: Any, count: int) -> bool:
            steps.append(count)
            return False

    with pytest.raises(InputError, match=r"Negative.density is as low as"):
        jaxrf.fit(Negative(), make_scene(), callback=Count(), **FEW)
    assert not steps


def test_the_bar_says_whose_psnr_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    jaxrf.fit(NeRF(), make_scene(), **FEW | {"progress": True})
    assert re.search(r"loss [\d.]+, training PSNR [\d.]+ dB", capsys.readouterr().err)


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
        (
            {"coloring": "per_ray"},
            "'coloring': give model=jaxrf.models.PackedModel(coloring=...).",
        ),
        ({"start": 0.1}, "no argument 'start': give field=NeRF(start=...)."),
        ({"grid_lr": 0.1}, "'grid_lr': give optimizer=jaxrf.OptimizerConfig(grid_lr=...)."),
        ({"huber_delta": 0.1}, "'huber_delta': give loss=jaxrf.LossConfig(huber_delta=...)."),
        ({"budget": 60.0}, "does not use 'budget': leave it out, or train with the command"),
        ({"resume": True}, "does not use 'resume'"),
        ({"num_steps": 0}, "num_steps is 0"),
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
