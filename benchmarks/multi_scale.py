"""PSNR of PyNeRF and other fields at each size of the images.

python benchmarks/multi_scale.py --data ...        prints a table in Markdown

All fields are trained for the same time on the images at 1, 1/2, 1/4 and 1/8 of their size
together, pixels weighted by their area, each in its own process with an empty compilation cache.
They are scored at each of these sizes against images averaged over areas (Mip-NeRF, section 4.2).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FIELDS = {
    "NeRF": ["nerf-small"],
    "NeRF, integrated encoding": ["nerf-small", "--field.encoding", "integrated"],
    "NeRF, 2x2 rays a pixel": ["nerf-small", "--supersample", "2"],
    "hash grid": ["hashgrid-small"],
    "hash grid, antialiased": ["multiscale-small"],
    "hash grid, antialiased by multisamples": [
        "multiscale-small", "--supersample", "1", "--field.multisamples", "3",
    ],
    "hash grid, 2x2 rays a pixel": ["hashgrid-small", "--supersample", "2"],
    "PyNeRF": ["pynerf-small"],
    "PyNeRF, 2x2 rays a pixel": ["pynerf-small", "--supersample", "2"],
    "PyNeRF, a table for each head": ["pynerf-small", "--field.tables", "separate"],
    "PyNeRF, blending densities and colors": [
        "pynerf-small", "--field.blend", "results", "--model.coloring", "per_sample",
    ],
    "PyNeRF, consistency 0.1": ["pynerf-small", "--field.consistency-weight", "0.1"],
    "PyNeRF, consistency 0.001": ["pynerf-small", "--field.consistency-weight", "0.001"],
    "PyNeRF, sizes one after the other": [
        "pynerf-small", "--train-scale-schedule",
        "0", "8", "0.067", "4", "0.167", "2", "0.333", "1",
    ],
}  # fmt: skip


def measure(folder: Path, arguments: list[str], split: str) -> dict[str, float]:
    """Returns PSNR at each size and their mean, the number of steps, and peak memory in GiB."""
    command = [sys.executable, "-m", "jaxrf"]
    train = [
        "train", "--preset", *arguments, "--run-dir", str(folder), "--num-train-scales", "4",
        "--video.frames", "0", "--validate-every", "0",
    ]  # fmt: skip
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder.with_suffix(".cache"))}
    subprocess.run([*command, *train], check=True, capture_output=True, env=environment)
    name = "metrics.json"
    if split == "val":
        score = ["eval", str(folder), "--split", "val", "--every", "8"]
        subprocess.run([*command, *score], check=True, capture_output=True, env=environment)
        name = "metrics_val.json"
    trained = json.loads((folder / "metrics.json").read_text())
    scored = json.loads((folder / name).read_text())
    return {
        **{f"1/{size['factor']}": size["psnr"] for size in scored["sizes"]},
        "mean": scored["mean_of_sizes"]["psnr"],
        "steps": trained["steps"],
        "GiB": trained["peak_memory_bytes"] / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--downscale", default="2")
    parser.add_argument("--budget", default="120", help="seconds from the start of the process")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--only", nargs="*", default=list(FIELDS), help="names of fields")
    options = parser.parse_args()
    common = ["--data", options.data, "--downscale", options.downscale, "--budget", options.budget]
    # If validation views are scored, one test view is enough.
    common += ["--test-every", "8" if options.split == "test" else "1000"]
    print("| field | 1 | 1/2 | 1/4 | 1/8 | mean, dB | steps | memory |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(options.only):
            measured = measure(Path(folder, str(number)), [*FIELDS[name], *common], options.split)
            sizes = " | ".join(f"{measured[f'1/{2**halvings}']:.2f}" for halvings in range(4))
            print(
                f"| {name} | {sizes} | {measured['mean']:.2f} | {measured['steps']:.0f} "
                f"| {measured['GiB']:.1f} GiB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
