"""`jaxrf train`: parses presets, options and --resume, then trains.

A preset decides the defaults of all options, so it is parsed before them. A resumed run takes its
stored configuration; only options that change no bit of the parameters may differ from it.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from jaxrf import models, presets
from jaxrf.core.checks import option_name
from jaxrf.core.errors import InputError
from jaxrf.models.base import Model
from jaxrf.studies.presets import STUDY
from jaxrf.training.config import TrainConfig
from jaxrf.training.config_json import make_user_field

# Options that choose a field and a model, and so the other options.
CHOICES = ("--preset", "--field", "--model")
# Options that may change when a run is resumed, because no bit of the parameters depends on them.
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
        "keep_images_on_host",
        "validate_every",
        "budget_excludes_validation",
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


class TrainOptions(NamedTuple):
    """The training that was asked for.

    Attributes:
      config: of the training.
      preset: name of the preset that the configuration started from, for messages.
    """

    config: TrainConfig
    preset: str


def run(options: TrainOptions) -> int:
    """Trains, scores the test split, renders a video; returns the exit code.

    Everything is written to the run's folder. With `config.resume`, training continues from the
    last checkpoint. With `config.coordinator`, several processes train together, and the first of
    them writes.
    """
    from jaxrf.cli import training
    from jaxrf.parallel import processes

    config = options.config
    if config.coordinator is None:
        return training.train_and_score(config, options.preset)
    processes.init_distributed(config.coordinator, config.processes, config.process_id)
    # The run is resumed with other processes, or none: they are no setting of the run.
    config = dataclasses.replace(config, coordinator=None, processes=None, process_id=None)
    with processes.silence_non_main(), processes.abort_on_peer_failure():
        return training.train_and_score(config, options.preset)


def parse_training(arguments: Sequence[str], prog: str) -> TrainOptions:
    """Parses the options of training.

    Raises:
      InputError: a preset is unknown, an option is out of range, or it contradicts another option
        or the resumed run.
      SystemExit: an option is unknown or its value has the wrong type; tyro has printed why.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in CHOICES:
        first.add_argument(option, default=None)
    first.add_argument("--data", nargs="?", type=Path, default=None)
    first.add_argument("--budget", nargs="?", type=float, default=None)
    first.add_argument("--downscale", nargs="?", type=int, default=None)
    first.add_argument("--resume", action="store_true")
    first.add_argument("--run-dir", "--run_dir", type=Path, default=None)
    try:
        known, _ = first.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(f"{error}: see --help.") from error
    remaining = list(arguments)
    for option in CHOICES:
        remaining = _drop_option(remaining, option)
    if known.resume and not {"-h", "--help"} & set(arguments):
        for option, value in zip(CHOICES, (known.preset, known.field, known.model), strict=True):
            if value:
                raise InputError(
                    f"{option} and --resume exclude each other: a resumed run has its settings "
                    "already."
                )
        return TrainOptions(_parse_resumed(remaining, prog, known.run_dir), "the run's own")
    # A capture in a box is an object.
    data = None if "--box" in arguments else known.data
    preset = known.preset
    if preset is None and known.field is None:
        preset = _choose_preset(data, known.budget, known.downscale)
    default, name = _choose(preset, known.field, known.model)
    description = _describe_presets(name)
    config = tyro.cli(
        TrainConfig, prog=prog, args=remaining, default=default, description=description
    )
    return TrainOptions(config, name)


def _choose(preset: str | None, field: str | None, model: str | None) -> tuple[TrainConfig, str]:
    """The configuration whose numbers are the defaults, and the name of its preset."""
    if field is not None:
        if preset is not None:
            raise InputError("--field and --preset exclude each other: a preset has its own field.")
        config, name = presets.for_field(make_user_field(field)), field
        config = dataclasses.replace(config, field_source=field)
    else:
        assert preset is not None, "a preset is chosen where there is no field"
        name = preset
        config = presets.make_preset(name, (*presets.PRESETS, *STUDY))
    if model is not None and model != config.model.name:
        config = dataclasses.replace(config, model=_make_model(model, config.model))
    return config, name


def _choose_preset(data: Path | None, budget: float | None, downscale: int | None) -> str:
    """The preset that fits a data set, whose images are shrunk, and a budget of seconds."""
    from jaxrf.data import sources

    if data is None:
        return presets.default_preset()
    try:
        preview = sources.preview(sources.find_data(data))
    except InputError:
        return presets.default_preset()
    # What cannot be a factor is refused later.
    factor = max(downscale or 1, 1)
    return presets.default_preset(preview.is_capture, budget, preview.num_pixels // factor**2)


def _make_model(name: str, model: Model) -> Model:
    """Another model with its default numbers, and those that all models have."""
    known = models.CLASS_OF_NAME
    if name not in known:
        raise InputError(f"--model {name} is unknown: choose one of {', '.join(known)}.")
    shared = {f.name: getattr(model, f.name) for f in dataclasses.fields(Model)}
    other: Model = getattr(models, known[name])(**shared)
    return other


def _parse_resumed(arguments: Sequence[str], prog: str, run_dir: Path | None) -> TrainConfig:
    """Parses the options of a resumed run, whose configuration has the defaults."""
    from jaxrf.training import runs

    folder = run_dir or runs.find_newest(Path("runs"))
    stored = dataclasses.replace(runs.read_config(folder), resume=True, run_dir=folder)
    config = tyro.cli(TrainConfig, prog=prog, args=arguments, default=stored)
    for name, new, old in _differences(config, stored):
        if name.split(".")[0] not in OPERATIONAL:
            raise InputError(
                f"{option_name(name)} {new} contradicts {folder / runs.CONFIG_FILE}, which has "
                f"{old}: leave it out, as a run is resumed with its own settings, or train a new "
                "run."
            )
    return config


def _differences(new: Any, old: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields dotted names and both values where two configurations of one class differ."""
    for field in dataclasses.fields(new):
        name = prefix + field.name
        values = getattr(new, field.name), getattr(old, field.name)
        if dataclasses.is_dataclass(values[0]):
            yield from _differences(*values, f"{name}.")
        elif values[0] != values[1]:
            yield (name, *values)


def _drop_option(arguments: Sequence[str], option: str) -> list[str]:
    """Removes an option and its value, in both spellings: `--a b` and `--a=b`."""
    remaining: list[str] = []
    is_value = False
    for argument in arguments:
        if is_value:
            is_value = False
        elif argument == option:
            is_value = True
        elif not argument.startswith(f"{option}="):
            remaining.append(argument)
    return remaining


def _describe_presets(chosen: str) -> str:
    lines = [
        f"  {presets.preset_name(preset)}: {(preset.__doc__ or '').strip().splitlines()[0]}"
        for preset in (*presets.PRESETS, *STUDY)
    ]
    return (
        "Train a radiance field from images with known cameras.\n\n"
        "--preset NAME chooses the field and all defaults below (those shown are of "
        f"{chosen}); without it, the choice fits data, machine and --budget:\n"
        + "\n".join(lines)
        + "\n\n--field FILE:CLASS trains a field of your own in place of a preset, and --model "
        "packed, hierarchical or proposal renders any field by another model, with its options."
    )
