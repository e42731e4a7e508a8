"""TensoRF: density and features as sums of products of planes and lines, or of three lines.

Chen, Xu, Geiger, Yu, Su: TensoRF, tensorial radiance fields (ECCV 2022), section 4.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrf.core import encodings, grids
from jaxrf.fields.mlp import MLP, ComputeType

Params = dict[str, Any]

# A plane spans two axes (across, down), its line the third.
PLANE_AXES = ((0, 1), (0, 2), (1, 2))
LINE_AXES = (2, 1, 0)


@dataclasses.dataclass(frozen=True)
class TensoRF:
    """Spec of a factorised field.

    Attributes:
      resolution: grid points along x, y, z.
      density_components, feature_components: rank per axis.
      feature_dim: channels of the features.
      width, layers: of the colour MLP.
      num_feature_frequencies, num_direction_frequencies: of its inputs' Fourier encodings.
      density_shift: added before the softplus that makes the density.
      density_scale: factor of the density (the paper's distance scale).
      init_scale: standard deviation of the factors at the start.
      activation: that makes the density of what the factors give; "relu" leaves the shift out.
      factors: "vm", planes and lines (eq. 3), or "cp", three lines (eq. 2).
      color_by: "mlp", or "harmonics" of the features as coefficients.
      compute: type that networks are computed in.
    """

    resolution: tuple[int, int, int]
    density_components: int = 16
    feature_components: int = 48
    feature_dim: int = 27
    width: int = 128
    layers: int = 2
    num_feature_frequencies: int = 2
    num_direction_frequencies: int = 2
    density_shift: float = -10.0
    density_scale: float = 25.0
    init_scale: float = 0.1
    activation: Literal["softplus", "relu"] = "softplus"
    factors: Literal["vm", "cp"] = "vm"
    color_by: Literal["mlp", "harmonics"] = "mlp"
    compute: ComputeType = "float32"
    needs_aabb: ClassVar[bool] = True

    def _mlp(self) -> MLP:
        return MLP(self.width, self.layers, 3, compute=self.compute)

    def init(self, key: jax.Array) -> Params:
        """Factors from a normal distribution, the basis and the MLP as usual for linear layers.

        Returns:
          {"density", "features": {"planes": 3 x (height, width, c), "lines": 3 x (size, c)},
          "basis": (3 c, feature_dim), "mlp"}; without planes, a basis of (c, feature_dim), and
          without an MLP where it does not apply.
        """
        key_density, key_features, key_basis, key_mlp = jax.random.split(key, 4)
        inputs = jnp.zeros((1, self.feature_dim))
        components = self.feature_components * (3 if self.factors == "vm" else 1)
        bound = 1.0 / math.sqrt(components)
        params = {
            "density": self._init_factors(key_density, self.density_components),
            "features": self._init_factors(key_features, self.feature_components),
            "basis": jax.random.uniform(
                key_basis, (components, self.feature_dim), minval=-bound, maxval=bound
            ),
        }
        if self.color_by == "mlp":
            params["mlp"] = self._mlp().init(key_mlp, self._encode(inputs, inputs[:, :3]))
        return params

    def _init_factors(self, key: jax.Array, components: int) -> dict[str, tuple[Array, ...]]:
        keys = jax.random.split(key, 6)
        normal = jax.random.normal
        planes = zip(keys[:3], PLANE_AXES, strict=True) if self.factors == "vm" else ()
        return {
            "planes": tuple(
                self.init_scale
                * normal(k, (self.resolution[down], self.resolution[across], components))
                for k, (across, down) in planes
            ),
            "lines": tuple(
                self.init_scale * normal(k, (self.resolution[axis], components))
                for k, axis in zip(keys[3:], LINE_AXES, strict=True)
            ),
        }

    def _products(
        self, factors: dict[str, tuple[Array, ...]], unit: Float[Array, "m 3"]
    ) -> list[Float[Array, "m c"]]:
        lines = grids.sample_lines(factors["lines"], [unit[:, axis] for axis in LINE_AXES])
        if self.factors == "cp":
            return [lines[0] * lines[1] * lines[2]]
        planes = grids.sample_planes(
            factors["planes"],
            [unit[:, across] for across, _ in PLANE_AXES],
            [unit[:, down] for _, down in PLANE_AXES],
        )
        return [plane * line for plane, line in zip(planes, lines, strict=True)]

    def density(
        self, params: Params, positions: Float[Array, "m 3"], radii: Float[Array, "m"]
    ) -> tuple[Float[Array, "m"], Float[Array, "m 3"]]:
        """Softplus of the sum of all density components (eq. 5), zero outside the box.

        `params` holds, besides what is trained, the box (2, 3) as "aabb". The latent is the
        position in the box's unit coordinates: features are looked up only for the samples that
        ask for them. The radii are not used.
        """
        del radii
        unit, inside = grids.to_unit_box(positions, params["aabb"])
        raw = sum(jnp.sum(p, axis=-1) for p in self._products(params["density"], unit))
        if self.activation == "relu":
            density = self.density_scale * jax.nn.relu(raw)
        else:
            density = self.density_scale * jax.nn.softplus(raw + self.density_shift)
        return jnp.where(inside, density, 0.0), unit

    def debug_outputs(
        self, params: Params, positions: Float[Array, "m 3"], directions: Float[Array, "m 3"]
    ) -> dict[str, Array]:
        """What the field gives before activations, part by part, to compare it with others.

        Returns:
          Raw "density" (m,), "features" (m, c), and raw "color" (m, 3) by an MLP.
        """
        unit, _ = grids.to_unit_box(positions, params["aabb"])
        raw = sum(jnp.sum(p, axis=-1) for p in self._products(params["density"], unit))
        features = self.features(params, unit)
        color = self._mlp().apply(params["mlp"], self._encode(features, directions))
        return {"density": raw, "features": features, "color": color}

    def features(self, params: Params, latent: Float[Array, "m 3"]) -> Float[Array, "m c"]:
        """The concatenated feature components times the basis matrix (eq. 7)."""
        products = self._products(params["features"], latent)
        return jnp.concatenate(products, axis=-1) @ params["basis"]

    def color(
        self, params: Params, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m 3"]:
        """Colour MLP of features, direction and their encodings, or harmonics of the direction."""
        if self.color_by == "harmonics":
            bands = math.isqrt(self.feature_dim // 3)
            basis = encodings.spherical_harmonics(directions, bands)
            coefficients = features.reshape(features.shape[0], 3, bands**2)
            return jax.nn.sigmoid(jnp.sum(coefficients * basis[:, None], axis=-1))
        return jax.nn.sigmoid(self._mlp().apply(params["mlp"], self._encode(features, directions)))

    def _encode(
        self, features: Float[Array, "m c"], directions: Float[Array, "m 3"]
    ) -> Float[Array, "m e"]:
        return jnp.concatenate(
            [
                encodings.fourier(features, self.num_feature_frequencies),
                encodings.fourier(directions, self.num_direction_frequencies),
            ],
            axis=-1,
        )


def resample(
    params: Params,
    resolution: tuple[int, int, int],
    old: Float[Array, "2 3"],
    new: Float[Array, "2 3"],
) -> Params:
    """Parameters on the grid points of another box, by linear interpolation.

    Serves upsampling (section 4.4) as well as shrinking the box; what of the new box lies outside
    the old one repeats its border. Works on anything shaped like the parameters, such as the
    moments of an optimiser.

    Args:
      params: on the box `old`.
      resolution: grid points along x, y, z from now on.
      old, new: the boxes.
    """
    start, stop = (new - old[:1]) / (old[1:] - old[:1])

    def resample_factors(factors: dict[str, tuple[Array, ...]]) -> dict[str, tuple[Array, ...]]:
        return {
            "planes": tuple(
                grids.resample_plane(
                    plane,
                    (resolution[down], resolution[across]),
                    (start[down], start[across]),
                    (stop[down], stop[across]),
                )
                # Without planes there are none to go on.
                for plane, (across, down) in zip(factors["planes"], PLANE_AXES, strict=False)
            ),
            "lines": tuple(
                grids.resample_line(line, resolution[axis], start[axis], stop[axis])
                for line, axis in zip(factors["lines"], LINE_AXES, strict=True)
            ),
        }

    return {
        **params,
        "density": resample_factors(params["density"]),
        "features": resample_factors(params["features"]),
    }


def fit_resolution(voxels: int, aabb: Float[np.ndarray, "2 3"]) -> tuple[int, int, int]:
    """Grid points along x, y, z such that about `voxels` cubic voxels fill the box."""
    size = [float(s) for s in np.asarray(aabb[1], np.float64) - aabb[0]]
    voxel = (size[0] * size[1] * size[2] / voxels) ** (1.0 / 3.0)
    # Rounded up only past the rounding error, or a cube of n^3 voxels would get n + 1 points.
    x, y, z = (max(2, math.ceil(s / voxel - 1e-6)) for s in size)
    return x, y, z


def l1_norm(params: Params) -> Float[Array, ""]:
    """Mean absolute value of the density's factors, summed over planes and lines (section 4.3)."""
    leaves = jax.tree.leaves(params["density"])
    return sum((jnp.mean(jnp.abs(leaf)) for leaf in leaves), jnp.zeros(()))


def total_variation(factors: dict[str, tuple[Array, ...]]) -> Float[Array, ""]:
    """Mean squared difference of neighbouring entries, summed over planes, both ways.

    Over lines where there are no planes (the authors' code, section "TV loss").
    """

    def variation(entries: Array, axis: int) -> Array:
        return jnp.mean(jnp.square(jnp.diff(entries, axis=axis)))

    along = [(plane, axis) for plane in factors["planes"] for axis in (0, 1)]
    along = along or [(line, 0) for line in factors["lines"]]
    return sum((variation(*entries) for entries in along), jnp.zeros(()))


def ortho_loss(params: Params) -> Float[Array, ""]:
    """Mean absolute inner product of different components' lines, summed over all lines.

    Zero if the components along each axis are orthogonal (the authors' code, "Ortho weight").
    """

    def mean_product(line: Array) -> Array:
        count = line.shape[1]
        products = jnp.abs(line.T @ line) * (1.0 - jnp.eye(count, dtype=line.dtype))
        return jnp.sum(products) / max(count * (count - 1), 1)

    lines = [*params["density"]["lines"], *params["features"]["lines"]]
    return sum((mean_product(line) for line in lines), jnp.zeros(()))
