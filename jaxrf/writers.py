"""TensorBoard events through tensorboardX."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxrf import pictures


class EventWriter:
    """Writes scalars, pictures, videos and text into a run's folder."""

    def __init__(self, folder: Path) -> None:
        # Imported here: it takes seconds, which a command that writes no events is spared.
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Numbers by tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def picture(self, tag: str, image: Float[np.ndarray, "h w 3"], step: int) -> None:
        """A picture with values in [0, 1]."""
        self._writer.add_image(tag, pictures.to_uint8(image), step, dataformats="HWC")

    def video(self, tag: str, frames: UInt8[np.ndarray, "n h w 3"], fps: float, step: int) -> None:
        """Frames as a looping GIF among the images."""
        from tensorboardX.proto.summary_pb2 import Summary

        _, height, width, _ = frames.shape
        encoded = Summary.Image(
            height=height,
            width=width,
            colorspace=3,
            encoded_image_string=pictures.encode_gif(frames, fps),
        )
        self._file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=encoded)]), step)

    @property
    def _file_writer(self) -> Any:
        return self._writer._get_file_writer()

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Text, shown as written."""
        self._writer.add_text(tag, "\n".join("    " + line for line in text.splitlines()), step)

    def close(self) -> None:
        """Flushes everything to the file."""
        self._writer.close()
