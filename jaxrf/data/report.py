"""What a data set holds: its figures, what looks wrong in it, and a picture of its cameras."""

import base64
import hashlib
import html
import io
import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxrf.cameras.base import Cameras
from jaxrf.data.scene import Scene, Split

# Pictures are shown so many pixels wide.
THUMBNAIL = 96
# More pictures than these only hide each other.
MAX_THUMBNAILS = 40
# Of a box that reaches to infinity, at 1, what is drawn: as far as three near planes.
SHOWN_NDC = 1.0 / 3.0


def dataset_report(scene: Scene) -> list[str]:
    """Counts, sizes, lenses and distances of a scene, a line each."""
    lines = []
    for name, split in scene.splits.items():
        cameras = split.cameras
        focal = np.asarray(cameras.focal, np.float64)
        middle = np.asarray(cameras.principal_point, np.float64)
        size = np.array([cameras.width, cameras.height])
        angle = np.degrees(2.0 * np.arctan(0.5 * size / focal.mean(axis=0)))
        bent = "no distortion" if cameras.distortion is None else f"{cameras.lens} distortion"
        lines.append(
            f"{name}: {len(split)} pictures of {cameras.width}x{cameras.height} pixels, "
            f"{_describe_alpha(split)}; focal length {_span(focal[:, 0])} x {_span(focal[:, 1])} "
            f"pixels ({angle[0]:.1f} x {angle[1]:.1f} degrees), principal point "
            f"{_span(middle[:, 0])}, {_span(middle[:, 1])}, {bent}"
        )
    first = next(iter(scene.splits.values())).cameras
    box = "; ".join(f"{axis} {low:.3g} to {high:.3g}" for axis, low, high in _sides(scene))
    places = _places(first)
    if first.ndc is not None:
        lines.append(f"box: {box}, in normalized device coordinates")
        lines.append(
            f"rays: from the plane {first.ndc[2]:.3g} scene units ahead to infinity; contents "
            f"between {scene.near:.3g} and {scene.far:.3g}"
        )
        away = np.linalg.norm(places - places.mean(axis=0), axis=-1)
        lines.append(f"cameras: {_span(away)} scene units from their middle")
    else:
        lines.append(f"box: {box}{' (and all around it)' if scene.unbounded else ''}")
        lines.append(f"rays: from {scene.near:.3g} to {scene.far:.3g} scene units")
        away = np.linalg.norm(places - np.mean(scene.aabb, axis=0), axis=-1)
        lines.append(f"cameras: {_span(away)} scene units from the middle of the box")
    lines.append(f"frame: 1 unit of the files is {scene.frame.scale:.4g} scene units")
    return lines


def find_warnings(scene: Scene) -> list[str]:
    """What looks wrong, a sentence each; nothing is refused for it."""
    return list(_warnings(scene))


def _warnings(scene: Scene) -> Iterator[str]:
    for name, split in scene.splits.items():
        yield from _check_pictures(name, split)
        yield from _check_cameras(name, split.cameras)
    yield from _check_geometry(scene)
    for (one, a), (other, b) in itertools.combinations(scene.splits.items(), 2):
        if {one, other} == {"val", "test"}:
            # Held-out views often serve as both.
            continue
        same = _find_same(_poses(a.cameras), _poses(b.cameras))
        if same:
            yield f"{len(same)} cameras of {one} stand where cameras of {other} do ({same[0]})."


def _check_pictures(name: str, split: Split) -> Iterator[str]:
    if len(split) < 10 and name == "train":
        yield f"{name} has only {len(split)} pictures, which is few for a field."
    small = split.images[:, ::4, ::4].astype(np.int16)
    flat = [
        n for n, image in zip(split.names, small, strict=True) if np.ptp(image, (0, 1)).max() < 2
    ]
    if flat:
        yield f"{len(flat)} pictures of {name} are of one color ({flat[0]})."
    seen: dict[bytes, str] = {}
    for picture, image in zip(split.names, split.images, strict=True):
        twin = seen.setdefault(hashlib.blake2b(image).digest(), picture)
        if twin != picture:
            yield f"{picture} and {twin} of {name} are the same picture."
    clear = [
        n for n, image in zip(split.names, split.images, strict=True) if not image[..., 3].any()
    ]
    if clear:
        yield f"{len(clear)} pictures of {name} are wholly transparent ({clear[0]})."


def _check_cameras(name: str, cameras: Cameras) -> Iterator[str]:
    focal = np.asarray(cameras.focal, np.float64)
    middle = np.asarray(cameras.principal_point, np.float64)
    size = np.array([cameras.width, cameras.height], np.float64)
    off = np.abs(middle / size - 0.5).max(initial=0.0)
    if off > 0.1:
        yield f"The principal point of {name} is {off:.0%} of the picture off its middle."
    if np.any(np.abs(focal[:, 0] / focal[:, 1] - 1.0) > 0.05):
        yield f"The focal lengths of {name} differ by more than 5 % between x and y."
    angle = np.degrees(2.0 * np.arctan(0.5 * size.max() / focal.min(initial=np.inf)))
    if not 5.0 < angle < 150.0 and cameras.lens != "fisheye":
        yield f"The field of view of {name} is {angle:.1f} degrees, which is unusual."
    poses = _poses(cameras)
    same = _find_same(poses, poses, apart=True)
    if same:
        yield f"{len(same)} cameras of {name} stand where another one does ({same[0]})."


def _check_geometry(scene: Scene) -> Iterator[str]:
    split = next(iter(scene.splits.values()))
    if split.cameras.ndc is not None:
        return
    places, low, high = _places(split.cameras), *np.asarray(scene.aabb, np.float64)
    inside = np.all((places > low) & (places < high), axis=-1)
    if not scene.unbounded and np.any(inside):
        yield f"{np.sum(inside)} cameras stand inside of the box."
    # Corners of a box are empty as a rule: what counts is the ball within it.
    away = np.linalg.norm(places - 0.5 * (low + high), axis=-1)
    reach = 0.5 * float(np.min(high - low))
    if not scene.unbounded and np.any(away - reach < scene.near * 0.999):
        yield (
            f"What is in the middle of the box begins {away.min() - reach:.3g} from a camera, rays "
            f"only at {scene.near:.3g}: what is nearer is cut off."
        )
    if not scene.unbounded and np.any(away + reach > scene.far * 1.001):
        yield (
            f"What is in the middle of the box ends {away.max() + reach:.3g} from a camera, rays "
            f"already at {scene.far:.3g}."
        )
    axes = -_poses(split.cameras)[:, :3, 2]
    towards = 0.5 * (low + high) - places
    cosine = np.sum(axes * towards, axis=-1) / np.maximum(np.linalg.norm(towards, axis=-1), 1e-9)
    if not scene.unbounded and np.any(cosine < 0.0):
        yield f"{np.sum(cosine < 0.0)} cameras look away from the box."
    spread = np.linalg.norm(places - places.mean(axis=0), axis=-1).max(initial=0.0)
    if len(places) > 1 and spread < 1e-3 * max(float(np.linalg.norm(high - low)), 1e-9):
        yield "All cameras stand in one place: nothing tells how far away things are."


def _describe_alpha(split: Split) -> str:
    alpha = split.images[..., 3]
    if len(split) == 0 or alpha.min() == 255:
        return "opaque"
    return f"{np.mean(alpha < 128):.0%} transparent"


def _span(values: Float[np.ndarray, "n"]) -> str:
    if len(values) == 0:
        return "none"
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if high - low < 1e-4 * max(abs(high), 1e-9) else f"{low:.4g} to {high:.4g}"


def _sides(scene: Scene) -> list[tuple[str, float, float]]:
    return [(axis, float(a), float(b)) for axis, a, b in zip("xyz", *scene.aabb, strict=True)]


def _poses(cameras: Cameras) -> Float[np.ndarray, "n 4 4"]:
    return np.asarray(cameras.T_world_camera, np.float64)


def _places(cameras: Cameras) -> Float[np.ndarray, "n 3"]:
    return _poses(cameras)[:, :3, 3]


def _find_same(
    first: Float[np.ndarray, "n 4 4"], second: Float[np.ndarray, "m 4 4"], apart: bool = False
) -> list[str]:
    """Pairs of equal poses; `apart` leaves out a pose's being equal to itself."""
    found: list[str] = []
    known: dict[bytes, int] = {}
    # Minus zero is zero.
    for index, pose in enumerate(np.round(second, 5) + 0.0):
        known.setdefault(pose.tobytes(), index)
    for index, pose in enumerate(np.round(first, 5) + 0.0):
        twin = known.get(pose.tobytes())
        if twin is not None and not (apart and twin == index):
            found.append(f"numbers {index} and {twin}")
    return found


# ---------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------


def _frustum(cameras: Cameras, index: int, length: float) -> Float[np.ndarray, "5 3"]:
    """A camera's place and the corners of its picture so far ahead: left top first, clockwise."""
    focal, middle = (
        np.asarray(v, np.float64)[index] for v in (cameras.focal, cameras.principal_point)
    )
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * [cameras.width, cameras.height]
    plane = (corners - middle) / focal * [1.0, -1.0]
    local = length * np.concatenate([plane, -np.ones((4, 1))], axis=-1)
    pose = _poses(cameras)[index]
    return np.concatenate([pose[None, :3, 3], local @ pose[:3, :3].T + pose[:3, 3]])


def _frustum_lines(frustum: Float[np.ndarray, "5 3"]) -> list[Float[np.ndarray, "_ 3"]]:
    """The border of a frustum's picture, and lines to its corners."""
    tip, *corners = frustum
    return [np.stack([*corners, corners[0]]), *(np.stack([tip, corner]) for corner in corners)]


def _frustum_length(scene: Scene) -> float:
    places = np.concatenate([_places(split.cameras) for split in scene.splits.values()])
    corners = np.concatenate(_box_lines(scene))
    extent = np.ptp(np.concatenate([places, corners]), axis=0)
    return 0.06 * float(np.linalg.norm(extent))


def _box_lines(scene: Scene) -> list[Float[np.ndarray, "2 3"]]:
    """The edges of the box in space; of one in normalized device coordinates the near part."""
    ndc = next(iter(scene.splits.values())).cameras.ndc
    low, high = np.asarray(scene.aabb, np.float64)
    if ndc is not None:
        high = np.array([*high[:2], SHOWN_NDC])
    corners = list(itertools.product(*np.stack([low, high], axis=-1)))
    edges = [
        np.stack([a, b])
        for a, b in itertools.combinations(np.array(corners), 2)
        if np.sum(np.abs(a - b) > 1e-9) == 1
    ]
    return edges if ndc is None else [_leave_ndc(edge, ndc) for edge in edges]


def _leave_ndc(
    points: Float[np.ndarray, "n 3"], ndc: tuple[float, float, float]
) -> Float[np.ndarray, "n 3"]:
    """Points in space that have these coordinates in `cameras.rays_to_ndc`."""
    depth = 2.0 * ndc[2] / (1.0 - points[:, 2:])
    return np.concatenate([points[:, :2] * np.array(ndc[:2]) * depth, -depth], axis=-1)


def _shrink(image: UInt8[np.ndarray, "h w 4"]) -> Image.Image:
    """A thumbnail on white."""
    height, width = image.shape[:2]
    alpha = image[..., 3:].astype(np.float32) / 255.0
    rgb = np.rint(image[..., :3] * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)
    size = (THUMBNAIL, max(1, round(THUMBNAIL * height / width)))
    return Image.fromarray(rgb).resize(size, Image.Resampling.BOX)


def _spread_views(count: int) -> list[int]:
    taken = min(count, MAX_THUMBNAILS)
    return [i * count // taken for i in range(taken)]


COLORS = {"train": "#1f77b4", "val": "#2ca02c", "test": "#d62728"}


def draw_scene(scene: Scene) -> bytes:
    """The cameras and the box from two sides, and some pictures, as PNG."""
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    figure = Figure(figsize=(14, 8), dpi=100, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(3, 2))
    above, below = halves
    length = _frustum_length(scene)
    sides = (("from aside", 25.0, -60.0), ("from above", 90.0, -90.0))
    for place, (title, elevation, azimuth) in enumerate(sides):
        axes = above.add_subplot(1, 2, place + 1, projection="3d", proj_type="ortho")
        # The box is not to be hidden by cameras before it.
        axes.computed_zorder = False
        box = _box_lines(scene)
        drawn = [*box]
        axes.add_collection3d(Line3DCollection(box, colors="black", linewidths=1.5, zorder=9))
        for name, split in scene.splits.items():
            frusta = [_frustum(split.cameras, index, length) for index in range(len(split))]
            lines = [line for frustum in frusta for line in _frustum_lines(frustum)]
            # Of many each is drawn thinner.
            width = max(0.3, 0.8 / math.sqrt(max(len(split), 1) / 30))
            axes.add_collection3d(
                Line3DCollection(
                    lines, colors=COLORS[name], linewidths=min(width, 0.8), label=name, zorder=1
                )
            )
            drawn += lines
        axes.auto_scale_xyz(*np.concatenate(drawn).T)
        axes.set(xlabel="x", ylabel="y", zlabel="z", title=title)
        axes.set_aspect("equal")
        if elevation == 90.0:
            axes.set(zlabel="", zticks=[])
        else:
            for handle in axes.legend(loc="upper left").legend_handles:
                handle.set_linewidth(2.0)
        axes.view_init(elevation, azimuth)
    shown = [(n, s, i) for n, s in scene.splits.items() for i in _spread_views(len(s))]
    shown = shown[:: max(1, len(shown) // 24 + 1)]
    grid = below.subplots(2, max(1, -(-len(shown) // 2)), squeeze=False).ravel()
    for cell in grid:
        cell.axis("off")
    for cell, (name, split, index) in zip(grid, shown, strict=False):
        cell.imshow(np.asarray(_shrink(split.images[index])))
        title = f"{name} {split.names[index]}"
        cell.set_title(title, fontsize=6, color=COLORS[name], parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write_page(scene: Scene, lines: list[str], warnings: list[str]) -> str:
    """A page that shows the cameras, their pictures and the box, to be turned with the mouse.

    It needs nothing but a browser: no library, no network.
    """
    length = _frustum_length(scene)
    frusta = []
    for name, split in scene.splits.items():
        views = set(_spread_views(len(split)))
        for index in range(len(split)):
            entry = {
                "name": f"{name} {split.names[index]}",
                "color": COLORS[name],
                "points": np.round(_frustum(split.cameras, index, length), 5).tolist(),
            }
            if index in views:
                buffer = io.BytesIO()
                _shrink(split.images[index]).save(buffer, format="JPEG", quality=80)
                code = base64.b64encode(buffer.getvalue()).decode()
                entry["picture"] = f"data:image/jpeg;base64,{code}"
            frusta.append(entry)
    box = [np.round(line, 5).tolist() for line in _box_lines(scene)]
    middle = np.mean(np.concatenate(_box_lines(scene)), axis=0).tolist()
    content = {"frusta": frusta, "box": box, "middle": middle}
    # A name may hold anything, even the end of a script.
    data = json.dumps(content).replace("<", "\\u003c")
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    odd = "".join(f"<li>{html.escape(line)}</li>" for line in warnings) or "<li>nothing</li>"
    parts = {"NAME": html.escape(scene.name), "LINES": items, "ODD": odd, "DATA": data}
    # In one pass, lest a name be taken for a place to put something.
    return re.sub("@(NAME|LINES|ODD|DATA)@", lambda found: parts[found[1]], PAGE)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>@NAME@</title>
<style>
body { font: 14px sans-serif; margin: 1em; color: #222; }
canvas { border: 1px solid #ccc; width: 100%; height: 70vh; cursor: grab; touch-action: none; }
#over { position: fixed; right: 2em; top: 2em; text-align: right; pointer-events: none; }
#over img { width: 288px; border: 1px solid #888; background: white; }
</style></head><body>
<h1>@NAME@</h1>
<p>Drag to turn, wheel to zoom, point at a camera to see its picture. z is up.</p>
<canvas id="view"></canvas><div id="over"></div>
<h2>What it holds</h2><ul>@LINES@</ul><h2>What looks wrong</h2><ul>@ODD@</ul>
<script>
const scene = @DATA@;
const canvas = document.getElementById("view"), over = document.getElementById("over");
const context = canvas.getContext("2d");
let azimuth = -1, elevation = 0.5, zoom = 1, nearest = null;
const all = scene.frusta.flatMap(f => f.points).concat(scene.box.flat());
const reach = Math.max(...all.map(p => Math.hypot(...p.map((v, i) => v - scene.middle[i]))));
function project(p) {
  const [x, y, z] = p.map((v, i) => (v - scene.middle[i]) / reach);
  const c = Math.cos(azimuth), s = Math.sin(azimuth);
  const across = c * x + s * y, along = -s * x + c * y;
  const up = Math.cos(elevation) * z + Math.sin(elevation) * along;
  const depth = Math.sin(elevation) * z - Math.cos(elevation) * along;
  const scale = zoom * 0.45 * Math.min(canvas.width, canvas.height) * 4 / (4 - depth);
  return [canvas.width / 2 + scale * across, canvas.height / 2 - scale * up];
}
function line(a, b) {
  const [p, q] = [project(a), project(b)];
  context.beginPath(); context.moveTo(...p); context.lineTo(...q); context.stroke();
}
function draw() {
  canvas.width = canvas.clientWidth; canvas.height = canvas.clientHeight;
  context.lineWidth = 1.5; context.strokeStyle = "black";
  scene.box.forEach(([a, b]) => line(a, b));
  scene.frusta.forEach(f => {
    context.strokeStyle = f.color; context.lineWidth = f === nearest ? 3 : 1;
    const [tip, a, b, c, d] = f.points;
    [a, b, c, d].forEach((corner, i, ring) => {
      line(tip, corner);
      line(corner, ring[(i + 1) % 4]);
    });
  });
}
let held = null;
canvas.onpointerdown = e => {
  held = [e.offsetX, e.offsetY];
  canvas.setPointerCapture(e.pointerId);
};
canvas.onpointerup = () => { held = null; };
canvas.onpointermove = e => {
  if (held) {
    azimuth += (e.offsetX - held[0]) * 0.008;
    elevation = Math.max(-1.57, Math.min(1.57, elevation + (e.offsetY - held[1]) * 0.008));
    held = [e.offsetX, e.offsetY];
  } else {
    let best = 20; nearest = null;
    scene.frusta.forEach(f => {
      const [x, y] = project(f.points[0]), away = Math.hypot(x - e.offsetX, y - e.offsetY);
      if (away < best) { best = away; nearest = f; }
    });
    over.replaceChildren();
    if (nearest) {
      if (nearest.picture) { const i = new Image(); i.src = nearest.picture; over.append(i); }
      const text = document.createElement("div");
      text.textContent = nearest.name;
      over.append(text);
    }
  }
  draw();
};
canvas.onwheel = e => { e.preventDefault(); zoom *= Math.exp(-e.deltaY * 0.001); draw(); };
window.onresize = draw; draw();
</script></body></html>
"""
