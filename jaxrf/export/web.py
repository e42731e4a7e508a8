"""A run as one HTML page that renders in any browser, without a server or other files.

`pages/page.html` has the camera, the hands and the frames; `pages/ternary.js` and `pages/voxels.js`
each have a fragment shader that traces a ray.
"""

import base64
import dataclasses
import gzip
import html
import importlib.resources
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as imageio
import numpy as np

from jaxrf.cameras.base import pinhole_cameras
from jaxrf.evaluation.scoring import evenly_spaced_indices
from jaxrf.export.web_ternary import describe_ternary, pack_ternary, shows_ternary
from jaxrf.export.web_voxels import pack_voxels, shows_voxels
from jaxrf.training import runs, scene_metadata
from jaxrf.training.runs import Run
from jaxrf.training.state import background_color

# The data of a page that is a folder.
DATA_FILE = "scene.bin"
# Training cameras of a page at most, evenly chosen.
MAX_CAMERAS = 60
# Longer side of the picture that is shown while a page loads, and the quality of its JPEG.
POSTER_SIZE, POSTER_QUALITY = 480, 80
# Radians per second that the camera swings to either side where it cannot go around the scene.
SWING = {"unbounded": 0.12, "ndc": 0.06}


class WebScene(NamedTuple):
    """The part of a page that a renderer of its own draws.

    renderer: file of `pages` that has it.
    buffers: its arrays.
    meta: the numbers from which it makes its shader.
    caption: one line about the scene.
    """

    renderer: str
    buffers: dict[str, bytes]
    meta: dict[str, Any]
    caption: str


class Page(NamedTuple):
    """A page, ready to be written.

    text: the HTML.
    data: what it reads from scene.bin beside it; empty if the text holds everything.
    """

    text: bytes
    data: bytes

    @property
    def size(self) -> int:
        """Bytes of both."""
        return len(self.text) + len(self.data)


def is_file(path: Path) -> bool:
    """Whether a page goes into one file of this name, not into a folder."""
    return path.suffix.lower() in (".html", ".htm")


def shows_itself(run: Run) -> bool:
    """Whether a page can draw the run's own field, without other voxels that look like it."""
    return shows_voxels(run) or shows_ternary(run)


def make_page(run: Run, in_one_file: bool = True, poster: bytes | None = None) -> Page:
    """A run that `shows_itself` as a page.

    Args:
      run: shown.
      in_one_file: whether the page holds its data.
      poster: JPEG that is shown while the page loads; None renders it.

    Raises:
      InputError: nothing is in the scene.
    """
    scene = _make_web_scene(run)
    poster = poster or make_poster(run)
    packed = gzip.compress(b"".join(scene.buffers.values()), mtime=0)
    meta = {
        **_describe_view(run),
        **scene.meta,
        "caption": f"{run.scene.name}: {scene.caption}.",
        "buffers": [[name, len(buffer)] for name, buffer in scene.buffers.items()],
    }
    if in_one_file:
        data = base64.b64encode(packed).decode()
        return Page(_fill_page(run, scene, meta, poster, data), b"")
    meta |= {"file": DATA_FILE, "packed_size": len(packed)}
    return Page(_fill_page(run, scene, meta, poster, ""), packed)


def make_poster(run: Run) -> bytes:
    """The first camera's view as a JPEG."""
    scene = run.scene
    scale = min(POSTER_SIZE / max(scene.width, scene.height), 1.0)
    width, height = (max(round(scale * side), 1) for side in (scene.width, scene.height))
    pose = np.array(_list_cameras(run)[0]).reshape(4, 4).T
    cameras = pinhole_cameras(pose[None], width, height, scale * scene.focal)
    cameras = dataclasses.replace(cameras, ndc=scene.ndc)
    image = np.clip(runs.make_render_fn(run, supersample=1)(cameras, 0).rgb, 0.0, 1.0)
    file = io.BytesIO()
    pixels = np.rint(255.0 * np.asarray(image)).astype(np.uint8)
    imageio.imwrite(file, pixels, extension=".jpg", quality=POSTER_QUALITY)
    return file.getvalue()


def write_page(page: Page, path: Path) -> None:
    """Writes a page to a file, or to index.html and its data in a folder.

    Raises:
      InputError: the folder cannot be written to.
    """
    if is_file(path):
        runs.make_writable(path.absolute().parent, "--output")
        files = {path: page.text}
    else:
        runs.make_writable(path.absolute(), "--output")
        files = {path / DATA_FILE: page.data, path / "index.html": page.text}
    for file, content in files.items():
        with runs.atomic_path(file) as temporary:
            temporary.write_bytes(content)


def _make_web_scene(run: Run) -> WebScene:
    """The run as arrays and numbers for the renderer that can draw it."""
    if shows_voxels(run):
        buffers, meta = pack_voxels(run)
        cells = int(np.asarray(run.state.grid.occupied).sum())
        return WebScene("voxels.js", buffers, meta, f"{cells:,} voxels")
    meta = describe_ternary(run)
    weights = sum(inputs * outputs for inputs, outputs in meta["layers"])
    return WebScene("ternary.js", pack_ternary(run), meta, f"{weights:,} ternary weights")


def _fill_page(run: Run, scene: WebScene, meta: dict[str, Any], poster: bytes, data: str) -> bytes:
    pages = importlib.resources.files(__package__).joinpath("pages")
    page = pages.joinpath("page.html").read_text(encoding="utf-8")
    background = np.rint(255.0 * background_color(run.config)).astype(int)
    placeholders = {
        "RENDERER": pages.joinpath(scene.renderer).read_text(encoding="utf-8"),
        "NAME": html.escape(run.scene.name),
        "BACKGROUND": f"rgb({', '.join(map(str, background))})",
        "POSTER": f"data:image/jpeg;base64,{base64.b64encode(poster).decode()}",
        # Escaped, so that a name in the metadata cannot end the script.
        "META": json.dumps(meta).replace("<", "\\u003c"),
        "DATA": data,
    }
    for placeholder, value in placeholders.items():
        page = page.replace(f"@{placeholder}@", value)
    return page.encode()


def _describe_view(run: Run) -> dict[str, Any]:
    """The cameras of a page and how they move."""
    scene = run.scene
    unbounded = run.state.grid.bounds is not None
    x, y, z = np.eye(3).tolist()
    space = "ndc" if scene.ndc is not None else "unbounded" if unbounded else "box"
    meta = {
        "near": scene.near,
        "far": scene.far,
        "focus": list(scene.focus),
        "radius": scene.radius,
        # Half the image height at distance 1.
        "slope": 0.5 * scene.height / scene.focal,
        # In normalized device coordinates cameras look along -z.
        "axes": [z, x, y] if space == "ndc" else [x, y, z],
        "swing": SWING.get(space, 0.0),
        "cameras": _list_cameras(run),
        "background": background_color(run.config).astype(float).tolist(),
    }
    if space == "box":
        meta["camera_distance_range"] = list(scene_metadata.camera_distance_range(scene))
    return meta


def _list_cameras(run: Run) -> list[list[float]]:
    """Poses of training cameras, column by column; one from the side where none is known."""
    poses = run.scene.pose_matrices()
    if not len(poses):
        poses = np.eye(4)[None]
        back = np.array([1.0, 0.0, 0.5]) / np.hypot(1.0, 0.5)
        right = np.array([0.0, 1.0, 0.0])
        poses[0, :3, :3] = np.stack([right, np.cross(back, right), back], axis=1)
        poses[0, :3, 3] = np.array(run.scene.focus) + run.scene.radius * back
    chosen = poses[evenly_spaced_indices(len(poses), MAX_CAMERAS)]
    return [pose.T.ravel().round(6).tolist() for pose in chosen]
