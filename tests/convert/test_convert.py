"""Weights of other programs: the port is the same field, and any mistake in it is found."""

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
import tyro
from foreign import WRITERS, write_nerf_pytorch, write_nerfstudio, write_tensorf
from mistakes import CAMERA, MISTAKES, TENSORF_MISTAKES, change_convention, find_mistake
from scenes import first_state, make_scene, mostly_slow, slow, write_scene

from jaxrf.cli import main as cli
from jaxrf.convert import check, formats, tensorf_torch, write
from jaxrf.convert.files import Content, list_leaves, read_file
from jaxrf.convert.formats import FormatOptions
from jaxrf.convert.networks import Converted
from jaxrf.core.errors import InputError
from jaxrf.training import runs
from jaxrf.training.config import BitNeRFConfig, NeRFConfig, make_preset
from jaxrf.training.scene_metadata import SceneMetadata

FEW = 4096
PLAIN = FormatOptions()


def convert(path: Path) -> tuple[Converted, Content]:
    content = read_file(path)
    return formats.convert(content, PLAIN), content


# The others are compared with the slow tests.
QUICK = {"nerf-pytorch", "jaxnerf", "experiments, ternary", "tensorf", "nerfstudio"}


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK else slow(name) for name in WRITERS],
)
def ported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Converted, Content]:
    form, write = WRITERS[request.param]
    path = write(tmp_path_factory.mktemp("foreign") / "weights.pt")
    return form, *convert(path)


def test_every_program_is_recognised_by_what_it_wrote(
    ported: tuple[str, Converted, Content],
) -> None:
    form, converted, _ = ported
    assert converted.form == form
    assert all(np.asarray(leaf).dtype == np.float32 for leaf in jax.tree.leaves(converted.params))


def test_the_port_gives_what_the_program_gives(ported: tuple[str, Converted, Content]) -> None:
    form, converted, content = ported
    rows = check.check_points(converted, content, PLAIN, FEW, double=False)
    exact = check.check_points(converted, content, PLAIN, FEW, double=True)
    assert check.passes(exact), check.format_rows(exact)
    assert all(row.passed for row in exact[-2:])
    assert len(rows) == (3 if form == "TensoRF" else 4 * len(converted.params))
    assert [row.stage.split()[1] for row in rows[-2:]] == ["density", "color"]
    assert check.passes(rows), check.format_rows(rows)
    for row in exact:
        # tiny-cuda-nn's scales are powers of float32, which round otherwise elsewhere.
        close = 1e-4 if "tiny-cuda-nn" in form else 1e-6
        assert row.largest <= close * max(row.scale, 1.0), check.format_rows(exact)


def test_a_picture_of_the_port_is_the_program_s(ported: tuple[str, Converted, Content]) -> None:
    _, converted, content = ported
    rows = check.check_pictures(converted, content, PLAIN, CAMERA, double=False)
    exact = check.check_pictures(converted, content, PLAIN, CAMERA, double=True)
    assert check.passes(rows), check.format_rows(rows)
    assert check.passes(exact), check.format_rows(exact)
    # Random weights show something, or all pictures would be the same.
    opacity = next(row for row in rows if row.stage == "opacity")
    assert opacity.scale > 0.5


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Converted, Content]:
    return convert(write_nerf_pytorch(tmp_path_factory.mktemp("foreign") / "weights.tar"))


@pytest.mark.parametrize("mistake", mostly_slow(list(MISTAKES), 4))
def test_every_single_mistake_is_found(mistake: str, original: tuple[Converted, Content]) -> None:
    converted, content = original
    wrong = MISTAKES[mistake](converted)
    rows = find_mistake(wrong, content)
    assert not check.passes(rows), check.format_rows(rows)


def test_a_file_that_two_programs_may_have_written_is_not_guessed(tmp_path: Path) -> None:
    import foreign
    import torch

    both = foreign.as_tensors(foreign.basic_state())
    path = foreign.write_experiments(tmp_path / "other.pt")
    torch.save({"a": both, "b": torch.load(path, weights_only=True)}, tmp_path / "both.pt")
    with pytest.raises(InputError, match="may be of several programs"):
        convert(tmp_path / "both.pt")


def test_an_unknown_file_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "x.npz", weight=np.zeros((3, 4), np.float32))
    assert cli.main(["convert", str(tmp_path / "x.npz")]) == 2
    said = capsys.readouterr()
    assert "weight: float32 3x4" in said.out and "is of no program that is known" in said.err


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_converted_run_is_scored_rendered_and_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write_scene(tmp_path / "ball")
    file = write_nerf_pytorch(tmp_path / "weights.tar")
    run = tmp_path / "run"
    options = ["--data", str(scene), "--run-dir", str(run), "--steps", "4"]
    assert cli.main(["convert", str(file), *options]) == 0
    assert json.loads((run / "converted.json").read_text())["form"] == "nerf-pytorch"
    config = runs.read_config(run)
    assert isinstance(config.field, NeRFConfig)
    assert config.field.convention.pixel_center == 0.0
    assert cli.main(["eval", str(run), "--every", "2"]) == 0
    before = json.loads((run / "metrics.json").read_text())
    assert math.isfinite(before["test"]["psnr"]) and before["steps"] == 0
    small = ["--frames", "1", "--size", "8", "--channels", "rgb"]
    assert cli.main(["render", str(run), *small]) == 0
    more = ["--resume", "--run-dir", str(run), "--video.frames", "0"]
    assert cli.run_command("train", more) == 0
    assert json.loads((run / "metrics.json").read_text())["steps"] == 4


@pytest.mark.slow
def test_a_converted_run_remembers_its_pictures_or_asks_for_them(
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
    for command in (
        lambda: cli.run_command("train", ["--resume", *none, *brief]),
        lambda: cli.main(["eval", str(tmp_path / "none")]),
    ):
        assert command() == 2
        assert "converted without pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "whose"), [("--legacy-order", "jaxnerf"), ("--bounded", "nerfstudio")]
)
def test_wishes_for_another_program_are_refused(
    option: str, whose: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_nerf_pytorch(tmp_path / "weights.tar")
    assert cli.main(["convert", str(file), option, "--run-dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert option in said and whose in said


@pytest.mark.slow
def test_a_density_factor_is_that_of_the_run_and_of_the_program(tmp_path: Path) -> None:
    content = read_file(write_nerfstudio(tmp_path / "weights.ckpt"))
    wishes = FormatOptions(density_factor=0.1)
    converted = formats.convert(content, wishes)
    plain = formats.convert(content, PLAIN)
    assert check.passes(check.check_pictures(converted, content, wishes, CAMERA, double=True))
    assert not check.passes(check.check_pictures(plain, content, wishes, CAMERA, double=True))


def test_check_prints_its_table_and_its_verdict_is_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "POINTS", FEW)
    monkeypatch.chdir(tmp_path)
    _, write = WRITERS["experiments"]
    file = write(tmp_path / "weights.pt")
    assert cli.main(["convert", str(file), "--check", "--size", "8"]) == 0
    output = capsys.readouterr().out
    for stage in ("coarse encoding", "coarse density", "coarse color", "weights", "rgb", "depth"):
        assert stage in output
    assert "The port is equivalent." in output
    assert not (tmp_path / "runs").exists()

    def spoil(content: Content, wishes: FormatOptions) -> Converted:
        return change_convention(pixel_center=0.5)(really(content, wishes))

    really = formats.convert
    monkeypatch.setattr(formats, "convert", spoil)
    assert cli.main(["convert", str(file), "--check", "--size", "8"]) == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_a_bitnerf_stays_ternary(tmp_path: Path) -> None:
    _, write = WRITERS["experiments, ternary"]
    converted, _ = convert(write(tmp_path / "weights.pt"))
    field = converted.config.field
    assert isinstance(field, BitNeRFConfig) and field.full_precision_io and field.norm_gain
    layers = converted.params["coarse"]["params"]
    assert {"gain", "kernel", "bias"} == set(layers["trunk_0"])
    assert {"kernel", "bias"} == set(layers["rgb_head"])


# ---------------------------------------------------------------------------------------------
# TensoRF
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensorf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Converted, Content]:
    return convert(write_tensorf(tmp_path_factory.mktemp("foreign") / "lego.th"))


@pytest.mark.parametrize("mistake", list(TENSORF_MISTAKES))
def test_every_single_mistake_in_tensorf_is_found(
    mistake: str, tensorf: tuple[Converted, Content]
) -> None:
    converted, content = tensorf
    wrong = TENSORF_MISTAKES[mistake](converted)
    rows = find_mistake(wrong, content)
    assert not check.passes(rows), check.format_rows(rows)


def test_a_mask_of_a_larger_box_is_moved_to_the_field_s() -> None:
    occupied = np.zeros((8, 6, 4), bool)
    occupied[3:5, 2:4, 1:3] = True
    box = np.array([[0.0, 0.0, 0.0], [8.0, 6.0, 4.0]], np.float32)
    same = tensorf_torch._move_mask(occupied, box, box)
    np.testing.assert_array_equal(same, occupied)
    part = np.array([[2.0, 1.0, 0.5], [7.0, 5.0, 3.5]], np.float32)
    moved = tensorf_torch._move_mask(occupied, box, part)
    assert moved.shape == (5, 4, 3)
    # Every point of the part that was occupied still is.
    points = np.random.default_rng(0).uniform(part[0], part[1], (1000, 3))
    before = occupied[tuple(np.floor(points).astype(int).T)]
    size = (part[1] - part[0]) / moved.shape
    after = moved[tuple(np.floor((points - part[0]) / size).astype(int).T)]
    assert np.all(after[before]) and after.mean() < 0.6


# ---------------------------------------------------------------------------------------------
# And back
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
def test_there_and_back_every_bit_is_the_same(
    program: str, writer: Callable[[Path], Path], tmp_path: Path
) -> None:
    file = writer(tmp_path / "weights.pt")
    assert cli.main(["convert", str(file), "--run-dir", str(tmp_path / "run")]) == 0
    back = tmp_path / "back.pt"
    named = ["--format", program, "--output", str(back)]
    assert cli.main(["export", str(tmp_path / "run"), *named]) == 0
    before, after = (dict(list_leaves(read_file(path).tree)) for path in (file, back))
    weights = {
        name: leaf
        for name, leaf in before.items()
        if isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 and "proposal" not in name
    }
    if not any("rgb_linear" in name for name in weights):
        # Without directions nerf-pytorch has a layer for them, which nothing uses.
        weights = {name: leaf for name, leaf in weights.items() if "views_linears" not in name}
    assert len(weights) > 10
    for name, leaf in weights.items():
        found = after[name]
        # nerfstudio's head has room for an appearance, which is nothing here.
        found = found[:, : leaf.shape[1]] if name.endswith("mlp_head.layers.0.weight") else found
        if ".output_linear." in name:
            # Of its five numbers nerf-pytorch uses four.
            assert len(found) == len(leaf) == 5
            found, leaf = found[:4], leaf[:4]
        # Of nerfstudio the box is that of contracted space, and pictures look alike.
        if not name.endswith((".aabb", "embedding.weight", "alphaMask.aabb")):
            np.testing.assert_array_equal(found, leaf, err_msg=name)
            assert found.dtype == leaf.dtype
    again, content = convert(back)
    rows = check.check_pictures(again, content, PLAIN, CAMERA, double=False)
    assert check.passes(rows), check.format_rows(rows)


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_a_mask_is_above_zero_in_the_occupied_cells_alone(share: float) -> None:
    occupied = np.random.default_rng(0).uniform(size=(5, 4, 3)) < share
    for cells in (occupied, np.pad(np.ones((2, 2, 2), bool), ((1, 2), (1, 1), (0, 1)))):
        mask = write.find_mask(cells)
        box = np.array([[0.0] * 3, [1.0] * 3], np.float32)
        tree = {
            "alphaMask.shape": [1, 1, *mask.T.shape],
            "alphaMask.mask": np.packbits(mask.T.reshape(-1)),
            "alphaMask.aabb": box,
        }
        content = Content(Path("lego.th"), "torch", tree)
        found = tensorf_torch._read_mask(content, box, cells.shape)[0]
        parts = found.shape[0] // cells.shape[0]
        for axis in range(3):
            found = found.reshape(*found.shape[:axis], -1, parts, *found.shape[axis + 1 :])
            found = found.all(axis=axis + 1)
        np.testing.assert_array_equal(found, cells)


def test_what_another_program_has_no_field_for_is_refused(tmp_path: Path) -> None:
    _, writer = WRITERS["experiments"]
    file = writer(tmp_path / "weights.pt")
    assert cli.main(["convert", str(file), "--run-dir", str(tmp_path / "run")]) == 0
    run = runs.open_run(tmp_path / "run")
    reasons = (
        ("nerf-pytorch", r"train one with .*--field\.no-project"),
        ("tensorf", "of the field nerf, which tensorf does not have"),
    )
    for program, why in reasons:
        with pytest.raises(InputError, match=why):
            write.write_file(run, tmp_path / "x", program)  # type: ignore[arg-type]


def test_what_is_to_be_trained_for_another_program_is_said_at_once(tmp_path: Path) -> None:
    presets = {"tensorf": "tensorf-small", "nerfstudio": "hashgrid-small"}
    for program, preset in presets.items():
        small = dataclasses.replace(make_preset(preset), background="white")
        stage, state = first_state(small)
        scene = SceneMetadata.from_scene(make_scene(), tmp_path)
        run = runs.Run(tmp_path, small, scene, stage, state, 0.0)
        with pytest.raises(InputError, match="train one with --field") as error:
            write.write_file(run, tmp_path / "x", program)  # type: ignore[arg-type]
        options = re.search(r"with (--.*)\.$", str(error.value))[1].split()  # type: ignore[index]
        changed = tyro.cli(type(small), default=small, args=options)
        stage, state = first_state(changed)
        run = dataclasses.replace(run, config=changed, stage=stage, state=state)
        write.write_file(run, tmp_path / program, program)  # type: ignore[arg-type]
        assert (tmp_path / program).stat().st_size > 0
