"""TensorBoard events through tensorboardX."""

import json
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf import pictures

LOG_FILE = "log.jsonl"


class EventWriter:
    """Writes scalars, pictures, videos and text into a run's folder, in the background.

    Of several processes one `writes`.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self._folder, self._writes = folder, writes
        # One thread, so that events keep their order.
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()
        self._opened: Any = None

    def _open(self) -> Any:
        # Imported here, by the first event: it takes seconds, which the start is spared.
        if self._opened is None:
            from tensorboardX import SummaryWriter

            self._opened = SummaryWriter(str(self._folder), flush_secs=10)
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

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Numbers by tag; also a line of log.jsonl, for those without TensorBoard."""

        def write(writer: Any) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
            with (self._folder / LOG_FILE).open("a", encoding="utf-8") as file:
                known = {k: v if math.isfinite(v) else None for k, v in values.items()}
                file.write(json.dumps({"step": step, **known}) + "\n")

        self._submit(write)

    def picture(self, tag: str, image: Float[np.ndarray, "h w 3"], step: int) -> None:
        """A picture with values in [0, 1]."""
        encoded = pictures.to_uint8(image)
        self._submit(lambda writer: writer.add_image(tag, encoded, step, dataformats="HWC"))

    def video(self, tag: str, frames: UInt8[np.ndarray, "n h w 3"], fps: float, step: int) -> None:
        """Frames as a looping GIF among the images."""

        def write(writer: Any) -> None:
            from tensorboardX.proto.summary_pb2 import Summary

            _, height, width, _ = frames.shape
            encoded = Summary.Image(
                height=height,
                width=width,
                colorspace=3,
                encoded_image_string=pictures.encode_gif(frames, fps),
            )
            summary = Summary(value=[Summary.Value(tag=tag, image=encoded)])
            writer._get_file_writer().add_summary(summary, step)

        self._submit(write)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Text, shown as written."""
        indented = "\n".join("    " + line for line in text.splitlines())
        self._submit(lambda writer: writer.add_text(tag, indented, step))

    def close(self) -> None:
        """Waits until everything is in the file."""
        self._pool.shutdown(wait=True)
        if self._opened is not None:
            self._opened.close()
        for write in self._pending:
            write.result()
