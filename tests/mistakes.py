"""Mistakes in converted weights, each of which a check must find.

`python tests/mistakes.py > table.md` writes which stage finds each of them.
"""

import dataclasses
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from foreign import write_instant_ngp, write_nerf_pytorch, write_tensorf

from jaxrf.convert import check, formats, instant_ngp
from jaxrf.convert.files.read import Content, read_file
from jaxrf.convert.formats import FormatOptions
from jaxrf.convert.networks import AlphaMask, Converted, ConvertedGrid
from jaxrf.convert.tensorf_mask import touching_cells
from jaxrf.fields.base import Params

NUM_POINTS = 4096
CAMERA = check.default_camera(12)

Change = Callable[[Converted], Converted]


def replace_field_params(converted: Converted, field_params: Params) -> Converted:
    params = converted.params._replace(field=field_params)
    return converted._replace(params=params)


def change_layer(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Returns a change of a kernel of the fine network."""

    def apply(converted: Converted) -> Converted:
        layers = dict(converted.params.field["params"])
        layers[name] = layers[name] | {"kernel": change(layers[name]["kernel"])}
        return replace_field_params(converted, {"params": layers})

    return apply


def change_field(**changes: Any) -> Change:
    def apply(converted: Converted) -> Converted:
        field = dataclasses.replace(converted.config.field, **changes)
        config = dataclasses.replace(converted.config, field=field)
        return converted._replace(config=config)

    return apply


def change_model(**changes: Any) -> Change:
    def apply(converted: Converted) -> Converted:
        model = dataclasses.replace(converted.config.model, **changes)
        config = dataclasses.replace(converted.config, model=model)
        return converted._replace(config=config)

    return apply


def change_ray_convention(**changes: Any) -> Change:
    def apply(converted: Converted) -> Converted:
        convention = dataclasses.replace(converted.config.ray_convention, **changes)
        config = dataclasses.replace(converted.config, ray_convention=convention)
        return converted._replace(config=config)

    return apply


def swap(*pairs: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    def apply(kernel: np.ndarray) -> np.ndarray:
        order = np.arange(len(kernel))
        for a, b in pairs:
            order[[a, b]] = order[[b, a]]
        return kernel[order]

    return apply


MISTAKES: dict[str, Change] = {
    "a transposed matrix": change_layer("trunk_3", lambda kernel: kernel.T),
    "two rows swapped": change_layer("trunk_6", swap((3, 4))),
    "sine and cosine swapped": change_layer("trunk_0", swap((3, 6), (4, 7), (5, 8))),
    "coordinates swapped": change_layer("trunk_0", swap((0, 1))),
    "skip joined last": change_layer("trunk_5", lambda k: np.concatenate([k[63:], k[:63]])),
    "no skip": change_layer("trunk_5", lambda k: np.concatenate([0 * k[:63], k[63:]])),
    "the other activation": change_field(activation="softplus"),
    "a factor pi": change_field(frequency=math.pi),
    "directions before features": change_layer("view", lambda k: np.concatenate([k[24:], k[:24]])),
    "coarse for fine": lambda c: c._replace(
        params=c.params._replace(field=c.params.coarse, coarse=c.params.field)
    ),
    "half a pixel off": change_ray_convention(pixel_center=0.5),
    "near and far along rays": change_ray_convention(range_along="ray"),
    "lengths along the axis": change_ray_convention(lengths_along="axis"),
    "directions of another length": change_ray_convention(view_directions="axis"),
    "inclusive transmittance": change_ray_convention(transmittance="inclusive"),
    "intervals for points": change_model(quadrature="intervals"),
    "fewer samples": change_model(num_fine_samples=127),
}


def change_factor(part: str, kind: str, index: int, change: Any) -> Change:
    def apply(converted: Converted) -> Converted:
        field_params = converted.params.field
        factors = dict(field_params[part])
        changed = list(factors[kind])
        changed[index] = change(changed[index])
        factors[kind] = tuple(changed)
        return replace_field_params(converted, field_params | {part: factors})

    return apply


def change_mask(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Returns a change of the alpha mask's points, and of the cells that cover them."""

    def apply(converted: Converted) -> Converted:
        assert converted.grid is not None and converted.grid.alpha_mask is not None
        points, aabb = converted.grid.alpha_mask
        mask = AlphaMask(change(points), aabb)
        grid = ConvertedGrid(aabb, touching_cells(mask.points), mask)
        return converted._replace(grid=grid)

    return apply


def change_mlp(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def apply(converted: Converted) -> Converted:
        field_params = converted.params.field
        layers = dict(field_params["mlp"]["params"])
        layers["Dense_0"] = layers["Dense_0"] | {"kernel": change(layers["Dense_0"]["kernel"])}
        return replace_field_params(converted, field_params | {"mlp": {"params": layers}})

    return apply


def write_snapshot(path: Path) -> Path:
    """A snapshot of two cascades of cells."""
    return write_instant_ngp(path, aabb_scale=2)


def turn_directions(params: Params) -> Params:
    """The field as if directions were in the axes of the unit cube."""
    layers = dict(params["color_mlp"]["params"])
    features, harmonics = np.split(layers["Dense_0"]["kernel"], [instant_ngp.NUM_DENSITY_OUTPUTS])
    turned = (instant_ngp.cycle_harmonics() @ harmonics).astype(np.float32)
    layers["Dense_0"] = {"kernel": np.concatenate([features, turned])}
    return params | {"color_mlp": {"params": layers}}


def change_cells(converted: Converted, change: Callable[[np.ndarray], np.ndarray]) -> Converted:
    assert converted.grid is not None and converted.grid.occupied is not None
    return converted._replace(
        grid=converted.grid._replace(occupied=change(converted.grid.occupied))
    )


TENSORF_MISTAKES: dict[str, Change] = {
    "a plane upside down": change_factor("density", "planes", 0, lambda p: p[::-1]),
    "a line reversed": change_factor("features", "lines", 1, lambda line: line[::-1]),
    "components shuffled": change_factor("density", "lines", 2, lambda line: line[:, ::-1]),
    "the basis by rows": lambda c: replace_field_params(
        c, c.params.field | {"basis": c.params.field["basis"][::-1]}
    ),
    "sines before cosines": change_mlp(swap((5, 10), (6, 11))),
    "another shift": change_field(density_shift=-2.9),
    "another scale": change_field(density_scale=24.0),
    "another step": change_field(step_ratio=0.49),
    "another threshold": change_model(color_threshold=1e-2),
    "samples in the middle": change_ray_convention(samples_at="middle"),
    "rays that stop early": change_ray_convention(transmittance_threshold=0.5),
    "half a pixel off": change_ray_convention(pixel_center=0.0),
    "no mask": change_mask(np.ones_like),
    "a mask of other axes": change_mask(lambda points: points[::-1, :, ::-1] & points),
}


INSTANT_NGP_MISTAKES: dict[str, Change] = {
    "axes that are not cycled": change_field(axis_order=(0, 1, 2)),
    "axes cycled the other way": change_field(axis_order=(2, 0, 1)),
    "directions that are not cycled": lambda c: replace_field_params(
        c, turn_directions(c.params.field)
    ),
    "another growth of levels": change_field(level_growth=6.3),
    "levels of another layout": change_field(hash_layout="all_hashed"),
    "density per unit of the cube": change_field(density_scale=1.0),
    "another shift": change_field(density_shift=-1.0),
    "half as many steps": change_model(steps_per_diagonal=1024),
    "half a pixel off": change_ray_convention(pixel_center=0.0),
    "cells of other axes": lambda c: change_cells(c, lambda cells: cells.transpose(1, 2, 0)),
    "no cells": lambda c: change_cells(c, np.ones_like),
}


def find_differences(wrong: Converted, content: Content) -> list[check.Comparison]:
    """Returns the comparisons of raw outputs and, if these do not differ, of images."""
    rows = check.check_points(wrong, content, FormatOptions(), NUM_POINTS, double=True)
    if check.passes(rows):
        rows += check.check_images(wrong, content, FormatOptions(), CAMERA, double=True)
    return rows


def write_table() -> bool:
    """Prints a table of the stage that finds each mistake; returns whether all are found."""
    print("| program | mistake | found in | largest difference | without mistake |")
    print("|---|---|---|---|---|")
    finds_all = True
    for program, writer, mistakes in (
        ("nerf-pytorch", write_nerf_pytorch, MISTAKES),
        ("TensoRF", write_tensorf, TENSORF_MISTAKES),
        ("instant-ngp", write_snapshot, INSTANT_NGP_MISTAKES),
    ):
        with tempfile.TemporaryDirectory() as folder:
            content = read_file(writer(Path(folder) / "weights"))
            right = formats.convert(content, FormatOptions())
        exact = check.check_points(right, content, FormatOptions(), NUM_POINTS, double=True)
        exact += check.check_images(right, content, FormatOptions(), CAMERA, double=True)
        right_errors = {row.stage: row.max_error for row in exact}
        for mistake, change in mistakes.items():
            rows = find_differences(change(right), content)
            failed = [row for row in rows if row.passed is False]
            finds_all &= bool(failed)
            if not failed:
                print(f"| {program} | {mistake} | **nowhere** | | |")
                continue
            worst = max(failed, key=lambda row: row.max_error)
            errors = f"{worst.max_error:.1e} | {right_errors[worst.stage]:.0e}"
            print(f"| {program} | {mistake} | {worst.stage} | {errors} |")
    return finds_all


if __name__ == "__main__":
    sys.exit(0 if write_table() else 1)
