"""Plots of a data set: its cameras as frusta around its box, and some of its images."""

import io
import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxrf.cameras.base import Cameras
from jaxrf.data.scene import Scene

COLORS = {"train": "#1f77b4", "val": "#2ca02c", "test": "#d62728"}
# Width of thumbnails in pixels.
THUMBNAIL_WIDTH = 96
# Maximum number of thumbnails of a split.
MAX_THUMBNAILS = 40
# End of a box in NDC as it is drawn, at three times the distance of the near plane. The box itself
# ends at 1, which is infinity.
DRAWN_NDC_END = 1.0 / 3.0


def camera_frustum(cameras: Cameras, index: int, length: float) -> Float[np.ndarray, "5 3"]:
    """Position of a camera and corners of its image at depth `length`, clockwise from top left."""
    focal, center = (
        np.asarray(v, np.float64)[index] for v in (cameras.focal, cameras.principal_point)
    )
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * [cameras.width, cameras.height]
    plane = (corners - center) / focal * [1.0, -1.0]
    local = length * np.concatenate([plane, -np.ones((4, 1))], axis=-1)
    pose = np.asarray(cameras.T_world_camera, np.float64)[index]
    return np.concatenate([pose[None, :3, 3], local @ pose[:3, :3].T + pose[:3, 3]])


def _frustum_lines(frustum: Float[np.ndarray, "5 3"]) -> list[Float[np.ndarray, "_ 3"]]:
    """The border of a frustum's image, and lines from the camera to its corners."""
    tip, *corners = frustum
    return [np.stack([*corners, corners[0]]), *(np.stack([tip, corner]) for corner in corners)]


def frustum_length(scene: Scene) -> float:
    """Length of frusta that suits the size of the scene."""
    positions = np.concatenate(
        [
            np.asarray(split.cameras.T_world_camera, np.float64)[:, :3, 3]
            for split in scene.splits.values()
        ]
    )
    corners = np.concatenate(box_edges(scene))
    extent = np.ptp(np.concatenate([positions, corners]), axis=0)
    return 0.06 * float(np.linalg.norm(extent))


def box_edges(scene: Scene) -> list[Float[np.ndarray, "2 3"]]:
    """Edges of the scene's box in space; of a box in NDC, those of its near part."""
    ndc = next(iter(scene.splits.values())).cameras.ndc
    low, high = np.asarray(scene.aabb, np.float64)
    if ndc is not None:
        high = np.array([*high[:2], DRAWN_NDC_END])
    corners = list(itertools.product(*np.stack([low, high], axis=-1)))
    edges = [
        np.stack([a, b])
        for a, b in itertools.combinations(np.array(corners), 2)
        if np.sum(np.abs(a - b) > 1e-9) == 1
    ]
    return edges if ndc is None else [_ndc_to_space(edge, ndc) for edge in edges]


def _ndc_to_space(
    points: Float[np.ndarray, "n 3"], ndc: tuple[float, float, float]
) -> Float[np.ndarray, "n 3"]:
    """Points in space of points in the coordinates of `ndc.rays_to_ndc`."""
    depth = 2.0 * ndc[2] / (1.0 - points[:, 2:])
    return np.concatenate([points[:, :2] * np.array(ndc[:2]) * depth, -depth], axis=-1)


def make_thumbnail(image: UInt8[np.ndarray, "h w 4"]) -> Image.Image:
    """A small copy of an image, on white."""
    height, width = image.shape[:2]
    alpha = image[..., 3:].astype(np.float32) / 255.0
    rgb = np.rint(image[..., :3] * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)
    size = (THUMBNAIL_WIDTH, max(1, round(THUMBNAIL_WIDTH * height / width)))
    return Image.fromarray(rgb).resize(size, Image.Resampling.BOX)


def thumbnail_views(count: int) -> list[int]:
    """Indices of the views, evenly spaced, that thumbnails show."""
    num_thumbnails = min(count, MAX_THUMBNAILS)
    return [i * count // num_thumbnails for i in range(num_thumbnails)]


def draw_scene(scene: Scene) -> bytes:
    """The cameras and the box from two sides, and some images, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(14, 8), dpi=100, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(3, 2))
    above, below = halves
    sides = (("from aside", 25.0, -60.0), ("from above", 90.0, -90.0))
    for index, (title, elevation, azimuth) in enumerate(sides):
        axes = above.add_subplot(1, 2, index + 1, projection="3d", proj_type="ortho")
        _draw_cameras(axes, scene)
        axes.set(xlabel="x", ylabel="y", zlabel="z", title=title)
        axes.set_aspect("equal")
        # By default the plot leaves a third of its place empty.
        lengths = [np.ptp(getattr(axes, f"get_{axis}lim")()) for axis in "xyz"]
        axes.set_box_aspect(lengths, zoom=1.3 if elevation == 90.0 else 1.08)
        axes.tick_params(labelsize=7, pad=0)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_major_locator(MaxNLocator(4))
        if elevation == 90.0:
            axes.set(zlabel="", zticks=[])
        else:
            for handle in axes.legend(loc="upper left").legend_handles:
                handle.set_linewidth(2.0)
        axes.view_init(elevation, azimuth)
    _draw_thumbnails(below, scene)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_cameras(axes: Any, scene: Scene) -> None:
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    length = frustum_length(scene)
    # Draw the box over the cameras in front of it.
    axes.computed_zorder = False
    box = box_edges(scene)
    all_lines = [*box]
    axes.add_collection3d(Line3DCollection(box, colors="black", linewidths=1.5, zorder=9))
    for name, split in scene.splits.items():
        frusta = [camera_frustum(split.cameras, index, length) for index in range(len(split))]
        lines = [line for frustum in frusta for line in _frustum_lines(frustum)]
        # The more cameras there are, the thinner are their lines.
        width = max(0.3, 0.8 / math.sqrt(max(len(split), 1) / 30))
        axes.add_collection3d(
            Line3DCollection(
                lines, colors=COLORS[name], linewidths=min(width, 0.8), label=name, zorder=1
            )
        )
        all_lines += lines
    axes.auto_scale_xyz(*np.concatenate(all_lines).T)


def _draw_thumbnails(figure: Any, scene: Scene) -> None:
    views = [(n, s, i) for n, s in scene.splits.items() for i in thumbnail_views(len(s))]
    views = views[:: max(1, len(views) // 24 + 1)]
    grid = figure.subplots(2, max(1, -(-len(views) // 2)), squeeze=False).ravel()
    for cell in grid:
        cell.axis("off")
    for cell, (name, split, index) in zip(grid, views, strict=False):
        cell.imshow(np.asarray(make_thumbnail(split.images[index])))
        title = f"{name} {split.names[index]}"
        cell.set_title(title, fontsize=6, color=COLORS[name], parse_math=False)
