"""Pictures inside JSON: a data URL, or base64 alone. Nothing is fetched."""

import binascii
import re
from base64 import b64decode
from collections.abc import Sequence
from typing import Any, Final

from appliance.embedding.engine import Image
from appliance.embedding.images import MAX_BYTES, SUPPORTED, pixels_in
from appliance.errors import InvalidInput

_DATA_URL: Final = re.compile(r"data:(?P<type>[\w.+/-]{0,80})(?:;[\w.+=-]{1,80})*?(?P<base64>;base64)?,", re.IGNORECASE)
_ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]{0,20}://", re.IGNORECASE)
_IMAGE_URL: Final = re.compile(r"data:image/[\w.+-]{1,80}(?:;[\w.+=-]{1,80})*?;base64,", re.IGNORECASE)

MAX_REQUEST_PIXELS: Final = 100_000_000
"""Of all images of a request, if there are several; decoding takes some seconds."""

SCHEMA: Final[dict[str, Any]] = {
    "type": "string",
    "description": f"{SUPPORTED}, as a data URL (data:image/png;base64,…) or as base64 alone",
}


def check_pixels(images: Sequence[Image], *, param: str) -> None:
    """Refuse images whose decoding would take too long; by what their files say. Blocking.

    Raises:
        InvalidInput: saying what the limit is.
    """
    pixels = sum(pixels_in(each.data) for each in images)
    if len(images) > 1 and pixels > MAX_REQUEST_PIXELS:
        raise InvalidInput(
            f"the images of one request may have {MAX_REQUEST_PIXELS // 10**6} million pixels together, not"
            f" {pixels // 10**6}: send them in several",
            param=param,
        )


def is_image_url(text: str) -> bool:
    """Whether a text is a data URL of an image, by how it begins."""
    return _IMAGE_URL.match(text) is not None


def decoded(given: str, *, param: str) -> Image:
    """The image of a data URL, or of base64 alone: its file, not yet known to be one.

    Args:
        given: from a caller.
        param: the field that it came in.

    Raises:
        InvalidInput: an address to fetch from, no base64, or too large.
    """
    if _ADDRESS.match(given):
        raise InvalidInput(
            "images are not fetched from addresses: send a data URL (data:image/png;base64,…) or base64", param=param
        )
    coded = given
    if url := _DATA_URL.match(given):
        if not url["base64"]:
            raise InvalidInput("the data URL of an image must be base64: data:image/png;base64,…", param=param)
        if not url["type"].lower().startswith("image/"):
            raise InvalidInput("the data URL is not of an image: data:image/png;base64,… is", param=param)
        coded = given[url.end() :]
    if len(coded) // 4 * 3 > MAX_BYTES + 2:
        raise InvalidInput(f"the image is larger than {MAX_BYTES // 2**20} MiB", param=param)
    try:
        data = b64decode("".join(coded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("the image is not base64, nor a data URL with base64", param=param) from None
    if not data:
        raise InvalidInput(f"the image is empty: send a {SUPPORTED} file", param=param)
    return Image(data)
