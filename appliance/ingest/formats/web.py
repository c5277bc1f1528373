"""HTML pages."""

from appliance.ingest.formats.charset import decoded
from appliance.ingest.formats.detect import Kind
from appliance.ingest.formats.document import LONGEST_TITLE, Parsed, about
from appliance.ingest.html import page_of_html


def read_html(body: bytes, kind: Kind) -> Parsed:
    """A page as lines of Markdown.

    Raises:
        InvalidInput: it is no text, too long, or built to exhaust the parser.
    """
    page = page_of_html(decoded(body, kind.charset, markup=True))
    told = about(author=page.author, created=page.created, language=page.language)
    return Parsed(page.text, page.title[:LONGEST_TITLE], "text/html", metadata=told, links=page.links)
