"""`jaxrf bench`: checks the presets to measure, then measures. Its options are `BenchOptions`."""

import shlex

from jaxrf.studies.options import BenchOptions


def run(options: BenchOptions) -> int:
    """Measures the machine and every preset; returns the exit code.

    Raises:
      InputError: a preset is unknown or its options are invalid, before anything is measured.
    """
    from jaxrf.studies import bench

    check_presets(options)
    return bench.run(options)


def check_presets(options: BenchOptions) -> None:
    """Parses each preset with the options that follow its name.

    Raises:
      InputError: a preset is unknown, or one of its options is invalid.
    """
    from jaxrf.cli.train import parse_training

    for preset in options.presets:
        parse_training(["--preset", *shlex.split(preset)], "jaxrf bench")
