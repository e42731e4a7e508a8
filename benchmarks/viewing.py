"""Frame rate of a run in the viewer on this machine, without the browser.

    python benchmarks/viewing.py runs/NAME

A camera goes around the scene for some seconds while images are rendered and encoded as for a
browser; then it stands still until the image is sharp.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image

from jaxrf.cameras.base import resize_cameras
from jaxrf.cameras.poses import near_far_for_box
from jaxrf.cli.viewing import make_interactive_renderer
from jaxrf.core.jax_setup import set_up_jax
from jaxrf.evaluation import images, interactive
from jaxrf.export.render_options import RenderOptions
from jaxrf.export.render_plan import path_cameras
from jaxrf.rendering.image import HostRendering
from jaxrf.sampling.occupancy import visible_aabb
from jaxrf.training import runs
from jaxrf.viewer.client import MOVING_FRAME_SECONDS
from jaxrf.viewer.crop_panel import NO_CROP

SIZES = (384, 768)


def encode(rendering: HostRendering, depth_range: tuple[float, float]) -> bytes:
    """Returns an image as the viewer sends it to a browser."""
    buffer = io.BytesIO()
    image = Image.fromarray(images.draw_channel(rendering, "rgb", depth_range))
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    set_up_jax("highest")
    run = runs.open_run(arguments.run)
    renderer = make_interactive_renderer(run)
    orbit = path_cameras(run, RenderOptions(frames=600, size=SIZES[-1]))
    depth_range = near_far_for_box(orbit, visible_aabb(renderer.grid))
    # Compiles.
    renderer.render(resize_cameras(orbit[0], 8, 8), NO_CROP, lambda: False)
    print("| full width | width while moving | frames/s | first image | sharp after |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        timer = interactive.FrameTimer(MOVING_FRAME_SECONDS)
        widths: list[int] = []
        times: list[float] = []
        cameras = resize_cameras(orbit, size, size * orbit.height // orbit.width)
        started = time.perf_counter()
        while (now := time.perf_counter()) - started < arguments.seconds:
            camera = cameras[len(times) % len(cameras)]
            rendering = next(
                interactive.render_progressively(renderer, camera, NO_CROP, timer, lambda: False)
            )
            encode(rendering, depth_range)
            widths.append(rendering.opacity.shape[1])
            times.append(time.perf_counter() - now)
        started, reached = time.perf_counter(), []
        for rendering in interactive.render_progressively(
            renderer, camera, NO_CROP, timer, lambda: False
        ):
            encode(rendering, depth_range)
            reached.append(time.perf_counter() - started)
        moving = int(np.median(widths[5:]))
        print(
            f"| {size} | {moving} | {1.0 / np.mean(times[5:]):.1f} | {reached[0]:.2f} s | "
            f"{reached[-1]:.2f} s |"
        )


if __name__ == "__main__":
    main()
