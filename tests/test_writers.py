"""TensorBoard events, read back with TensorBoard's own reader."""

import io
import threading
import time
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jaxrf import pictures
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


# In the background.

FRAMES = np.zeros((2, 4, 4, 3), np.uint8)


def test_nobody_waits_for_an_event_but_who_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, encode = threading.Event(), pictures.encode_gif

    def encode_late(*arguments: Any) -> bytes:
        assert let_go.wait(60)
        return encode(*arguments)

    monkeypatch.setattr(pictures, "encode_gif", encode_late)
    writer = EventWriter(tmp_path)
    writer.scalars({"a": 1.0}, 1)
    writer.video("orbit", FRAMES, 10.0, 1)
    for step in range(2, 40):
        writer.scalars({"a": float(step)}, step)
    picture = np.full((4, 4, 3), 0.2, np.float32)
    writer.picture("view", picture, 40)
    # It may be used for something else at once.
    picture[:] = 0.9
    threading.Timer(0.3, let_go.set).start()
    writer.close()
    assert let_go.is_set()
    events = read(tmp_path)
    assert [s.step for s in events.Scalars("a")] == list(range(1, 40))
    assert len(events.Images("orbit")) == 1
    (view,) = events.Images("view")
    np.testing.assert_array_equal(iio.imread(view.encoded_image_string), 51)


def fail(*_: Any) -> bytes:
    raise OSError("no space left")


def test_what_could_not_be_written_is_told_when_closing_and_the_rest_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "encode_gif", fail)
    let_go = threading.Event()
    writer = EventWriter(tmp_path)
    # Held up, lest the error be found before the last event is handed over.
    writer._submit(lambda _: let_go.wait(60))
    writer.scalars({"a": 1.0}, 1)
    writer.video("orbit", FRAMES, 10.0, 1)
    writer.scalars({"a": 2.0}, 2)
    let_go.set()
    with pytest.raises(OSError, match="no space left"):
        writer.close()
    assert [s.step for s in read(tmp_path).Scalars("a")] == [1, 2]


def test_what_could_not_be_written_is_told_by_a_later_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "encode_gif", fail)
    writer = EventWriter(tmp_path)
    writer.video("orbit", FRAMES, 10.0, 1)
    with pytest.raises(OSError, match="no space left"):
        for step in range(1000):
            writer.scalars({"a": float(step)}, step)
            time.sleep(0.01)
    # Once is enough.
    writer.close()


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = EventWriter(tmp_path / "file" / "run")
    writer.text("config", "{}")
    with pytest.raises(OSError):
        writer.close()


def test_without_events_there_is_no_file(tmp_path: Path) -> None:
    EventWriter(tmp_path / "run").close()
    assert list(tmp_path.iterdir()) == []
