"""`jaxrf COMMAND`: finds the command, parses its options and runs it."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import tyro

from jaxrf.cli.errors import run_and_report


class Command(NamedTuple):
    """A command of the program.

    Attributes:
      summary: for `jaxrf --help`.
      options: "module:class" of the dataclass of its options.
      run: "module:function" that takes those options and returns the exit code.
    """

    summary: str
    options: str
    run: str


# Modules are named, not imported: a command imports only its own.
COMMANDS = {
    "train": Command(
        "train a radiance field from images with cameras (same as train_lego.py)",
        "jaxrf.cli.train:TrainOptions",
        "jaxrf.cli.train:run",
    ),
    "eval": Command(
        "score a trained run on a split and write its metrics.json",
        "jaxrf.cli.eval:EvalOptions",
        "jaxrf.cli.eval:run",
    ),
    "render": Command(
        "render an orbit, a path or a split as videos and frames (same as render_360.py)",
        "jaxrf.export.render_options:RenderOptions",
        "jaxrf.cli.render:run",
    ),
    "view": Command(
        "show a run in a browser",
        "jaxrf.cli.view:ViewOptions",
        "jaxrf.cli.view:run",
    ),
    "export": Command(
        "write a trained run as one file: a mesh, points, or weights for other programs",
        "jaxrf.cli.export:ExportOptions",
        "jaxrf.cli.export:run",
    ),
    "convert": Command(
        "turn weights of another program into a run, or prove the port equivalent",
        "jaxrf.cli.convert:ConvertOptions",
        "jaxrf.cli.convert:run",
    ),
    "data info": Command(
        "describe a data set, warn of what looks wrong in it, and draw its cameras",
        "jaxrf.cli.data:DataInfoOptions",
        "jaxrf.cli.data:run_info",
    ),
    "data photos": Command(
        "find the poses of photos or of a video, for training on them",
        "jaxrf.cli.data:DataPhotosOptions",
        "jaxrf.cli.data:run_photos",
    ),
    "data fetch": Command(
        "download a public data set, such as lego",
        "jaxrf.cli.data:DataFetchOptions",
        "jaxrf.cli.data:run_fetch",
    ),
    "experiments": Command(
        "train the six experiments of the seed study and report on them",
        "jaxrf.studies.options:ExperimentsOptions",
        "jaxrf.studies.experiments:run",
    ),
    "bench": Command(
        "measure this machine, and how fast and how well each field trains on it",
        "jaxrf.studies.options:BenchOptions",
        "jaxrf.cli.bench:run",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `jaxrf` with `argv`, or with the arguments of the process; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, remaining = split_command(arguments)
    if name:
        return run_command(name, remaining)
    if arguments in (["--help"], ["-h"]):
        print(usage(), end="")
        return 0
    parts = [name for name in COMMANDS if arguments and name.split()[:-1] == arguments[:1]]
    if parts and arguments[1:] in (["--help"], ["-h"]):
        print(describe_commands(parts), end="")
        return 0
    if parts:
        message = f"error: jaxrf {arguments[0]} needs a command:\n{describe_commands(parts)}"
    elif arguments:
        message = f"jaxrf: {arguments[0]!r} is no command.\n{usage()}"
    else:
        message = usage()
    print(message, end="", file=sys.stderr)
    return 2


def split_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the command that arguments begin with, and those after it; "" if there is none."""
    for name in COMMANDS:
        words = name.split()
        if list(arguments[: len(words)]) == words:
            return name, list(arguments[len(words) :])
    return "", list(arguments)


def run_command(name: str, argv: Sequence[str] | None = None, prog: str = "") -> int:
    """Parses the options of a command and runs it; returns the exit code.

    Args:
      name: a key of `COMMANDS`.
      argv: the options; by default those of the process.
      prog: the program's name in messages; by default "jaxrf NAME".
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        options = parse_command(name, arguments, prog)
        code: int = _load(COMMANDS[name].run)(options)
        return code

    return run_and_report(command)


def parse_command(name: str, arguments: Sequence[str], prog: str = "") -> Any:
    """Parses the options of a command; returns them as its dataclass, without running it.

    Raises:
      InputError: an option's value is out of range, or contradicts another's.
      SystemExit: an option is unknown or its value has the wrong type; tyro has printed why.
    """
    prog = prog or f"jaxrf {name}"
    if name == "train":
        # The preset decides the defaults, so training needs another parser.
        from jaxrf.cli.train import parse_training

        return parse_training(arguments, prog)
    return tyro.cli(_load(COMMANDS[name].options), prog=prog, args=list(arguments))


def usage() -> str:
    """Returns the help text of `jaxrf` with every command."""
    return (
        "usage: jaxrf COMMAND [OPTIONS]   (jaxrf COMMAND --help explains every option)\n\n"
        f"commands:\n{describe_commands(list(COMMANDS))}"
    )


def describe_commands(names: Sequence[str]) -> str:
    """Returns a line with name and summary for each of these commands."""
    width = max(map(len, names))
    return "".join(f"  {name:{width}}  {COMMANDS[name].summary}\n" for name in names)


def _load(path: str) -> Any:
    """Imports "module:name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
