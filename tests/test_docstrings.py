"""Docstrings and names: examples run, and the words are those of the field."""

import ast
import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "jaxrf").rglob("*.py"))
# Packages that single rooms need and the others do without.
OPTIONAL = {"torch", "viser"}
# Words that do not say what an array is.
VAGUE = {
    *("own", "some", "rest", "inner", "whole", "here", "found", "most", "least", "many", "each"),
    *("way", "apart", "away", "place", "behind", "seen", "kept", "shown", "wanted", "given"),
}
# Names of things that have another one: one word for one thing.
REPLACED = {
    "error_fn": "rgb_loss_fn",
    "marched": "sdist or s_rays",
    "optical_depth_ema": "max_optical_depth",
    "shading": "coloring",
    "shade_ray": "color_ray",
    "max_shaded_fraction": "max_colored_fraction",
    "truth": "target_rgb",
    "validate_apart": "budget_excludes_validation",
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def has_examples(path: Path) -> bool:
    return ">>>" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*filter(has_examples, SOURCES)], ids=module_of)
def test_examples_in_docstrings_run(path: Path) -> None:
    # Imported by name, so that it is the module whose shapes jaxtyping checks in all tests.
    try:
        module = importlib.import_module(module_of(path))
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for test in finder.find(module, module.__name__) if test.examples]
    assert tests, f"{path} has >>> outside of docstrings that doctest finds"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def docstrings_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def names_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each function, class, argument and variable that is defined."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.lineno, node.name


def words_of(name: str) -> set[str]:
    """The words of a name, in snake case or camel case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_docstring_begins_with_what(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    riddles = [f"{n}: {text[:60]}" for n, text in docstrings_of(tree) if text.startswith("What")]
    assert not riddles, "say what it returns or does"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_names_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    vague = [f"{n}: {name}" for n, name in names_of(tree) if words_of(name) & VAGUE]
    assert not vague, "name the array or value instead"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_name_or_option_is_one_that_was_replaced(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {name for _, name in names_of(tree)} & REPLACED.keys()
    assert not used, "; ".join(f"{name}: say {REPLACED[name]}" for name in sorted(used))


def test_words_of_splits_both_kinds_of_names() -> None:
    assert words_of("_place_byKind2") == {"place", "by", "kind"}
    assert words_of("BoxPlace") == {"box", "place"} and words_of("REST_SECONDS") & VAGUE
    assert not words_of("replace_restore") & VAGUE


def test_the_checks_of_words_see_every_definition() -> None:
    source = (
        '"""What."""\n'
        "some = 1\n"
        "def seen(own, *rest, given=0, **kept):\n"
        '    """What it is."""\n'
        "    for each, (most, least) in []: pass\n"
        "    with open(x) as found: way = [many for many in own]\n"
        "class _Whole:\n"
        "    inner: int\n"
    )
    tree = ast.parse(source)
    assert [text for _, text in docstrings_of(tree)] == ["What.", "What it is."]
    defined = {name for _, name in names_of(tree)}
    expected = "some seen own rest given kept each most least found way many _Whole inner"
    assert set(expected.split()) <= defined
