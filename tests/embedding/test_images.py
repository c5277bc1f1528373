"""Pictures: what is read, how, and what is refused."""

import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import pytest

from appliance.embedding import images
from appliance.embedding.images import Framing, Picture, described, media_type_of, pixels_of
from appliance.errors import InvalidInput

FRAMING = Framing(32, 32, 1 / 255, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
PLAIN = Framing(32, 32, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def picture(width: int = 60, height: int = 40, mode: str = "RGB") -> PIL.Image.Image:
    """Coarse random colours."""
    cells = np.random.default_rng(width).integers(0, 256, (4, 6, 3), np.uint8)
    return PIL.Image.fromarray(cells).resize((width, height), PIL.Image.Resampling.BICUBIC).convert(mode)


def saved(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return saved(picture(), "JPEG", exif=exif, quality=95)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header says so, and nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def webp_of_size(width: int, height: int) -> bytes:
    body = b"WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00" + (width - 1).to_bytes(3, "little")
    body += (height - 1).to_bytes(3, "little") + b"VP8L" + bytes(40)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def refusal(data: bytes, **limits: int) -> str:
    with pytest.raises(InvalidInput) as caught:
        pixels_of(data, FRAMING, **limits)
    return caught.value.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_each_format_is_known_by_its_bytes_and_described(kind: str) -> None:
    data = saved(picture(), kind)

    assert media_type_of(data) == f"image/{kind.lower()}"
    assert described(data) == Picture(kind.lower(), 60, 40)
    assert pixels_of(data, FRAMING).shape == (3, 32, 32)
    assert pixels_of(data, FRAMING).dtype == np.float32


@pytest.mark.parametrize(
    "text", [b"GIF89a is a format of 1989, with a palette", b"RIFF raff and WEBP", b"", b"\xff\xd8"]
)
def test_a_text_about_images_is_none(text: bytes) -> None:
    assert media_type_of(text) == ""


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (1, 5000), (31, 33), (2000, 1500)])
def test_any_shape_becomes_a_square(size: tuple[int, int]) -> None:
    pixels = pixels_of(saved(picture(*size)), FRAMING)

    assert pixels.shape == (3, 32, 32)
    assert np.isfinite(pixels).all()


def test_the_middle_is_what_counts() -> None:
    image = PIL.Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))

    pixels = pixels_of(saved(image), PLAIN)

    assert pixels[:, 16, 16].tolist() == [0, 0, 255]
    assert pixels[2, 16, 3:-3].min() > 250


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright(orientation: int) -> None:
    data = turned(orientation)
    upright = PIL.ImageOps.exif_transpose(PIL.Image.open(BytesIO(data)))

    pixels = pixels_of(data, PLAIN)

    assert (described(data).width, described(data).height) == upright.size
    assert np.abs(pixels - pixels_of(saved(upright), PLAIN)).max() <= 1


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_is_none_is_not_followed(orientation: int) -> None:
    assert np.array_equal(pixels_of(turned(orientation), PLAIN), pixels_of(turned(1), PLAIN))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16"])
def test_every_kind_of_png_becomes_three_channels(mode: str) -> None:
    image = picture(mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = PIL.Image.fromarray(np.asarray(image).astype(np.uint16) * 257)

    pixels = pixels_of(saved(image), PLAIN)

    expected = pixels_of(saved(picture(mode="L" if mode == "I;16" else mode).convert("RGB")), PLAIN)
    assert np.abs(pixels - expected).max() <= 1


def test_a_cmyk_jpeg_has_its_colours() -> None:
    colours = pixels_of(saved(picture(mode="CMYK"), "JPEG", quality=95), PLAIN)

    assert np.abs(colours - pixels_of(saved(picture()), PLAIN)).mean() < 6


def test_transparency_is_laid_on_white(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_STRIP", 600)
    image = PIL.Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 30, 40))
    palette = picture(mode="P")

    pixels = pixels_of(saved(image), PLAIN)

    assert pixels[:, 16, 2].tolist() == [255, 0, 0]
    assert pixels[:, 16, -3].tolist() == [255, 255, 255]
    assert pixels_of(saved(palette, transparency=bytes(256)), PLAIN).min() == 255


def test_of_an_animation_the_first_picture_is_read() -> None:
    frames = [PIL.Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]

    for kind in ("GIF", "WEBP", "PNG"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert pixels_of(data, PLAIN)[:, 16, 16].tolist() == [255, 0, 0]


@pytest.mark.parametrize("make", [png_of_size, webp_of_size])
def test_a_bomb_is_refused_by_its_header(make: Callable[[int, int], bytes]) -> None:
    assert "10000 x 10000 pixels; 50000000 pixels are the most" in refusal(make(10_000, 10_000))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_more_pixels_than_the_limit_are_refused_and_as_many_are_not(kind: str) -> None:
    data = saved(picture(), kind)

    assert refusal(data, max_pixels=2399) == "the image has 60 x 40 pixels; 2399 pixels are the most"
    assert pixels_of(data, FRAMING, max_pixels=2400).shape == (3, 32, 32)


def test_a_long_narrow_picture_costs_no_more_than_its_own_pixels() -> None:
    data = saved(PIL.Image.new("L", (1_000_000, 1), 128))

    assert pixels_of(data, PLAIN).tolist() == np.full((3, 32, 32), 128).tolist()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("left", [0.5, 0.9])
def test_a_file_that_was_cut_short_is_refused(kind: str, left: float) -> None:
    data = saved(picture(300, 200), kind)

    assert refusal(data[: int(left * len(data))]) == "the image is damaged or cut short"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the image is empty: send a PNG, JPEG, WebP or GIF file"),
        (b"no image at all", "the bytes are no image that can be read: send a PNG, JPEG, WebP or GIF file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the bytes are no image"),
        (saved(picture(), "BMP"), "the bytes are no image"),
        (saved(picture(), "TIFF"), "the bytes are no image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "the image is damaged or cut short"),
        (b"\xff\xd8\xff" + bytes(50), "the image is damaged or cut short"),
        (b"RIFF\x40\x00\x00\x00WEBPVP8 " + bytes(50), "the image is damaged or cut short"),
        (b"GIF89a" + bytes(50), "the image is damaged or cut short"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, message: str) -> None:
    assert refusal(data).startswith(message)


def test_a_file_that_is_too_large_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)

    assert refusal(b"\x89PNG\r\n\x1a\n" + bytes(2**20)) == "the image is larger than 1 MiB"


def test_a_jpeg_of_endless_scans_or_segments_is_refused() -> None:
    data = saved(picture(), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    comments = data[:2] + b"\xff\xfe\x00\x02" * 6000 + data[2:]

    assert pixels_of(data, FRAMING).shape == (3, 32, 32)
    assert "too many parts" in refusal(data[:-2] + data[scan:-2] * 100 + data[-2:])
    assert "too many parts" in refusal(comments)


def test_bytes_behind_a_jpeg_do_not_count() -> None:
    motion = b"\xff\xda\x00\x02" * 10_000

    assert pixels_of(saved(picture(), "JPEG") + motion, FRAMING).shape == (3, 32, 32)


def test_damage_of_any_kind_is_refused_or_borne() -> None:
    random = np.random.default_rng(3)
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        whole = np.frombuffer(saved(picture(), kind), np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[random.integers(12, len(data), 3)] = random.integers(0, 256, 3)
            try:
                assert pixels_of(data.tobytes(), FRAMING, max_pixels=1_000_000).shape == (3, 32, 32)
            except InvalidInput:
                continue
