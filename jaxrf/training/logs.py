"""Logs of a run: TensorBoard events, written by tensorboardX, and text files."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf.evaluation import images

# Scalars, one line of JSON per step.
LOG_FILE = "log.jsonl"
# Events in words, one line each.
TEXT_FILE = "train.log"
# Buckets of a histogram; TensorBoard draws fewer.
BUCKETS = 60

Hyperparameters = dict[str, bool | float | str]


class EventWriter:
    """Writes scalars, images, histograms, videos and text of a run in a background thread."""

    def __init__(self, folder: Path, enabled: bool = True, resumed_at: int | None = None) -> None:
        """Writes to files of a run's folder, which are created by the first event.

        Args:
          folder: of the run.
          enabled: whether to write at all; one of several processes does.
          resumed_at: the step at which a resumed run continues. TensorBoard then drops later steps
            that an earlier process wrote.
        """
        self._folder, self._enabled, self._resumed_at = folder, enabled, resumed_at
        # One thread, so that events keep their order.
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._opened: Any = None

    def _open(self) -> Any:
        # The import takes seconds, so it happens in the background with the first event.
        if self._opened is None:
            from tensorboardX import SummaryWriter

            purge = None if self._resumed_at is None else self._resumed_at + 1
            self._opened = SummaryWriter(str(self._folder), purge_step=purge, flush_secs=10)
        return self._opened

    def _submit(self, write: Callable[[Any], object]) -> None:
        """Queues a write; raises the error of an earlier write, if any."""
        if not self._enabled:
            return
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

        def run() -> None:
            write(self._open())

        self._pending.append(self._pool.submit(run))

    def note(self, sentence: str) -> None:
        """Appends a line with the time to train.log before it returns."""
        if self._enabled:
            timestamp = time.strftime("%Y-%m-%d %H:%M:%S")
            append_line(self._folder / TEXT_FILE, f"{timestamp}  {' '.join(sentence.split())}")

    def scalars(
        self,
        values: dict[str, float],
        step: int,
        measure: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Writes numbers by tag, to TensorBoard and as a line of log.jsonl.

        `measure` returns further numbers and is called in the background thread.
        """

        def write(writer: Any) -> None:
            scalars = values | measure() if measure else values
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, step)
            finite = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
            append_line(self._folder / LOG_FILE, json.dumps({"step": step, **finite}))

        self._submit(write)

    def image(
        self,
        tag: str,
        image: Float[np.ndarray, "h w 3"] | Callable[[], UInt8[np.ndarray, "h w 3"]],
        step: int,
    ) -> None:
        """Writes an image with values in [0, 1], or the 8 bit image that a function draws.

        The function is called in the background thread.
        """
        encoded = None if callable(image) else images.to_uint8(image)

        def write(writer: Any) -> None:
            pixels = image() if callable(image) else encoded
            writer.add_image(tag, pixels, step, dataformats="HWC")

        self._submit(write)

    def histogram(self, tag: str, values: Float[np.ndarray, "n"], step: int) -> None:
        """Writes a histogram of the finite values, if there are any."""

        def write(writer: Any) -> None:
            finite = values[np.isfinite(values)].astype(np.float64)
            if not finite.size:
                return
            counts, edges = np.histogram(finite, BUCKETS)
            writer.add_histogram_raw(
                tag,
                min=float(finite.min()),
                max=float(finite.max()),
                num=finite.size,
                sum=float(finite.sum()),
                sum_squares=float(np.square(finite).sum()),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )

        self._submit(write)

    def video(self, tag: str, frames: UInt8[np.ndarray, "n h w 3"], fps: float, step: int) -> None:
        """Writes frames as a looping GIF among the images."""

        def write(writer: Any) -> None:
            from tensorboardX.proto.summary_pb2 import Summary

            _, height, width, _ = frames.shape
            encoded = Summary.Image(
                height=height,
                width=width,
                colorspace=3,
                encoded_image_string=images.encode_gif(frames, fps),
            )
            summary = Summary(value=[Summary.Value(tag=tag, image=encoded)])
            writer._get_file_writer().add_summary(summary, step)

        self._submit(write)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Writes text that is displayed verbatim."""
        indented = "\n".join("    " + line for line in text.splitlines())
        self._submit(lambda writer: writer.add_text(tag, indented, step))

    def hyperparameters(
        self,
        values: Hyperparameters,
        metrics: dict[str, float],
        step: int,
        columns: Hyperparameters | None = None,
        leading: Collection[str] = (),
    ) -> None:
        """Writes the row of a finished run in TensorBoard's table of hyperparameters.

        Args:
          values: hyperparameters by name.
          metrics: results by tag, which are also written as scalars.
          step: of the results.
          columns: hyperparameters that runs in the same table may have, by default those of
            `values`. TensorBoard takes names and types of columns from a single run.
          leading: names of the columns to display first.
        """

        def write(writer: Any) -> None:
            for summary in _row_summaries(values, metrics, columns or values, leading):
                writer._get_file_writer().add_summary(summary, step)

        self.scalars(metrics, step)
        self._submit(write)

    def close(self) -> None:
        """Waits until all events are written; raises the error of a write, if any."""
        self._pool.shutdown(wait=True)
        if self._opened is not None:
            self._opened.close()
        for write in self._pending:
            write.result()


def _row_summaries(
    values: Hyperparameters,
    metrics: dict[str, float],
    columns: Hyperparameters,
    leading: Collection[str],
) -> list[Any]:
    """Summaries of a row. `SummaryWriter.add_hparams` would write them as another run."""
    from tensorboardX.proto.api_pb2 import HParamInfo
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
    from tensorboardX.summary import hparams

    experiment, _, _ = hparams(columns, metrics)
    _, session_start, session_end = hparams(values, metrics)
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for info in content.experiment.hparam_infos:
        if info.name in leading:
            # TensorBoard displays columns first that are marked as different between runs (field
            # 7 of HParamInfo), a mark that tensorboardX does not support.
            info.CopyFrom(HParamInfo.FromString(info.SerializeToString() + b"\x38\x01"))
    plugin.content = content.SerializeToString()
    return [experiment, session_start, session_end]


def append_line(path: Path, line: str) -> None:
    """Appends a line to a file in one write, after completing an unfinished last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            # A crash may have left an incomplete line.
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())
