"""Pictures from files that nobody vouches for: bounded before they are decoded, then cut to what a model reads."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
import PIL.Image
from PIL.Image import Resampling, Transpose

from appliance.embedding.engine import Pixels
from appliance.errors import ApplianceError, InvalidInput

SUPPORTED: Final = "PNG, JPEG, WebP or GIF"

MAX_BYTES: Final = 20 * 2**20
"""Of one image's file."""

MAX_PIXELS: Final = 50_000_000
"""Of one image, where nothing else is said."""

_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
"""As Pillow names them; of a JPEG that holds several pictures the first is taken, as of an animation."""

_LARGE_PIXELS: Final = 4_000_000
"""Larger images are decoded one at a time: Pillow takes 4 to 8 bytes for each pixel."""

_LARGE: Final = threading.Lock()

_NARROW: Final = 32
"""How many times as long as wide a picture may be to be scaled whole; the result is the same to a level of 255."""

_STRIP: Final = 1 << 20
"""Pixels that are laid on white at a time."""

_SCANS: Final = 64
"""Scans of a JPEG file at most. Progressive ones have about ten; each costs a pass over all pixels, however short."""

_SEGMENTS: Final = 5_000
"""Segments of a JPEG file at most: Pillow reads each in Python."""

_ORIENTATION: Final = 0x0112
"""EXIF's tag for how a picture must be turned to stand upright."""

_TURNS: Final = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_SWAPS: Final = frozenset({5, 6, 7, 8})

_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_END_OF_IMAGE: Final = 0xD9
_START_OF_SCAN: Final = 0xDA

PIL.Image.MAX_IMAGE_PIXELS = None  # it warns, and its limit is not ours; `_opened` refuses


@dataclass(frozen=True, slots=True)
class Picture:
    """What a picture's file says of it: `png`, `jpeg`, `webp` or `gif`, and its size in pixels, upright."""

    format: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Framing:
    """How a picture becomes what a model reads: its shorter side is scaled to `edge` by bicubic interpolation, the
    middle square of `crop` is cut out, and each value v of 0 to 255 becomes (v * scale - mean) / std of its channel.

    Attributes:
        edge: pixels, not below `crop`.
    """

    edge: int
    crop: int
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def media_type_of(data: bytes) -> str:
    """The media type of an image's file by its first bytes; empty if it is none that we read."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    # what follows is a size, flags and mostly a zero, in no text that happens to begin so
    return "image/gif" if data.startswith((b"GIF87a", b"GIF89a")) and b"\x00" in data[6:13] else ""


def pixels_in(data: bytes) -> int:
    """How many pixels an image's file says that it has; 0 where that cannot be read. Nothing is decoded."""
    try:
        if media_type_of(data) == "image/webp":
            width, height = _size_of_webp(data)
        else:
            with PIL.Image.open(BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
    except Exception:  # noqa: BLE001  # Pillow raises whatever it comes upon; decoding will tell
        return 0
    return width * height


def described(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """What an image is, decoded once to know that it can be. Blocking; any thread.

    Raises:
        InvalidInput: no image, a damaged one, or one beyond the limits.
    """
    with _opened(data, max_pixels=max_pixels) as image:
        width, height = image.size
        if _orientation(image) in _SWAPS:
            width, height = height, width
    return Picture(media_type_of(data).removeprefix("image/"), width, height)


def pixels_of(data: bytes, framing: Framing, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """An image as the tower reads it, float32 (3, crop, crop). Blocking; any thread.

    EXIF's orientation is followed; transparency is laid on white; colour profiles are not looked at; of 16 bits the
    upper 8 count. Otherwise as transformers' CLIPImageProcessor with Pillow.

    Raises:
        InvalidInput: as `described`.
    """
    with _opened(data, max_pixels=max_pixels) as image:
        turn = _TURNS.get(_orientation(image))
        upright = image if turn is None else image.transpose(turn)
        small = _framed(_rgb(upright), framing)
        values = np.asarray(small, np.float32)
    mean, std = (np.array(each, np.float32) for each in (framing.mean, framing.std))
    values = (values * np.float32(framing.scale) - mean) / std
    return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)


def _framed(image: PIL.Image.Image, framing: Framing) -> PIL.Image.Image:
    """The middle square, scaled."""
    width, height = image.size
    shorter = min(width, height)
    scaled_width, scaled_height = int(framing.edge * width / shorter), int(framing.edge * height / shorter)
    crop = framing.crop
    left, top = (scaled_width - crop) // 2, (scaled_height - crop) // 2
    if max(scaled_width, scaled_height) <= _NARROW * framing.edge:
        whole = image.resize((scaled_width, scaled_height), Resampling.BICUBIC)
        return whole.crop((left, top, left + crop, top + crop))
    # a picture of one pixel by millions, scaled whole, would be a bomb of another kind
    across, down = width / scaled_width, height / scaled_height
    box = (left * across, top * down, (left + crop) * across, (top + crop) * down)
    return image.resize((crop, crop), Resampling.BICUBIC, box=box)


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I;16"):
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    flat = PIL.Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = PIL.Image.new("RGBA", strip.size, "white")
        flat.paste(PIL.Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return flat


def _orientation(image: PIL.Image.Image) -> int:
    """1 to 8; 1 where the file does not say, or says nonsense."""
    try:
        given = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  # Pillow raises what it comes upon; the picture itself is sound
        return 1
    return given if isinstance(given, int) and given in _TURNS else 1


@contextmanager
def _opened(data: bytes, *, max_pixels: int) -> Iterator[PIL.Image.Image]:
    """The decoded image."""
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"the image is larger than {MAX_BYTES // 2**20} MiB")
    kind = media_type_of(data)
    if not kind:
        what = "the image is empty" if not data else "the bytes are no image that can be read"
        raise InvalidInput(f"{what}: send a {SUPPORTED} file")
    try:
        if kind == "image/webp":  # the others take no memory before they are decoded
            _check_size(_size_of_webp(data), max_pixels)
        elif kind == "image/jpeg":
            _check_parts(data)
        with PIL.Image.open(BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.size, max_pixels)
            with _LARGE if image.width * image.height > _LARGE_PIXELS else nullcontext():
                image.load()
                yield image
    except (ApplianceError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever they come upon
        raise InvalidInput("the image is damaged or cut short") from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InvalidInput(f"the image has {width} x {height} pixels; {max_pixels} pixels are the most")


def _size_of_webp(data: bytes) -> tuple[int, int]:
    """Width and height by the header (RFC 9649, section 2)."""

    def number(start: int, length: int) -> int:
        return int.from_bytes(data[start : start + length], "little")

    match data[12:16]:
        case b"VP8X":
            return number(24, 3) + 1, number(27, 3) + 1
        case b"VP8L":
            bits = number(21, 4)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case _:
            return number(26, 2) & 0x3FFF, number(28, 2) & 0x3FFF


def _check_parts(data: bytes) -> None:
    """Refuse a JPEG file of more segments, or more scans among them, than cameras and programs write."""
    place = 2
    scans = 0
    for _ in range(_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None or data[found.start() + 1] == _END_OF_IMAGE:
            return
        scans += data[found.start() + 1] == _START_OF_SCAN
        if scans > _SCANS:
            break
        place = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))
    raise InvalidInput("the JPEG image has too many parts; save it anew")
