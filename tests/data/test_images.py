"""Images of every format by one rule, EXIF orientation, masks, and damaged files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from jaxrf.core.errors import InputError
from jaxrf.data import images

WIDTH, HEIGHT = 12, 8


def make_rgb() -> np.ndarray:
    columns, rows = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return np.stack([20 * columns, 30 * rows, 128 + 0 * rows], axis=-1).astype(np.uint8)


def save(path: Path, mode: str = "RGB", **options: Any) -> Path:
    Image.fromarray(make_rgb()).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp", ".ppm", ".tga", ".gif"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats_without_loss_give_the_same_pixels(suffix: str, mode: str, tmp_path: Path) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"image{suffix}", mode, **options)
    rgba = images.read_image(path)
    assert images.read_image_size(path, tmp_path) == (WIDTH, HEIGHT, False, None)
    expected = np.asarray(Image.fromarray(make_rgb()).convert(mode).convert("RGB"))
    tolerance = 26 if suffix == ".gif" and mode == "RGB" else 0
    assert np.abs(rgba[..., :3].astype(int) - expected).max() <= tolerance
    assert np.all(rgba[..., 3] == 255)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("LA", ".png"), ("P", ".png"), ("1", ".png"), ("CMYK", ".jpg")]
)
def test_modes_are_converted_as_pillow_does(mode: str, suffix: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"image{suffix}", mode)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGBA"))
    np.testing.assert_array_equal(images.read_image(path), expected)


def test_gray_of_16_bits_is_rounded(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 385, 386, 65406, 65407, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "gray.png")
    rgba = images.read_image(tmp_path / "gray.png")
    np.testing.assert_array_equal(rgba[0, :, 0], np.rint(levels[0] / 257.0))
    np.testing.assert_array_equal(rgba[0, :, 3], 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_orientation_is_obeyed_unless_stored_pixels_are_asked_for(
    orientation: int, suffix: str, tmp_path: Path
) -> None:
    upright = make_rgb()
    # How a camera in each orientation stores the upright image: the inverse of showing it.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = orientation
    options: dict[str, Any] = {"quality": 100} if suffix == ".jpg" else {}
    options |= {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    size = images.read_image_size(path, tmp_path)
    assert size == (WIDTH, HEIGHT, orientation >= 5, None)
    assert np.abs(images.read_image(path)[..., :3].astype(int) - upright).max() < 40
    raw = images.read_image(path, upright=False)
    assert raw.shape[:2] == stored.shape[:2]


def make_exif(seconds: Any, f_number: Any, iso: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = 1  # Pillow writes no EXIF without a tag outside of this part.
    exif.get_ifd(images.EXIF_IFD).update(
        {
            images.EXIF_EXPOSURE_TIME: seconds,
            images.EXIF_F_NUMBER: f_number,
            images.EXIF_ISO: iso,
        }
    )
    return exif


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exposure_is_read_with_the_size(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / f"photo{suffix}", exif=make_exif(0.02, 4.0, 200))

    def decode(*_: Any) -> None:
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    exposure = images.read_image_size(path, tmp_path).exposure
    assert exposure == pytest.approx(0.02 * 200 / 16.0, rel=1e-6)


@pytest.mark.parametrize(
    ("seconds", "f_number", "iso", "exposure"),
    [
        (0.5, 2.0, (400, 100), 50.0),
        (0.0, 2.0, 100, None),
        (0.5, 0.0, 100, None),
        (0.5, "f/2", 100, None),
        (0.5, 2.0, 0, None),
    ],
)
def test_exposure_of_odd_numbers(
    seconds: Any, f_number: Any, iso: Any, exposure: float | None, tmp_path: Path
) -> None:
    path = save(tmp_path / "photo.jpg", exif=make_exif(seconds, f_number, iso))
    assert images.read_image_size(path, tmp_path) == (WIDTH, HEIGHT, False, exposure)


def test_exposure_lacks_a_number(tmp_path: Path) -> None:
    exif = make_exif(0.5, 2.0, 100)
    del exif.get_ifd(images.EXIF_IFD)[images.EXIF_ISO]
    path = save(tmp_path / "photo.jpg", exif=exif)
    assert images.read_image_size(path, tmp_path).exposure is None


def test_linear_images_are_encoded_as_srgb(tmp_path: Path) -> None:
    import OpenEXR

    linear = np.tile(
        np.float32([0.0, 0.0031308, 0.2140, 1.0, 7.0, np.nan])[None, :, None], (2, 1, 3)
    )
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {"RGB": linear}).write(str(tmp_path / "light.exr"))
    path = tmp_path / "light.exr"
    assert images.read_image_size(path, tmp_path)[:2] == (6, 2)
    np.testing.assert_array_equal(images.read_image(path)[0, :, 1], [0, 10, 127, 255, 255, 0])


@pytest.mark.parametrize("encoded", [False, True])
def test_radiance_images_are_read(encoded: bool, tmp_path: Path) -> None:
    pixels = np.tile(np.uint8([128, 64, 0, 129])[None, None], (3, 8, 1))  # 1.0, 0.5, 0.0
    head = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 3 +X 8\n"
    if encoded:
        runs = b"".join(bytes([128 + 8, value]) for value in (128, 64, 0, 129))
        body = (b"\x02\x02\x00\x08" + runs) * 3
    else:
        body = pixels.tobytes()
    (tmp_path / "light.hdr").write_bytes(head + body)
    rgba = images.read_image(tmp_path / "light.hdr")
    np.testing.assert_array_equal(rgba[2, 7], [255, 188, 0, 255])
    (tmp_path / "light.hdr").write_bytes(head + body[:-3])
    with pytest.raises(InputError, match="truncated or broken"):
        images.read_image(tmp_path / "light.hdr")


def test_smaller_images_are_at_the_top_left(tmp_path: Path) -> None:
    path = save(tmp_path / "image.png")
    batch = images.read_images([path], WIDTH + 3, HEIGHT + 2)
    np.testing.assert_array_equal(batch[0, :HEIGHT, :WIDTH, :3], make_rgb())
    assert not batch[0, HEIGHT:].any() and not batch[0, :, WIDTH:].any()


def test_masks_by_brightness_by_alpha_and_inverted(tmp_path: Path) -> None:
    used = np.zeros((HEIGHT, WIDTH), bool)
    used[2:5, 3:] = True
    path = tmp_path / "mask.png"
    Image.fromarray(np.uint8(255 * used)).save(path)
    np.testing.assert_array_equal(images.read_mask(path, (WIDTH, HEIGHT)), used)
    np.testing.assert_array_equal(images.read_mask(path, (WIDTH, HEIGHT), inverted=True), ~used)
    twice = images.read_mask(path, (2 * WIDTH, 2 * HEIGHT))
    np.testing.assert_array_equal(twice, used.repeat(2, axis=0).repeat(2, axis=1))
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[..., 3] = 255 * used
    Image.fromarray(rgba).save(path)
    np.testing.assert_array_equal(images.read_mask(path, (WIDTH, HEIGHT)), used)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (b"hello", "not an image of a known format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(9), "truncated or broken"),
        (b"\xff\xd8\xff" + bytes(20), "truncated or broken"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
    ],
)
def test_what_is_no_image_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(InputError, match=message):
        images.read_image_size(tmp_path / "image.png", tmp_path / "list.json")


def test_heif_without_its_package_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(images.importlib, "import_module", refuse)
    (tmp_path / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(InputError, match="pip install pillow-heif"):
        images.read_image_size(tmp_path / "photo.HEIC", tmp_path)


def test_heif_is_read(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(make_rgb())).save(tmp_path / "photo.heic", quality=100)
    assert images.read_image_size(tmp_path / "photo.heic", tmp_path)[:2] == (WIDTH, HEIGHT)
    rgb = images.read_image(tmp_path / "photo.heic")[..., :3]
    assert np.abs(rgb.astype(int) - make_rgb()).mean() < 12
