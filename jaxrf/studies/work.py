"""Arithmetic and lookups that one sample of each field costs in training."""

import dataclasses

from jaxrf.models.base import StageSpec
from jaxrf.studies.roofline import Roofline


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


def count_work(stage: StageSpec) -> Work:
    """Counts the work of one sample in training, dense layers three times: value and gradients.

    A field that does not say what a sample costs counts as zero.
    """
    fraction = stage.color_budget / stage.sample_budget if stage.color_budget else 1.0
    cost = stage.field.sample_cost(fraction)
    return Work(cost.flops, cost.rows, cost.rows)
