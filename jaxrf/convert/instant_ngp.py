"""instant-ngp's snapshots (.ingp, .msgpack): its hash grid, occupancy grid and training cameras.

A snapshot is in the coordinates of a unit cube: a point p of the data set's files is at scale p +
offset, with its axes cycled. The converted field is in those of the files, as its cameras are: the
grid's axes are named instead, and the view directions' harmonics are rotated in the first layer
that reads them.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxrf import presets
from jaxrf.cameras.base import Cameras, pinhole_cameras
from jaxrf.cameras.transforms import SimilarityTransform, transform_positions
from jaxrf.convert.files.arrays import read_number, read_step
from jaxrf.convert.files.read import Content
from jaxrf.convert.nerfstudio import padded_shapes, split_layers
from jaxrf.convert.networks import Converted, ConvertedGrid, Linear, float32, to_mlp_params
from jaxrf.core import encodings
from jaxrf.core.errors import InputError
from jaxrf.fields.hashgrid import HashGrid
from jaxrf.models.base import ModelParams
from jaxrf.models.packed import PackedModel
from jaxrf.training.config import TrainConfig

FORMAT = "instant-ngp"
# The files' axes that are x, y and z of the unit cube, and the inverse.
CUBE_AXES, FILE_AXES = (1, 2, 0), (2, 0, 1)
NUM_DENSITY_OUTPUTS, HARMONIC_BANDS = 16, 4
NUM_HARMONICS = HARMONIC_BANDS**2
# Cells along a side of the occupancy grid of each cascade; steps along the diagonal of the cube.
CASCADE_CELLS, STEPS_PER_DIAGONAL = 128, 1024
MAX_CASCADES = 8
# The largest optical depth of a step through a cell that is empty.
MIN_OPTICAL_DEPTH = 0.01
# Cells along a side of one grid in place of all cascades.
MAX_GRID_CELLS = 256
# Largest numbers of pixels of an image, and distances.
MAX_PIXELS, MAX_DISTANCE = 1e6, 1e6
# Nearest distance that is trained on, in the cube.
NEAR = 0.1
PARAM_TYPES = {"__half": np.float16, "float": np.float32}
# Networks whose inputs are padded to a multiple of 16; of others, of 8.
FUSED_NETWORKS = ("fullyfusedmlp", "megakernelmlp")
# Cells along a side of the cube of the finest level, where the file does not say.
FINEST_CELLS = 2048
GRID_LIMITS: dict[str, tuple[float, float]] = {
    "n_levels": (1, 64),
    "n_features_per_level": (1, 8),
    "log2_hashmap_size": (1, 26),
    "base_resolution": (1, 1 << 16),
}
MAX_GROWTH = float(1 << 20)
# Of tiny-cuda-nn, for what the file leaves out.
GRID_DEFAULTS = {"n_levels": 16, "n_features_per_level": 2, "log2_hashmap_size": 19}
NETWORK_LIMITS = {"n_neurons": (1, 1024), "n_hidden_layers": (1, 16)}


class Placement(NamedTuple):
    """Where the unit cube is in the coordinates of the data set's files.

    scale, offset: a point p of the files is at scale p + offset, before its axes are cycled.
    """

    scale: float
    offset: Float[np.ndarray, "3"]

    def to_files(self, cube: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Points of the cube in the coordinates of the files."""
        return (cube[..., FILE_AXES] - self.offset) / self.scale


def convert(content: Content) -> Converted | None:
    """Returns the weights of a snapshot; None if the file is of another program.

    Raises:
      InputError: if it is of something else than a radiance field, of a variant that jaxrf does not
        have, or incomplete.
    """
    tree = content.tree
    if content.file_format != "instant-ngp" or not isinstance(tree, Mapping):
        return None
    snapshot = tree["snapshot"]
    _check_variant(tree, snapshot, content)
    nerf = snapshot["nerf"]
    dataset = nerf.get("dataset", {})
    aabb_scale = int(read_number({**dataset, **nerf}, "aabb_scale", 1, 128, content.path))
    if aabb_scale & (aabb_scale - 1):
        raise InputError(
            f"aabb_scale in {content.path} is {aabb_scale}, no power of two: train with one."
        )
    placement = read_placement(dataset, content)
    field, params = read_field(tree, aabb_scale, placement, content)
    # Around the middle of the cube; instant-ngp ignores the box that the file has as well.
    half_side = 0.5 * aabb_scale
    cube_aabb = np.array([[0.5 - half_side] * 3, [0.5 + half_side] * 3])
    aabb = placement.to_files(cube_aabb)
    cascades = read_cascades(snapshot, aabb_scale.bit_length(), content)
    occupied = merge_cascades(cascades).transpose(FILE_AXES)
    notes = [
        "Its coordinates are those of the data set's transforms.json.",
        f"Rays march in steps of 1/{STEPS_PER_DIAGONAL} of the unit cube's diagonal"
        + ("." if aabb_scale == 1 else ", which do not grow with the distance as there."),
    ]
    crop = read_crop(snapshot, cube_aabb)
    if crop is not None and not is_upright(snapshot):
        notes.append("The box that it is cropped to there is turned, and is not used.")
    elif crop is not None:
        occupied = occupied & cells_in_box(occupied.shape, aabb, placement.to_files(crop))
        notes.append("It is cropped to the box that the snapshot is rendered in.")
    side = float(np.max(aabb[1] - aabb[0]))
    return Converted(
        FORMAT,
        make_config(field, aabb_scale, occupied.shape[0]),
        params,
        read_step(snapshot.get("training_step", 0)),
        near=NEAR / placement.scale,
        far=4.0 * side,
        notes=tuple(notes),
        grid=ConvertedGrid(float32(aabb), occupied),
        in_file_coordinates=True,
        cameras=read_cameras(dataset, placement),
    )


def move_to_scene(converted: Converted, frame: SimilarityTransform) -> Converted:
    """Returns a field of the files' coordinates in those of a scene.

    Args:
      converted: of `convert`.
      frame: from the files to the scene; it must not rotate.
    """
    assert np.allclose(frame.rotation, np.eye(3), atol=1e-6), "a box keeps the files' axes"
    grid, field = converted.grid, converted.config.field
    assert grid is not None and isinstance(field, HashGrid)
    aabb = np.stack([transform_positions(frame, corner) for corner in grid.aabb])
    field = dataclasses.replace(field, density_scale=field.density_scale / frame.scale)
    return converted._replace(
        config=dataclasses.replace(converted.config, field=field),
        grid=grid._replace(aabb=float32(aabb)),
        near=converted.near * frame.scale,
        far=converted.far * frame.scale,
    )


def read_placement(dataset: Mapping[str, Any], content: Content) -> Placement:
    """Returns where the unit cube is; InputError if the file does not say."""
    scale = read_number(dataset, "scale", 1e-6, 1e6, content.path)
    offset = np.array(dataset["offset"], np.float64)
    if offset.shape != (3,) or not np.all(np.isfinite(offset)):
        raise InputError(f"offset in {content.path} is no point: the file is damaged.")
    return Placement(scale, offset)


def read_crop(
    snapshot: Mapping[str, Any], aabb: Float[np.ndarray, "2 3"]
) -> Float[np.ndarray, "2 3"] | None:
    """Returns the box of the cube outside of which a snapshot shows nothing, within `aabb`.

    None if it shows everything. Older ones have the data set's box alone, which is empty if unset.
    """
    box = snapshot.get("render_aabb", snapshot["nerf"]["dataset"].get("render_aabb"))
    if box is None:
        return None
    corners = np.array([box["min"], box["max"]], np.float64).reshape(2, 3)
    crop = np.stack([np.maximum(corners[0], aabb[0]), np.minimum(corners[1], aabb[1])])
    if not np.all(crop[0] < crop[1]) or np.allclose(crop, aabb, rtol=0.0, atol=1e-4):
        return None
    return crop


def is_upright(snapshot: Mapping[str, Any]) -> bool:
    """Whether the box that a snapshot is cropped to has the axes of the cube."""
    rotation = np.array(snapshot.get("render_aabb_to_local", np.eye(3)), np.float64)
    return rotation.shape == (3, 3) and np.allclose(rotation, np.eye(3), rtol=0.0, atol=1e-4)


def find_growths(grid: Mapping[str, Any], aabb_scale: int, content: Content) -> list[float]:
    """Returns the ratio of the resolutions of two levels, and what it may be after rounding.

    Most files leave it out: the finest level then has 2048 cells along a side of the cube, and
    instant-ngp computes the ratio in float32. Where a level is about to have one more row of cells,
    the last bit decides, and the number of parameters says which way.
    """
    if grid.get("per_level_scale"):
        return [read_number(grid, "per_level_scale", 1.0, MAX_GROWTH, content.path)]
    num_levels = int(grid["n_levels"])
    if num_levels == 1:
        return [2.0]
    ratio = np.float32(FINEST_CELLS) * np.float32(aabb_scale) / np.float32(grid["base_resolution"])
    exponent = np.float32(math.log(float(ratio))) / np.float32(num_levels - 1)
    growth = np.float32(math.exp(float(exponent)))
    below, above = (np.nextafter(growth, np.float32(end)) for end in (0.0, np.inf))
    return [float(growth), float(below), float(above)]


def read_field(
    tree: Mapping[str, Any], aabb_scale: int, placement: Placement, content: Content
) -> tuple[HashGrid, ModelParams]:
    """Returns the field of a snapshot and its parameters.

    The parameters of all parts are one vector: the layers of both networks as (out, in), without
    biases, then the rows of the grid's levels.
    """
    grid = {**GRID_DEFAULTS, **tree["encoding"]}
    levels, features, log2_rows, base_resolution = (
        read_number(grid, name, *limits, content.path) for name, limits in GRID_LIMITS.items()
    )
    growths = find_growths(grid, aabb_scale, content)
    width, density_layers = _read_network(tree["network"], content)
    color_width, color_layers = _read_network(tree["rgb_network"], content)
    if width != color_width:
        raise InputError(
            f"{content.path} cannot be loaded, as its networks are {width} and {color_width} wide; "
            "both of a field of jaxrf are of the same width."
        )
    field = HashGrid(
        num_levels=int(levels),
        features_per_level=int(features),
        base_resolution=int(base_resolution),
        # Not read where the growth is given, but shown.
        max_resolution=round(base_resolution * growths[0] ** (levels - 1)),
        log2_hashmap_size=int(log2_rows),
        level_growth=growths[0],
        axis_order=CUBE_AXES,
        width=width,
        density_layers=density_layers,
        color_layers=color_layers,
        # All outputs of the density network, log density as well.
        feature_dim=NUM_DENSITY_OUTPUTS,
        density_shift=0.0,
        density_scale=placement.scale,
        hash_layout="tcnn",
    )
    vector = read_params(tree["snapshot"], content)
    num_encoded, num_inputs = field.num_encoded(), NUM_DENSITY_OUTPUTS + NUM_HARMONICS
    is_fused = str(tree["network"].get("otype")).lower() in FUSED_NETWORKS
    density_shapes = padded_shapes(
        num_encoded, width, density_layers, NUM_DENSITY_OUTPUTS, 16 if is_fused else 8
    )
    for growth, color_outputs in itertools.product(growths, (16, 8)):
        field = dataclasses.replace(field, level_growth=growth)
        num_rows = field.plan().starts[-1]
        color_shapes = padded_shapes(num_inputs, width, color_layers, color_outputs)
        num_weights = sum(map(math.prod, [*density_shapes, *color_shapes]))
        if num_weights + num_rows * field.features_per_level == len(vector):
            break
    else:
        raise InputError(
            f"{content.path} has {len(vector)} parameters, which are not those of {int(levels)} "
            f"levels of 2^{int(log2_rows)} rows and networks {width} wide: the file is damaged, "
            "of an unknown version, or its images have latent codes."
        )
    density, later = split_layers(vector, density_shapes)
    color, table = split_layers(later, color_shapes)
    # Inputs that pad the grid's features are 0.
    density[0] = density[0]._replace(kernel=density[0].kernel[:num_encoded])
    last = density[-1].kernel
    density[-1] = _without_bias(np.concatenate([last[:, :1], last], axis=1))
    feature_rows, harmonic_rows = np.split(color[0].kernel, [NUM_DENSITY_OUTPUTS])
    rotated = cycle_harmonics().T @ harmonic_rows
    color[0] = _without_bias(np.concatenate([feature_rows, rotated]))
    color[-1] = _without_bias(color[-1].kernel[:, :3])
    params = {
        "table": table.reshape(num_rows, field.features_per_level),
        "density_mlp": _without_biases(density),
        "color_mlp": _without_biases(color),
    }
    return field, ModelParams(params)


def read_params(snapshot: Mapping[str, Any], content: Content) -> Float[np.ndarray, "n"]:
    """Returns all parameters of a snapshot; InputError if they are not as many as it says."""
    data = snapshot["params_binary"]
    num_params = read_number(snapshot, "n_params", 1, 1 << 32, content.path)
    # Older files leave it out.
    default = "float" if data.nbytes == 4 * num_params else "__half"
    type_name = snapshot.get("params_type", default)
    dtype = PARAM_TYPES.get(str(type_name))
    if dtype is None:
        raise InputError(
            f"params_type in {content.path} is {str(type_name)[:40]}, not "
            f"{' or '.join(PARAM_TYPES)}: the file is damaged."
        )
    if data.nbytes != num_params * np.dtype(dtype).itemsize:
        raise InputError(
            f"params_binary in {content.path} has {data.nbytes} bytes for {int(num_params)} "
            f"parameters of type {type_name}: the file is damaged, copy it again."
        )
    return float32(data.view(dtype))


def cycle_harmonics() -> Float[np.ndarray, "16 16"]:
    """The matrix that takes harmonics of a direction to those of it with `CUBE_AXES` as its axes.

    A rotation takes each band of spherical harmonics to itself, so the matrix follows from them at
    a few directions.
    """
    directions = np.random.default_rng(0).normal(size=(64, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    with jax.enable_x64(True):
        original, cycled = (
            np.asarray(encodings.spherical_harmonics(jnp.asarray(d), HARMONIC_BANDS))
            for d in (directions, directions[:, CUBE_AXES])
        )
    matrix: np.ndarray = np.linalg.lstsq(original, cycled, rcond=None)[0].T
    return matrix


def read_cascades(
    snapshot: Mapping[str, Any], num_cascades: int, content: Content
) -> Bool[np.ndarray, "k 128 128 128"]:
    """Returns the occupied cells of each cascade, by the cube's x, y and z; all if it has none.

    Cascade k is a box of side 2^k around the middle of the cube. Cells are in Morton order. A cell
    is occupied if the optical depth of a step in it is above 0.01, or above the mean of the first
    cascade, if that is less.
    """
    if snapshot.get("density_grid_size") != CASCADE_CELLS:
        raise InputError(
            f"density_grid_size in {content.path} is {snapshot.get('density_grid_size')}, not "
            f"{CASCADE_CELLS}: the file is damaged, or of an unknown version."
        )
    depths = snapshot["density_grid_binary"].view(np.float16)
    num_cells = CASCADE_CELLS**3
    if not len(depths):
        # Nothing was trained.
        return np.ones((num_cascades, *[CASCADE_CELLS] * 3), bool)
    if len(depths) % num_cells or len(depths) < num_cascades * num_cells:
        raise InputError(
            f"density_grid_binary in {content.path} has {len(depths)} cells, not "
            f"{num_cascades} x {CASCADE_CELLS}^3: the file is damaged, copy it again."
        )
    cascades = depths.reshape(-1, num_cells)[:num_cascades]
    mean = float(np.maximum(cascades[0].astype(np.float64), 0.0).mean())
    occupied = cascades > min(MIN_OPTICAL_DEPTH, mean)
    # Bit 3 b + axis of a cell's number is bit b of its coordinate.
    bits = int(math.log2(CASCADE_CELLS))
    axes = [1 + axis for axis in range(3 * bits)]
    by_bit = occupied.reshape(num_cascades, *[2] * (3 * bits))
    order = [axes[3 * bit + 2 - axis] for axis in range(3) for bit in range(bits)]
    return by_bit.transpose(0, *order).reshape(num_cascades, *[CASCADE_CELLS] * 3)


def merge_cascades(
    cascades: Bool[np.ndarray, "k 128 128 128"],
) -> Bool[np.ndarray, "n n n"]:
    """Returns one grid of the largest cascade's box in place of all.

    A position belongs to the smallest cascade that holds it. A cell of the grid is occupied if a
    cell that it holds is.
    """
    last = len(cascades) - 1
    num_cells = min(CASCADE_CELLS << last, MAX_GRID_CELLS)
    merged = np.zeros((num_cells,) * 3, bool)
    for level in range(last, -1, -1):
        count = num_cells >> (last - level)
        cells = cascades[level]
        if count >= CASCADE_CELLS:
            for axis in range(3):
                cells = np.repeat(cells, count // CASCADE_CELLS, axis)
        else:
            pooled = CASCADE_CELLS // count
            cells = cells.reshape(count, pooled, count, pooled, count, pooled).any(axis=(1, 3, 5))
        middle = slice((num_cells - count) // 2, (num_cells + count) // 2)
        merged[middle, middle, middle] = cells
    return merged


def cells_in_box(
    shape: Sequence[int], aabb: Float[np.ndarray, "2 3"], box: Float[np.ndarray, "2 3"]
) -> Bool[np.ndarray, "x y z"]:
    """Returns which cells of a grid in `aabb` overlap a box."""
    inside = []
    for axis, count in enumerate(shape):
        edges = np.linspace(aabb[0, axis], aabb[1, axis], count + 1)
        # Faces that only touch, up to rounding, do not overlap.
        margin = 1e-3 * (edges[1] - edges[0])
        low, high = box[0, axis] + margin, box[1, axis] - margin
        inside.append((edges[1:] > low) & (edges[:-1] < high))
    x, y, z = inside
    return x[:, None, None] & y[None, :, None] & z[None, None, :]


def read_cameras(dataset: Mapping[str, Any], placement: Placement) -> Cameras | None:
    """Returns the cameras of the training images in the files' coordinates, without their lenses.

    All have the size and focal length of the first. None if the file does not list them.
    """
    try:
        first = dataset["metadata"][0]
        width, height = (int(n) for n in first["resolution"])
        focal = float(first["focal_length"][0])
        matrices = [
            pose["start"] if isinstance(pose, Mapping) else pose for pose in dataset["xforms"]
        ]
        cube = np.array(matrices, np.float64)[:, :3, :4]
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    is_size = all(0 < n <= MAX_PIXELS for n in (width, height, focal))
    # False where a number is none.
    if not is_size or not len(cube) or not np.abs(cube).max() < MAX_DISTANCE:
        return None
    poses = np.tile(np.eye(4), (len(cube), 1, 1))
    # From axes that point right, down and forwards to right, up and backwards.
    poses[:, :3, :3] = cube[:, FILE_AXES, :3] * np.array([1.0, -1.0, -1.0])
    poses[:, :3, 3] = placement.to_files(cube[:, :, 3])
    return pinhole_cameras(poses, width, height, focal)


def make_config(field: HashGrid, aabb_scale: int, grid_cells: int) -> TrainConfig:
    """Returns the configuration that renders a snapshot.

    Args:
      field: of the snapshot.
      aabb_scale: sides of the cube along a side of the box.
      grid_cells: of the occupancy grid, along a side.
    """
    model = PackedModel(
        steps_per_diagonal=STEPS_PER_DIAGONAL * aabb_scale, occupancy_resolution=grid_cells
    )
    return dataclasses.replace(
        presets.hashgrid_ngp(), field=field, model=model, supersample=1, background="black"
    )


def _check_variant(tree: Mapping[str, Any], snapshot: Mapping[str, Any], content: Content) -> None:
    """InputError if a snapshot is not of a radiance field that jaxrf has."""
    path, mode = content.path, str(snapshot.get("mode", "nerf")).lower()
    if "nerf" in snapshot and not read_step(snapshot.get("version", 0)) >= 1:
        raise InputError(
            f"{path} was saved before July 2022, in a format that instant-ngp does not read any "
            "more either: train it again with a newer version."
        )
    if mode != "nerf" or "nerf" not in snapshot:
        raise InputError(
            f"{path} is a snapshot of instant-ngp in mode {mode[:20]}, not of a radiance field: "
            "name one that was trained on images with poses."
        )
    dataset = snapshot["nerf"].get("dataset")
    if not isinstance(dataset, Mapping):
        raise InputError(
            f"{path} does not say where its scene is (snapshot.nerf.dataset): train it again with "
            "a newer version of instant-ngp."
        )
    encoding = tree["encoding"]
    directions = tree["dir_encoding"]
    parts = directions.get("nested", [directions])
    faults = {
        "encoding is no hash grid with linear interpolation": not (
            str(encoding.get("otype")).lower() in ("hashgrid", "grid")
            and str(encoding.get("type", "Hash")).lower() == "hash"
            and str(encoding.get("interpolation", "Linear")).lower() == "linear"
            and str(encoding.get("hash", "CoherentPrime")).lower() == "coherentprime"
            and not encoding.get("fixed_point_pos")
        ),
        "directions are not encoded by spherical harmonics of degree 4": not (
            str(parts[0].get("otype")).lower() == "sphericalharmonics"
            and parts[0].get("degree", HARMONIC_BANDS) == HARMONIC_BANDS
            # Nothing is left for the others, if the first takes all three dimensions.
            and (
                parts[0].get("n_dims_to_encode") == 3
                or all(str(part.get("otype")).lower() == "identity" for part in parts[1:])
            )
        ),
        "networks have no hidden layer": 0
        in [tree[name].get("n_hidden_layers") for name in ("network", "rgb_network")],
        "networks have other activations than ReLU": not (
            _is_relu(tree["network"]) and _is_relu(tree["rgb_network"])
        ),
        "images have latent codes (n_extra_learnable_dims)": dataset.get("n_extra_learnable_dims"),
        "images are of linear light (is_hdr)": dataset.get("is_hdr"),
        "poses are Mitsuba's (from_mitsuba)": dataset.get("from_mitsuba"),
    }
    fault = next((sentence for sentence, applies in faults.items() if applies), None)
    if fault is not None:
        raise InputError(
            f"{path} cannot be loaded, as its {fault}: train it as configs/nerf/base.json of "
            "instant-ngp says."
        )


def _is_relu(network: Mapping[str, Any]) -> bool:
    """Whether a network has ReLUs between its layers and nothing after the last."""
    activations = network.get("activation", "ReLU"), network.get("output_activation", "None")
    return [str(name).lower() for name in activations] == ["relu", "none"]


def _read_network(network: Mapping[str, Any], content: Content) -> tuple[int, int]:
    """Returns the width of a network and the number of its hidden layers."""
    width, layers = (
        int(read_number(network, name, *limits, content.path))
        for name, limits in NETWORK_LIMITS.items()
    )
    return width, layers


def _without_bias(kernel: Float[np.ndarray, "i o"]) -> Linear:
    return Linear(float32(kernel), np.zeros(kernel.shape[1], np.float32))


def _without_biases(layers: Sequence[Linear]) -> dict[str, Any]:
    """Returns the parameters of a network whose layers add nothing."""
    params = to_mlp_params(layers)
    return {
        "params": {name: {"kernel": dense["kernel"]} for name, dense in params["params"].items()}
    }
