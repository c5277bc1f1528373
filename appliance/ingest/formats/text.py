"""Text as it is: plain, Markdown, source code."""

from appliance.ingest.borders import found_borders
from appliance.ingest.formats.charset import decoded
from appliance.ingest.formats.detect import Kind
from appliance.ingest.formats.document import LONGEST_TITLE, Parsed, collapsed
from appliance.ingest.formats.front import read_front
from appliance.ingest.formats.links import markdown_links, told


def read_text(body: bytes, kind: Kind) -> Parsed:
    """A text as it is, but for the front matter of Markdown.

    Raises:
        InvalidInput: it is no text, or more than `MAX_TEXT` of it.
    """
    text = decoded(body, kind.charset)
    return _markdown(text) if kind.media_type == "text/markdown" else Parsed(text, "", kind.media_type)


def _markdown(text: str) -> Parsed:
    """Its front matter is metadata and no part of the text, unless there is nothing else."""
    front = read_front(text)
    rest = text[front.end :].lstrip("\n") if front.end else text
    text = rest if rest.strip() else text
    borders = found_borders(text, structured=True)
    title = front.title or (borders.headings[0].text if borders.headings else "")
    metadata = {**front.metadata, "note": front.note} if front.note else front.metadata
    links = told(markdown_links(text, borders.fences))
    return Parsed(text, collapsed(title)[:LONGEST_TITLE], "text/markdown", metadata=metadata, links=links)
