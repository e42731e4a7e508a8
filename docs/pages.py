"""Generated pages of the site: a reference page for each package of jaxrf, made from docstrings.

mkdocs runs this as a hook. A package here is a package or a module directly under jaxrf/.
"""

import ast
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "jaxrf"


def find_packages(source: Path = SOURCE) -> dict[str, list[str]]:
    """Module names of each package, sorted; a package comes before its modules."""
    packages: dict[str, list[str]] = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if len(parts) > 1 and parts[-1] != "__main__":
            packages.setdefault(parts[1], []).append(".".join(parts))
    return {name: sorted(modules) for name, modules in packages.items()}


def read_summary(module: str) -> str:
    """First line of a module's docstring, or an empty string."""
    path = ROOT / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n", 1)[0]


def write_package_page(package: str, modules: list[str]) -> str:
    """Markdown of a package's reference page, with a directive of mkdocstrings for each module."""
    lines = [f"# {package}", ""]
    for module in modules:
        if len(modules) > 1 and "." in module.removeprefix("jaxrf."):
            lines += [f"## {module} {{ #{module} }}", ""]
        lines += [f"::: {module}", "    options:"]
        lines += [f"      heading_level: {2 + (len(modules) > 1)}", ""]
    return "\n".join(lines)


INDEX = """# Reference

Every public function and class, with the docstrings of the source. Shapes are written as in
[jaxtyping](https://docs.kidger.site/jaxtyping/api/array/): `Float[Array, "r 3"]` has r rows of 3
numbers, `*batch` is any number of axes. How the packages depend on each other is in
[Architecture](../explanation/architecture.md).

| package | contents |
|---|---|
"""


def write_index(packages: dict[str, list[str]]) -> str:
    """Markdown of the reference's first page, a table of the packages."""
    rows = [
        f"| [{package}]({package}.md) | {read_summary(modules[0])} |"
        for package, modules in packages.items()
    ]
    return INDEX + "\n".join(rows) + "\n"


def list_benchmarks() -> list[str]:
    """Pages written by `jaxrf bench`, the newest first."""
    paths = sorted((ROOT / "docs" / "benchmarks").glob("20*.md"), reverse=True)
    return [f"benchmarks/{path.name}" for path in paths]


def write_nav(nav: list[Any]) -> list[Any]:
    """The navigation of mkdocs.yml with `benchmarks/` and `reference/` replaced by their pages."""
    reference = ["reference/index.md", *(f"reference/{package}.md" for package in find_packages())]
    generated = {
        "benchmarks/": ["benchmarks/README.md", *list_benchmarks()],
        "reference/": reference,
    }
    entries: list[Any] = []
    for item in nav:
        ((title, target),) = item.items() if isinstance(item, dict) else ((None, item),)
        if isinstance(target, list):
            target = write_nav(target)
        target = generated.get(target, target) if isinstance(target, str) else target
        entries.append(target if title is None else {title: target})
    return entries


def on_config(config: Any) -> Any:
    """Completes the navigation."""
    config["nav"] = write_nav(config["nav"])
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the reference."""
    from mkdocs.structure.files import File

    packages = find_packages()
    texts = {"index": write_index(packages)}
    texts |= {name: write_package_page(name, modules) for name, modules in packages.items()}
    for name, text in texts.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files
