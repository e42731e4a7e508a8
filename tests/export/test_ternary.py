"""Ternary files: packing, contents, and the images rendered from them."""

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
from jaxrf.fields.bitnerf import BitNeRF, quantize_weights
from jaxrf.models.base import ModelParams
from jaxrf.models.packed import PackedModel
from jaxrf.sampling.density_tracking import track_density
from jaxrf.training import runs
from jaxrf.training.config import OptimizerConfig, TrainConfig
from jaxrf.training.scene_metadata import SceneMetadata


@pytest.fixture(autouse=True, scope="module")
def keep_jax_settings() -> Iterator[None]:
    """The precision that commands set, so that all tests of this file share compiled programs."""
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    yield
    jax.config.update("jax_default_matmul_precision", before)


FORMATS: tuple[ternary.TernaryFormat, ...] = ("ternary-2bit", "ternary-1.6bit")
TRITS = hnp.arrays(np.int8, st.integers(0, 40), elements=st.integers(-1, 1))

# ---------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------


@given(trits=TRITS, format_name=st.sampled_from(FORMATS))
def test_pack_trits_roundtrip(trits: np.ndarray, format_name: ternary.TernaryFormat) -> None:
    packing = PACKINGS[format_name]
    packed = pack_trits(trits, packing)
    assert packed.dtype == np.uint8
    assert len(packed) == -(-len(trits) // {"ternary-2bit": 4, "ternary-1.6bit": 5}[format_name])
    unpacked = unpack_trits(packed, len(trits), packing)
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, trits)


def test_unpack_trits_accepts_each_packed_byte_and_refuses_the_others() -> None:
    for format_name, digits, count in (("ternary-2bit", 4, 3**4), ("ternary-1.6bit", 5, 3**5)):
        packable = []
        for byte in range(256):
            try:
                trits = unpack_trits(np.array([byte], np.uint8), digits, PACKINGS[format_name])
            except ValueError:
                continue
            packable.append(tuple(trits))
            assert pack_trits(trits, PACKINGS[format_name]).tolist() == [byte]
        assert len(packable) == len(set(packable)) == count


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("count", [5, 11])
def test_unpack_trits_refuses_too_few_or_too_many_bytes(
    format_name: ternary.TernaryFormat, count: int
) -> None:
    packed = pack_trits(np.ones(20, np.int8), PACKINGS[format_name])
    with pytest.raises(ValueError, match=f"{count} weights"):
        unpack_trits(packed, count, PACKINGS[format_name])


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------

FIELD = BitNeRF(
    layers=2,
    width=24,
    skip=1,
    color_width=16,
    num_position_frequencies=4,
    num_direction_frequencies=1,
)


def make_run(config: TrainConfig, folder: Path = Path("runs/one")) -> runs.Run:
    """A run with random parameters, including biases and averages."""
    # Not a cube, so that the box cannot be confused with a default.
    stage, state = first_state(config, np.array([[-1, -1.2, -0.9], [1, 1, 1.1]], np.float32))
    rng = np.random.default_rng(3)

    def scatter(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype), tree)

    state = dataclasses.replace(
        state,
        params=scatter(state.params),
        ema_params=None if state.ema_params is None else scatter(state.ema_params),
        step=jnp.asarray(7, jnp.int32),
    )
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    return runs.Run(folder, config, scene, stage, state, 2.5)


def empty_random_cells(run: runs.Run) -> runs.Run:
    """The run with an occupancy grid in which only half of the cells of one octant are occupied."""
    occupied = np.random.default_rng(5).random(run.stage.grid_resolution) < 0.5
    for axis in range(3):
        np.swapaxes(occupied, 0, axis)[run.stage.grid_resolution[axis] // 2 :] = False
    grid = dataclasses.replace(run.state.grid, occupied=jnp.asarray(occupied))
    grid = track_density(grid, run.stage.dilation_cells)
    return dataclasses.replace(run, state=dataclasses.replace(run.state, grid=grid))


def render_test_view(run: runs.Run) -> Any:
    return runs.make_render_fn(run)(make_scene().splits["test"].cameras, 1)


def list_networks(run: runs.Run) -> list[dict[str, Any]]:
    """Returns the layers of the coarse and of the fine network."""
    params = run.state.eval_params
    assert isinstance(params, ModelParams) and params.coarse is not None
    return [params.coarse["params"], params.field["params"]]


@pytest.fixture(scope="module")
def run() -> runs.Run:
    return make_run(tiny_nerf(field=FIELD, optimizer=OptimizerConfig(ema_decay=0.9)))


@pytest.fixture(scope="module")
def written(run: runs.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the run. Copy it, do not change it."""
    path = tmp_path_factory.mktemp("files") / "ball.npz"
    write_ternary(run, path, "ternary-1.6bit")
    return path


@pytest.mark.parametrize("format_name", FORMATS)
def test_read_ternary_renders_the_images_of_the_run(
    run: runs.Run, tmp_path: Path, format_name: ternary.TernaryFormat
) -> None:
    write_ternary(run, tmp_path / "ball", format_name)
    assert [path.name for path in tmp_path.iterdir()] == ["ball"]
    actual = render_test_view(read_ternary(tmp_path / "ball"))
    expected = render_test_view(run)
    assert np.std(expected.rgb) > 0.01
    for name, image in expected._asdict().items():
        np.testing.assert_allclose(getattr(actual, name), image, atol=1e-6, err_msg=name)


def test_read_ternary_renders_the_images_of_a_run_on_an_occupancy_grid(tmp_path: Path) -> None:
    model = PackedModel(coloring="per_ray", occupancy_resolution=40, steps_per_diagonal=64)
    run = empty_random_cells(make_run(tiny_nerf(field=FIELD, model=model, layers=1)))
    write_ternary(run, tmp_path / "ball.npz", "ternary-2bit")
    read = read_ternary(tmp_path / "ball.npz")
    assert differing_leaves(read.state.grid, run.state.grid) == []
    actual, expected = render_test_view(read), render_test_view(run)
    assert np.std(expected.rgb) > 0.01
    for name, image in expected._asdict().items():
        np.testing.assert_allclose(getattr(actual, name), image, atol=1e-6, err_msg=name)


def test_read_ternary_restores_everything_but_the_training_poses(
    run: runs.Run, written: Path
) -> None:
    read = read_ternary(written)
    assert read.folder == written
    scene = dataclasses.replace(run.scene, poses=())
    assert run.scene.poses
    assert (read.config, read.scene, read.stage) == (run.config, scene, run.stage)
    assert (int(read.state.step), read.seconds) == (7, 2.5)
    assert differing_leaves(read.state.grid, run.state.grid) == []
    assert read.state.eval_params.proposals == () and read.state.eval_params.appearance is None
    networks = zip(list_networks(read), list_networks(run), strict=True)
    for read_network, network in networks:
        assert set(read_network) == set(network)
        for layer, values in network.items():
            actual = read_network[layer]
            trits, scale = jax.jit(quantize_weights)(values["kernel"])
            np.testing.assert_array_equal(actual["kernel"], trits)
            np.testing.assert_array_equal(actual["scale"], scale)
            np.testing.assert_array_equal(actual["bias"], values["bias"])


def test_write_ternary_packs_four_or_five_weights_per_byte(run: runs.Run, tmp_path: Path) -> None:
    layers = [layer for network in list_networks(run) for layer in network.values()]
    kernels = sum(layer["kernel"].size for layer in layers)
    biases = sum(layer["bias"].size for layer in layers)
    assert ternary.count_weights(run.state.eval_params) == kernels + biases
    for format_name, digits in (("ternary-2bit", 4), ("ternary-1.6bit", 5)):
        path = tmp_path / format_name
        write_ternary(run, path, format_name)
        with np.load(path, allow_pickle=False) as arrays:
            sizes = {name: array.nbytes for name, array in arrays.items()}
        assert sizes["weights"] == -(-kernels // digits)
        assert (sizes["scales"], sizes["biases"]) == (4 * len(layers), 4 * biases)
        # The configuration, as text, does not depend on the networks.
        rest = sizes["meta"] + 2000
        assert path.stat().st_size < sizes["weights"] + 4 * (biases + len(layers)) + rest


# ---------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------


def test_write_ternary_refuses_another_field(tmp_path: Path) -> None:
    config = tiny_nerf()
    stage, state = first_state(config)
    scene = SceneMetadata.from_scene(make_scene(), Path("/data/ball"))
    run = runs.Run(Path("runs/one"), config, scene, stage, state, 0.0)
    with pytest.raises(InputError, match=r"runs/one has the field nerf.*bitnerf\.$"):
        write_ternary(run, tmp_path / "ball.npz", "ternary-2bit")
    assert list(tmp_path.iterdir()) == []


def test_write_ternary_reports_an_unwritable_folder(run: runs.Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="with output"):
        write_ternary(run, tmp_path / "file" / "ball.npz", "ternary-2bit")


def test_read_ternary_reports_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*nowhere\.npz.*\.$"):
        read_ternary(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
def test_read_ternary_refuses_a_truncated_file(
    written: Path, tmp_path: Path, fraction: float
) -> None:
    content = written.read_bytes()
    path = tmp_path / "ball.npz"
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(InputError, match=r"ball\.npz is damaged.*export the run again\.$") as error:
        read_ternary(path)
    assert "\n" not in str(error.value)


def test_read_ternary_detects_damaged_bytes_that_matter(written: Path, tmp_path: Path) -> None:
    content, path = bytearray(written.read_bytes()), tmp_path / "ball.npz"
    expected = read_ternary(written).state.eval_params
    detected = 0
    for index in np.random.default_rng(0).choice(len(content), 40, replace=False):
        damaged = content.copy()
        damaged[index] ^= 0x55
        path.write_bytes(damaged)
        try:
            assert differing_leaves(read_ternary(path).state.eval_params, expected) == []
        except InputError:
            detected += 1
    assert detected >= 20


def test_read_ternary_checks_before_a_damaged_header_asks_for_memory(
    written: Path, tmp_path: Path
) -> None:
    content, path = written.read_bytes(), tmp_path / "ball.npz"
    damaged = re.sub(rb"\((\d+),\), } {12}", rb"(\g<1>999999999999,), }", content)
    assert damaged != content and len(damaged) == len(content)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="checksum"):
        read_ternary(path)


def rewrite(source: Path, path: Path, **changes: Any) -> None:
    """Copies a file with other arrays and correct checksums; None leaves an array out."""
    with np.load(source) as arrays:
        unchanged = {name: array for name, array in arrays.items() if name not in changes}
    changed = {name: array for name, array in changes.items() if array is not None}
    with path.open("wb") as file:
        np.savez(file, **unchanged, **changed)


@pytest.mark.parametrize("name", ["meta", "weights", "scales", "biases", "occupied", "aabb"])
def test_read_ternary_refuses_a_file_without_an_array(
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
def test_read_ternary_refuses_arrays_that_do_not_match(
    written: Path, tmp_path: Path, name: str, array: np.ndarray
) -> None:
    path = tmp_path / "ball.npz"
    rewrite(written, path, **{name: array})
    with pytest.raises(InputError, match="export the run again"):
        read_ternary(path)


def test_write_ternary_writes_no_pickles(written: Path) -> None:
    with np.load(written, allow_pickle=False) as arrays:
        assert all(array.dtype != object for array in arrays.values())
    with zipfile.ZipFile(written) as file:
        assert all(name.endswith(".npy") for name in file.namelist())


# ---------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(run: runs.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder with a checkpoint. Copy it, do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "ball"
    runs.create_folder(folder)
    runs.write_config(folder, run.config)
    manager = runs.open_checkpoints(folder, run.config)
    runs.save(manager, run.scene, run.stage, run.state, run.seconds, None)
    manager.wait_until_finished()
    manager.close()
    return folder


def test_export_reports_the_size_of_a_file_that_render_reads(
    stored: Path, run: runs.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(stored, tmp_path / "run"))
    assert cli.main(["export", str(folder), "--format", "ternary-1.6bit"]) == 0
    file = folder / "ternary-1.6bit.npz"
    output = capsys.readouterr().out
    assert f"{file.stat().st_size / 1e3:.1f} kB" in output
    assert f"{4 * ternary.count_weights(run.state.eval_params) / 1e3:.1f} kB" in output
    small = ["--frames", "1", "--size", "16", "--channels", "rgb"]
    assert cli.main(["render", str(file), *small]) == 0
    assert cli.main(["render", str(folder), *small]) == 0
    capsys.readouterr()
    assert cli.main(["render", str(file), *small, "--path", "train"]) == 2
    assert "does not hold the poses of its training images" in capsys.readouterr().err
    image = Path("rgb") / "0000.png"
    expected = (folder / "orbit" / image).read_bytes()
    assert (folder / "ternary-1.6bit-orbit" / image).read_bytes() == expected


@pytest.mark.parametrize("name", ["existing.npz", "folder"])
def test_export_refuses_to_overwrite_a_named_output(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "existing.npz").write_text("unchanged")
    assert cli.main(["export", str(stored), "--output", str(tmp_path / name)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "existing.npz").read_text() == "unchanged"


def test_render_refuses_a_step_for_a_file(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["render", str(written), "--step", "3"]) == 2
    assert "--step 3" in capsys.readouterr().err
