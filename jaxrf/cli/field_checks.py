"""Checks of a field's numbers, by the kind of the field."""

from typing import assert_never

from jaxrf.core.checks import require_non_negative, require_positive
from jaxrf.core.errors import InputError
from jaxrf.training import config as configs
from jaxrf.training.config import FieldConfig


def check_field_config(field: FieldConfig) -> None:
    """Checks the numbers of a field; raises an InputError for the first that is out of range."""
    match field:
        case configs.TensoRFConfig():
            _check_tensorf(field)
        case configs.VoxelsConfig():
            _check_voxels(field)
        case configs.SampledConfig():
            _check_sampled(field)
        case _:
            assert_never(field)
    _check_convention(field)
    require_positive(field, "checkpoint_in_chunks", prefix="field.")
    require_non_negative(field, "appearance_dim", prefix="field.")


def _check_tensorf(field: configs.TensoRFConfig) -> None:
    require_positive(
        field, "width", "density_components", "feature_components", "feature_dim",
        "density_scale", "initial_voxels", "final_voxels", "occupancy_voxels", "step_ratio",
        prefix="field.",
    )  # fmt: skip
    allowed = [3 * bands**2 for bands in range(1, 5)]
    if field.color == "harmonics" and field.feature_dim not in allowed:
        raise InputError(
            f"--field.feature-dim is {field.feature_dim}: harmonics need one of "
            f"{', '.join(str(n) for n in allowed)}."
        )


def _check_voxels(field: configs.VoxelsConfig) -> None:
    require_positive(
        field, "width", "feature_dim", "density_scale", "initial_resolution", "step_ratio",
        prefix="field.",
    )  # fmt: skip
    maximum = len(field.upsample_at)
    if field.num_subdivisions is not None and not 0 <= field.num_subdivisions <= maximum:
        raise InputError(
            f"--field.num-subdivisions is {field.num_subdivisions}: give 0 to {maximum}, or more "
            "times in --field.upsample-at."
        )


def _check_sampled(field: configs.SampledConfig) -> None:
    require_positive(
        field, "num_coarse_samples", "occupancy_resolution", "occupancy_update_interval",
        "max_steps", "max_shaded_fraction", "num_proposal_samples", "num_nerf_samples",
        "proposal_resolutions", prefix="field.",
    )  # fmt: skip
    sizes = ("layers", "width", "color_width", "levels", "channels", "coarsest", "finest")
    require_positive(field, *(name for name in sizes if hasattr(field, name)), prefix="field.")
    if not 0 < len(field.num_proposal_samples) <= len(field.proposal_resolutions):
        raise InputError(
            f"--field.num-proposal-samples has {len(field.num_proposal_samples)} numbers: give one "
            "for each proposal, and as many in --field.proposal-resolutions."
        )
    points = field.sampler == "hierarchical" and field.quadrature == "points"
    if points and field.num_coarse_samples < 3:
        raise InputError(
            f"--field.num-coarse-samples is {field.num_coarse_samples}: points need 3 or more."
        )
    if points and getattr(field, "encoding", "fourier") == "integrated":
        raise InputError(
            "--field.encoding integrated encodes intervals, not points: add --field.quadrature "
            "intervals."
        )
    if getattr(field, "blend", "features") == "results" and field.shading == "per_ray":
        raise InputError(
            "--field.blend results has no features to composite along a ray: add "
            "--field.shading per_sample."
        )


def _check_convention(field: FieldConfig) -> None:
    convention = field.convention
    along_axis = "axis" in (convention.lengths_along, convention.view_directions)
    if along_axis and convention.range_along == "ray":
        raise InputError(
            "--field.convention has lengths or directions along the axis, but its range along the "
            "ray: add --field.convention.range-along axis."
        )
    hierarchical_only = along_axis or convention.transmittance != "exclusive"
    if hierarchical_only and getattr(field, "sampler", "") != "hierarchical":
        raise InputError(
            "--field.convention has lengths or directions along the axis, or an inclusive "
            "transmittance, which only the hierarchical sampler knows: leave them out."
        )
