"""A run of any field as a page: as it is, or as voxels that look like it."""

import dataclasses
from typing import NamedTuple

from jaxrf.core.errors import InputError
from jaxrf.export import web
from jaxrf.export.distill import DistillConfig, distill_voxels
from jaxrf.export.progress import ProgressFn, no_progress
from jaxrf.training.callbacks import ProgressCallback
from jaxrf.training.runs import Run

# Captures have more to show than objects: smaller voxels, which take longer to learn.
CAPTURE = DistillConfig(num_steps=4000, divisions=1)
# Voxels that are twice as large, and twice as large again, until a page is small enough.
MAX_COARSER = 2


@dataclasses.dataclass(frozen=True)
class BakeOptions:
    """Limits and choices of a page; None for what is usual.

    Attributes:
      num_views: renderings that voxels learn from.
      num_steps: that they are trained.
      bakes_ternary: whether a ternary network is baked, too, in place of its own page.
      max_bytes: of the page.
      in_one_file: whether the page holds its data.
    """

    num_views: int | None = None
    num_steps: int | None = None
    bakes_ternary: bool = False
    max_bytes: int = 30_000_000
    in_one_file: bool = True


class BakedPage(NamedTuple):
    """A page, and how much its voxels look like the run.

    page: to be written.
    psnr: in dB, of views of the voxels against those of the run; None if the page draws the run.
    """

    page: web.Page
    psnr: float | None


def bake_page(
    run: Run, options: BakeOptions, progress: ProgressFn = no_progress, reports: bool = False
) -> BakedPage:
    """A run as a page of at most `options.max_bytes`.

    Args:
      run: of any field and model; unless a page draws the run itself, with the poses of its
        training cameras.
      options: what the page may be.
      progress: reports the renderings that voxels learn from.
      reports: whether their training is reported, too.

    Raises:
      InputError: nothing is in the scene, there are no poses, or even large voxels take more bytes.
    """
    if web.shows_itself(run) and not (options.bakes_ternary and not web.shows_voxels(run)):
        page = web.make_page(run, options.in_one_file)
        if page.size <= options.max_bytes:
            return BakedPage(page, None)
    config = _plan(run, options)
    for coarser in range(1 + MAX_COARSER):
        step = dataclasses.replace(config, divisions=config.divisions - coarser)
        callback = ProgressCallback(config.num_steps, "teach voxels", enabled=reports)
        voxels, psnr = distill_voxels(run, step, progress, callback)
        page = web.make_page(voxels, options.in_one_file)
        if page.size <= options.max_bytes:
            return BakedPage(page, psnr)
    raise InputError(
        f"The page takes {page.size / 1e6:.1f} MB, more than --max-size "
        f"{options.max_bytes / 1e6:g}: give a larger one."
    )


def _plan(run: Run, options: BakeOptions) -> DistillConfig:
    config = DistillConfig() if run.state.grid.bounds is None else CAPTURE
    return dataclasses.replace(
        config,
        num_views=options.num_views or config.num_views,
        num_steps=options.num_steps or config.num_steps,
    )
