"""The ray conventions of other programs; a converted run renders by those of its program."""

import dataclasses

from jaxrf.cameras.ray_convention import RayConvention

# NeRF, nerf-pytorch, nerfmlp: rays pass the pixels' corners; near and far are depths along
# the camera's axis.
NERF = RayConvention(pixel_center=0.0, range_along="axis")
# jaxnerf, since 2021.
JAXNERF = dataclasses.replace(NERF, fine_samples="unpadded")
# NeRF-experiments: interval lengths are depths, too, as directions are not of unit length.
NERF_EXPERIMENTS = dataclasses.replace(NERF, lengths_along="axis")
# Its own training included each sample's absorption in the transmittance.
NERF_EXPERIMENTS_INCLUSIVE = dataclasses.replace(NERF_EXPERIMENTS, transmittance="inclusive")
# NeRF-from-scratch and Jiayi Pan's networks: these also see directions that are not of unit length.
SMALL_NERFS = dataclasses.replace(NERF_EXPERIMENTS, view_directions="axis")
# TensoRF: samples lie where steps start; rays go on until nothing passes.
TENSORF = RayConvention(samples_at="start", transmittance_threshold=0.0)
