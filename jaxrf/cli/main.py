"""The command line: parses, then hands over. Heavy modules are imported only once it is needed."""

import argparse
import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, assert_never

import tyro

from jaxrf.cli.options import (
    BenchOptions,
    ConvertOptions,
    DataFetchOptions,
    DataInfoOptions,
    EvalOptions,
    ExperimentsOptions,
    ExportOptions,
    RenderOptions,
    ViewOptions,
)
from jaxrf.core.errors import InputError
from jaxrf.training import config as configs
from jaxrf.training.config import FieldConfig, TrainConfig

USAGE = """usage: jaxrf COMMAND [OPTIONS]   (jaxrf COMMAND --help explains every option)

commands:
  train   train a radiance field from pictures with cameras (same as train_lego.py)
  eval    score a trained run on a split and write its metrics.json
  render  render an orbit, a path or a split as video and frames (same as render_360.py)
  view    show a run in a browser, to be looked at from all sides
  export  write a trained run as one file: a mesh, points, or weights for other programs
  convert turn weights of another program into a run, and prove the port (jaxrf convert FILE)
  data    what a data set holds and what looks wrong in it (jaxrf data info PATH), or download one
          (jaxrf data fetch lego)
  experiments
          train the six experiments of the seed study and report on them
  bench   measure this machine, and how fast and how good each field gets on it
"""

# What may differ when a run is resumed, because no bit of the parameters depends on it.
OPERATIONAL = frozenset(
    {
        "data",
        "run_dir",
        "resume",
        "devices",
        "coordinator",
        "processes",
        "process_id",
        "render_samples",
        "steps_per_dispatch",
        "stream",
        "validate_every",
        "validate_apart",
        "validation_views",
        "test_every",
        "lpips",
        "checkpoint_seconds",
        "keep_checkpoints",
        "video",
        "view",
        "viewer",
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `jaxrf`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": train,
        "eval": evaluate,
        "render": render,
        "view": view,
        "export": export,
        "convert": convert,
        "data": data,
        "bench": bench,
        "experiments": experiments,
    }
    if arguments and arguments[0] in commands:
        return commands[arguments[0]](arguments[1:], f"jaxrf {arguments[0]}")
    if arguments in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    if arguments:
        print(f"jaxrf: {arguments[0]!r} is no command.", file=sys.stderr)
    print(USAGE, end="", file=sys.stderr)
    return 2


def train(argv: Sequence[str] | None = None, prog: str = "train_lego.py") -> int:
    """Parses options and trains; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        config, preset = parse_training(arguments, prog)
        from jaxrf.cli.commands import run_training

        return run_training(config, preset)

    return _guard(command)


def evaluate(argv: Sequence[str] | None = None, prog: str = "jaxrf eval") -> int:
    """Parses options and scores a run; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        options = tyro.cli(EvalOptions, prog=f"{prog} [RUN]", args=_name_run(arguments))
        _check_positive(options, "supersample", "every")
        from jaxrf.cli.commands import run_evaluation

        return run_evaluation(options)

    return _guard(command)


def render(argv: Sequence[str] | None = None, prog: str = "render_360.py") -> int:
    """Parses options and renders an orbit; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        options = tyro.cli(RenderOptions, prog=f"{prog} [RUN]", args=_name_run(arguments))
        _check_positive(options, "frames", "fps", "size", "radius", "supersample", "every")
        from jaxrf.cli.commands import run_rendering

        return run_rendering(options)

    return _guard(command)


def view(argv: Sequence[str] | None = None, prog: str = "jaxrf view") -> int:
    """Parses options and shows a run in a browser; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        options = tyro.cli(ViewOptions, prog=f"{prog} [RUN]", args=_name_run(arguments))
        _check_port(options.port, "--port")
        from jaxrf.cli.commands import run_viewer

        return run_viewer(options)

    return _guard(command)


def export(argv: Sequence[str] | None = None, prog: str = "jaxrf export") -> int:
    """Parses options and writes a run as one file; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        options = tyro.cli(ExportOptions, prog=f"{prog} [RUN]", args=_name_run(arguments))
        _check_positive(options, "resolution", "points", "views")
        for name in ("level", "fragments"):
            if not 0.0 <= getattr(options, name) < 1.0 or options.level == 0.0:
                raise InputError(
                    f"--{name} is {getattr(options, name):g}: give a number between 0 and 1."
                )
        from jaxrf.cli.commands import run_export

        return run_export(options)

    return _guard(command)


def convert(argv: Sequence[str] | None = None, prog: str = "jaxrf convert") -> int:
    """Parses options and converts or checks weights of another program; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        named = bool(arguments) and not arguments[0].startswith("-")
        rest = ["--file", *arguments] if named else arguments
        options = tyro.cli(ConvertOptions, prog=prog, args=rest)
        _check_positive(options, "downscale", "steps", "size", "density_factor")
        from jaxrf.cli.commands import run_conversion

        return run_conversion(options)

    return _guard(command)


def data(argv: Sequence[str] | None = None, prog: str = "jaxrf data") -> int:
    """Parses options and describes or downloads a data set; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        rest = arguments[1:]
        named = bool(rest) and not rest[0].startswith("-")
        match arguments[:1]:
            case ["info"]:
                rest = ["--data", *rest] if named else rest
                options = tyro.cli(DataInfoOptions, prog=f"{prog} info", args=rest)
                _check_positive(options, "downscale")
                from jaxrf.cli.commands import run_data_info

                return run_data_info(options)
            case ["fetch"]:
                rest = ["--name", *rest] if named else rest
                wanted = tyro.cli(DataFetchOptions, prog=f"{prog} fetch", args=rest)
                from jaxrf.cli.commands import run_data_fetch

                return run_data_fetch(wanted)
        raise InputError("jaxrf data has two commands: info PATH and fetch NAME.")

    return _guard(command)


def bench(argv: Sequence[str] | None = None, prog: str = "jaxrf bench") -> int:
    """Parses options and measures; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        options = tyro.cli(BenchOptions, prog=prog, args=arguments)
        _check_positive(options, "downscale", "budget", "seeds", "every")
        for preset in options.presets:
            parse_training(["--preset", *shlex.split(preset)], prog)
        from jaxrf.studies.bench import run_bench

        return run_bench(options)

    return _guard(command)


def experiments(argv: Sequence[str] | None = None, prog: str = "jaxrf experiments") -> int:
    """Parses options and runs the experiments; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        options = tyro.cli(ExperimentsOptions, prog=prog, args=arguments)
        from jaxrf.studies.experiments import run_experiments

        return run_experiments(options)

    return _guard(command)


def parse_training(arguments: Sequence[str], prog: str) -> tuple[TrainConfig, str]:
    """The training configuration, and the name of the preset that it starts from.

    The preset and --resume are looked for first, because they decide what the defaults are. A
    resumed run has its own configuration; an option that contradicts it is an InputError.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--preset", default=None)
    first.add_argument("--resume", action="store_true")
    first.add_argument("--run-dir", "--run_dir", type=Path, default=None)
    try:
        known, _ = first.parse_known_args(arguments)
        rest = _drop_option(arguments, "--preset")
    except argparse.ArgumentError as error:
        raise InputError(f"{error}: see --help.") from error
    if known.resume and not {"-h", "--help"} & set(arguments):
        if known.preset:
            raise InputError("--preset and --resume exclude each other: a run keeps its settings.")
        return _parse_resumed(rest, prog, known.run_dir), "the run's own"
    preset = known.preset or configs.default_preset()
    config = tyro.cli(
        TrainConfig,
        prog=prog,
        args=rest,
        default=configs.make_preset(preset),
        description=_describe_presets(preset),
    )
    _check(config)
    return config, preset


def _parse_resumed(arguments: Sequence[str], prog: str, run_dir: Path | None) -> TrainConfig:
    from jaxrf.training import runs

    folder = run_dir or runs.find_newest(Path("runs"))
    stored = dataclasses.replace(runs.read_config(folder), resume=True, run_dir=folder)
    config = tyro.cli(TrainConfig, prog=prog, args=arguments, default=stored)
    for option, given, own in _differences(config, stored):
        if option.split(".")[0].replace("-", "_") not in OPERATIONAL:
            raise InputError(
                f"--{option} {given} contradicts {folder / runs.CONFIG_FILE}, which has {own}: "
                "leave it out, as a run is resumed with its own settings, or train a new run."
            )
    _check(config)
    return config


def _differences(given: Any, own: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Options in which two configurations of the same kind differ, with both values."""
    for field in dataclasses.fields(given):
        name = prefix + field.name.replace("_", "-")
        values = getattr(given, field.name), getattr(own, field.name)
        if dataclasses.is_dataclass(values[0]):
            yield from _differences(*values, f"{name}.")
        elif values[0] != values[1]:
            yield (name, *values)


def _drop_option(arguments: Sequence[str], option: str) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == option:
            skip = True
        elif not argument.startswith(f"{option}="):
            kept.append(argument)
    return kept


def _name_run(arguments: Sequence[str]) -> list[str]:
    """Lets the run be given without --run: `jaxrf eval RUN`."""
    if arguments and not arguments[0].startswith("-"):
        return ["--run", *arguments]
    return list(arguments)


def _describe_presets(chosen: str) -> str:
    lines = [
        f"  {configs.preset_name(preset)}: {(preset.__doc__ or '').strip().splitlines()[0]}"
        for preset in configs.PRESETS
    ]
    return (
        "Train a radiance field from pictures with known cameras.\n\n"
        "--preset NAME chooses what is trained and all defaults below (those shown are of "
        f"{chosen}); without it, the choice fits this machine:\n" + "\n".join(lines)
    )


def _check(config: TrainConfig) -> None:
    _check_positive(
        config, "downscale", "steps", "batch_samples", "batch_rays", "render_samples",
        "steps_per_dispatch", "validation_views", "checkpoint_seconds", "keep_checkpoints",
        "supersample", "budget", "test_every", "microbatch_samples", "devices", "processes", "shards",
    )  # fmt: skip
    _check_positive(config.bricks, "size", "train_views", "test_views", prefix="bricks.")
    if config.video.frames:
        _check_positive(config.video, "frames", "size", prefix="video.")
    _check_port(config.viewer.port, "--viewer.port")
    if not config.video.every >= 0:
        raise InputError(f"--video.every is {config.video.every}: give 0 or more.")
    _check_positive(
        config.optimizer, "grid_lr", "mlp_lr", "lr_final_mult", "epsilon", "clip_norm",
        prefix="optimizer.",
    )  # fmt: skip
    match config.field:
        case configs.TensoRFConfig():
            _check_positive(
                config.field, "width", "density_components", "feature_components", "feature_dim",
                "density_scale", "initial_voxels", "final_voxels", "occupancy_voxels",
                "step_ratio", prefix="field.",
            )  # fmt: skip
            wanted = [3 * bands**2 for bands in range(1, 5)]
            if config.field.color == "harmonics" and config.field.feature_dim not in wanted:
                raise InputError(
                    f"--field.feature-dim is {config.field.feature_dim}: harmonics need one of "
                    f"{', '.join(str(n) for n in wanted)}."
                )
        case configs.VoxelsConfig():
            _check_positive(
                config.field, "width", "feature_dim", "density_scale", "initial_resolution",
                "step_ratio", prefix="field.",
            )  # fmt: skip
            most = len(config.field.upsample_at)
            if (
                config.field.num_subdivisions is not None
                and not 0 <= config.field.num_subdivisions <= most
            ):
                raise InputError(
                    f"--field.num-subdivisions is {config.field.num_subdivisions}: give 0 to {most}, or more "
                    "moments in --field.upsample-at."
                )
        case configs.SampledConfig() as field:
            _check_positive(
                field, "num_coarse_samples", "occupancy_resolution", "occupancy_update_interval", "max_steps",
                "max_shaded_fraction", prefix="field.",
            )  # fmt: skip
            _check_positive(
                field,
                "num_proposal_samples",
                "num_nerf_samples",
                "proposal_resolutions",
                prefix="field.",
            )
            if not 0 < len(field.num_proposal_samples) <= len(field.proposal_resolutions):
                raise InputError(
                    f"--field.num-proposal-samples has {len(field.num_proposal_samples)} numbers: give one "
                    "for each proposal, and as many in --field.proposal-resolutions."
                )
            points = field.sampler == "hierarchical" and field.quadrature == "points"
            if points and field.num_coarse_samples < 3:
                raise InputError(
                    f"--field.num-coarse-samples is {field.num_coarse_samples}: points need 3 or more."
                )
            if points and getattr(field, "encoding", "fourier") == "integrated":
                raise InputError(
                    "--field.encoding is integrated, which is over intervals: add "
                    "--field.quadrature intervals."
                )
            results = getattr(field, "blend", "features") == "results"
            if results and field.shading == "per_ray":
                raise InputError(
                    "--field.blend is results, which has no features to sum up along a ray: add "
                    "--field.shading per_sample."
                )
            sizes = ("layers", "width", "color_width", "levels", "channels", "coarsest", "finest")
            _check_positive(field, *(n for n in sizes if hasattr(field, n)), prefix="field.")
        case _:
            assert_never(config.field)
    _check_convention(config.field)
    if config.shards is not None and config.shards & (config.shards - 1):
        raise InputError(f"--shards is {config.shards}: give a power of two.")
    _check_positive(config.field, "checkpoint_in_chunks", prefix="field.")
    address = config.coordinator
    if address not in (None, "auto") and not (address or "").rpartition(":")[2].isdigit():
        raise InputError(f"--coordinator is {address}: give host:port, or auto.")
    if config.coordinator is None and (config.processes or config.process_id is not None):
        raise InputError(
            "--processes and --process-id are for processes that meet: add --coordinator host:port."
        )
    moments = [at for at, _ in config.train_scale_schedule]
    factors = [factor for _, factor in config.train_scale_schedule]
    if moments and (moments[0] != 0 or moments != sorted(set(moments)) or min(factors) < 1):
        raise InputError(
            f"--train-scale-schedule is {' '.join(f'{a:g} {f}' for a, f in config.train_scale_schedule)}: give "
            "ascending steps from 0 on, each followed by a factor of 1 or more."
        )
    if max(moments, default=0) >= config.steps:
        raise InputError(
            f"--train-scale-schedule goes on to step {max(moments):g}, training only to {config.steps}: "
            "give earlier steps, or fractions of all steps."
        )
    _check_positive(config.loss, "huber_delta", "charbonnier_epsilon", prefix="loss.")
    if config.field.appearance_dim < 0:
        raise InputError(
            f"--field.appearance-dim is {config.field.appearance_dim}: give 0 or more."
        )
    if not config.validate_every >= 0:
        raise InputError(f"--validate-every is {config.validate_every}: give 0 or more.")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed is {config.seed}: give a number from 0 to 2^32 - 1.")


def _check_convention(field: FieldConfig) -> None:
    convention = field.convention
    axis = "axis" in (convention.lengths_along, convention.view_directions)
    if axis and convention.range_along == "ray":
        raise InputError(
            "--field.convention has lengths or directions along the axis, but its range along the "
            "ray: add --field.convention.range-along axis."
        )
    odd = axis or convention.transmittance != "exclusive"
    if odd and getattr(field, "sampler", "") != "hierarchical":
        raise InputError(
            "--field.convention has lengths or directions along the axis, or an inclusive "
            "transmittance, which only the hierarchical sampler knows: leave them out."
        )


def _check_port(port: int, option: str) -> None:
    if not 0 < port < 2**16:
        raise InputError(f"{option} is {port}: give a number from 1 to 65535.")


def _check_positive(options: Any, *names: str, prefix: str = "") -> None:
    for name in names:
        given = getattr(options, name)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and not value > 0:
                option = "--" + prefix + name.replace("_", "-")
                raise InputError(f"{option} is {value}: give a number above 0.")


def _guard(command: Callable[[], int]) -> int:
    """Runs a command; what a user can mend is printed as one sentence, not as a traceback."""
    try:
        return command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has left, as `| head` does; nothing more can be printed there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        sentence = _explain(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1


def _explain(error: Exception) -> str | None:
    """A sentence for failures of training and of memory; None for our own faults."""
    from jaxrf.core import memory
    from jaxrf.training.train import DivergedError

    if isinstance(error, DivergedError):
        return str(error)
    if memory.ran_out(error):
        return (
            "Memory ran out: lower --batch-samples while training or --render-samples while "
            "rendering, shrink the pictures with --downscale, or let other programs on the device "
            "have less (XLA_PYTHON_CLIENT_MEM_FRACTION sets JAX's share)."
        )
    return None
