"""Releases: the sdist and the wheel are complete, and the wheel works outside of the tree."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import jaxrf

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LEFT_OUT = shutil.ignore_patterns(
    ".*", "data-info", "runs", "shared", "build", "dist", "site", "*.egg-info", "__pycache__"
)


def test_one_version_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    assert PROJECT["version"] == jaxrf.__version__ == cited
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", PROJECT["version"])


def test_package_data_names_every_file_that_is_no_python() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = settings["tool"]["setuptools"]["package-data"]["jaxrf"]
    package = ROOT / "jaxrf"
    present = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert "py.typed" in present
    assert present == set(declared)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a program that must succeed. It does not see the tree."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist of a copy of the tree, and a wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("release")
    tree, dist = folder / "tree", folder / "dist"
    # A build writes into the tree, and files of an earlier one would find their way into the wheel.
    shutil.copytree(ROOT, tree, ignore=_ignore_outputs)
    build = (
        "import sys\n"
        "from setuptools import build_meta\n"
        "print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]))\n"
    )
    run(sys.executable, "-c", build, "sdist", dist, cwd=tree)
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-c", build, "wheel", dist, cwd=unpacked)
    (wheel,) = dist.glob("*.whl")
    return sdist, wheel


def _ignore_outputs(folder: str, names: list[str]) -> set[str]:
    # jaxrf/data is a package; data/ at the top holds data sets.
    data = {"data"} if Path(folder) == ROOT else set()
    return data | LEFT_OUT(folder, names)


@pytest.mark.slow
@pytest.mark.as_used
def test_wheel_holds_the_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        described = email.message_from_bytes(archive.read(metadata))
    package = ROOT / "jaxrf"
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"jaxrf/py.typed", "jaxrf/export/pages/page.html"} <= expected
    assert {n for n in names if ".dist-info/" not in n} == expected
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert described["Name"] == "jaxrf" and described["Version"] == jaxrf.__version__
    requirements = [r for r in described.get_all("Requires-Dist") if "extra ==" not in r]
    assert any(r.startswith("jax<") or r.startswith("jax>") for r in requirements)
    assert not any(r.startswith(("torch", "pytest")) for r in requirements)


@pytest.mark.slow
@pytest.mark.as_used
def test_sdist_builds_without_the_tree(built: tuple[Path, Path]) -> None:
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    # setuptools reads both lists of requirements while it builds.
    needed = {"pyproject.toml", "LICENSE", "README.md", "requirements.txt"}
    needed |= {"requirements-dev.txt", "requirements-photos.txt"}
    assert needed | {"jaxrf/py.typed", "jaxrf/export/pages/page.html"} <= names


@pytest.mark.slow
@pytest.mark.as_used
def test_wheel_works_outside_of_the_tree(built: tuple[Path, Path], tmp_path: Path) -> None:
    _, wheel = built
    venv.create(tmp_path / "env", with_pip=False)
    scripts = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    asked = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(run(python, "-c", asked, cwd=tmp_path).strip())
    # The packages of the running environment stand in for a download. Their .pth files are not
    # read, so an editable installation of jaxrf there stays invisible.
    packages = sorted({path for path in sys.path if path.endswith("site-packages")})
    (site / "borrowed.pth").write_text("\n".join(packages))
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run(sys.executable, *install, "--ignore-installed", wheel, cwd=tmp_path)

    found = run(python, "-c", "import jaxrf; print(jaxrf.__file__)", cwd=tmp_path).strip()
    assert Path(found).resolve() == (site / "jaxrf" / "__init__.py").resolve()
    version = "from importlib.metadata import version; print(version('jaxrf'))"
    assert run(python, "-c", version, cwd=tmp_path).strip() == jaxrf.__version__
    command = scripts / "jaxrf"
    usage = run(command, "--help", cwd=tmp_path)
    assert "train" in usage and "render" in usage
    assert run(python, "-m", "jaxrf", "--help", cwd=tmp_path) == usage
    # A command that imports jax and every room.
    run(python, "-c", "import jaxrf.cli.main, jaxrf.export.web", cwd=tmp_path, JAX_PLATFORMS="cpu")
    unexpected = "import importlib.util as u; assert u.find_spec('tests') is None"
    run(python, "-c", unexpected, cwd=tmp_path)
