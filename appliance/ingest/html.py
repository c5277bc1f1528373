"""Reads a web page the way a person would: headings, paragraphs, lists, tables and code, as the lines of Markdown."""

import re
from collections import Counter
from typing import Final, NamedTuple, TypeAlias

from selectolax.lexbor import LexborHTMLParser, LexborNode

from appliance.errors import InvalidInput
from appliance.ingest.formats.links import MAX_LINKS, Links, target

MAX_DEPTH: Final = 4_000
MAX_ATTRIBUTES: Final = 4_000
"""Elements inside each other, and attributes of one element: the parser's time grows with the square of either."""

_MAX_TABLES: Final = 16
"""Tables inside each other; those further in are read as paragraphs."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SKIPPED: Final = _names(
    "head script style nav noscript template svg iframe object canvas audio video button select textarea"
)
_BLOCKS: Final = _names(
    "address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure "
    "footer form header hr html legend li main menu ol p pre search section summary table tbody td tfoot th thead tr ul"
)
_LISTS: Final = _names("ol ul menu")
_CELLS: Final = _names("td th")
_HEADINGS: Final = {f"h{level}": level for level in range(1, 7)}
_NEVER_DEEP: Final = _names(
    "area base br col colgroup dd dt embed hr img input li link meta option optgroup p param rp rt source tbody td "
    "tfoot th thead tr track wbr"
)
"""Elements that have no end tag, or may leave it out: they do not count for depth."""

_BREAK: Final = "\v"
"""Stands for `<br>` in text that is being collected."""

_FIRST_MARK: Final = 0x10F000
_MARK: Final = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_FIRST_MARK + MAX_LINKS - 1)}]")
"""Stands for the beginning of each link in such text; for private use, so that no page has anything to say by it."""

_DATES: Final = (
    'meta[property="article:published_time"], meta[itemprop="datePublished"], meta[name="date" i], '
    'meta[name="dcterms.created" i], meta[name="dc.date" i]'
)
_TOLD: Final = {
    "author": ('meta[name="author"]', "content"),
    "created": (_DATES, "content"),
    "language": ("html[lang]", "lang"),
}
"""Where a page tells of itself: the element, and its attribute."""

_Block: TypeAlias = tuple[str, str]

_TAG: Final = re.compile(r"""<(/?)([a-zA-Z][^\s/>]*+)((?:[^>"']++|"[^"]*+"|'[^']*+'|["'])*+)""")
_SPACE: Final = re.compile(r"[ \t\n\f\r]+")


class Page(NamedTuple):
    """What a page says, what it says of itself, and where it links to; empty where it does not."""

    text: str
    title: str
    author: str
    created: str
    language: str
    links: Links


def page_of_html(page: str) -> Page:
    """The text of a page and its title: that of its `<title>`, else its first `<h1>`.

    Scripts, styles, navigation and form controls are left out. A table is written as rows (`| a | b |`) if each of
    its cells is one line, else as paragraphs.

    Raises:
        InvalidInput: the page is nested too deep, or an element has too many attributes.
    """
    _check(page)
    tree = LexborHTMLParser(page)
    titles = [node for query in ("head > title", "h1") if (node := tree.css_first(query)) is not None]
    title = next((found for node in titles if (found := _collapsed(node.text()))), "")
    writer = _Writer()
    if tree.root is not None:
        _walk(tree.root, writer)
    told = {name: _told(tree, query, attribute) for name, (query, attribute) in _TOLD.items()}
    text, links = writer.finished()
    return Page(text, title, **told, links=links)


def _told(tree: LexborHTMLParser, query: str, attribute: str) -> str:
    node = tree.css_first(query)
    return _collapsed(node.attributes.get(attribute) or "") if node is not None else ""


def _check(page: str) -> None:
    """Refuse what would keep the parser busy for minutes; overestimates depth where inline tags are left open."""
    depth = 0
    unclosed: Counter[str] = Counter()
    for found in _TAG.finditer(page):
        ending, name, rest = found[1], found[2].lower(), found[3]
        if len(rest) > MAX_ATTRIBUTES and len(re.split(r"[\s/]+", _unquoted(rest))) > MAX_ATTRIBUTES:
            raise InvalidInput(f"an element of the page has more than {MAX_ATTRIBUTES} attributes")
        if name in _NEVER_DEEP or (ending and not unclosed[name]):
            continue
        step = -1 if ending else 1
        unclosed[name] += step
        depth += step
        if depth > MAX_DEPTH:
            raise InvalidInput(f"the page has more than {MAX_DEPTH} elements inside each other")


def _unquoted(attributes: str) -> str:
    return re.sub(r""""[^"]*+"|'[^']*+'""", " ", attributes)


def _collapsed(text: str) -> str:
    return _SPACE.sub(" ", text).strip(" ")


def _walk(root: LexborNode, writer: "_Writer") -> None:
    """Tell the writer each start, text and end in the order of the page; depth costs no stack."""
    todo: list[LexborNode | str] = [root]
    while todo:
        node = todo.pop()
        if isinstance(node, str):
            writer.end(node)
            continue
        if node.next is not None:
            todo.append(node.next)
        if node.is_text_node:
            writer.said(node.text_content or "")
        elif node.is_element_node and node.tag and node.tag not in _SKIPPED:
            if node.tag == "a" and len(writer.targets) < MAX_LINKS:
                writer.link(node.attributes.get("href") or "")
            writer.start(node.tag)
            todo.append(node.tag)
            if node.first_child is not None:
                todo.append(node.first_child)


class _Writer:
    """Collects blocks: (text, sort). Neighbours of the same sort stand close: list items, rows of a table."""

    def __init__(self) -> None:
        self.inline: list[str] = []
        self._cells: list[list[_Block]] = [[]]  # the page, and the cells we are inside
        self._rows: list[list[list[_Block]]] = []  # the finished cells of the rows we are inside
        self._heads: list[bool] = []  # of these rows, whether all cells so far are heads
        self._lists: list[int] = []  # items so far; -1 where they have no number
        self._marker = ""
        self._heading = ""
        self._pre = 0
        self.targets: list[str] = []
        self._marks = ""  # of links whose text is still to come

    def said(self, text: str) -> None:
        if not text.isascii():
            text = _MARK.sub("\ufffd", text)
        if self._marks and not self._pre and (words := text.lstrip(" \t\n\f\r")):
            text = f"{text[: len(text) - len(words)]}{self._marks}{words}"
            self._marks = ""
        self.inline.append(text)

    def link(self, address: str) -> None:
        if led := target(address):
            self._marks += chr(_FIRST_MARK + len(self.targets))
            self.targets.append(led)

    def start(self, tag: str) -> None:
        if tag == "br":
            self.inline.append("\n" if self._pre else _BREAK)
        elif tag in _BLOCKS or tag in _HEADINGS:
            self._flush()
        if tag in _HEADINGS:
            self._heading = "#" * _HEADINGS[tag] + " "
        elif tag == "pre":
            self._pre += 1
        elif tag in _LISTS:
            self._lists.append(0 if tag == "ol" else -1)
        elif tag == "li":
            self._marker = self._next_marker()
        elif tag == "tr":
            self._rows.append([])
            self._heads.append(True)
        elif tag in _CELLS:
            if self._heads and tag == "td":
                self._heads[-1] = False
            self._cells.append([] if len(self._cells) <= _MAX_TABLES else self._cells[-1])

    def end(self, tag: str) -> None:
        if tag == "pre":
            self._pre -= 1
            if not self._pre:
                self._flush_code()
        elif tag in _BLOCKS or tag in _HEADINGS:
            self._flush()
        if tag in _HEADINGS:
            self._heading = ""
        elif tag in _LISTS:
            self._lists.pop()
        elif tag == "li":
            self._marker = ""
        elif tag == "tr":
            self._end_row(self._rows.pop(), head=self._heads.pop())
        elif tag in _CELLS:
            cell = self._cells.pop()
            if cell is not self._cells[-1]:
                self._rows[-1].append(cell)

    def finished(self) -> tuple[str, Links]:
        """The text, and its links."""
        marked = self._text() + self._marks
        if not self.targets:
            return marked, ()
        parts: list[str] = []
        links: list[tuple[int, str]] = []
        read = 0
        for number, found in enumerate(_MARK.finditer(marked)):
            links.append((found.start() - number, self.targets[ord(found[0]) - _FIRST_MARK]))
            parts.append(marked[read : found.start()])
            read = found.end()
        return "".join([*parts, marked[read:]]), tuple(links)

    def _text(self) -> str:
        self._flush()
        parts: list[str] = []
        before = ""
        for text, sort in self._cells[0]:
            if parts:
                parts.append("\n" if sort == before and sort in {"item", "row"} else "\n\n")
            parts.append(text)
            before = sort
        return "".join(parts)

    def _next_marker(self) -> str:
        indent = "  " * (min(len(self._lists), 8) - 1)
        if not self._lists or self._lists[-1] < 0:
            return f"{indent}- "
        self._lists[-1] += 1
        return f"{indent}{self._lists[-1]}. "

    def _flush(self) -> None:
        """End the block of text that is being collected."""
        if self._pre or not self.inline:
            return
        lines = [line for part in "".join(self.inline).split(_BREAK) if (line := _collapsed(part))]
        self.inline.clear()
        if not lines:
            return
        if self._heading:
            self._cells[-1].append((self._heading + " ".join(lines), ""))
            self._heading = ""
        else:
            self._cells[-1].append((self._marker + "\n".join(lines), "item" if self._marker else ""))
            self._marker = ""

    def _flush_code(self) -> None:
        code = "".join(self.inline).strip("\n").rstrip()
        self.inline.clear()
        if code.strip():
            longest = max((len(run) for run in re.findall(r"`{3,}", code)), default=2)
            fence = "`" * (longest + 1)
            self._cells[-1].append((f"{fence}\n{code}\n{fence}", "code"))

    def _end_row(self, row: list[list[_Block]], *, head: bool) -> None:
        """A row of one-line cells becomes a line; any other is layout, and its cells are read one after the other."""
        if len(row) > 1 and all(not cell or (len(cell) == 1 and not cell[0][1]) for cell in row):
            line = " | ".join(cell[0][0].replace("\n", " ").lstrip("# ") if cell else "" for cell in row)
            if line.strip("| "):
                after_row = bool(self._cells[-1]) and self._cells[-1][-1][1] == "row"
                below = f"\n|{' --- |' * len(row)}" if head and not after_row else ""
                self._cells[-1].append((f"| {line} |{below}", "row"))
        else:
            for cell in row:
                self._cells[-1].extend(cell)
