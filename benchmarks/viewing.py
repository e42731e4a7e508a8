"""How fluid a run is in the viewer on this machine, the browser's own work left out.

    python benchmarks/viewing.py runs/NAME

A camera goes around the scene for some seconds, painted and encoded as for a browser; then it
stands still until the picture is sharp.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np
from jaxrf.cli.options import RenderOptions
from PIL import Image

from jaxrf.cameras.base import near_far_for_box, resize_cameras
from jaxrf.cli import commands
from jaxrf.evaluation import images, interactive
from jaxrf.export.render_plan import path_cameras
from jaxrf.rendering.image import HostRendering
from jaxrf.sampling.occupancy import visible_aabb
from jaxrf.training import runs
from jaxrf.viewer.client import MOVING_FRAME_SECONDS
from jaxrf.viewer.crop_panel import NO_CROP

SIZES = (384, 768)


def encode(picture: HostRendering, span: tuple[float, float]) -> bytes:
    """A picture as it is sent to a browser."""
    buffer = io.BytesIO()
    image = Image.fromarray(images.draw_channel(picture, "rgb", span))
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    commands.set_up_jax("highest")
    run = runs.open_run(arguments.run)
    paint = commands.make_interactive_renderer(run)
    orbit = path_cameras(run, RenderOptions(frames=600, size=SIZES[-1]))
    span = near_far_for_box(orbit, visible_aabb(paint.grid))
    tiny = resize_cameras(orbit[np.array([0])], 8, 8)
    paint.paint(tiny, NO_CROP, lambda: False)
    print("| sharpest | while it moves | frames/s | first picture | sharp after |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        pace, widths, times = interactive.Pace(MOVING_FRAME_SECONDS), [], []
        cameras = resize_cameras(orbit, size, size * orbit.height // orbit.width)
        started = time.perf_counter()
        while (now := time.perf_counter()) - started < arguments.seconds:
            camera = cameras[np.array([len(times) % len(cameras)])]
            picture = next(
                interactive.render_progressively(paint, camera, NO_CROP, pace, lambda: False)
            )
            encode(picture, span)
            widths.append(picture.opacity.shape[1])
            times.append(time.perf_counter() - now)
        begun, reached = time.perf_counter(), []
        for picture in interactive.render_progressively(
            paint, camera, NO_CROP, pace, lambda: False
        ):
            encode(picture, span)
            reached.append(time.perf_counter() - begun)
        moving = int(np.median(widths[5:]))
        print(
            f"| {size} | {moving} | {1.0 / np.mean(times[5:]):.1f} | {reached[0]:.2f} s | "
            f"{reached[-1]:.2f} s |"
        )


if __name__ == "__main__":
    main()
