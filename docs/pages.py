"""What the site has besides the files in docs/: a page for each room of jaxrf, made of docstrings.

mkdocs runs this as a hook. A room is a module or a package right under jaxrf/.
"""

import ast
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxrf"


def find_rooms(package: Path = PACKAGE) -> dict[str, list[str]]:
    """The modules of each room, in the order of their names."""
    rooms: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if len(parts) > 1 and parts[-1] != "__main__":
            rooms.setdefault(parts[1], []).append(".".join(parts))
    return rooms


def read_summary(module: str) -> str:
    """The first line of a module's docstring."""
    path = ROOT / Path(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n", 1)[0]


def write_room(room: str, modules: list[str]) -> str:
    """The text of a room's page: what mkdocstrings is to fill in."""
    lines = [f"# {room}", ""]
    for module in modules:
        if len(modules) > 1 and "." in module.removeprefix("jaxrf."):
            lines += [f"## {module} {{ #{module} }}", ""]
        lines += [f"::: {module}", "    options:"]
        lines += [f"      heading_level: {2 + (len(modules) > 1)}", ""]
    return "\n".join(lines)


INDEX = """# Reference

Every public function and class, out of the docstrings of the source. Shapes are those of
[jaxtyping](https://docs.kidger.site/jaxtyping/api/array/): `Float[Array, "r 3"]` has r rows of 3
numbers, `*batch` is any number of axes. Imports point only downwards; how the rooms hang together
is in the README, under Architecture.

| room | what it is for |
|---|---|
"""


def write_index(rooms: dict[str, list[str]]) -> str:
    """The reference's first page: what each room is for."""
    rows = [
        f"| [{room}]({room}.md) | {read_summary(modules[0])} |" for room, modules in rooms.items()
    ]
    return INDEX + "\n".join(rows) + "\n"


def list_benchmarks() -> list[str]:
    """The pages that `jaxrf bench` wrote, the newest first."""
    found = sorted((ROOT / "docs" / "benchmarks").glob("20*.md"), reverse=True)
    return [f"benchmarks/{path.name}" for path in found]


def write_nav(nav: list[Any]) -> list[Any]:
    """The navigation with the pages that are not written by hand in their places."""
    pages = {
        "benchmarks/": ["benchmarks/README.md", *list_benchmarks()],
        "reference/": ["reference/index.md", *(f"reference/{room}.md" for room in find_rooms())],
    }
    whole: list[Any] = []
    for item in nav:
        ((title, target),) = item.items() if isinstance(item, dict) else ((None, item),)
        if isinstance(target, list):
            target = write_nav(target)
        target = pages.get(target, target) if isinstance(target, str) else target
        whole.append(target if title is None else {title: target})
    return whole


def on_config(config: Any) -> Any:
    """Fills in the navigation."""
    config["nav"] = write_nav(config["nav"])
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the reference."""
    from mkdocs.structure.files import File

    rooms = find_rooms()
    texts = {"index": write_index(rooms)}
    texts |= {room: write_room(room, modules) for room, modules in rooms.items()}
    for name, text in texts.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files
