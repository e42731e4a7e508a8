"""The documentation: code runs, commands parse, options exist, links lead somewhere.

A comment before a block tells the tests what to replace in something slow, or not to run it:
`<!-- in tests: old => new | old => new -->`, or `<!-- not run: why -->`.
"""

import ast
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from scenes import tiny_voxels, write_scene

from jaxrf import fields, models
from jaxrf.cli import bench, convert, data, export, view
from jaxrf.cli import eval as eval_command
from jaxrf.cli import main as cli
from jaxrf.core.errors import InputError
from jaxrf.export.render_options import RenderOptions
from jaxrf.studies.options import BenchOptions, ExperimentsOptions
from jaxrf.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
# Options of other programs that the pages mention.
FOREIGN = {"--cov", "--logdir", "--no-sandbox", "--strict"}
# Placeholders in commands, and values for them.
STAND_INS = {
    "SECONDS": "60",
    "SEED": "0",
    "PRESET": "voxels-small",
    "HOST:PORT": "host:1234",
    "FORMAT": "mesh",
    "FILE:CLASS": "docs/blobs.py:Blobs",
    "N": "2",
    "I": "0",
    "S": "8",
    "K": "2",
}
# Options of all commands but training.
OPTIONS = (
    convert.ConvertOptions,
    data.DataInfoOptions,
    data.DataFetchOptions,
    eval_command.EvalOptions,
    export.ExportOptions,
    view.ViewOptions,
    RenderOptions,
    BenchOptions,
    ExperimentsOptions,
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


class Block(NamedTuple):
    """A fenced block: its language, its text, and the comment before it."""

    language: str
    text: str
    comment: str


FENCE = re.compile(
    r"(?:^ *<!-- ((?:in tests|not run): .*?) -->\s*\n)?^( *)```(\w*)\n(.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)


def fenced_blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(m[3], m[4], m[1] or "") for m in FENCE.finditer(text)]


def prose_of(text: str) -> str:
    """A page without its blocks."""
    return FENCE.sub("", text)


def load_pages_module() -> Any:
    spec = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Python blocks.

PYTHON_PAGES = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a data set and a run, where the pages' code looks for them."""
    from training.test_runs import make_run

    write_scene(tmp_path / "data" / "nerf_synthetic" / "lego")
    make_run(tmp_path / "runs" / "lego", make=tiny_voxels)
    log = tmp_path / "runs" / "lego" / "log.jsonl"
    log.write_text('{"step": 1, "train/psnr": 20.0}\n', encoding="utf-8")
    # A plot on a screen would wait for somebody to close it.
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replace_by(code: str, comment: str) -> str:
    """Code with the replacements of a comment `in tests: old => new | ...` made."""
    for pair in comment.removeprefix("in tests: ").split(" | "):
        old, new = pair.split(" => ")
        assert code.count(old) == 1, f"{old!r} is {code.count(old)} times in the block"
        code = code.replace(old, new)
    return code


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=name_of)
def test_python_of_the_pages_runs(page: Path, workspace: Path) -> None:
    names: dict[str, Any] = {}
    for block in fenced_blocks(page.read_text(encoding="utf-8")):
        if block.language == "python" and not block.comment.startswith("not run"):
            code = replace_by(block.text, block.comment) if block.comment else block.text
            exec(compile(code, name_of(page), "exec"), names)


# Commands.


def join_lines(block: str) -> list[str]:
    """The lines of a block, those that end in a backslash joined with the next."""
    return block.replace("\\\n", " ").splitlines()


def find_commands(text: str) -> Iterator[str]:
    """Command lines of jaxrf: all of them in blocks, and those with options in the prose."""
    lines = [
        line for b in fenced_blocks(text) if b.language != "python" for line in join_lines(b.text)
    ]
    prose = prose_of(text)
    lines += re.findall(r"^ {4}(\S.*)$", prose, re.MULTILINE)
    # In prose a command may continue in the next line.
    spans = [re.sub(r"\s*\n\s*", " ", span) for span in re.findall(r"`([^`]+)`", prose)]
    lines += [span for span in spans if " --" in span]
    for line in lines:
        # Listings of files have more than one space after the name.
        match = re.match(
            r"\s*(?:python )?(?:-m )?((?:train_lego\.py|render_360\.py|jaxrf)(?: (?! ).*)?)$", line
        )
        if match:
            yield match[1].split("  #")[0].strip()


COMMANDS = sorted(
    {
        (name_of(page), command)
        for page in PAGES
        for command in find_commands(page.read_text(encoding="utf-8"))
    }
)


def parse_command(command: str) -> int:
    """Exit code of a command that is only parsed, not run."""
    words = [STAND_INS.get(word, word) for word in shlex.split(command, comments=True)]
    program, *arguments = words
    if "--resume" in arguments and (program != "jaxrf" or arguments[0] == "train"):
        # There is no run to read; its options are those of training.
        arguments.remove("--resume")
    if program == "train_lego.py":
        arguments = ["train", *arguments]
    elif program == "render_360.py":
        arguments = ["render", *arguments]
    name, options = cli.split_command(arguments)
    try:
        if not name:
            return cli.main(arguments)
        parsed = cli.parse_command(name, options)
        if name == "bench":
            bench.parse_presets(parsed)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_of_the_pages_parse(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Files that commands name are named from the root.
    monkeypatch.chdir(ROOT)
    code = parse_command(command)
    assert code == 0, f"{page}: {command}\n{capsys.readouterr().err}"


@pytest.mark.parametrize(
    "command",
    [
        "train_lego.py --no-such-option 3",
        "train_lego.py --preset none",
        "train_lego.py --preset voxels-small --field.rank 3",
        "train_lego.py --preset hashgrid-small --model none",
        "render_360.py --frames many",
        "jaxrf eval --split other",
        "jaxrf export --format clay",
        "jaxrf nothing",
        "jaxrf data fetch",
    ],
)
def test_wrong_commands_are_rejected(command: str) -> None:
    assert parse_command(command) != 0


def option_names(options: Any, prefix: str = "") -> Iterator[str]:
    """All options of a dataclass and of the dataclasses in it."""
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        name = prefix + field.name.replace("_", "-")
        members = typing.get_args(hints[field.name]) or (hints[field.name],)
        inner = [m for m in members if dataclasses.is_dataclass(m)]
        for member in inner:
            yield from option_names(member, f"{name}.")
        if not inner:
            yield f"--{name}"
            if hints[field.name] is bool:
                head, _, last = name.rpartition(".")
                yield f"--{head}.no-{last}" if head else f"--no-{last}"


def test_every_option_in_the_pages_exists() -> None:
    known = {"--help", "--preset", "--field", "--model", *FOREIGN, *option_names(TrainConfig)}
    for field in (getattr(fields, name) for name in fields.__all__):
        if dataclasses.is_dataclass(field):
            known |= set(option_names(field, "field."))
    for model in (getattr(models, name) for name in models.__all__):
        if dataclasses.is_dataclass(model):
            known |= set(option_names(model, "model."))
    known |= {"--field.num-blobs"}  # docs/blobs.py
    for options in OPTIONS:
        known |= set(option_names(options))
    for script in ROOT.glob("benchmarks/*.py"):
        text = script.read_text(encoding="utf-8")
        known |= set(re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", text))
    assert {"--model.steps-per-diagonal", "--no-filter-rays", "--counts", "--format"} <= known
    for page in PAGES:
        for span in re.findall(r"`([^`]+)`", prose_of(page.read_text(encoding="utf-8"))):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*(?![\w*.-])", span):
                assert option in known, f"{name_of(page)} names {option}, which does not exist"


# Links and navigation.


def make_anchor(heading: str) -> str:
    """Anchor of a heading, the same on GitHub and on the site."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", plain))


def anchors_of(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {make_anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def find_links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose_of(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    packages = load_pages_module().find_packages()
    for link in find_links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else Path(os.path.normpath(page.parent / path))
        if target.parent == DOCS / "reference":
            package = target.stem
            assert package in packages or package == "index", f"{link} names no package"
            assert not anchor or anchor in packages[package], f"{link} names no module of {package}"
            continue
        assert target.is_file(), f"{link} leads nowhere"
        if DOCS in page.parents:
            assert DOCS in target.parents, f"{link} leads out of the site"
        assert not anchor or anchor in anchors_of(target), f"{link} names no heading"


def pages_in(nav: list[Any]) -> Iterator[str]:
    for item in nav:
        target = next(iter(item.values())) if isinstance(item, dict) else item
        if isinstance(target, list):
            yield from pages_in(target)
        else:
            yield target


def test_every_page_is_in_the_navigation() -> None:
    module = load_pages_module()
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = list(pages_in(module.write_nav(nav)))
    assert len(listed) == len(set(listed))
    generated = {f"reference/{name}.md" for name in module.find_packages()} | {"reference/index.md"}
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(listed) == generated | written


def test_every_module_is_in_the_reference() -> None:
    module = load_pages_module()
    texts = [module.write_package_page(*item) for item in module.find_packages().items()]
    listed = set(re.findall(r"^::: (\S+)$", "\n".join(texts), re.MULTILINE))
    for path in (ROOT / "jaxrf").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        assert name in listed | {"jaxrf", "jaxrf.__main__"}, f"{name} is not in the reference"
        assert name == "jaxrf.__main__" or module.read_summary(name), f"{name} has no docstring"


# Messages of the program.


def find_templates() -> list[re.Pattern[str]]:
    """Patterns of the longer texts in the source; anything matches the gaps of an f-string."""
    templates = []
    for path in (ROOT / "jaxrf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts: list[str] = []
            if isinstance(node, ast.JoinedStr):
                parts = [str(v.value) if isinstance(v, ast.Constant) else "" for v in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value]
            if sum(len(part) for part in parts) >= 12:
                gaps = ("(.+?)" if part == "" else re.escape(part.strip("\n")) for part in parts)
                templates.append(re.compile("".join(gaps)))
    return templates


def quoted_sentences() -> list[str]:
    """The messages in the boxes of the troubleshooting page."""
    text = (DOCS / "howto" / "troubleshooting.md").read_text(encoding="utf-8")
    blocks = [block.text for block in fenced_blocks(text) if block.language == "text"]
    paragraphs = [part for block in blocks for part in re.split(r"\n\s*\n", block)]
    return [" ".join(part.split()) for part in paragraphs]


def test_quoted_messages_are_in_the_source() -> None:
    templates, sentences = find_templates(), quoted_sentences()
    assert len(sentences) > 20
    for sentence in sentences:
        assert any(t.fullmatch(sentence) for t in templates), (
            f"no text in the source matches: {sentence}"
        )
    said = "Memory ran out: lower --batch-samples while training"
    assert not any(t.fullmatch(f"{said} or go home.") for t in templates)


def test_figures_on_the_fields_pages_are_those_of_the_benchmark() -> None:
    measured = json.loads((DOCS / "benchmarks" / "2026-11-22-lego.json").read_text("utf-8"))["runs"]
    rows = 0
    for page in (DOCS / "fields").glob("*.md"):
        for row in re.findall(
            r"^\| `(\S+)` \| (\d+)x\d+ \| (.*) \|$", page.read_text("utf-8"), re.M
        ):
            preset, side, cells = row[0], int(row[1]), row[2].split(" | ")
            rows += 1
            for budget, cell in zip((60, 120, 300), cells, strict=False):
                (run,) = (
                    r
                    for r in measured
                    if (r["preset"], r["downscale"], r["budget"]) == (preset, 400 // side, budget)
                )
                assert cell == f"{run['psnr']:.2f} dB, {run['ssim']:.3f}", (page.name, row)
    assert rows >= 10


def test_pictures_are_small() -> None:
    for path in DOCS.rglob("*.png"):
        assert path.stat().st_size < 300_000, f"{path} is too large"


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "reference" / "rendering" / "index.html").read_text(encoding="utf-8")
    assert "compute_weights" in text
    # Pages load nothing from other servers.
    for page in tmp_path.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"(https?://[^\"]*)", html)
        fetched += re.findall(r"<link[^>]*rel=\"stylesheet\"[^>]*href=\"(https?://[^\"]*)", html)
        assert not fetched, f"{page} fetches {fetched}"


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["authors"] == project["authors"]
    for paper in citation["references"]:
        assert paper["authors"] and paper["year"] and ("doi" in paper or "url" in paper)
