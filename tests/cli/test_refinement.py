"""Scores and files of a run whose cameras were refined."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import training_arguments
from scenes import make_scene

import jaxrf
from jaxrf.cli import eval as eval_command
from jaxrf.cli import main as cli
from jaxrf.cli.eval import EvalOptions


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny scene as a transforms.json, with a lens that the images do not have."""
    folder = tmp_path_factory.mktemp("captured")
    frames = []
    for split in make_scene().splits.values():
        for index, image in enumerate(split.images):
            name = f"{split.name}_{index}.png"
            Image.fromarray(image).save(folder / name)
            pose = np.asarray(split.cameras.T_world_camera[index], np.float64).tolist()
            frames.append({"file_path": name, "transform_matrix": pose})
    lens = {"camera_angle_x": 0.7, "camera_model": "OPENCV", "k1": 0.02}
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))
    return folder


@pytest.mark.slow
def test_a_refined_run_is_scored_twice_and_exports_its_cameras(
    captured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = training_arguments(captured, run, "--refine", "lenses", "--validate-every", "0")
    arguments += ["--optimizer.camera-lr", "0.015", "--video.frames", "0"]
    assert cli.run_command("train", arguments) == 0
    output = capsys.readouterr().out
    assert "Test: PSNR" in output and "Test, poses aligned: PSNR" in output
    metrics = json.loads((run / "metrics.json").read_text())
    names = [image["name"] for image in metrics["test"]["per_image"]]
    assert [image["name"] for image in metrics["test_aligned"]["per_image"]] == names
    assert metrics["test_aligned"]["psnr"] != metrics["test"]["psnr"]

    assert eval_command.run(EvalOptions(run)) == 0
    assert "test, poses aligned: PSNR" in capsys.readouterr().out
    again = json.loads((run / "metrics.json").read_text())
    assert again["test_aligned"]["psnr"] == pytest.approx(metrics["test_aligned"]["psnr"], abs=0.01)

    # As a data set, without holding images out, the file has the given cameras but for little.
    content = json.loads((run / "cameras.json").read_text())
    images = [frame["file_path"] for frame in content["frames"]]
    content["train_filenames"] = images
    refined = tmp_path / "refined"
    refined.mkdir()
    for image in images:
        (refined / image).symlink_to(captured / image)
    (refined / "transforms.json").write_text(json.dumps(content))
    found = jaxrf.load_scene(refined, splits=["train"]).train
    scene = jaxrf.load_scene(captured, splits=["train"])
    assert found.names == scene.train.names
    given = {frame["file_path"]: frame["transform_matrix"] for frame in
             json.loads((captured / "transforms.json").read_text())["frames"]}  # fmt: skip
    for frame in content["frames"]:
        difference = np.abs(np.array(frame["transform_matrix"]) - given[frame["file_path"]])
        assert 0.0 < difference.max() < 0.2
    assert found.cameras.distortion is not None and scene.train.cameras.distortion is not None
    by_name = {frame["file_path"]: frame for frame in content["frames"]}
    written = [by_name[path] for path in found.paths]
    np.testing.assert_allclose(
        found.cameras.distortion[:, 0], [frame["k1"] for frame in written], rtol=1e-6
    )
    assert np.all(found.cameras.distortion[:, 0] != np.float32(0.02))
    assert not np.any(found.cameras.distortion[:, 1:])
    np.testing.assert_allclose(found.cameras.focal, scene.train.cameras.focal, rtol=0.05)
