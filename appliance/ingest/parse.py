"""Turns the bytes of a document into the text that is cut, embedded, searched and cited."""

from appliance.embedding.images import media_type_of
from appliance.ingest.formats.charset import recognised
from appliance.ingest.formats.detect import SUPPORTED, Kind, kind_of, read_type, unsaid
from appliance.ingest.formats.document import JSON, LONGEST_TITLE, Parsed
from appliance.ingest.formats.read import read

__all__ = ["JSON", "LONGEST_TITLE", "SUPPORTED", "Kind", "Parsed", "is_image", "kind_of", "parse", "read", "recognised"]


def parse(body: bytes, *, media_type: str = "", name: str = "") -> Parsed:
    """Read a document in this process: for text that is trusted, or whose parser costs nothing.

    Args:
        body: the document; a document without any text is one.
        media_type: as in a Content-Type. If it is missing or application/octet-stream, name and content decide.
        name: file name; only its ending is looked at.

    Raises:
        InvalidInput: not a type we read, whatever it was said to be, or it cannot be read.
    """
    return read(body, recognised(body, kind_of(body, media_type=media_type, name=name)))


def is_image(body: bytes, *, media_type: str = "") -> bool:
    """Whether a document is to be taken for an image: by what it was said to be, else by its first bytes."""
    essence, _ = read_type(media_type)
    return essence.startswith("image/") or (unsaid(essence) and media_type_of(body) != "")
