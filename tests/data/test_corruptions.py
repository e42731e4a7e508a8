"""Corrupted data sets: loading one ends in a scene or in one sentence, within time and memory."""

import io
import json
import math
import os
import random
import resource
import shutil
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from corruptions import corrupt_bytes, corrupt_json
from data_formats import (
    METASHAPE_LENS,
    write_alicevision,
    write_colmap,
    write_deepvoxels,
    write_depth_maps,
    write_llff,
    write_metashape,
    write_multiscale,
    write_nsvf,
    write_opensfm,
    write_polycam,
    write_reality_capture,
    write_record3d,
    write_tiny_nerf,
    write_transforms,
)
from PIL import Image
from scenes import make_scene, slow, tiny_nerf, write_scene

from jaxrf.cameras.base import image_rays
from jaxrf.core.errors import InputError
from jaxrf.data import sources
from jaxrf.data.images import read_image_size
from jaxrf.data.options import LoadOptions
from jaxrf.data.photos import prepare
from jaxrf.data.photos.prepare import PhotoOptions
from jaxrf.training import loop, transitions

WRITERS: dict[str, Callable[[Path], Path]] = {
    "transforms": write_transforms,
    "masks": lambda folder: with_masks(write_transforms(folder)),
    "depth": write_depth_maps,
    "llff": write_llff,
    "colmap": write_colmap,
    "colmap in text": lambda folder: write_colmap(folder, text=True),
    "deepvoxels": write_deepvoxels,
    "tiny_nerf": lambda folder: write_tiny_nerf(folder / "ball.npz"),
    "blender": lambda folder: write_scene(folder / "ball"),
    "multiscale": write_multiscale,
    "nsvf": write_nsvf,
    "polycam": write_polycam,
    "record3d": write_record3d,
    "metashape": lambda folder: write_metashape(folder, METASHAPE_LENS),
    "alicevision": write_alicevision,
    "opensfm": write_opensfm,
    "reality_capture": write_reality_capture,
}
# Corrupted sets of each kind; more are tried with JAXRF_CORRUPTIONS=100.
EACH = int(os.environ.get("JAXRF_CORRUPTIONS", "60"))
# Number of corrupted sets that are trained on.
TRAINED = 4
SECONDS, BYTES = 10.0, 2 << 30


def with_masks(folder: Path) -> Path:
    listing = folder / "transforms.json"
    content = json.loads(listing.read_text())
    for index, frame in enumerate(content["frames"]):
        frame["mask_path"] = f"mask_{index}.png"
        mask = np.full((16, 16), 255, np.uint8)
        Image.fromarray(mask).save(folder / frame["mask_path"])
    listing.write_text(json.dumps(content))
    return folder


def corrupt_array(path: Path, chance: random.Random) -> None:
    """Changes type, shape or size, inserts NaN and infinities, or writes a false header."""
    table = np.load(path)
    kind = chance.randrange(7)
    if kind == 0:
        table = table.astype(chance.choice(["f4", "i8", "c16", "S3", "bool"]))
    elif kind == 1:
        table = table.reshape(-1)[: chance.randrange(table.size)]
    elif kind == 2:
        table.flat[chance.randrange(table.size)] = chance.choice([np.nan, np.inf, 1e300, -1.0, 0.0])
    elif kind == 3:
        table = np.concatenate([table] * chance.choice((2, 50)))
    elif kind == 4:
        table = table * chance.choice([0.0, -1.0, 1e-30, 1e30])
    if kind < 5:
        np.save(path, table)
        return
    buffer = io.BytesIO()
    buffer.write(b"\x93NUMPY\x01\x00")
    shape = (10**9, 17) if kind == 5 else (len(table), 17)
    head = (
        f"{{'descr': '{'<f8' if kind == 5 else '|O'}', 'fortran_order': False, 'shape': {shape}, }}"
    )
    buffer.write(struct.pack("<H", len(head) + 1) + head.encode() + b"\n" + bytes(800))
    path.write_bytes(buffer.getvalue())


def corrupt_archive(path: Path, chance: random.Random) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    name = chance.choice(sorted(arrays))
    kind = chance.randrange(6)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name] = arrays[name].astype(chance.choice(["f8", "i2", "S3", "c8"]))
    elif kind == 2 and arrays[name].ndim:
        arrays[name] = arrays[name][: chance.randrange(len(arrays[name]))]
    elif kind == 3:
        arrays[name] = np.full_like(arrays[name], chance.choice([np.nan, np.inf, 1e30, -1.0]))
    elif kind == 4:
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out,
            out.open("images.npy", "w") as part,
        ):
            for _ in range(1100):
                part.write(bytes(1 << 20))
        return
    else:
        arrays[name] = np.zeros((3, 0, 2))
    np.savez(path, **arrays)


def corrupt_image(path: Path, chance: random.Random) -> None:
    """Writes an image of another kind or size, or one whose header gives an enormous size."""
    kind = chance.randrange(8)
    if kind == 0:
        Image.new("RGB", chance.choice([(1, 1), (15, 16), (17, 16), (300, 2)])).save(path)
    elif kind == 1:
        Image.new(chance.choice(["P", "L", "1", "LA", "I;16"]), (16, 16)).save(path, "PNG")
    elif kind == 2:
        Image.new("CMYK", (16, 16)).save(path, "JPEG")
    elif kind == 3:
        Image.new("RGB", (16, 16)).save(path, chance.choice(["GIF", "BMP", "TIFF"]))
    elif kind == 4:
        data = bytearray(path.read_bytes())
        data[16:24] = struct.pack(
            ">II", *chance.choice([(2**31 - 1, 2**31 - 1), (0, 0), (60_000,) * 2])
        )
        path.write_bytes(bytes(data))
    elif kind == 5:
        path.unlink()
        path.mkdir()
    else:
        corrupt_bytes(path, chance)


def corrupt_text(path: Path, chance: random.Random) -> None:
    separator = "," if path.suffix == ".csv" else " "
    words = path.read_text().split(separator)
    for _ in range(chance.choice((1, 3))):
        place = chance.randrange(len(words))
        words[place] = chance.choice(
            ["nan", "inf", "-1e400", "x", "", "1e30", "0", "-3", "9" * 5000]
        )
    path.write_text(separator.join(words))


def corrupt(folder: Path, chance: random.Random) -> str:
    """Corrupts one file of a data set; returns its path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    listings = [p for p in files if p.suffix not in (".png", ".jpg")]
    # Images are many, and much alike.
    path = chance.choice(listings if listings and chance.random() < 0.7 else files)
    kind = chance.random()
    if kind < 0.06:
        path.unlink()
    elif kind < 0.1:
        other = chance.choice(files)
        a, b = path.read_bytes(), other.read_bytes()
        path.write_bytes(b)
        other.write_bytes(a)
    elif kind < 0.3:
        corrupt_bytes(path, chance)
    else:
        by_suffix = {
            ".json": corrupt_json, ".npy": corrupt_array, ".npz": corrupt_archive,
            ".png": corrupt_image, ".jpg": corrupt_image, ".txt": corrupt_text,
            ".xml": corrupt_text, ".csv": corrupt_text, ".sfm": corrupt_json,
        }  # fmt: skip
        by_suffix.get(path.suffix, corrupt_bytes)(path, chance)
    return str(path.relative_to(folder))


def write_photos(folder: Path) -> Path:
    """Photos without poses, in several formats."""
    for index, name in enumerate(("a.png", "b.jpg", "c.webp", "d.tif", "e.bmp")):
        image = make_scene().splits["train"].images[index, ..., :3]
        Image.fromarray(image).save(folder / name)
    return folder


def write_video(folder: Path) -> Path:
    frames = np.repeat(make_scene().splits["train"].images[..., :3], 2, axis=0)
    iio.imwrite(folder / "clip.mp4", frames, fps=8, codec="libx264", macro_block_size=1)
    return folder / "clip.mp4"


@pytest.mark.parametrize("write", [write_photos, write_video])
def test_corrupted_photos_end_in_one_sentence_or_are_gathered(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reconstruct(folder: Path, names: Any, *_: Any) -> Any:
        for name in names:
            assert read_image_size(folder / "images" / name, folder)[:2] != (0, 0)
        raise InputError("The photos were gathered: this is as far as the test goes.")

    monkeypatch.setattr(prepare.reconstruct, "import_pycolmap", lambda: None)
    monkeypatch.setattr(prepare.reconstruct, "reconstruct", reconstruct)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = tmp_path / "whole"
    whole.mkdir()
    inside = write(whole).relative_to(whole)
    for number in range(EACH):
        chance = random.Random(f"{write.__name__} {number}")
        folder = tmp_path / "set" / "one"
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(whole, folder)
        what = corrupt(folder, chance)
        try:
            path = sources.ensure_poses(folder / inside, PhotoOptions(frames=4), lambda _: None)
            sources.load_scene(path, ["train"])
        except InputError as error:
            assert 10 < len(str(error)) < 1500 and "\n" not in str(error), f"{number}, {what}"
        else:
            raise AssertionError(f"{number}, {what}: photos without poses were loaded")


OPENED: list[str] = []
LISTENING = False


def note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if LISTENING and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED.append(os.path.realpath(os.fsdecode(arguments[0])))


sys.addaudithook(note_opened)


@pytest.mark.parametrize("name", [slow(n) if n == "tiny_nerf" else n for n in WRITERS])
def test_corruptions_end_in_one_sentence_or_a_scene(name: str, tmp_path: Path) -> None:
    global LISTENING
    whole = tmp_path / "whole"
    whole.mkdir()
    inside = WRITERS[name](whole).relative_to(whole)
    secret = tmp_path / "secret"
    secret.mkdir()
    Image.new("RGB", (16, 16)).save(secret / "secret.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ended = {"scene": 0, "sentence": 0}
    for number in range(EACH):
        chance = random.Random(f"{name} {number}")
        folder = tmp_path / "set" / "one"
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(whole, folder)
        what = corrupt(folder, chance)
        started = time.monotonic()
        OPENED.clear()
        LISTENING = True
        try:
            scene = sources.load_scene(
                folder / inside,
                ["train", "val", "test"],
                LoadOptions(skip_missing=chance.random() < 0.3, depth=chance.random() < 0.5),
            )
        except InputError as error:
            text = str(error)
            assert 10 < len(text) < 1500 and "\n" not in text, f"{number}, {what}: {text}"
            ended["sentence"] += 1
        else:
            check_sane(scene)
            ended["scene"] += 1
        finally:
            LISTENING = False
        assert time.monotonic() - started < SECONDS, f"{number}, {what}"
        hostile = [p for p in OPENED if p.startswith(str(secret)) or p == "/etc/passwd"]
        assert not hostile, f"{number}, {what}: opened {hostile}"
    assert ended["sentence"] > EACH // 4, ended
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert after - before < BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WRITERS))
def test_corrupted_scenes_that_load_can_be_trained_on(name: str, tmp_path: Path) -> None:
    """A few steps on the first corrupted sets that load end, or end in one sentence."""
    whole = tmp_path / "whole"
    whole.mkdir()
    inside = WRITERS[name](whole).relative_to(whole)
    trained = 0
    for number in range(EACH):
        folder = tmp_path / "set" / "one"
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(whole, folder)
        what = corrupt(folder, random.Random(f"{name} {number}"))
        try:
            scene = sources.load_scene(folder / inside, ["train"])
            config = transitions.resolve_config(tiny_nerf(num_steps=3, background="random"), scene)
            _, state = loop.fit(config, scene)
        except (InputError, loop.DivergedError) as error:
            assert "\n" not in str(error), f"{number}, {what}"
            continue
        assert int(state.step) == 3, f"{number}, {what}"
        trained += 1
        if trained == TRAINED:
            break
    assert trained > 0


def check_sane(scene: Any) -> None:
    """A loaded scene can be trained on: its rays are finite and its box has a volume."""
    assert np.all(np.isfinite(scene.aabb)) and np.all(scene.aabb[1] > scene.aabb[0])
    assert 0.0 <= scene.near < scene.far < math.inf
    for split in scene.splits.values():
        assert len(split) == len(split.cameras) == len(split.images) > 0
        rays = image_rays(split.cameras, 0, scene.near, scene.far)
        assert np.all(np.isfinite(rays.origins)) and np.all(np.isfinite(rays.directions))
