"""The six experiments of the seed study: `jaxrf experiments`.

They are a base, mixed precision, mixed precision with larger batches, a BitNeRF, and the base and
the BitNeRF on two devices, so that precision, batch size, quantization and the number of devices
can be compared.
"""

import os
import shutil
from pathlib import Path

from jaxrf.core.accelerator import expects_accelerator
from jaxrf.core.errors import InputError
from jaxrf.presets import preset_name
from jaxrf.studies.experiments_report import write_report
from jaxrf.studies.options import ExperimentsOptions
from jaxrf.studies.presets import STUDY, study_base
from jaxrf.studies.processes import run_jaxrf
from jaxrf.training import runs
from jaxrf.training.config import TrainConfig

# Width of the network and rays per step of the base in a short run, which a CPU can do.
SHORT_WIDTH, SHORT_RAYS = 64, 512


def run(options: ExperimentsOptions) -> int:
    """Trains the experiments that are not trained yet and writes report.md with its plots.

    Returns the exit code.
    """
    presets = {preset_name(preset): preset for preset in STUDY}
    chosen = [name for name in presets if not options.only or name in options.only]
    if not chosen:
        raise InputError(
            f"--only {' '.join(options.only)} names no experiment: choose of {', '.join(presets)}."
        )
    runs.make_writable(options.output, "--output")
    trained = {}
    for number, name in enumerate(chosen):
        folder = options.output / f"{name}-{options.length}-{options.seed}"
        print(f"{number + 1} of {len(chosen)}: {name} ...", flush=True)
        if not (folder / runs.METRICS_FILE).exists():
            try:
                train_one(presets[name](), name, options, folder)
            except InputError as error:
                print(f"Left out: {error.for_command_line}")
                continue
        trained[name] = folder
    if not trained:
        raise InputError("None of the experiments could be trained; the reasons are printed above.")
    table = write_report({name: runs.open_run(folder) for name, folder in trained.items()}, options)
    print(f"{table}\nWritten to {options.output}: report.md and its pictures.")
    print(f"All curves: tensorboard --logdir {options.output}")
    return 0


def train_one(config: TrainConfig, name: str, options: ExperimentsOptions, folder: Path) -> None:
    """Trains or resumes one experiment in another process.

    Without an accelerator, an experiment on two devices gets two host devices of the CPU.

    Raises:
      InputError: the training failed.
    """
    arguments = ["train", "--run-dir", str(folder)]
    if any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
        arguments.append("--resume")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        arguments += [
            "--preset",
            name,
            "--seed",
            str(options.seed),
            "--num-steps",
            str(config.num_steps),
        ]
        arguments += ["--video.frames", "0", "--validate-every", "0.1"]
        if options.length == "short":
            rays = SHORT_RAYS * config.batch_rays // study_base().batch_rays
            arguments += ["--field.width", str(SHORT_WIDTH), "--batch-rays", str(rays)]
        if options.data is not None:
            arguments += ["--data", str(options.data)]
    environment = dict(os.environ)
    if (config.devices or 1) > 1 and not expects_accelerator():
        flag = f"--xla_force_host_platform_device_count={config.devices}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
    run_jaxrf(arguments, environment, f"Training {name}")
