"""Ternary runs as files: packing, what is in them, and the pictures rendered from them."""

import dataclasses
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scenes import differing_leaves, first_state, make_scene, tiny_nerf

from jaxrf.cli import main as cli
from jaxrf.core.errors import InputError
from jaxrf.export import ternary
from jaxrf.export.ternary import PACKINGS, pack_trits, read_ternary, unpack_trits, write_ternary
from jaxrf.fields.bitnerf import quantise_weights
from jaxrf.training import runs
from jaxrf.training.config import BitNeRFConfig, OptimizerConfig, TrainConfig
from jaxrf.training.scene_metadata import SceneMetadata


@pytest.fixture(autouse=True, scope="module")
def keep_jax_settings() -> Iterator[None]:
    """As commands set it, such that all tests here render with the same few programs."""
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    yield
    jax.config.update("jax_default_matmul_precision", before)


FORMS: tuple[ternary.Format, ...] = ("ternary2", "ternary16")
TRITS = hnp.arrays(np.int8, st.integers(0, 40), elements=st.integers(-1, 1))

# ---------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------


@given(trits=TRITS, form=st.sampled_from(FORMS))
def test_trits_are_unpacked_as_they_were_packed(trits: np.ndarray, form: ternary.Format) -> None:
    packing = PACKINGS[form]
    packed = pack_trits(trits, packing)
    assert packed.dtype == np.uint8
    assert len(packed) == -(-len(trits) // {"ternary2": 4, "ternary16": 5}[form])
    unpacked = unpack_trits(packed, len(trits), packing)
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, trits)


def test_every_byte_is_some_trits_or_is_refused() -> None:
    for form, digits, count in (("ternary2", 4, 3**4), ("ternary16", 5, 3**5)):
        good = []
        for byte in range(256):
            try:
                trits = unpack_trits(np.array([byte], np.uint8), digits, PACKINGS[form])
            except ValueError:
                continue
            good.append(tuple(trits))
            assert pack_trits(trits, PACKINGS[form]).tolist() == [byte]
        assert len(good) == len(set(good)) == count


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [5, 11])
def test_bytes_that_are_too_few_or_too_many_are_refused(form: ternary.Format, count: int) -> None:
    packed = pack_trits(np.ones(20, np.int8), PACKINGS[form])
    with pytest.raises(ValueError, match=f"{count} weights"):
        unpack_trits(packed, count, PACKINGS[form])


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------

FIELD = BitNeRFConfig(
    layers=2,
    width=24,
    skip=1,
    color_width=16,
    num_position_frequencies=4,
    num_direction_frequencies=1,
    num_coarse_samples=12,
    num_fine_samples=8,
)
MARCHING = dataclasses.replace(
    FIELD, sampler="occupancy", layers=1, shading="per_ray", occupancy_resolution=40, max_steps=64
)


def make_run(config: TrainConfig, folder: Path = Path("runs/one")) -> runs.Run:
    """A run as training leaves it, with parameters out of numpy, biases and averages included."""
    # Not a cube: what is read must not be taken for the box of another scene.
    stage, state = first_state(config, np.array([[-1, -1.2, -0.9], [1, 1, 1.1]], np.float32))
    rng = np.random.default_rng(3)

    def scatter(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype), tree)

    state = dataclasses.replace(
        state,
        params=scatter(state.params),
        average=None if state.average is None else scatter(state.average),
        step=jnp.asarray(7, jnp.int32),
    )
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    return runs.Run(folder, config, scene, stage, state, 2.5)


def empty_some_cells(run: runs.Run) -> runs.Run:
    """The same run with an occupancy grid of which half an octant is left."""
    occupied = np.random.default_rng(5).random(run.stage.cells) < 0.5
    for axis in range(3):
        np.swapaxes(occupied, 0, axis)[run.stage.cells[axis] // 2 :] = False
    grid = dataclasses.replace(run.state.grid, occupied=jnp.asarray(occupied))
    grid = ternary.occ.init_density_ema(grid, run.stage.reach)
    return dataclasses.replace(run, state=dataclasses.replace(run.state, grid=grid))


def pictures_of(run: runs.Run) -> Any:
    return runs.make_render_fn(run)(make_scene().splits["test"].cameras, 1)


@pytest.fixture(scope="module")
def run() -> runs.Run:
    return make_run(tiny_nerf(field=FIELD, optimizer=OptimizerConfig(average=0.9)))


@pytest.fixture(scope="module")
def written(run: runs.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of it. Do not change it: copy it."""
    path = tmp_path_factory.mktemp("files") / "ball.npz"
    write_ternary(run, path, "ternary16")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_file_renders_the_pictures_of_its_run(
    run: runs.Run, tmp_path: Path, form: ternary.Format
) -> None:
    write_ternary(run, tmp_path / "ball", form)
    assert [path.name for path in tmp_path.iterdir()] == ["ball"]
    found, wanted = pictures_of(read_ternary(tmp_path / "ball")), pictures_of(run)
    assert np.std(wanted.rgb) > 0.01
    for name, picture in wanted._asdict().items():
        np.testing.assert_allclose(getattr(found, name), picture, atol=1e-6, err_msg=name)


def test_a_file_renders_the_pictures_of_a_run_on_an_occupancy_grid(tmp_path: Path) -> None:
    run = empty_some_cells(make_run(tiny_nerf(field=MARCHING)))
    write_ternary(run, tmp_path / "ball.npz", "ternary2")
    read = read_ternary(tmp_path / "ball.npz")
    assert differing_leaves(read.state.grid, run.state.grid) == []
    found, wanted = pictures_of(read), pictures_of(run)
    assert np.std(wanted.rgb) > 0.01
    for name, picture in wanted._asdict().items():
        np.testing.assert_allclose(getattr(found, name), picture, atol=1e-6, err_msg=name)


def test_a_file_holds_the_rendered_parameters_and_all_that_is_known_but_the_poses_of_pictures(
    run: runs.Run, written: Path
) -> None:
    read = read_ternary(written)
    assert read.folder == written
    scene = dataclasses.replace(run.scene, poses=())
    assert run.scene.poses
    assert (read.config, read.scene, read.stage) == (run.config, scene, run.stage)
    assert (int(read.state.step), read.seconds) == (7, 2.5)
    assert differing_leaves(read.state.grid, run.state.grid) == []
    assert set(read.state.shown) == {"coarse", "fine"}
    for name, network in run.state.shown.items():
        assert set(read.state.shown[name]["params"]) == set(network["params"])
        for layer, values in network["params"].items():
            found = read.state.shown[name]["params"][layer]
            whole, scale = jax.jit(quantise_weights)(values["kernel"])
            np.testing.assert_array_equal(found["kernel"], whole)
            np.testing.assert_array_equal(found["scale"], scale)
            np.testing.assert_array_equal(found["bias"], values["bias"])


def test_weights_take_the_bits_that_they_are_to_take(run: runs.Run, tmp_path: Path) -> None:
    layers = [layer for network in run.state.shown.values() for layer in network["params"].values()]
    kernels = sum(layer["kernel"].size for layer in layers)
    biases = sum(layer["bias"].size for layer in layers)
    assert ternary.count_weights(run.state.shown) == kernels + biases
    for form, digits in (("ternary2", 4), ("ternary16", 5)):
        path = tmp_path / form
        write_ternary(run, path, form)
        with np.load(path, allow_pickle=False) as arrays:
            sizes = {name: array.nbytes for name, array in arrays.items()}
        assert sizes["weights"] == -(-kernels // digits)
        assert (sizes["scales"], sizes["biases"]) == (4 * len(layers), 4 * biases)
        # What is in the file besides, text most of all, does not grow with the networks.
        assert path.stat().st_size < sizes["weights"] + 4 * (biases + len(layers)) + 6000


# ---------------------------------------------------------------------------------------------
# What cannot be used
# ---------------------------------------------------------------------------------------------


def test_a_run_of_another_field_is_refused(tmp_path: Path) -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    run = runs.Run(Path("runs/one"), config, scene, stage, state, 0.0)
    with pytest.raises(InputError, match=r"runs/one is of the field nerf.*bitnerf\.$"):
        write_ternary(run, tmp_path / "ball.npz", "ternary2")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_said(run: runs.Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output"):
        write_ternary(run, tmp_path / "file" / "ball.npz", "ternary2")


def test_a_file_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*nowhere\.npz.*\.$"):
        read_ternary(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_cut_short_is_refused(written: Path, tmp_path: Path, share: float) -> None:
    content = written.read_bytes()
    path = tmp_path / "ball.npz"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"ball\.npz is damaged.*export the run again\.$") as error:
        read_ternary(path)
    assert "\n" not in str(error.value)


def test_a_damaged_byte_is_found_or_does_not_matter(written: Path, tmp_path: Path) -> None:
    content, path = bytearray(written.read_bytes()), tmp_path / "ball.npz"
    whole = read_ternary(written).state.shown
    found = 0
    for place in np.random.default_rng(0).choice(len(content), 40, replace=False):
        damaged = content.copy()
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            assert differing_leaves(read_ternary(path).state.shown, whole) == []
        except InputError:
            found += 1
    assert found >= 20


def test_a_header_that_asks_for_too_much_memory_is_found_before(
    written: Path, tmp_path: Path
) -> None:
    content, path = written.read_bytes(), tmp_path / "ball.npz"
    damaged = re.sub(rb"\((\d+),\), } {12}", rb"(\g<1>999999999999,), }", content)
    assert damaged != content and len(damaged) == len(content)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="checksum"):
        read_ternary(path)


def rewrite(source: Path, path: Path, **changes: Any) -> None:
    """The same file with other arrays, and with checksums that are right."""
    with np.load(source) as arrays:
        kept = {name: array for name, array in arrays.items() if name not in changes}
    changed = {name: array for name, array in changes.items() if array is not None}
    with path.open("wb") as file:
        np.savez(file, **kept, **changed)


@pytest.mark.parametrize("name", ["meta", "weights", "scales", "biases", "occupied", "aabb"])
def test_a_file_without_one_of_its_parts_is_refused(
    written: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "ball.npz"
    rewrite(written, path, **{name: None})
    with pytest.raises(InputError, match=f"{name}.*export the run again"):
        read_ternary(path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("meta", np.frombuffer(b"{}", np.uint8)),
        ("meta", np.frombuffer(b"[1]", np.uint8)),
        ("meta", np.frombuffer(b"\xff", np.uint8)),
        ("weights", np.zeros(3, np.uint8)),
        ("scales", np.ones(3, np.float32)),
        ("biases", np.ones(3, np.float32)),
        ("occupied", np.zeros(99, np.uint8)),
        ("scales", np.array([{}], object)),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    written: Path, tmp_path: Path, name: str, array: np.ndarray
) -> None:
    path = tmp_path / "ball.npz"
    rewrite(written, path, **{name: array})
    with pytest.raises(InputError, match="export the run again"):
        read_ternary(path)


def test_files_hold_no_pickles(written: Path) -> None:
    with np.load(written, allow_pickle=False) as arrays:
        assert all(array.dtype != object for array in arrays.values())
    with zipfile.ZipFile(written) as file:
        assert all(name.endswith(".npy") for name in file.namelist())


# ---------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(run: runs.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder with a checkpoint. Do not change it: copy it."""
    folder = tmp_path_factory.mktemp("runs") / "ball"
    runs.create_folder(folder)
    runs.write_config(folder, run.config)
    manager = runs.open_checkpoints(folder, run.config)
    runs.save(manager, run.scene, run.stage, run.state, run.seconds, None)
    manager.wait_until_finished()
    manager.close()
    return folder


def test_export_says_how_small_the_file_is_and_render_takes_it(
    stored: Path, run: runs.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(stored, tmp_path / "run"))
    assert cli.main(["export", str(folder), "--format", "ternary16"]) == 0
    file = folder / "ternary16.npz"
    output = capsys.readouterr().out
    assert f"{file.stat().st_size / 1e3:.1f} kB" in output
    assert f"{4 * ternary.count_weights(run.state.shown) / 1e3:.1f} kB" in output
    small = ["--frames", "1", "--size", "16", "--channels", "rgb"]
    assert cli.main(["render", str(file), *small]) == 0
    assert cli.main(["render", str(folder), *small]) == 0
    capsys.readouterr()
    assert cli.main(["render", str(file), *small, "--path", "train"]) == 2
    assert "does not hold the poses of its training pictures" in capsys.readouterr().err
    picture = Path("rgb") / "0000.png"
    wanted = (folder / "orbit" / picture).read_bytes()
    assert (folder / "ternary16-orbit" / picture).read_bytes() == wanted


@pytest.mark.parametrize("name", ["there.npz", "folder"])
def test_export_replaces_nothing_that_it_was_given(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.npz").write_text("mine")
    assert cli.main(["export", str(stored), "--output", str(tmp_path / name)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "there.npz").read_text() == "mine"


def test_render_of_a_file_has_no_checkpoints_to_choose_from(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["render", str(written), "--step", "3"]) == 2
    assert "--step 3" in capsys.readouterr().err
