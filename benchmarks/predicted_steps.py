"""How wrong the predictions of `jaxrf bench --compile-for` are where they can be checked: here.

    python benchmarks/predicted_steps.py --data data/nerf_synthetic/lego --downscale 4

Measures this machine's rates, and predicts and measures the time of a training step of each preset.
"""

import argparse
import dataclasses
from pathlib import Path

from jaxrf.core.jax_setup import set_up_jax
from jaxrf.data import sources
from jaxrf.parallel.devices import make_mesh
from jaxrf.presets import make_preset
from jaxrf.studies import compile_for, profile, roofline
from jaxrf.studies.roofline import Roofline
from jaxrf.studies.targets import TARGETS, Target

PRESETS = ("voxels-small", "tensorf-small", "hashgrid-small", "pynerf-small")


def describe_cpu(rates: Roofline) -> Target:
    """This machine, at the rates that it was measured to reach.

    Rows that are looked up lie in cache lines of 64 bytes. Operations on single numbers are taken
    to be as quick as products of large matrices.
    """
    return dataclasses.replace(
        TARGETS["h200"], name="cpu", title="this machine", memory_bytes=16e9,
        bandwidth=1e9 * rates.memory, matmul_flops=1e9 * rates.layer, half_flops=1e9 * rates.layer,
        element_ops=1e9 * rates.matmul, launch_seconds=2e-6, read_seconds=0.0, granule=64,
        packages=(),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--downscale", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--presets", nargs="*", default=PRESETS)
    arguments = parser.parse_args()
    set_up_jax("highest")
    target, mesh = describe_cpu(roofline.measure_roofline()), make_mesh(1)
    print("| preset | kernels | predicted ms | measured ms | measured / predicted |")
    print("|---|---|---|---|---|")
    for preset in arguments.presets:
        config = dataclasses.replace(
            make_preset(preset), downscale=arguments.downscale, num_steps=arguments.steps
        )
        scene = sources.load_scene(arguments.data, ["train"], config)
        counts = compile_for.count_on_mesh(config, scene, mesh, target)
        measured = profile.profile_training(config, scene).step_seconds
        predicted = counts["step_seconds"]
        print(
            f"| `{preset}` | {counts['launches']:.0f} | {1e3 * predicted:.1f} "
            f"| {1e3 * measured:.1f} | {measured / predicted:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
