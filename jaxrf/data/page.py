"""An interactive web page of a data set's cameras, images and box, in one file."""

import base64
import html
import io
import json
import re

import numpy as np

from jaxrf.data.plots import (
    COLORS,
    box_edges,
    camera_frustum,
    frustum_length,
    make_thumbnail,
    thumbnail_views,
)
from jaxrf.data.scene import Scene


def write_page(scene: Scene, lines: list[str], warnings: list[str]) -> str:
    """HTML of a page that shows the cameras, their images and the box, and turns with the mouse.

    It needs only a browser: no library and no network.

    Args:
      scene: what it shows.
      lines: of `report.dataset_report`.
      warnings: of `report.find_warnings`.
    """
    length = frustum_length(scene)
    frusta = []
    for name, split in scene.splits.items():
        views = set(thumbnail_views(len(split)))
        for index in range(len(split)):
            entry = {
                "name": f"{name} {split.names[index]}",
                "color": COLORS[name],
                "points": np.round(camera_frustum(split.cameras, index, length), 5).tolist(),
            }
            if index in views:
                buffer = io.BytesIO()
                make_thumbnail(split.images[index]).save(buffer, format="JPEG", quality=80)
                code = base64.b64encode(buffer.getvalue()).decode()
                entry["image"] = f"data:image/jpeg;base64,{code}"
            frusta.append(entry)
    box = [np.round(line, 5).tolist() for line in box_edges(scene)]
    center = np.mean(np.concatenate(box_edges(scene)), axis=0).tolist()
    content = {"frusta": frusta, "box": box, "center": center}
    # Names may contain any text, even the end of a script.
    data = json.dumps(content).replace("<", "\\u003c")
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    warning_items = (
        "".join(f"<li>{html.escape(line)}</li>" for line in warnings) or "<li>nothing</li>"
    )
    parts = {
        "NAME": html.escape(scene.name),
        "LINES": items,
        "WARNINGS": warning_items,
        "DATA": data,
    }
    # One pass, so that a name that looks like a placeholder is not replaced.
    return re.sub("@(NAME|LINES|WARNINGS|DATA)@", lambda match: parts[match[1]], PAGE)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>@NAME@</title>
<style>
body { font: 14px sans-serif; margin: 1em; color: #222; }
canvas { border: 1px solid #ccc; width: 100%; height: 70vh; cursor: grab; touch-action: none; }
#over { position: fixed; right: 2em; top: 2em; text-align: right; pointer-events: none; }
#over img { width: 288px; border: 1px solid #888; background: white; }
</style></head><body>
<h1>@NAME@</h1>
<p>Drag to turn, wheel to zoom, point at a camera to see its image. z is up.</p>
<canvas id="view"></canvas><div id="over"></div>
<h2>What it holds</h2><ul>@LINES@</ul><h2>What looks wrong</h2><ul>@WARNINGS@</ul>
<script>
const scene = @DATA@;
const canvas = document.getElementById("view"), over = document.getElementById("over");
const context = canvas.getContext("2d");
let azimuth = -1, elevation = 0.5, zoom = 1, nearest = null;
const all = scene.frusta.flatMap(f => f.points).concat(scene.box.flat());
const radius = Math.max(...all.map(p => Math.hypot(...p.map((v, i) => v - scene.center[i]))));
function project(p) {
  const [x, y, z] = p.map((v, i) => (v - scene.center[i]) / radius);
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
let dragged = null;
canvas.onpointerdown = e => {
  dragged = [e.offsetX, e.offsetY];
  canvas.setPointerCapture(e.pointerId);
};
canvas.onpointerup = () => { dragged = null; };
canvas.onpointermove = e => {
  if (dragged) {
    azimuth += (e.offsetX - dragged[0]) * 0.008;
    elevation = Math.max(-1.57, Math.min(1.57, elevation + (e.offsetY - dragged[1]) * 0.008));
    dragged = [e.offsetX, e.offsetY];
  } else {
    let best = 20; nearest = null;
    scene.frusta.forEach(f => {
      const [x, y] = project(f.points[0]), distance = Math.hypot(x - e.offsetX, y - e.offsetY);
      if (distance < best) { best = distance; nearest = f; }
    });
    over.replaceChildren();
    if (nearest) {
      if (nearest.image) { const i = new Image(); i.src = nearest.image; over.append(i); }
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
