"""The plan of the house: imports point only downwards, and nothing happens at import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxrf"

# From the ground up. A room may use what lies on a lower floor, never its neighbours on its own.
FLOORS: tuple[frozenset[str], ...] = tuple(
    frozenset(floor.split())
    for floor in (
        "__init__",
        "errors keys memory pytree",
        "config machine user_code",
        "rays stepfun contraction lenses packing progress",
        "cameras",
        "data",
        "encodings grids occupancy paths",
        "fields",
        "samplers",
        "render",
        "losses metrics lpips",
        "optim",
        "methods",
        "stages",
        "pictures",
        "checkpoint writers parallel",
        "evaluate painter",
        "batches summaries",
        "train",
        "runs",
        "monitor",
        "convert export viewer",
        "cli_options",
        "videos",
        "commands",
        "bench experiments",
        "cli",
        "__main__",
    )
)
FLOOR_OF = {room: height for height, floor in enumerate(FLOORS) for room in floor}
LEAVES = frozenset(
    {"errors", "keys", "memory", "pytree", "stepfun", "contraction", "lenses", "packing"}
)

SOURCES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of all that a source imports, wherever in the file it does so.

    `from a import b` gives `a.b`: whether b is a module or a name in one, the room is the same.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    package = ".".join(path.parent.relative_to(ROOT).parts)
    return imported_modules(path.read_text(encoding="utf-8"), package)


def rooms_imported(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imports_of(path):
        top, *rest = name.split(".")
        if top == "jaxrf":
            # Otherwise a name of the package's own, as in `from jaxrf import __version__`.
            inside = rest and ((PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").exists())
            yield line, rest[0] if inside else "__init__"


def run_python(code: str) -> None:
    """A new interpreter, because this one has long imported everything."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_point_downwards(path: Path) -> None:
    here = room_of(path)
    assert here in FLOOR_OF, (
        f"jaxrf/{here} is not in the plan of the house: give it a floor in FLOORS in "
        "tests/test_imports.py, above all that it imports and below all that import it"
    )
    for line, there in rooms_imported(path):
        where = f"{path.relative_to(ROOT)}:{line}"
        assert there in FLOOR_OF, f"{where} imports jaxrf.{there}, which is not in FLOORS"
        assert here not in LEAVES, f"{where}: {here} is a leaf and may import nothing of jaxrf"
        assert there == here or FLOOR_OF[there] < FLOOR_OF[here], (
            f"{where}: {here} may not import {there}, which does not lie on a lower floor"
        )


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import jaxrf.render", {"jaxrf.render"}),
        ("from jaxrf import render, rays", {"jaxrf.render", "jaxrf.rays"}),
        ("from jaxrf.data.base import Scene", {"jaxrf.data.base.Scene"}),
        ("from .base import Field", {"jaxrf.fields.base.Field"}),
        ("from . import base", {"jaxrf.fields.base"}),
        ("from .. import render", {"jaxrf.render"}),
        ("from ..render import weights", {"jaxrf.render.weights"}),
        ("def f():\n    import jaxrf.cli as c", {"jaxrf.cli"}),
    ],
)
def test_every_way_of_importing_is_seen(statement: str, expected: set[str]) -> None:
    assert {name for _, name in imported_modules(statement, "jaxrf.fields")} == expected


def test_torch_stays_a_development_dependency() -> None:
    # What is compared with PyTorch needs it, and says so by its name.
    compared = sorted(ROOT.glob("benchmarks/*_torch.py"))
    assert compared
    outside = [
        path
        for path in [*SOURCES, *ROOT.glob("*.py"), *ROOT.glob("benchmarks/**/*.py")]
        if PACKAGE / "convert" not in path.parents and path not in compared
    ]
    guilty = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in outside
        for line, name in imports_of(path)
        if name.split(".")[0] in {"torch", "torchvision"}
    ]
    assert not guilty, f"torch may be imported in jaxrf/convert and in tests only, not in {guilty}"


@pytest.mark.parametrize("module", ["jaxrf", "jaxrf.config", "jaxrf.cli"])
def test_import_without_jax(module: str) -> None:
    run_python(f"import sys, {module}; assert 'jax' not in sys.modules, '{module} imports jax'")


def test_no_import_touches_a_device() -> None:
    """An import must not take the accelerator, nor fix the platform before the user can."""
    run_python(
        "import importlib\n"
        "from jax._src import xla_bridge\n"
        f"for name in {[module_of(path) for path in SOURCES]}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        # Optional packages of one room: torch for convert, viser for the viewer.
        "        assert error.name in ('torch', 'viser'), (name, error)\n"
        "    assert not xla_bridge.backends_are_initialized(), f'{name} starts a backend'\n"
    )
