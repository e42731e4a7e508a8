"""Differences between seeds, and between numbers of devices at the same seed.

    python benchmarks/seeds.py --data data/nerf_synthetic/lego --downscale 8

Prints the PSNR of validation views while training: for each number of devices the mean of all
seeds, the range of the seeds, and the largest difference from the same seed on one device.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from jaxrf.training import runs

PRESETS = (
    "nerf-tiny", "bitnerf-tiny", "tensorf-small", "voxels-small", "hashgrid-small", "pynerf-small",
)  # fmt: skip


def train(
    arguments: argparse.Namespace, preset: str, devices: int, seed: int
) -> list[tuple[float, float]]:
    """Trains in another process; returns pairs of step and PSNR of validation views."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "jaxrf", "train", "--preset", preset, "--run-dir", str(run),
            "--data", str(arguments.data), "--downscale", str(arguments.downscale),
            "--num-steps", str(arguments.steps), "--seed", str(seed), "--devices", str(devices),
            "--batch-rays", str(arguments.rays), "--batch-samples", str(64 * arguments.rays),
            "--validate-every", "0.245", "--test-every", "100", "--video.frames", "0",
            "--steps-per-dispatch", "4",
        ]  # fmt: skip
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"XLA_FLAGS": flags}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        return runs.read_curve(run, "val/psnr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--downscale", type=int, default=8)
    parser.add_argument("--presets", nargs="*", default=PRESETS)
    parser.add_argument("--counts", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rays", type=int, default=512)
    arguments = parser.parse_args()
    print("| field | devices | step | PSNR, mean of seeds | range of seeds | to one device |")
    print("|---|---|---|---|---|---|")
    for preset in arguments.presets:
        one_device: list[list[tuple[float, float]]] = []
        for count in arguments.counts:
            curves = [train(arguments, preset, count, seed) for seed in range(arguments.seeds)]
            one_device = one_device or curves
            for index, (step, _) in enumerate(curves[0]):
                psnrs, single = ([c[index][1] for c in seeds] for seeds in (curves, one_device))
                difference = max(abs(a - b) for a, b in zip(psnrs, single, strict=True))
                print(
                    f"| {preset} | {count} | {step:.0f} | {sum(psnrs) / len(psnrs):.2f} dB "
                    f"| {max(psnrs) - min(psnrs):.2f} dB | {difference:.2f} dB |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
