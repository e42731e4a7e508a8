"""Fields of the user: `--field FILE:CLASS`, its options and errors, and runs that are resumed."""

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
from programs import assert_one_sentence, error_line
from scenes import differing_leaves

from jaxrf import presets
from jaxrf.cli import main as cli
from jaxrf.cli.train import parse_training
from jaxrf.core.errors import InputError
from jaxrf.models.hierarchical import HierarchicalModel
from jaxrf.training import runs

pytestmark = pytest.mark.as_used

BLOBS = Path(__file__).resolve().parents[2] / "docs" / "blobs.py"

SOURCE = """
import dataclasses
import jax.numpy as jnp
from jaxrf.fields import Field

number = 3

class Plain:
    def init(self, key): ...
    def density(self, params, positions, context): ...
    def color(self, params, features, directions): ...

class NoInit(Field):
    def density(self, params, positions, context): ...
    def color(self, params, features, directions): ...

class NoDensity(Field):
    def init(self, key): ...
    def color(self, params, features, directions): ...

class NoColor(Field):
    def init(self, key): ...
    def density(self, params, positions, context): ...

class Complete(Field):
    def init(self, key): return {"raw": jnp.zeros(())}
    def density(self, params, positions, context):
        return jnp.exp(params["raw"]) * jnp.ones(len(positions)), positions
    def color(self, params, features, directions): return 0.5 + 0.0 * features

@dataclasses.dataclass(frozen=True)
class Needy(Complete):
    size: int = dataclasses.field(kw_only=True)

@dataclasses.dataclass(frozen=True)
class Unhashable(Complete):
    sizes: list = dataclasses.field(default_factory=list)
"""


@pytest.mark.parametrize("spelling", [["--field", f"{BLOBS}:Blobs"], [f"--field={BLOBS}:Blobs"]])
def test_field_makes_options_of_the_numbers_of_a_class(spelling: list[str]) -> None:
    arguments = ["--field.num-blobs", "9", *spelling, "--num-steps", "7"]
    parsed, name = parse_training(arguments, "prog")
    assert name == parsed.field_source == f"{BLOBS}:Blobs"
    assert (parsed.field.name, parsed.num_steps) == ("blobs", 7)
    numbers = dataclasses.asdict(parsed.field)
    assert numbers == {"compute_dtype": "float32", "num_blobs": 9, "initial_size": 0.06}
    # Everything else is as for a small hash grid, colored as the field suggests.
    small = presets.hashgrid_small()
    expected = dataclasses.replace(
        small,
        field=parsed.field,
        field_source=parsed.field_source,
        num_steps=7,
        model=dataclasses.replace(small.model, coloring=None),
    )
    assert parsed == expected


def test_field_can_be_rendered_by_another_model() -> None:
    arguments = ["--field", f"{BLOBS}:Blobs", "--model", "hierarchical"]
    parsed, _ = parse_training([*arguments, "--model.num-fine-samples", "5"], "prog")
    assert parsed.model == HierarchicalModel(num_fine_samples=5)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "--field is '': give a Python file and a name in it, such as my_file.py:name."),
        ("blobs", "--field is 'blobs': give a Python file and a name in it"),
        ("missing.py:Field", "missing.py:Field': give a Python file and a name in it"),
        ("field.py", "field.py': give a Python file and a name in it"),
        ("field.txt:Field", "field.txt must end in .py."),
        ("broken.py:Field", "broken.py cannot be run (ZeroDivisionError: division by zero, line 2"),
        ("field.py:Missing", "has no 'Missing': give a name that it defines in --field."),
        ("field.py:number", "is no class: name one in --field."),
        ("field.py:Plain", "is no field: derive it from jaxrf.fields.Field, as in docs/howto/"),
        ("field.py:NoInit", "is no field, it has no 'init': define it, as in docs/howto/"),
        ("field.py:NoDensity", "is no field, it has no 'density': define it, as in docs/howto/"),
        ("field.py:NoColor", "is no field, it has no 'color': define it, as in docs/howto/"),
        ("field.py:Needy", "cannot be made without arguments, as a frozen dataclass of numbers"),
        ("field.py:Unhashable", "(TypeError: unhashable type: 'list'): correct it."),
    ],
)
def test_field_names_what_is_wrong_with_a_class(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("field.py").write_text(SOURCE)
    Path("field.txt").write_text(SOURCE)
    Path("broken.py").write_text("x = 1\ny = x / 0\n")
    source = str(tmp_path / name) if ".py" in name else name
    assert cli.run_command("train", ["--field", source]) == 2
    assert complaint in error_line(capsys)
    assert not Path("runs").exists()


def test_a_complete_class_is_a_field(tmp_path: Path) -> None:
    (tmp_path / "field.py").write_text(SOURCE)
    parsed, _ = parse_training(["--field", f"{tmp_path / 'field.py'}:Complete"], "prog")
    assert parsed.field.name == "complete"


# A few steps of a few blobs.
TINY_BLOBS = shlex.split("""
    --num-steps 12 --batch-rays 64 --batch-samples 2048 --render-samples 2048 --field.num-blobs 6
    --model.occupancy-resolution 8 --model.steps-per-diagonal 32 --model.occupancy-update-interval 4
    --background white --steps-per-dispatch 4 --validate-every 0 --video.frames 0
    --checkpoint-seconds 1e-9 --keep-checkpoints 20
""")


@pytest.fixture(scope="module")
def blobs_run(tmp_path_factory: pytest.TempPathFactory, scene_folder: Path) -> Path:
    """A complete training of a field whose file has been damaged since."""
    folder = tmp_path_factory.mktemp("blobs")
    source = Path(shutil.copy(BLOBS, folder / "mine.py"))
    arguments = ["--field", f"{source}:Blobs", "--data", str(scene_folder), *TINY_BLOBS]
    assert cli.run_command("train", [*arguments, "--run-dir", str(folder / "run")]) == 0
    source.write_text("raise ValueError")
    return folder / "run"


def test_a_run_holds_the_file_of_its_field(blobs_run: Path, tmp_path: Path) -> None:
    assert (blobs_run / "mine.py").read_bytes() == BLOBS.read_bytes()
    moved = Path(shutil.copytree(blobs_run, tmp_path / "moved"))
    config = runs.read_config(moved)
    assert config.field_source == f"{moved / 'mine.py'}:Blobs"
    assert dataclasses.asdict(config.field)["num_blobs"] == 6
    assert runs.open_run(moved).stage.field == config.field


def test_a_moved_run_of_a_user_field_resumes_to_the_same_bits(
    blobs_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = runs.open_run(blobs_run)
    moved = Path(shutil.copytree(blobs_run, tmp_path / "moved"))
    steps = sorted(int(p.name) for p in (moved / "checkpoints").iterdir() if p.name.isdigit())
    assert len(steps) >= 3 and steps[-1] == 12
    # As if it had been stopped after its first dispatches.
    for step in steps[2:]:
        shutil.rmtree(moved / "checkpoints" / str(step))
    (moved / "metrics.json").unlink()
    capsys.readouterr()
    assert cli.run_command("train", ["--resume", "--run-dir", str(moved)]) == 0
    assert f"Resuming {moved} at step {steps[1]} of 12." in capsys.readouterr().out
    resumed = runs.open_run(moved)
    assert int(resumed.state.step) == 12
    assert differing_leaves(resumed.state, complete.state) == []
    scores = [json.loads((run / "metrics.json").read_text())["test"] for run in (blobs_run, moved)]
    assert scores[0] == scores[1]


def test_a_run_of_a_user_field_can_be_scored(blobs_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(blobs_run, tmp_path / "copy"))
    before = json.loads((copy / "metrics.json").read_text())
    assert cli.run_command("eval", [str(copy)]) == 0
    assert json.loads((copy / "metrics.json").read_text())["test"] == before["test"]


def test_resume_names_a_number_of_a_user_field_that_contradicts_the_run(
    blobs_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--resume", "--run-dir", str(blobs_run), "--field.num-blobs", "7"]
    assert cli.run_command("train", arguments) == 2
    assert "--field.num-blobs 7 contradicts" in error_line(capsys)


def test_a_run_whose_field_cannot_be_loaded_is_refused_in_one_sentence(
    blobs_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(blobs_run, tmp_path / "copy"))
    (copy / "mine.py").write_text("import no_such_module")
    assert cli.run_command("eval", [str(copy)]) == 2
    assert_one_sentence(capsys, str(copy / "mine.py"), "no_such_module")


def test_a_field_and_a_loss_of_one_file_name_are_refused(
    tmp_path: Path, scene_folder: Path
) -> None:
    loss = tmp_path / "blobs.py"
    loss.write_text("def absolute(a, b):\n    return abs(a - b).mean(-1)\n")
    config, _ = parse_training(
        ["--field", f"{BLOBS}:Blobs", "--loss.source", f"{loss}:absolute"], "prog"
    )
    runs.create_folder(tmp_path / "run")
    with pytest.raises(InputError, match="give the files of a field and of a loss different names"):
        runs.vendor_user_code(tmp_path / "run", config)
