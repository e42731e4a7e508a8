"""PSNR and seconds of TensoRF with one ingredient changed at a time.

python benchmarks/tensorf_ingredients.py --data ...        prints a table in Markdown

All runs do the same number of steps of the small preset, each in its own process with a warm
compilation cache, and are scored on validation views.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

INGREDIENTS = {
    "unchanged": [],
    "no upsampling, 128^3 from the start": [
        "--field.initial-voxels", str(128**3), "--field.upsample-at",
    ],
    "no upsampling, 64^3 to the end": [
        "--field.final-voxels", str(64**3), "--field.upsample-at",
    ],
    "no pruning, so no smaller box and no filtered rays": ["--field.prune-at"],
    "rays that hit nothing are not filtered": ["--no-filter-rays"],
    "pruning by alpha instead of weight": [
        "--field.prune-by", "alpha", "--field.prune-threshold", "1e-4",
    ],
    "color for all samples": ["--model.max-colored-fraction", "1"],
    "color per sample instead of per ray": ["--model.coloring", "per_sample"],
    "one ray per pixel": ["--supersample", "1"],
    "white background instead of random colors": ["--background", "white"],
    "L1 of the density, 8e-5 and 4e-5": [
        "--field.l1-weight", "8e-5", "--field.l1-weight-pruned", "4e-5",
    ],
    "total variation of the features, 1e-4": ["--field.feature-tv-weight", "1e-4"],
    "orthogonality, 1e-3": ["--field.orthogonality-weight", "1e-3"],
    "learning rates and moments reset at upsampling": ["--field.reset-lr"],
    "steps of half a voxel": ["--field.step-ratio", "0.5"],
    "color by harmonics instead of an MLP": [
        "--field.color-head", "harmonics", "--field.feature-dim", "27",
    ],
    "three lines instead of planes and lines": [
        "--field.factors", "cp", "--field.density-components", "24",
        "--field.feature-components", "48", "--field.init-scale", "0.2",
    ],
}  # fmt: skip


def measure(folder: Path, arguments: list[str], options: list[str]) -> tuple[float, float, int]:
    """Returns validation PSNR, training seconds without compilation, and peak memory in bytes."""
    command = [sys.executable, "-m", "jaxrf"]
    train = [
        "train", "--preset", "tensorf-small", "--run-dir", str(folder), "--video.frames", "0",
        "--validate-every", "0", "--test-every", "1000", *arguments, *options,
    ]  # fmt: skip
    for part in (train, ["eval", str(folder), "--split", "val", "--every", "8"]):
        subprocess.run([*command, *part], check=True, capture_output=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    score = json.loads((folder / "metrics_val.json").read_text())
    return score["val"]["psnr"], metrics["seconds"]["train"], metrics["peak_memory_bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--downscale", default="4")
    parser.add_argument("--steps", default="800")
    parser.add_argument("--only", default="", help="part of an ingredient's name")
    options = parser.parse_args()
    common = [
        "--data",
        options.data,
        "--downscale",
        options.downscale,
        "--num-steps",
        options.steps,
    ]
    print("| changed | validation PSNR | training s | memory |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, arguments) in enumerate(INGREDIENTS.items()):
            if options.only in name:
                psnr, seconds, memory = measure(Path(folder, str(number)), common, arguments)
                print(
                    f"| {name} | {psnr:.2f} dB | {seconds:.0f} | {memory / 2**30:.1f} GiB |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
