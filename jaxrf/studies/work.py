"""Arithmetic and lookups that one sample of each field costs in training."""

import dataclasses
from typing import assert_never

from jaxrf.models.base import StageSpec
from jaxrf.studies.roofline import ROW_CHANNELS, Roofline
from jaxrf.training.config import (
    BitNeRFConfig,
    CustomConfig,
    FieldConfig,
    HashGridConfig,
    NeRFConfig,
    PyNeRFConfig,
    TensoRFConfig,
    VoxelsConfig,
)


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one sample in training, gradient included.

    Attributes:
      flops: in dense layers.
      gathered, scattered: rows of 8 channels.
    """

    flops: float
    gathered: float
    scattered: float

    def ideal_seconds(self, roofline: Roofline) -> float:
        """Returns the time of the work at the rates of a roofline, one operation at a time."""
        return (
            self.flops / (roofline.layer * 1e9)
            + self.gathered / (roofline.gather * 1e6)
            + self.scattered / (roofline.scatter * 1e6)
        )


def count_work(config: FieldConfig, stage: StageSpec) -> Work:
    """Counts the work of one sample in training, dense layers three times: value and gradients.

    A user's own field counts as zero: its layers are not known.
    """
    match config:
        case HashGridConfig():
            rows = 8 * config.levels * config.channels / ROW_CHANNELS
            encoded = config.levels * config.channels
            inputs = config.feature_dim + config.num_sh_bands**2
            layers = encoded + (config.density_layers - 1) * config.width + 1 + config.feature_dim
            layers += inputs + (config.color_layers - 1) * config.width + 3
            return Work(6.0 * config.width * layers, rows, rows)
        case PyNeRFConfig():
            tables = min(config.heads, 2) if config.tables == "separate" else 1
            encoded = config.levels * config.channels
            rows = 8 * encoded * tables / ROW_CHANNELS
            heads = config.heads * config.width * (encoded + 1 + config.feature_dim)
            inputs = config.feature_dim + config.num_sh_bands**2
            shade = config.color_width * (
                inputs + (config.color_layers - 1) * config.color_width + 3
            )
            shade *= config.heads if config.blend == "results" else 1
            return Work(6.0 * (heads + shade), rows, rows)
        case CustomConfig():
            return Work(0.0, 0.0, 0.0)
        case VoxelsConfig():
            rows = 8 * (1 + config.feature_dim) / ROW_CHANNELS
            return Work(0.0, rows, rows)
        case TensoRFConfig():
            colored = stage.color_budget / stage.sample_budget if stage.color_budget else 1.0
            channels = config.density_components + colored * config.feature_components
            planes = 3 if config.factors == "vm" else 0
            rows = (4 * planes + 2 * 3) * channels / ROW_CHANNELS
            products = max(planes, 1) * config.feature_components
            flops = 2 * products * config.feature_dim * colored
            return Work(3.0 * flops, rows, rows)
        case NeRFConfig() | BitNeRFConfig():
            position, direction = (
                3 + 6 * n
                for n in (config.num_position_frequencies, config.num_direction_frequencies)
            )
            trunk = (config.layers - 1) * config.width**2 + position * config.width
            trunk += position * config.width if config.skip < config.layers else 0
            head = config.width + config.width**2 + config.color_width * (config.width + direction)
            return Work(6.0 * (trunk + head + 3 * config.color_width), 0.0, 0.0)
    assert_never(config)
