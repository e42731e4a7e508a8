"""What a run tells while it goes on: TensorBoard events through tensorboardX, and text."""

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

# Scalars, a line of JSON for each step.
LOG_FILE = "log.jsonl"
# What happened, in words.
TEXT_FILE = "train.log"
# Of a histogram; TensorBoard draws fewer.
BUCKETS = 60

Hyperparameters = dict[str, bool | float | str]


class EventWriter:
    """Writes scalars, pictures, histograms, videos and text into a run's folder, in the background.

    Of several processes one `writes`. A resumed run names the step it goes on after: what an
    earlier process has written of later steps is then left out of TensorBoard's curves.
    """

    def __init__(self, folder: Path, writes: bool = True, resumed_at: int | None = None) -> None:
        self._folder, self._writes, self._resumed_at = folder, writes, resumed_at
        # One thread, so that events keep their order.
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._opened: Any = None

    def _open(self) -> Any:
        # Imported here, by the first event: it takes seconds, which the start is spared.
        if self._opened is None:
            from tensorboardX import SummaryWriter

            purge = None if self._resumed_at is None else self._resumed_at + 1
            self._opened = SummaryWriter(str(self._folder), purge_step=purge, flush_secs=10)
        return self._opened

    def _submit(self, write: Callable[[Any], object]) -> None:
        """Lets the thread write; raises what went wrong in an earlier write."""
        if not self._writes:
            return
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

        def run() -> None:
            write(self._open())

        self._pending.append(self._pool.submit(run))

    def note(self, sentence: str) -> None:
        """A line of train.log with the time; it is in the file when this returns."""
        if self._writes:
            moment = time.strftime("%Y-%m-%d %H:%M:%S")
            append_line(self._folder / TEXT_FILE, f"{moment}  {' '.join(sentence.split())}")

    def scalars(
        self,
        values: dict[str, float],
        step: int,
        measure: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Numbers by tag; also a line of log.jsonl, for those without TensorBoard.

        What takes time to find out is measured in the background.
        """

        def write(writer: Any) -> None:
            every = values | measure() if measure else values
            for tag, value in every.items():
                writer.add_scalar(tag, value, step)
            known = {k: v if math.isfinite(v) else None for k, v in every.items()}
            append_line(self._folder / LOG_FILE, json.dumps({"step": step, **known}))

        self._submit(write)

    def picture(
        self,
        tag: str,
        image: Float[np.ndarray, "h w 3"] | Callable[[], UInt8[np.ndarray, "h w 3"]],
        step: int,
    ) -> None:
        """A picture with values in [0, 1], or what draws one of 8 bits, in the background."""
        encoded = None if callable(image) else images.to_uint8(image)

        def write(writer: Any) -> None:
            drawn = image() if callable(image) else encoded
            writer.add_image(tag, drawn, step, dataformats="HWC")

        self._submit(write)

    def histogram(self, tag: str, values: Float[np.ndarray, "n"], step: int) -> None:
        """How often values occur, those that are finite; nothing if none are."""

        def write(writer: Any) -> None:
            found = values[np.isfinite(values)].astype(np.float64)
            if not found.size:
                return
            counts, edges = np.histogram(found, BUCKETS)
            writer.add_histogram_raw(
                tag,
                min=float(found.min()),
                max=float(found.max()),
                num=found.size,
                sum=float(found.sum()),
                sum_squares=float(np.square(found).sum()),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )

        self._submit(write)

    def video(self, tag: str, frames: UInt8[np.ndarray, "n h w 3"], fps: float, step: int) -> None:
        """Frames as a looping GIF among the images."""

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
        """Text, shown as written."""
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
        """The row of a run that is done in TensorBoard's table of hyper-parameters.

        Args:
          values: by name.
          metrics: results by tag, which are written as scalars too.
          step: of the results.
          columns: what other runs of the same table may have, for TensorBoard asks one run alone
            which columns there are; by default these values. Their types count.
          leading: those of the columns that are to be seen first.
        """

        def write(writer: Any) -> None:
            for summary in _summarise_row(values, metrics, columns or values, leading):
                writer._get_file_writer().add_summary(summary, step)

        self.scalars(metrics, step)
        self._submit(write)

    def close(self) -> None:
        """Waits until everything is in the file."""
        self._pool.shutdown(wait=True)
        if self._opened is not None:
            self._opened.close()
        for write in self._pending:
            write.result()


def _summarise_row(
    values: Hyperparameters,
    metrics: dict[str, float],
    columns: Hyperparameters,
    leading: Collection[str],
) -> list[Any]:
    """The summaries that make a row; `SummaryWriter.add_hparams` would make it another run."""
    from tensorboardX.proto.api_pb2 import HParamInfo
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
    from tensorboardX.summary import hparams

    experiment, _, _ = hparams(columns, metrics)
    _, begun, ended = hparams(values, metrics)
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for info in content.experiment.hparam_infos:
        if info.name in leading:
            # TensorBoard sorts first what differs between runs (field 7), of which tensorboardX
            # does not know.
            info.CopyFrom(HParamInfo.FromString(info.SerializeToString() + b"\x38\x01"))
    plugin.content = content.SerializeToString()
    return [experiment, begun, ended]


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file, whole or not at all, whatever the last one to write there left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            # A machine that lost its power may have left half a line.
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())
