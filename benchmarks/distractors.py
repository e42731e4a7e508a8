"""PSNR where made-up passers-by stand in part of the training images, with and without robust loss.

    python benchmarks/distractors.py bricks --preset voxels-small --quantiles 0 0.8
    python benchmarks/distractors.py FOX --preset capture-small --quantiles 0 0.8 --share 0

Paints opaque figures with texture, each over 5 to 15 % of the image, at random places into a share
of the training images; the other splits stay clean. Prints a row in Markdown for each quantile: the
PSNR of the validation and the test views. A quantile of 0 is the loss of all pixels.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np

import jaxrf
from jaxrf.data.bricks.config import SyntheticSceneConfig
from jaxrf.data.bricks.dataset import cached_bricks
from jaxrf.data.scene import Scene, Split
from jaxrf.presets import make_preset
from jaxrf.training.config import LossConfig

# Share of its bounding box that a figure fills, and the box's width relative to its height.
FILLED, ASPECT = 0.6, 0.5


def paint_passers_by(split: Split, share: float, seed: int) -> Split:
    """The split with a figure in a share of its images, chosen at random."""
    rng = np.random.default_rng(seed)
    images = split.images.copy()
    chosen = rng.permutation(len(split))[: round(share * len(split))]
    for index in chosen:
        paint_figure(images[index], rng)
    return dataclasses.replace(split, images=images)


def paint_figure(image: np.ndarray, rng: np.random.Generator) -> None:
    """Paints a figure of head, body and legs, striped and noisy, into an RGBA image."""
    height, width = image.shape[:2]
    area = rng.uniform(0.05, 0.15) * height * width / FILLED
    figure_height = min(np.sqrt(area / ASPECT), float(height))
    figure_width = min(area / figure_height, float(width))
    top = rng.uniform(0.0, height - figure_height)
    left = rng.uniform(0.0, width - figure_width)
    row, column = np.mgrid[:height, :width] + 0.5
    v = 2.0 * (row - top) / figure_height - 1.0
    u = 2.0 * (column - left) / figure_width - 1.0
    parts = (
        ((np.abs(np.abs(u) - 0.4) < 0.28) & (v > 0.2) & (v < 1.0)),
        ((u / 0.95) ** 2 + ((v + 0.05) / 0.5) ** 2 < 1.0),
        ((u / 0.5) ** 2 + ((v + 0.75) / 0.25) ** 2 < 1.0),
    )
    for part in parts:
        period = rng.uniform(0.04, 0.15) * figure_height
        direction = rng.uniform(0.0, np.pi)
        position = np.cos(direction) * column + np.sin(direction) * row
        stripes = 0.5 + 0.5 * np.sign(np.sin(2.0 * np.pi * position / period))
        colors = rng.uniform(0.0, 255.0, (2, 3))
        texture = colors[0] + stripes[..., None] * (colors[1] - colors[0])
        texture = texture + rng.normal(0.0, 8.0, texture.shape)
        image[part, :3] = np.clip(texture, 0.0, 255.0)[part].astype(np.uint8)
        image[part, 3] = 255


def load(data: str, downscale: int) -> Scene:
    """The scene of a data set, or the built-in one if it is called bricks."""
    size = SyntheticSceneConfig().size
    folder = cached_bricks(width=size, height=size) if data == "bricks" else Path(data)
    return jaxrf.load_scene(folder, downscale=downscale)


def main() -> None:
    """Prints a row for each quantile."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="a data set, or bricks")
    parser.add_argument("--preset", default="capture-small")
    parser.add_argument("--num-steps", type=int, default=1000)
    parser.add_argument("--batch-rays", type=int, help="default: the preset's")
    parser.add_argument("--share", type=float, default=0.4, help="of the training images")
    parser.add_argument("--quantiles", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--patch-size", type=int, default=LossConfig().patch_size)
    parser.add_argument("--downscale", type=int, default=1)
    parser.add_argument("--warmup", type=float, default=LossConfig().inlier_warmup)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    scene = load(arguments.data, arguments.downscale)
    painted = paint_passers_by(scene.train, arguments.share, arguments.seed)
    scene = dataclasses.replace(scene, splits={**scene.splits, "train": painted})
    config = make_preset(arguments.preset)
    batch_rays = arguments.batch_rays or config.batch_rays
    print("| share | quantile | rays | validation (dB) | test (dB) | seconds |")
    print("|---|---|---|---|---|---|")
    for quantile in arguments.quantiles:
        loss = dataclasses.replace(
            config.loss,
            inlier_quantile=quantile,
            inlier_warmup=arguments.warmup,
            patch_size=arguments.patch_size,
        )
        started = time.perf_counter()
        result = jaxrf.fit(
            config, scene, progress=False, num_steps=arguments.num_steps, seed=arguments.seed,
            batch_rays=batch_rays, loss=loss,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        scores = [
            result.evaluate(scene.splits[name])["psnr"] if name in scene.splits else float("nan")
            for name in ("val", "test")
        ]
        print(
            f"| {arguments.share:g} | {quantile:g} | {batch_rays} | {scores[0]:.2f} | "
            f"{scores[1]:.2f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
