"""Converters give the same field as the programs, and the check finds every mistake in them."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from foreign import (
    WRITERS,
    as_tensors,
    basic_state,
    write_experiments,
    write_nerf_pytorch,
    write_nerfstudio,
    write_tensorf,
)
from mistakes import (
    CAMERA,
    INSTANT_NGP_MISTAKES,
    MISTAKES,
    TENSORF_MISTAKES,
    change_ray_convention,
    find_differences,
    write_snapshot,
)
from scenes import first_state, make_scene, mostly_slow, slow, write_scene

from jaxrf.cli import main as cli
from jaxrf.convert import check, formats, tensorf_mask, write
from jaxrf.convert.files.arrays import list_leaves
from jaxrf.convert.files.read import Content, read_file
from jaxrf.convert.formats import FormatOptions
from jaxrf.convert.networks import Converted
from jaxrf.core.errors import InputError
from jaxrf.fields.bitnerf import BitNeRF
from jaxrf.fields.nerf import NeRF
from jaxrf.training import runs
from jaxrf.training.scene_metadata import SceneMetadata

NUM_POINTS = 4096
DEFAULT_OPTIONS = FormatOptions()


def convert(path: Path) -> tuple[Converted, Content]:
    content = read_file(path)
    return formats.convert(content, DEFAULT_OPTIONS), content


# The other programs are compared in the slow tests.
QUICK_PROGRAMS = {
    "nerf-pytorch", "jaxnerf", "experiments, ternary", "tensorf", "nerfstudio", "instant-ngp, large"
}  # fmt: skip
TCNN_PROGRAMS = {"nerfstudio (tiny-cuda-nn)", "instant-ngp"}


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK_PROGRAMS else slow(name) for name in WRITERS],
)
def converted_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Converted, Content]:
    program, write = WRITERS[request.param]
    path = write(tmp_path_factory.mktemp("foreign") / "weights.pt")
    return program, *convert(path)


def test_convert_detects_the_program_by_the_content(
    converted_file: tuple[str, Converted, Content],
) -> None:
    program, converted, _ = converted_file
    assert converted.format == program
    assert all(np.asarray(leaf).dtype == np.float32 for leaf in jax.tree.leaves(converted.params))


def test_check_points_finds_the_raw_outputs_of_the_program(
    converted_file: tuple[str, Converted, Content],
) -> None:
    program, converted, content = converted_file
    rows = check.check_points(converted, content, DEFAULT_OPTIONS, NUM_POINTS, double=False)
    exact = check.check_points(converted, content, DEFAULT_OPTIONS, NUM_POINTS, double=True)
    assert check.passes(exact), check.format_rows(exact)
    assert all(row.passed for row in exact[-2:])
    num_networks = 1 if converted.params.coarse is None else 2
    assert len(rows) == (3 if program == "TensoRF" else 4 * num_networks)
    assert [row.stage.split()[1] for row in rows[-2:]] == ["density", "color"]
    assert check.passes(rows), check.format_rows(rows)
    for row in exact:
        # tiny-cuda-nn computes scales as powers in float32, which libraries round differently.
        tolerance = 1e-4 if program in TCNN_PROGRAMS else 1e-6
        assert row.max_error <= tolerance * max(row.scale, 1.0), check.format_rows(exact)


def test_check_images_finds_the_image_of_the_program(
    converted_file: tuple[str, Converted, Content],
) -> None:
    _, converted, content = converted_file
    rows = check.check_images(converted, content, DEFAULT_OPTIONS, CAMERA, double=False)
    exact = check.check_images(converted, content, DEFAULT_OPTIONS, CAMERA, double=True)
    assert check.passes(rows), check.format_rows(rows)
    assert check.passes(exact), check.format_rows(exact)
    # An empty image would be the same for any weights.
    opacity = next(row for row in rows if row.stage == "opacity")
    assert opacity.scale > 0.5


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Converted, Content]:
    return convert(write_nerf_pytorch(tmp_path_factory.mktemp("foreign") / "weights.tar"))


@pytest.mark.parametrize("mistake", mostly_slow(list(MISTAKES), 4))
def test_check_finds_every_mistake(mistake: str, original: tuple[Converted, Content]) -> None:
    converted, content = original
    wrong = MISTAKES[mistake](converted)
    rows = find_differences(wrong, content)
    assert not check.passes(rows), check.format_rows(rows)


def test_convert_refuses_a_file_that_several_programs_may_have_written(tmp_path: Path) -> None:
    basic = as_tensors(basic_state())
    path = write_experiments(tmp_path / "experiments.pt")
    experiments = torch.load(path, weights_only=True)
    torch.save({"a": basic, "b": experiments}, tmp_path / "both.pt")
    with pytest.raises(InputError, match="may be of several programs"):
        convert(tmp_path / "both.pt")


def test_convert_describes_an_unknown_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", weight=np.zeros((3, 4), np.float32))
    assert cli.main(["convert", str(tmp_path / "x.npz")]) == 2
    output = capsys.readouterr()
    assert "weight: float32 3x4" in output.out and "is of no known program" in output.err


def resize_network(state: dict[str, torch.Tensor], depth: int, width: int) -> None:
    """Leaves so many layers of a network of nerf-pytorch, and so many units of each."""
    for index in range(depth, 8):
        for part in ("weight", "bias"):
            del state[f"pts_linears.{index}.{part}"]
    old = state["feature_linear.weight"].shape[0]
    for name, array in state.items():
        rows = width if len(array) == old else len(array)
        columns = array.shape[1] - (old - width) if array.ndim == 2 and array.shape[1] >= old else 0
        if name in ("pts_linears.0.weight", "rgb_linear.weight"):
            columns = array.shape[1]
        state[name] = array[:rows, :columns] if array.ndim == 2 else array[:rows]


@pytest.mark.parametrize(("depth", "width"), [(4, 24), (8, 20), (3, 16)])
def test_convert_says_how_the_networks_of_a_file_differ(
    depth: int, width: int, tmp_path: Path
) -> None:
    file = torch.load(write_nerf_pytorch(tmp_path / "x.tar"), weights_only=True)
    resize_network(file["network_fn_state_dict"], depth, width)
    torch.save(file, tmp_path / "x.tar")
    message = rf"coarse network \({depth} layers of {width}\) and its fine one \(8 layers of 24\)"
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "x.tar")


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_converted_run_is_scored_rendered_and_fine_tuned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write_scene(tmp_path / "ball")
    file = write_nerf_pytorch(tmp_path / "weights.tar")
    run = tmp_path / "run"
    options = ["--data", str(scene), "--run-dir", str(run), "--steps", "4"]
    assert cli.main(["convert", str(file), *options]) == 0
    assert f"jaxrf eval {run}; fine-tune" in capsys.readouterr().out
    assert json.loads((run / "converted.json").read_text())["format"] == "nerf-pytorch"
    config = runs.read_config(run)
    assert NeRF.match(config.field) is not None
    assert config.ray_convention.pixel_center == 0.0
    assert cli.main(["eval", str(run), "--every", "2"]) == 0
    before = json.loads((run / "metrics.json").read_text())
    assert math.isfinite(before["test"]["psnr"]) and before["steps"] == 0
    small = ["--frames", "1", "--size", "8", "--channels", "rgb"]
    assert cli.main(["render", str(run), *small]) == 0
    more = ["--resume", "--run-dir", str(run), "--video.frames", "0"]
    assert cli.run_command("train", more) == 0
    assert json.loads((run / "metrics.json").read_text())["steps"] == 4


@pytest.mark.slow
def test_converted_run_remembers_its_data_set_or_asks_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene, file = write_scene(tmp_path / "ball"), write_nerf_pytorch(tmp_path / "weights.tar")
    half, none = (["--run-dir", str(tmp_path / name)] for name in ("half", "none"))
    shrunk = ["--data", str(scene), "--downscale", "2", "--steps", "1"]
    assert cli.main(["convert", str(file), *half, *shrunk]) == 0
    assert runs.read_config(tmp_path / "half").downscale == 2
    brief = ["--video.frames", "0", "--test-every", "8"]
    assert cli.run_command("train", ["--resume", *half, *brief]) == 0
    capsys.readouterr()
    assert cli.main(["convert", str(file), *none]) == 0
    assert f"jaxrf eval {tmp_path / 'none'} --data PATH; fine-tune" in capsys.readouterr().out
    for command in (
        lambda: cli.run_command("train", ["--resume", *none, *brief]),
        lambda: cli.main(["eval", str(tmp_path / "none")]),
    ):
        assert command() == 2
        assert "converted without pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "program"), [("--legacy-order", "jaxnerf"), ("--bounded", "nerfstudio")]
)
def test_convert_refuses_options_for_another_program(
    option: str, program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_nerf_pytorch(tmp_path / "weights.tar")
    assert cli.main(["convert", str(file), option, "--run-dir", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert option in message and program in message


@pytest.mark.slow
def test_density_factor_applies_to_the_run_and_to_the_program(tmp_path: Path) -> None:
    content = read_file(write_nerfstudio(tmp_path / "weights.ckpt"))
    options = FormatOptions(density_factor=0.1)
    right = formats.convert(content, options)
    wrong = formats.convert(content, DEFAULT_OPTIONS)
    assert check.passes(check.check_images(right, content, options, CAMERA, double=True))
    assert not check.passes(check.check_images(wrong, content, options, CAMERA, double=True))


def test_convert_check_prints_a_table_and_exits_with_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "NUM_POINTS", NUM_POINTS)
    monkeypatch.chdir(tmp_path)
    _, write = WRITERS["experiments"]
    file = write(tmp_path / "weights.pt")
    assert cli.main(["convert", str(file), "--check", "--size", "8"]) == 0
    output = capsys.readouterr().out
    for stage in ("field encoding", "field density", "field color", "weights", "rgb", "depth"):
        assert stage in output
    assert "The port is equivalent." in output
    assert not (tmp_path / "runs").exists()

    def convert_wrongly(content: Content, options: FormatOptions) -> Converted:
        return change_ray_convention(pixel_center=0.5)(original_convert(content, options))

    original_convert = formats.convert
    monkeypatch.setattr(formats, "convert", convert_wrongly)
    assert cli.main(["convert", str(file), "--check", "--size", "8"]) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_convert_keeps_a_bitnerf_ternary(tmp_path: Path) -> None:
    _, write = WRITERS["experiments, ternary"]
    converted, _ = convert(write(tmp_path / "weights.pt"))
    field = converted.config.field
    assert isinstance(field, BitNeRF) and field.full_precision_io and field.norm_gain
    layers = converted.params.field["params"]
    assert {"gain", "kernel", "bias"} == set(layers["trunk_0"])
    assert {"kernel", "bias"} == set(layers["rgb_head"])


# ---------------------------------------------------------------------------------------------
# TensoRF
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensorf_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Converted, Content]:
    return convert(write_tensorf(tmp_path_factory.mktemp("foreign") / "lego.th"))


@pytest.mark.parametrize("mistake", list(TENSORF_MISTAKES))
def test_check_finds_every_mistake_in_tensorf(
    mistake: str, tensorf_file: tuple[Converted, Content]
) -> None:
    converted, content = tensorf_file
    wrong = TENSORF_MISTAKES[mistake](converted)
    rows = find_differences(wrong, content)
    assert not check.passes(rows), check.format_rows(rows)


@pytest.fixture(scope="module")
def snapshot_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Converted, Content]:
    return convert(write_snapshot(tmp_path_factory.mktemp("foreign") / "x.ingp"))


@pytest.mark.parametrize("mistake", mostly_slow(list(INSTANT_NGP_MISTAKES), 3))
def test_check_finds_every_mistake_in_instant_ngp(
    mistake: str, snapshot_file: tuple[Converted, Content]
) -> None:
    converted, content = snapshot_file
    rows = find_differences(INSTANT_NGP_MISTAKES[mistake](converted), content)
    assert not check.passes(rows), check.format_rows(rows)


# ---------------------------------------------------------------------------------------------
# Export
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "writer"),
    [
        slow("nerf-pytorch", write_nerf_pytorch),
        slow("nerf-pytorch", partial(write_nerf_pytorch, directions=False)),
        slow("tensorf", write_tensorf),
        ("nerfstudio", partial(write_nerfstudio, appearance=0)),
    ],
)
def test_converting_and_exporting_keeps_every_bit(
    program: str, writer: Callable[[Path], Path], tmp_path: Path
) -> None:
    file = writer(tmp_path / "weights.pt")
    assert cli.main(["convert", str(file), "--run-dir", str(tmp_path / "run")]) == 0
    exported = tmp_path / "exported.pt"
    options = ["--format", program, "--output", str(exported)]
    assert cli.main(["export", str(tmp_path / "run"), *options]) == 0
    before, after = (dict(list_leaves(read_file(path).tree)) for path in (file, exported))
    weights = {
        name: leaf
        for name, leaf in before.items()
        if isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 and "proposal" not in name
    }
    if not any("rgb_linear" in name for name in weights):
        # Without directions nerf-pytorch has an unused layer for them.
        weights = {name: leaf for name, leaf in weights.items() if "views_linears" not in name}
    assert len(weights) > 10
    for name, leaf in weights.items():
        array = after[name]
        if name.endswith("mlp_head.layers.0.weight"):
            # The exported head takes an appearance embedding too, whose weights are zero.
            array = array[:, : leaf.shape[1]]
        if ".output_linear." in name:
            # nerf-pytorch uses four of its five outputs.
            assert len(array) == len(leaf) == 5
            array, leaf = array[:4], leaf[:4]
        # For nerfstudio, the box is that of contracted space, and embeddings are zero.
        if not name.endswith((".aabb", "embedding.weight", "alphaMask.aabb")):
            np.testing.assert_array_equal(array, leaf, err_msg=name)
            assert array.dtype == leaf.dtype
    converted, content = convert(exported)
    rows = check.check_images(converted, content, DEFAULT_OPTIONS, CAMERA, double=False)
    assert check.passes(rows), check.format_rows(rows)


@pytest.mark.parametrize("fraction", [0.02, 0.5, 1.0])
def test_make_alpha_mask_is_positive_in_occupied_cells_alone(fraction: float) -> None:
    occupied = np.random.default_rng(0).uniform(size=(5, 4, 3)) < fraction
    for cells in (occupied, np.pad(np.ones((2, 2, 2), bool), ((1, 2), (1, 1), (0, 1)))):
        mask = write.make_alpha_mask(cells)
        box = np.array([[0.0] * 3, [1.0] * 3], np.float32)
        tree = {
            "alphaMask.shape": [1, 1, *mask.T.shape],
            "alphaMask.mask": np.packbits(mask.T.reshape(-1)),
            "alphaMask.aabb": box,
        }
        content = Content(Path("lego.th"), "torch", tree)
        occupied_in_file = tensorf_mask.read_grid(content, box, cells.shape).occupied
        assert occupied_in_file is not None
        factor = occupied_in_file.shape[0] // cells.shape[0]
        for axis in range(3):
            shape = occupied_in_file.shape
            split = occupied_in_file.reshape(*shape[:axis], -1, factor, *shape[axis + 1 :])
            occupied_in_file = split.all(axis=axis + 1)
        np.testing.assert_array_equal(occupied_in_file, cells)


def test_write_file_refuses_fields_that_the_program_does_not_have(tmp_path: Path) -> None:
    _, writer = WRITERS["experiments"]
    file = writer(tmp_path / "weights.pt")
    assert cli.main(["convert", str(file), "--run-dir", str(tmp_path / "run")]) == 0
    run = runs.open_run(tmp_path / "run")
    messages = (
        ("nerf-pytorch", r"train one with .*--field\.no-project"),
        ("tensorf", "of the field nerf, which tensorf does not have"),
    )
    for program, message in messages:
        with pytest.raises(InputError, match=message):
            write.write_file(run, tmp_path / "x", program)  # type: ignore[arg-type]


# Presets whose fields the programs have, but for some options.
PRESETS = {"nerf-pytorch": "nerf-small", "tensorf": "tensorf-small", "nerfstudio": "hashgrid-small"}


def read_options(message: str) -> list[str]:
    """Returns the options that an error message tells the user to train with."""
    match = re.search(r"train one with `(--.*)`\.\s*$", message)
    assert match is not None, message
    return match[1].split()


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("nerf-pytorch", "--model hierarchical --model.quadrature points --field.activation relu"),
        ("tensorf", "--field.layers 2 --model.coloring per_sample"),
        ("nerfstudio", "--field.hash-layout all_hashed --field.normalize-dirs-01"),
    ],
)
def test_write_file_names_all_options_to_train_with(
    program: write.Program, expected: str, tmp_path: Path
) -> None:
    def untrained_run(options: list[str]) -> runs.Run:
        arguments = ["--preset", PRESETS[program], "--background", "white", *options]
        config = cli.parse_command("train", arguments).config
        # As when training begins in a bounded scene.
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, contract=False)
        )
        stage, state = first_state(config)
        scene = SceneMetadata.from_scene(make_scene(), tmp_path)
        return runs.Run(tmp_path, config, scene, stage, state, 0.0)

    with pytest.raises(InputError) as error:
        write.write_file(untrained_run([]), tmp_path / "x", program)
    assert not (tmp_path / "x").exists()
    options = read_options(str(error.value))
    assert expected in " ".join(options)
    write.write_file(untrained_run(options), tmp_path / program, program)
    assert (tmp_path / program).stat().st_size > 0


SMALL = {
    "nerf-pytorch": "--field.width 16 --batch-rays 64 --optimizer.ema-decay 0.5 --seed 1",
    "tensorf": "--field.initial-voxels 512 --field.final-voxels 512 --field.width 8",
    "nerfstudio": "--field.num-levels 3 --field.max-resolution 40 --field.log2-hashmap-size 10",
}


@pytest.mark.slow
@pytest.mark.parametrize("program", list(SMALL))
def test_a_run_trained_with_the_named_options_is_exported(
    program: write.Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write_scene(tmp_path / "ball")
    shared = ["--preset", PRESETS[program], "--data", str(scene), "--num-steps", "4"]
    shared += ["--video.frames", "0", "--batch-samples", "4096", *SMALL[program].split()]

    def train(name: str, options: list[str]) -> Path:
        run_dir = tmp_path / name
        arguments = [*shared, "--run-dir", str(run_dir), *options]
        assert cli.run_command("train", arguments) == 0, capsys.readouterr().err
        return run_dir

    def export(run_dir: Path) -> int:
        output = str(tmp_path / "exported")
        return cli.main(["export", str(run_dir), "--format", program, "--output", output])

    refused = train("refused", [])
    capsys.readouterr()
    assert export(refused) == 2
    trained = train("trained", read_options(capsys.readouterr().err))
    assert export(trained) == 0
    converted, content = convert(tmp_path / "exported")
    params = runs.open_run(trained).state.eval_params
    for name in ("field", "coarse"):
        expected = list_leaves(getattr(params, name))
        actual = dict(list_leaves(getattr(converted.params, name)))
        for path, leaf in expected:
            np.testing.assert_array_equal(actual[path], leaf, err_msg=path)
    rows = check.check_images(converted, content, DEFAULT_OPTIONS, CAMERA, double=False)
    assert check.passes(rows), check.format_rows(rows)
