"""TensorBoard events, read back with TensorBoard's own reader."""

import io
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxrf.writers import EventWriter


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_scalars_come_back_with_their_steps(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.scalars({"a/b": 1.5, "c": -2.0}, 3)
    writer.scalars({"a/b": 2.5}, 10)
    writer.close()
    events = read(tmp_path)
    assert [(s.step, s.value) for s in events.Scalars("a/b")] == [(3, 1.5), (10, 2.5)]
    assert [(s.step, s.value) for s in events.Scalars("c")] == [(3, -2.0)]


def test_a_picture_comes_back_pixel_by_pixel(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).uniform(-0.2, 1.2, (5, 7, 3)).astype(np.float32)
    writer = EventWriter(tmp_path)
    writer.picture("view/depth", picture, 4)
    writer.close()
    (image,) = read(tmp_path).Images("view/depth")
    assert (image.step, image.height, image.width) == (4, 5, 7)
    expected = np.rint(np.clip(picture, 0, 1) * 255)
    np.testing.assert_array_equal(iio.imread(image.encoded_image_string), expected)


def test_a_video_is_a_looping_gif_among_the_images(tmp_path: Path) -> None:
    frames = np.zeros((4, 6, 8, 3), np.uint8)
    frames[:, :, :, 0] = np.arange(4)[:, None, None] * 80
    writer = EventWriter(tmp_path)
    writer.video("orbit", frames, 10.0, 9)
    writer.close()
    (image,) = read(tmp_path).Images("orbit")
    assert (image.step, image.height, image.width) == (9, 6, 8)
    with Image.open(io.BytesIO(image.encoded_image_string)) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 4, 0)


def test_text_is_kept_line_by_line(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.text("config", '{\n  "a": 1\n}\n', 2)
    writer.close()
    events = read(tmp_path)
    (tag,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("config")]
    (event,) = events.Tensors(tag)
    text = event.tensor_proto.string_val[0].decode()
    # Indented by four, markdown shows it as it is.
    assert [line[4:] for line in text.splitlines()] == ["{", '  "a": 1', "}"]
    assert all(line.startswith("    ") for line in text.splitlines())


def test_a_second_writer_adds_to_the_same_folder(tmp_path: Path) -> None:
    for step in (1, 2):
        writer = EventWriter(tmp_path)
        writer.scalars({"a": float(step)}, step)
        writer.close()
    assert [s.step for s in read(tmp_path).Scalars("a")] in ([1, 2], [2])
    assert len(list(tmp_path.glob("events.*"))) in (1, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_does_not_stop_the_writer(tmp_path: Path, value: float) -> None:
    writer = EventWriter(tmp_path)
    writer.scalars({"a": value}, 1)
    writer.close()
    np.testing.assert_equal(read(tmp_path).Scalars("a")[0].value, value)
