"""PSNR and SSIM where training images differ in exposure and white balance.

python benchmarks/exposure.py --data ... --steps 1500        prints a table in Markdown

The linear light of each training image is multiplied by a random exposure and by a random white
balance, whose geometric mean over the images is 1, and clipped. Test images stay as they are.
The table has the scores of views as they are rendered, and after a color correction
(`evaluation.color_correction`). `--stops 0 --tint 0` measures on the images as they are.
"""

import argparse
import dataclasses
from typing import Any

import numpy as np

import jaxrf
from jaxrf.data.scene import Scene
from jaxrf.evaluation.scoring import score_split, summarize
from jaxrf.presets import default_preset, make_preset
from jaxrf.training.state import background_color

METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "exposure": {"color_correction": "exposure"},
    "affine": {"color_correction": "affine"},
    "appearance": {"appearance_dim": 16},
}


def draw_gains(count: int, stops: float, tint: float, seed: int) -> np.ndarray:
    """Returns a gain of linear light for each image and channel, (count, 3).

    Exposures are uniform within +-`stops`, red and blue within +-`tint` stops of green.
    """
    rng = np.random.default_rng(seed)
    log_gains = rng.uniform(-stops, stops, (count, 1)) * np.ones((1, 3))
    log_gains[:, [0, 2]] += rng.uniform(-tint, tint, (count, 2))
    return np.exp2(log_gains - log_gains.mean(axis=0))


def expose(scene: Scene, gains: np.ndarray) -> Scene:
    """Returns the scene with the light of its training images multiplied by gains (n, 3)."""
    coded = np.arange(256) / 255.0
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    images = scene.train.images.copy()
    for image, image_gains in zip(images, gains, strict=True):
        for channel, gain in enumerate(image_gains):
            light = np.minimum(gain * linear, 1.0)
            levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
            table = np.rint(255.0 * levels).astype(np.uint8)
            image[..., channel] = table[image[..., channel]]
    train = dataclasses.replace(scene.train, images=images)
    return dataclasses.replace(scene, splits={**scene.splits, "train": train})


def measure(scene: Scene, preset: str, method: str, steps: int, seed: int) -> dict[str, float]:
    """Returns the scores of the test views after some steps of training."""
    config = make_preset(preset)
    model = dataclasses.replace(config.model, **METHODS[method])
    result = jaxrf.fit(config, scene, model=model, num_steps=steps, seed=seed, progress=False)
    views = score_split(
        result.render,
        scene.test,
        background_color(result.config),
        range(len(scene.test)),
        correct_colors=True,
    )
    return summarize(list(views))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--downscale", type=int, default=1)
    parser.add_argument("--preset", default=default_preset(is_capture=True))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--stops", type=float, default=0.5, help="largest change of exposure")
    parser.add_argument("--tint", type=float, default=0.2, help="largest change of red and blue")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(METHODS), help="methods to measure")
    options = parser.parse_args()
    scene = jaxrf.load_scene(options.data, downscale=options.downscale)
    gains = draw_gains(len(scene.train), options.stops, options.tint, options.seed)
    scene = expose(scene, gains)
    print("| colors of images | PSNR, SSIM | after color correction |\n|---|---|---|")
    for method in options.only:
        score = measure(scene, options.preset, method, options.steps, options.seed)
        print(
            f"| {method} | {score['psnr']:.2f} dB, {score['ssim']:.4f} | {score['psnr_cc']:.2f} dB,"
            f" {score['ssim_cc']:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
