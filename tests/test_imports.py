"""Imports: torch is optional, `import jaxrf` and help need no jax, and nothing happens at import.

Which package may import which is in pyproject.toml, and `lint-imports` checks it.
"""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxrf"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Packages that single rooms need and the others do without.
OPTIONAL = ("torch", "viser")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of each import of a source, those inside functions included.

    `from a import b` gives `a.b`, whether b is a module or a name in one.
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


def run_python(code: str) -> None:
    """A new interpreter, because this one has long imported everything."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_each_package_has_a_layer() -> None:
    """The contract names every package, from the command line down to core."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {c["id"]: c for c in settings["tool"]["importlinter"]["contracts"]}
    layers = contracts["layers"]["layers"]
    rooms = [room.strip(" ()") for layer in layers for room in layer.split("|")]
    assert len(rooms) == len(set(rooms))
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= set(rooms)
    assert layers[0] == "cli" and layers[-1] == "core"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import jaxrf.rendering", {"jaxrf.rendering"}),
        ("from jaxrf import rendering, core", {"jaxrf.rendering", "jaxrf.core"}),
        ("from jaxrf.data.scene import Scene", {"jaxrf.data.scene.Scene"}),
        ("from .base import Field", {"jaxrf.fields.base.Field"}),
        ("from . import base", {"jaxrf.fields.base"}),
        ("from .. import rendering", {"jaxrf.rendering"}),
        ("from ..rendering import volume", {"jaxrf.rendering.volume"}),
        ("def f():\n    import jaxrf.cli as c", {"jaxrf.cli"}),
    ],
)
def test_imported_modules_reads_every_form_of_import(statement: str, expected: set[str]) -> None:
    assert {name for _, name in imported_modules(statement, "jaxrf.fields")} == expected


def test_torch_stays_a_development_dependency() -> None:
    # Benchmarks that compare with PyTorch need it, and say so in their names.
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


@pytest.mark.parametrize("module", ["jaxrf", "jaxrf.cli.main"])
def test_import_without_jax(module: str) -> None:
    run_python(f"import sys, {module}; assert 'jax' not in sys.modules, '{module} imports jax'")


def test_help_without_jax() -> None:
    run_python(
        "import runpy, sys\n"
        "sys.argv = ['jaxrf', '--help']\n"
        "try:\n"
        "    runpy.run_module('jaxrf', run_name='__main__')\n"
        "except SystemExit as exit:\n"
        "    assert not exit.code, exit.code\n"
        "assert 'jax' not in sys.modules, 'jaxrf --help imports jax'\n"
    )


def test_no_import_touches_a_device() -> None:
    """An import must not take the accelerator, nor fix the platform before the user can."""
    run_python(
        "import importlib\n"
        "from jax._src import xla_bridge\n"
        f"for name in {[module_of(path) for path in SOURCES]}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        f"        assert error.name in {OPTIONAL}, (name, error)\n"
        "    assert not xla_bridge.backends_are_initialized(), f'{name} starts a backend'\n"
    )
