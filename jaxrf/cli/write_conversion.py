"""Steps of a conversion: detect the format, compare with the other program, write the run."""

import dataclasses
from pathlib import Path

import numpy as np

from jaxrf.cameras import base as cams
from jaxrf.cameras.transforms import invert_transform, transform_poses
from jaxrf.cli.convert import ConvertOptions
from jaxrf.cli.run_folder import CONVERTED_FILE
from jaxrf.convert import check, formats
from jaxrf.convert.files.arrays import describe
from jaxrf.convert.files.read import Content
from jaxrf.convert.networks import Converted
from jaxrf.convert.to_run import FileBox, to_run
from jaxrf.core.errors import InputError
from jaxrf.data.scene import Scene
from jaxrf.export import ternary
from jaxrf.training import runs


def convert(content: Content, format_options: formats.FormatOptions, file: Path) -> Converted:
    """Converts the content of a file and prints its format and notes.

    Raises:
      InputError: no converter fits; what the file holds has been printed.
    """
    try:
        converted = formats.convert(content, format_options)
    except InputError:
        print(describe(content))
        raise
    print(f"{file}: {converted.format}, {ternary.count_weights(converted.params):,} weights.")
    for note in converted.notes:
        print(note)
    return converted


def comparison_cameras(converted: Converted, scene: Scene | None, size: int) -> cams.Cameras:
    """Returns the camera whose image is compared: the scene's first test view, `size` wide.

    It is in the coordinates of the program. Without a scene it is a default camera.

    Raises:
      InputError: the scene's cameras have lens distortion, which the other programs do not know.
    """
    if scene is None:
        return check.default_camera(size)
    cameras = scene.splits["test"].cameras
    if cameras.distortion is not None or cameras.lens != "perspective":
        raise InputError(
            "--check compares images of a pinhole camera, but the cameras in --data have lenses: "
            "leave out --data."
        )
    height = max(size * cameras.height // cameras.width, 1)
    camera = cams.resize_cameras(cameras[0], size, height)
    if not converted.in_file_coordinates:
        return camera
    poses = np.asarray(camera.T_world_camera, np.float64)
    poses = transform_poses(invert_transform(scene.frame), poses)
    return dataclasses.replace(camera, T_world_camera=poses.astype(np.float32))


def compare(
    converted: Converted,
    content: Content,
    format_options: formats.FormatOptions,
    cameras: cams.Cameras,
) -> bool:
    """Prints how far the converted field is from the original program; returns whether it passes.

    Raw outputs are compared in float32 and float64, and an image in both.
    """
    rows = []
    for double, name in ((False, "float32"), (True, "float64")):
        num_points = min(check.NUM_POINTS, check.NUM_EXACT_POINTS) if double else check.NUM_POINTS
        point_rows = check.check_points(converted, content, format_options, num_points, double)
        print(f"Raw outputs at {num_points:,} points, {name}:")
        print(check.format_rows(point_rows))
        rows += point_rows
    single = check.check_images(converted, content, format_options, cameras, double=False)
    print(f"A picture of {cameras.width}x{cameras.height}, float32:")
    print(check.format_rows(single))
    exact = check.check_images(converted, content, format_options, cameras, double=True)
    print("The same in float64, to exclude rounding errors:")
    print(check.format_rows(exact))
    same = check.passes([*rows, *single, *exact])
    print("The port is equivalent." if same else "The port DIFFERS.")
    return same


def write_run(
    converted: Converted,
    options: ConvertOptions,
    scene: Scene | None,
    data: Path | None,
    box: FileBox | None,
) -> None:
    """Writes a converted field as a run at step 0 of fine-tuning.

    Args:
      scene, data: the data set that the weights were trained on and its folder, if known.
      box: that it was read with.
    """
    name = options.file.stem
    run_dir = options.run_dir or runs.name_run(converted.config, name)
    run = to_run(converted, name, run_dir, scene, data, options.downscale, options.steps, box)
    runs.create_folder(run_dir)
    runs.write_config(run_dir, run.config)
    source = {
        "file": str(options.file.absolute()),
        "format": converted.format,
        "step": converted.step,
    }
    runs.write_text(run_dir / CONVERTED_FILE, runs.to_text(source))
    manager = runs.open_checkpoints(run_dir, run.config)
    try:
        runs.save(manager, run.scene, run.stage, run.state, 0.0, None)
        manager.wait_until_finished()
    finally:
        manager.close()
    data_option = " --data PATH" if data is None else ""
    print(
        f"Run: {run_dir}. Score it with: jaxrf eval {run_dir}{data_option}; fine-tune it with: "
        f"train_lego.py --resume --run-dir {run_dir}{data_option}"
    )
