"""Which file of a data folder a listing means."""

import json
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrf.core.errors import InputError
from jaxrf.data.files import DataFolder, image_names, natural_key, strip_suffix


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    for name in ("images/r_0.png", "images/IMG_1.JPG", "images/frame.0001.jpg", "test/r_0.webp"):
        path = tmp_path / "scene" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"x")
    return DataFolder(tmp_path / "scene")


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("images/r_0.png", "images/r_0.png"),
        ("./images/r_0", "images/r_0.png"),
        ("images/r_0.jpg", "images/r_0.png"),  # made as another format
        ("images\\r_0.png", "images/r_0.png"),
        (".\\images\\IMG_1.jpg", "images/IMG_1.JPG"),
        ("Images/img_1.jpg", "images/IMG_1.JPG"),
        ("images/frame.0001", "images/frame.0001.jpg"),
        ("C:\\Users\\me\\scene\\images\\r_0.png", "images/r_0.png"),
        ("/home/me/elsewhere/images/r_0.png", "images/r_0.png"),
        ("../other/test/r_0.png", "test/r_0.webp"),
        ("images/none.png", "images/none.png"),
    ],
)
def test_listed_paths_mean_files_of_the_folder(
    listed: str, expected: str, folder: DataFolder
) -> None:
    assert folder.find_listed(listed, "frames[0]") == Path(expected)


def test_absolute_paths_inside_the_folder_are_read(folder: DataFolder) -> None:
    path = folder.root / "test" / "r_0.webp"
    assert folder.find_listed(str(path.absolute()), "frames[0]") == Path("test/r_0.webp")


@pytest.mark.parametrize(
    "listed", ["../secret.png", "/etc/passwd", "C:\\secret.png", "../a\\b.png"]
)
def test_nothing_outside_is_meant(listed: str, folder: DataFolder) -> None:
    name = listed.replace("\\", "/").rpartition("/")[-1]
    assert folder.find_listed(listed, "frames[0]") == Path(name)


@pytest.mark.parametrize("listed", ["..", "/", "C:\\"])
def test_a_folder_outside_is_no_file(listed: str, folder: DataFolder) -> None:
    with pytest.raises(InputError, match="names no file"):
        folder.find_listed(listed, "frames[0]")


@pytest.mark.parametrize("listed", ["", ".", 3, None, "a\0b", "\ud800", "x\ny"])
def test_what_is_no_path_is_refused(listed: object, folder: DataFolder) -> None:
    with pytest.raises(InputError, match="not a file's name"):
        folder.find_listed(listed, "frames[0]")


@given(st.text(max_size=40))
def test_any_text_means_a_path_inside_or_is_refused(text: str) -> None:
    folder = DataFolder(Path("/nonexistent/scene"))
    try:
        path = folder.find_listed(text, "frames[0]")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert not path.is_absolute() and ".." not in path.parts, json.dumps(text)


def test_images_are_listed_in_natural_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("r_10.png", "r_2.png", "R_1.JPG", ".r_3.png", "notes.txt", "._r_2.png"):
        (tmp_path / name).write_bytes(b"x")
    images = DataFolder(tmp_path).list_images(PurePath("."))
    assert [path.name for path in images] == ["R_1.JPG", "r_2.png", "r_10.png"]


def test_names_keep_dots_that_are_no_suffix() -> None:
    assert strip_suffix(PurePath("a/frame.0001.jpg")) == PurePath("a/frame.0001")
    assert strip_suffix(PurePath("a/frame.0001")) == PurePath("a/frame.0001")
    assert image_names([Path("a/frame.0001.jpg"), Path("a/frame.0002.jpg")]) == (
        "frame.0001",
        "frame.0002",
    )
    assert image_names([Path("a/0.png"), Path("b/0.png")]) == ("a/0", "b/0")


@given(st.lists(st.integers(0, 10**12), min_size=2, unique=True))
def test_numbers_in_names_sort_by_value(numbers: list[int]) -> None:
    names = sorted((f"r_{number}.png" for number in numbers), key=natural_key)
    assert names == [f"r_{number}.png" for number in sorted(numbers)]
