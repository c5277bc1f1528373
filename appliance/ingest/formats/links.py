"""Where a text links to."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias
from urllib.parse import unquote

Links: TypeAlias = tuple[tuple[int, str], ...]
"""Where in a text each link is, ascending, and what it leads to."""

MAX_LINKS: Final = 1000
"""Links of a document that are told."""

LONGEST: Final = 512
"""Characters of what a link leads to; a longer one is not told."""

_LINK: Final = re.compile(
    r"`[^`\n]{1,300}`"  # code: nothing in it is a link
    r"|\[\[(?P<note>[^\[\]|#\n]{1,512})(?:#[^\[\]|\n]{0,512})?(?:\|[^\[\]\n]{0,512})?\]\]"
    r"|(?P<picture>!?)\[(?:[^\[\]\n]|\[[^\[\]\n]{0,200}\]){0,500}\]"
    r"\([ \t]*(?:<(?P<quoted>[^<>\n]{1,512})>|(?P<plain>[^\s()<>]{0,512}(?:\([^\s()<>]{0,512}\)[^\s()<>]{0,512})?))"
    r"(?:[ \t]+[\"'(][^\n]{0,500}?[\"')])?[ \t]*\)"
    r"|^[ ]{0,3}\[(?!\^)[^\[\]\n]{1,200}\]:[ \t]*<?(?P<defined>[^\s<>]{1,512})>?"
    r"|<(?P<address>https?://[^\s<>]{1,512})>",
    re.MULTILINE,
)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_NONE: Final = ("data:", "javascript:", "blob:", "about:")


def target(written: str) -> str:
    """What a link leads to: an address as it is, a path without the place in its file; nothing where that is nowhere
    else.
    """
    address = "".join(written.split("\n")).strip()
    if not _SCHEME.match(address):
        address = unquote(address.partition("#")[0]).strip()
    elif address.lower().startswith(_NONE):
        return ""
    return address if fit(address) else ""


def fit(address: str) -> bool:
    """Whether a link to this may be told."""
    return 0 < len(address) <= LONGEST and address.isprintable()


def markdown_links(text: str, fences: Sequence[tuple[int, int]]) -> Iterator[tuple[int, str]]:
    r"""The links of Markdown, as `[text](path)`, `[text]: path`, `<https:…>` and `[[note]]`; no pictures, none in code.

    Args:
        text: with `\n` as its only line end.
        fences: start and end of each block of code, ascending.
    """
    code = iter(fences)
    start, end = next(code, (len(text), len(text)))
    for found in _LINK.finditer(text):
        while end <= found.start():
            start, end = next(code, (len(text), len(text) + 1))
        inside = start <= found.start()
        if inside or found["picture"]:
            continue
        if led := target(
            found["note"] or found["quoted"] or found["plain"] or found["defined"] or found["address"] or ""
        ):
            yield found.start(), led


def told(links: Iterable[tuple[int, str]]) -> Links:
    """As many as are told of a document."""
    return tuple(found for found, _ in zip(links, range(MAX_LINKS), strict=False))
