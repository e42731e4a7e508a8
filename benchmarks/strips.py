"""Images for the docs: truth, rendering, depth and error of a test view, for each field.

python benchmarks/strips.py --data data/nerf_synthetic/lego

The docs show Lego, averaged to 400x400 beforehand. Each small preset is trained in another process
unless its run exists. Prints the command and the PSNR of the view.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from jaxrf.data import sources
from jaxrf.evaluation import images, scoring
from jaxrf.training import runs
from jaxrf.training.state import background_color

# Steps that two cores of a CPU do in a minute; voxels do more.
STEPS = {
    "voxels-small": 800,
    "tensorf-small": 800,
    "nerf-small": 1000,
    "bitnerf-small": 700,
    "hashgrid-small": 2000,
    "pynerf-small": 1200,
}
ROOT = Path(__file__).resolve().parent.parent


def train_preset(preset: str, data: Path, folder: Path) -> None:
    """Trains a preset on images of a quarter of the size."""
    options = f"--preset {preset} --downscale 4 --num-steps {STEPS[preset]}"
    scoring_options = ["--validate-every", "0", "--test-every", "200", "--video.frames", "0"]
    command = [sys.executable, str(ROOT / "train_lego.py"), *options.split(), *scoring_options]
    print(f"train_lego.py --data ... {options}", flush=True)
    subprocess.run([*command, "--data", str(data), "--run-dir", str(folder)], check=True)


def draw_strip(folder: Path, view: int, scale: int) -> tuple[Image.Image, float]:
    """Returns a strip of a run's test view, enlarged without smoothing, and the view's PSNR."""
    run = runs.open_run(folder)
    scene = sources.load_scene(Path(run.scene.data), ["test"], run.config, lambda count: [view])
    background = background_color(run.config)
    render = runs.make_render_fn(run)
    (scored,) = scoring.score_split(render, scene.splits["test"], background, [0])
    seen = scored.rendering
    hit = seen.median_depth[seen.opacity > 0.5]
    depth = images.colorize_depth(seen.median_depth, seen.opacity, hit.min(), hit.max())
    error = images.colorize_error(seen.rgb, scored.target_rgb)
    strip = np.concatenate([scored.target_rgb, seen.rgb, depth, error], axis=1)
    image = Image.fromarray(images.to_uint8(strip))
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.NEAREST), scored.scores["psnr"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--view", type=int, default=25)
    parser.add_argument("--scale", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/strips"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--presets", nargs="*", default=tuple(STEPS))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for preset in arguments.presets:
        folder = arguments.runs / preset
        if not folder.exists():
            train_preset(preset, arguments.data, folder)
        strip, psnr = draw_strip(folder, arguments.view, arguments.scale)
        strip.save(arguments.output / f"{preset}.png", optimize=True)
        print(f"{preset}: {psnr:.2f} dB, test view {arguments.view}", flush=True)


if __name__ == "__main__":
    main()
