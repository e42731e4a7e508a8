"""`jaxrf bench`: checks the presets to measure, then measures. Its options are `BenchOptions`."""

import shlex
from typing import TYPE_CHECKING

from jaxrf.studies.options import BenchOptions

if TYPE_CHECKING:
    from jaxrf.training.config import TrainConfig


def run(options: BenchOptions) -> int:
    """Measures the machine and every preset; returns the exit code.

    Raises:
      InputError: a preset or a device to compile for is unknown, or options of a preset are
        invalid, before anything is measured.
    """
    from jaxrf.studies import bench, compile_report

    configs = parse_presets(options)
    if options.compile_for:
        return compile_report.run(options, configs)
    return bench.run_profiles(options, configs) if options.profile else bench.run(options)


def parse_presets(options: BenchOptions) -> "list[TrainConfig]":
    """The configuration of each preset, with the options that follow its name.

    Raises:
      InputError: a preset is unknown, or one of its options is invalid.
    """
    from jaxrf.cli.train import parse_training

    return [
        parse_training(["--preset", *shlex.split(preset)], "jaxrf bench").config
        for preset in options.preset_names
    ]
