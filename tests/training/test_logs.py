"""Logs: TensorBoard events, read back with TensorBoard's reader, and text files."""

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from jaxrf.evaluation import images
from jaxrf.training.logs import EventWriter, append_line


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def test_scalars_are_written_with_their_steps(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.scalars({"a/b": 1.5, "c": -2.0}, 3)
    writer.scalars({"a/b": 2.5}, 10)
    writer.close()
    events = read(tmp_path)
    assert [(s.step, s.value) for s in events.Scalars("a/b")] == [(3, 1.5), (10, 2.5)]
    assert [(s.step, s.value) for s in events.Scalars("c")] == [(3, -2.0)]


def test_image_is_written_exactly(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).uniform(-0.2, 1.2, (5, 7, 3)).astype(np.float32)
    writer = EventWriter(tmp_path)
    writer.image("view/depth", picture, 4)
    writer.close()
    (image,) = read(tmp_path).Images("view/depth")
    assert (image.step, image.height, image.width) == (4, 5, 7)
    expected = np.rint(np.clip(picture, 0, 1) * 255)
    np.testing.assert_array_equal(iio.imread(image.encoded_image_string), expected)


def test_video_is_a_looping_gif_among_the_images(tmp_path: Path) -> None:
    frames = np.zeros((4, 6, 8, 3), np.uint8)
    frames[:, :, :, 0] = np.arange(4)[:, None, None] * 80
    writer = EventWriter(tmp_path)
    writer.video("orbit", frames, 10.0, 9)
    writer.close()
    (image,) = read(tmp_path).Images("orbit")
    assert (image.step, image.height, image.width) == (9, 6, 8)
    with Image.open(io.BytesIO(image.encoded_image_string)) as gif:
        assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 4, 0)


def test_text_is_displayed_line_by_line(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.text("config", '{\n  "a": 1\n}\n', 2)
    writer.close()
    events = read(tmp_path)
    (tag,) = [tag for tag in events.Tags()["tensors"] if tag.startswith("config")]
    (event,) = events.Tensors(tag)
    text = event.tensor_proto.string_val[0].decode()
    # Markdown displays lines indented by four spaces verbatim.
    assert [line[4:] for line in text.splitlines()] == ["{", '  "a": 1', "}"]
    assert all(line.startswith("    ") for line in text.splitlines())


def test_second_writer_adds_to_the_same_folder(tmp_path: Path) -> None:
    for step in (1, 2):
        writer = EventWriter(tmp_path)
        writer.scalars({"a": float(step)}, step)
        writer.close()
    assert [s.step for s in read(tmp_path).Scalars("a")] in ([1, 2], [2])
    assert len(list(tmp_path.glob("events.*"))) in (1, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scalars_that_are_not_finite_do_not_stop_the_writer(tmp_path: Path, value: float) -> None:
    writer = EventWriter(tmp_path)
    writer.scalars({"a": value}, 1)
    writer.close()
    np.testing.assert_equal(read(tmp_path).Scalars("a")[0].value, value)


def read_histograms(folder: Path, tag: str) -> list[Any]:
    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    accumulator.Reload()
    return accumulator.Histograms(tag)


def test_histogram_counts_finite_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 5000).astype(np.float32)
    writer = EventWriter(tmp_path)
    writer.histogram("a/b", np.concatenate([values, [np.nan, np.inf]]).astype(np.float32), 7)
    writer.histogram("same", np.full(10, 0.5, np.float32), 7)
    writer.histogram("none", np.full(3, np.nan, np.float32), 7)
    writer.close()
    (event,) = read_histograms(tmp_path, "a/b")
    histogram = event.histogram_value
    assert (event.step, histogram.num) == (7, 5000)
    assert (histogram.min, histogram.max) == (values.min(), values.max())
    assert histogram.sum == pytest.approx(values.astype(float).sum())
    assert histogram.sum_squares == pytest.approx(np.square(values.astype(float)).sum())
    below = np.cumsum(histogram.bucket)
    expected = [(values <= limit).sum() for limit in histogram.bucket_limit]
    np.testing.assert_allclose(below, expected, atol=2)
    (same,) = read_histograms(tmp_path, "same")
    assert sum(same.histogram_value.bucket) == 10
    assert "none" not in read(tmp_path).Tags()["histograms"]


def test_image_is_drawn_in_the_background(tmp_path: Path) -> None:
    threads = []

    def draw() -> np.ndarray:
        threads.append(threading.current_thread())
        return np.full((4, 4, 3), 51, np.uint8)

    writer = EventWriter(tmp_path)
    writer.image("view", draw, 1)
    writer.close()
    (view,) = read(tmp_path).Images("view")
    np.testing.assert_array_equal(iio.imread(view.encoded_image_string), 51)
    assert threads != [threading.main_thread()] and len(threads) == 1


def test_scalars_include_measured_ones_in_both_files(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    writer.scalars({"a": 1.0}, 3, lambda: {"machine/b": float("nan"), "machine/c": 2.0})
    writer.close()
    events = read(tmp_path)
    assert {"a", "machine/b", "machine/c"} <= set(events.Tags()["scalars"])
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 3, "a": 1.0, "machine/b": None, "machine/c": 2.0}


def test_hyperparameters_are_a_row_of_the_run_itself(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    values = {"field.kind": "voxels", "steps": 300.0, "stream": True}
    columns = {**values, "field.layers": 8.0}
    writer.hyperparameters(values, {"test/psnr": 28.5}, 300, columns, ("steps",))
    writer.close()
    # TensorBoard would take a folder for another run.
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert [s.value for s in read(tmp_path).Scalars("test/psnr")] == [28.5]
    contents = read(tmp_path).PluginTagToContent("hparams")
    experiment = metadata.parse_experiment_plugin_data(contents[metadata.EXPERIMENT_TAG])
    assert {info.name: info.differs for info in experiment.hparam_infos} == {
        "field.kind": False, "steps": True, "stream": False, "field.layers": False
    }  # fmt: skip
    assert [info.name.tag for info in experiment.metric_infos] == ["test/psnr"]
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["field.kind"].string_value == "voxels"
    assert start.hparams["steps"].number_value == 300.0
    assert start.hparams["stream"].bool_value is True
    assert set(start.hparams) == set(values)
    assert metadata.SESSION_END_INFO_TAG in contents


# Text.


def test_note_appends_a_line_with_the_time_at_once(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "run")
    writer.note("step 3 of 9: loss 0.5")
    lines = (tmp_path / "run/train.log").read_text().splitlines()
    writer.note("an error\n  of two lines")
    lines += (tmp_path / "run/train.log").read_text().splitlines()[1:]
    timestamps, sentences = zip(*(line.split("  ") for line in lines), strict=True)
    assert sentences == ("step 3 of 9: loss 0.5", "an error of two lines")
    for timestamp in timestamps:
        assert abs(time.mktime(time.strptime(timestamp, "%Y-%m-%d %H:%M:%S")) - time.time()) < 60
    writer.close()


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "b\n"), ("a\n", "a\nb\n"), ("a\nhalf", "a\nhalf\nb\n"), ("\n", "\nb\n")],
)
def test_append_line_completes_an_unfinished_line(tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / "log").write_text(before)
    append_line(tmp_path / "log", "b")
    assert (tmp_path / "log").read_text() == after


def test_disabled_writer_writes_nothing(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "run", enabled=False)
    writer.note("step 1")
    writer.scalars({"a": 1.0}, 1, lambda: pytest.fail("measured although disabled"))
    writer.hyperparameters({"a": 1.0}, {"b": 1.0}, 1)
    writer.histogram("h", np.zeros(3, np.float32), 1)
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_resumed_writer_drops_later_steps_from_the_curves(tmp_path: Path) -> None:
    first = EventWriter(tmp_path)
    for step in range(1, 6):
        first.scalars({"a": float(step)}, step)
    first.close()
    # Files are read in the order of their names, which contain the time in seconds.
    while time.time() < int(next(tmp_path.glob("events.*")).name.split(".")[3]) + 1.0:
        time.sleep(0.05)
    second = EventWriter(tmp_path, resumed_at=3)
    for step in range(4, 8):
        second.scalars({"a": 10.0 * step}, step)
    second.close()
    curve = {s.step: s.value for s in read(tmp_path).Scalars("a")}
    assert curve == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0, 5: 50.0, 6: 60.0, 7: 70.0}
    assert len(read(tmp_path).Scalars("a")) == 7
    # The text file keeps all lines.
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 9


# The background thread.

FRAMES = np.zeros((2, 4, 4, 3), np.uint8)


def test_only_close_waits_for_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, encode = threading.Event(), images.encode_gif

    def encode_late(*arguments: Any) -> bytes:
        assert release.wait(60)
        return encode(*arguments)

    monkeypatch.setattr(images, "encode_gif", encode_late)
    writer = EventWriter(tmp_path)
    writer.scalars({"a": 1.0}, 1)
    writer.video("orbit", FRAMES, 10.0, 1)
    for step in range(2, 40):
        writer.scalars({"a": float(step)}, step)
    picture = np.full((4, 4, 3), 0.2, np.float32)
    writer.image("view", picture, 40)
    # The writer has copied it.
    picture[:] = 0.9
    threading.Timer(0.3, release.set).start()
    writer.close()
    assert release.is_set()
    events = read(tmp_path)
    assert [s.step for s in events.Scalars("a")] == list(range(1, 40))
    assert len(events.Images("orbit")) == 1
    (view,) = events.Images("view")
    np.testing.assert_array_equal(iio.imread(view.encoded_image_string), 51)


def fail(*_: Any) -> bytes:
    raise OSError("no space left")


def test_close_raises_a_write_error_after_the_other_events_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "encode_gif", fail)
    release = threading.Event()
    writer = EventWriter(tmp_path)
    # Delays the error until the last event is queued.
    writer._submit(lambda _: release.wait(60))
    writer.scalars({"a": 1.0}, 1)
    writer.video("orbit", FRAMES, 10.0, 1)
    writer.scalars({"a": 2.0}, 2)
    release.set()
    with pytest.raises(OSError, match="no space left"):
        writer.close()
    assert [s.step for s in read(tmp_path).Scalars("a")] == [1, 2]


def test_later_event_raises_an_earlier_write_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "encode_gif", fail)
    writer = EventWriter(tmp_path)
    writer.video("orbit", FRAMES, 10.0, 1)
    with pytest.raises(OSError, match="no space left"):
        for step in range(1000):
            writer.scalars({"a": float(step)}, step)
            time.sleep(0.01)
    # The error is raised once.
    writer.close()


def test_close_raises_if_the_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    writer = EventWriter(tmp_path / "file" / "run")
    writer.text("config", "{}")
    with pytest.raises(OSError):
        writer.close()


def test_writer_without_events_creates_no_file(tmp_path: Path) -> None:
    EventWriter(tmp_path / "run").close()
    assert list(tmp_path.iterdir()) == []
