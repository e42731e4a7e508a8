"""Pictures for the docs: truth, rendering, depth and error of a test view, for each field.

python benchmarks/strips.py --data data/nerf_synthetic/lego

The docs have them of Lego averaged to 400x400 beforehand. Trains each small preset in a process of
its own, if its run is not there yet, and prints the command and the PSNR of the view that is shown.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from jaxrf.data import sources
from jaxrf.evaluation import images, scoring
from jaxrf.training import runs, train

# As many steps as two cores of a CPU do in a minute; voxels do more.
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
    """Trains a preset on pictures of a quarter of the size."""
    options = f"--preset {preset} --downscale 4 --steps {STEPS[preset]}"
    rest = ["--validate-every", "0", "--test-every", "200", "--video.frames", "0"]
    command = [sys.executable, str(ROOT / "train_lego.py"), *options.split(), *rest]
    print(f"train_lego.py --data ... {options}", flush=True)
    subprocess.run([*command, "--data", str(data), "--run-dir", str(folder)], check=True)


def draw_strip(folder: Path, view: int, larger: int) -> tuple[Image.Image, float]:
    """A strip of a run's test view, each pixel as a square, and the view's PSNR."""
    run = runs.open_run(folder)
    scene = sources.load_scene(
        Path(run.scene.data), ["test"], run.config.downscale, lambda count: [view]
    )
    background = train.background_color(run.config)
    render = runs.make_render_fn(run)
    (scored,) = scoring.score_split(render, scene.splits["test"], background, [0])
    seen = scored.rendering
    hit = seen.median_depth[seen.opacity > 0.5]
    depth = images.colorize_depth(seen.median_depth, seen.opacity, hit.min(), hit.max())
    error = images.colorize_error(seen.rgb, scored.truth)
    strip = np.concatenate([scored.truth, seen.rgb, depth, error], axis=1)
    image = Image.fromarray(images.to_uint8(strip))
    size = (image.width * larger, image.height * larger)
    return image.resize(size, Image.Resampling.NEAREST), scored.psnr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--view", type=int, default=25)
    parser.add_argument("--larger", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/strips"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--presets", nargs="*", default=tuple(STEPS))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    for preset in given.presets:
        folder = given.runs / preset
        if not folder.exists():
            train_preset(preset, given.data, folder)
        strip, psnr = draw_strip(folder, given.view, given.larger)
        strip.save(given.output / f"{preset}.png", optimize=True)
        print(f"{preset}: {psnr:.2f} dB, test view {given.view}", flush=True)


if __name__ == "__main__":
    main()
