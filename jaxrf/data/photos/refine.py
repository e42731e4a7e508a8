"""Refines a reconstruction robustly, with the simplest lens that explains its photos.

COLMAP's mapper weighs all matches alike. Those along outlines and highlights, which are not of one
point, bend its result; a loss that levels off (Cauchy's) does not let them.
"""

from typing import Any, NamedTuple

import numpy as np

# Distances in pixels at which the loss levels off, and above which observations are left out.
LOSS_SCALE, MAX_ERROR = 0.5, 2.0
# Angle in degrees between two rays that a point needs.
MIN_ANGLE = 1.5
# A lens with more parameters must lower the loss by this share: what it explains less of is noise,
# which turns into wrong poses.
MIN_GAIN = 0.005
# Distance of a principal point from the middle, as a share of width and height.
MAX_SHIFT = 0.1
# Points that a lens is chosen by at most.
MAX_POINTS = 4000
# Relative change of the loss at which an adjustment ends.
ROUGH, EXACT = 1e-5, 1e-6


class Lens(NamedTuple):
    """A lens to try: a model of COLMAP, and whether its principal point is refined."""

    model: str
    moves_center: bool


LENSES = (
    Lens("SIMPLE_PINHOLE", False),
    Lens("SIMPLE_RADIAL", False),
    Lens("RADIAL", False),
    Lens("RADIAL", True),
    Lens("OPENCV", True),
)


def refine(pycolmap: Any, model: Any, chooses_lens: bool) -> Any:
    """A reconstruction with refined poses, points and lenses, without its outliers.

    Args:
      pycolmap: the package.
      model: the reconstruction; it is changed.
      chooses_lens: whether the lens may become another; else that of the reconstruction is refined.
    """
    adjust(pycolmap, model, tolerance=ROUGH)
    pycolmap.ObservationManager(model).filter_all_points3D(MAX_ERROR, MIN_ANGLE)
    lens = choose_lens(pycolmap, model) if chooses_lens else None
    if lens is not None:
        for camera in model.cameras.values():
            change_lens(pycolmap, camera, lens.model)
    adjust(pycolmap, model, lens is not None and lens.moves_center)
    return model


def choose_lens(pycolmap: Any, model: Any) -> Lens:
    """The simplest of `LENSES` that explains a reconstruction, or a part of its points."""
    part = pycolmap.Reconstruction(model)
    numbers = sorted(part.points3D)
    for number in np.random.default_rng(0).permutation(numbers)[MAX_POINTS:]:
        part.delete_point3D(int(number))
    best, best_loss = LENSES[0], np.inf
    for lens in LENSES:
        candidate = pycolmap.Reconstruction(part)
        for camera in candidate.cameras.values():
            change_lens(pycolmap, camera, lens.model)
        # Losses can be compared only where they have converged.
        loss = adjust(pycolmap, candidate, lens.moves_center)
        if loss < (1.0 - MIN_GAIN) * best_loss and _is_centered(candidate):
            best, best_loss = lens, loss
    return best


def _is_centered(model: Any) -> bool:
    """Whether no principal point moved so far that it rather stands for a wrong rotation."""
    return all(
        abs(camera.principal_point_x / camera.width - 0.5) < MAX_SHIFT
        and abs(camera.principal_point_y / camera.height - 0.5) < MAX_SHIFT
        for camera in model.cameras.values()
    )


def change_lens(pycolmap: Any, camera: Any, model: str) -> None:
    """Gives a camera another model, with the parameters that both have; others are 0."""
    before = dict(zip(_parameter_names(camera), camera.params, strict=True))
    focal = before.get("f", before.get("fx"))
    values = {"f": focal, "fx": focal, "fy": focal}
    values["k"] = values["k1"] = before.get("k", before.get("k1", 0.0))
    values |= before
    camera.model = getattr(pycolmap.CameraModelId, model)
    camera.params = [values.get(name, 0.0) for name in _parameter_names(camera)]


def _parameter_names(camera: Any) -> list[str]:
    return [name.strip() for name in camera.params_info.split(",")]


def adjust(
    pycolmap: Any, model: Any, moves_center: bool = False, tolerance: float = EXACT
) -> float:
    """Bundle adjustment of a reconstruction with Cauchy's loss; returns the loss."""
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_principal_point, options.print_summary = moves_center, False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.loss_function_scale = LOSS_SCALE
    options.ceres.solver_options.function_tolerance = tolerance
    config = pycolmap.BundleAdjustmentConfig()
    for number in model.reg_image_ids():
        config.add_image(number)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    # `pycolmap.bundle_adjustment` turns its log on again.
    adjuster = pycolmap.create_default_bundle_adjuster(options, config, model)
    return float(adjuster.solve().ceres_summary.final_cost)
