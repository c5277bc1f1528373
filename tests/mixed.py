"""Files of every format that is read, as their programs write them, and some that are on this machine anyway."""

import csv
import io
import itertools
import json
import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import docx
import odfdo
import pptx
import xlsxwriter
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

WRITTEN = """
harbour river stone bridge lantern winter market orchard signal copper engine garden letter valley window thread
falcon meadow ladder pepper silver castle anchor candle forest island marble needle ocean pencil quarry ribbon
saddle timber umbrella velvet walnut yellow zephyr crème Käfer façade
"""

COMMENTS = {
    **dict.fromkeys(("py", "sh", "rb", "yaml", "toml", "pl", "r"), "#"),
    **dict.fromkeys(("js", "ts", "rs", "go", "c", "java", "kt", "swift"), "//"),
    **dict.fromkeys(("sql", "lua", "hs"), "--"),
}
"""How a line of comment begins, by the ending of source code."""

REAL = frozenset({"", ".txt", ".md", ".rst", ".html", ".py", ".c", ".h", ".pl", ".sh", ".xml", ".css", ".conf"})
"""Endings of files of this machine that are taken in."""


@dataclass(frozen=True, slots=True)
class Good:
    """A file that can be read.

    Attributes:
        id: of its document.
        kind: the ending that tells its format; `real` for one of this machine, `odd` for one that is hard to read.
        known: a sentence that no other file has; empty where there is none.
    """

    id: str
    kind: str
    known: str = ""


@dataclass(frozen=True, slots=True)
class Story:
    """What a file says."""

    number: int
    title: str
    known: str
    paragraphs: Sequence[str]


Write = Callable[[Story], bytes]


def fill(folder: Path, *, files: int, real: int, chance: random.Random, documents: Any) -> list[Good]:
    """Put so many files into a folder.

    Args:
        folder: its name is the first part of every id.
        files: in all.
        real: of them at most that are copied from this machine.
        chance: decides what is written.
        documents: `tests/documents.py`.
    """
    copied = [(f"real/{n}-{path.name}", path.read_bytes()) for n, path in enumerate(_real(chance, real))]
    made = [_put(folder, name, body, "real") for name, body in copied]
    made += [_put(folder, f"odd/{name}", body, "odd", known) for name, body, known in _odd(documents)]
    (folder / "odd" / "link.txt").symlink_to(f"../{copied[0][0]}" if copied else "one.txt")
    made.append(Good(f"{folder.name}/odd/link.txt", "odd"))
    formats = _formats(documents)
    kinds = [kind for kind, (_, share) in formats.items() for _ in range(share)]
    chance.shuffle(kinds)
    for number in range(files - len(made)):
        kind = kinds[number % len(kinds)]
        story = _story(number, chance)
        name = chance.choice(["{}", "{} of the year", "ein schöner {}", "it's {}", "第{}号"]).format(f"{kind} {number}")
        made.append(_put(folder, f"{number % 23}/{name}.{kind}", formats[kind][0](story), kind, story.known))
    return made


def _put(folder: Path, name: str, body: bytes, kind: str, known: str = "") -> Good:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return Good(f"{folder.name}/{name}", kind, known)


def _real(chance: random.Random, most: int) -> list[Path]:
    """Documentation and source code of this machine that are sure to be text, of some kB each."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = [*library.glob("*.py"), *library.glob("[a-s]*/*.py"), *Path("/usr/share/doc").rglob("*")]
    sound = [path for path in sorted(found) if path.suffix in REAL and not path.is_symlink() and _is_text(path)]
    return chance.sample(sound, min(most, len(sound)))


def _is_text(path: Path) -> bool:
    if not path.is_file() or not 500 < path.stat().st_size < 50_000:
        return False
    body = path.read_bytes()
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return False
    plain = text.isascii() and all(letter.isprintable() or letter in "\t\n\f" for letter in text)
    return plain and (path.suffix != ".html" or "<p>" in text.lower())


def _odd(documents: Any) -> Iterator[tuple[str, bytes, str]]:
    """What looks wrong, and can be read all the same."""
    numbers = itertools.count(1_000_000)

    def known() -> str:
        return _known(next(numbers))

    yield "one.txt", b"the same in two files", ""
    yield "two.txt", b"the same in two files", ""
    yield "line.txt", (told := known()).encode() + b" word" * 50_000, told
    yield "word.txt", (told := known()).encode() + b" " + b"letters" * 30_000, told
    yield "nul.txt", f"{(told := known())} \0 {'and on ' * 30}".encode(), told
    yield "damaged.txt", f"{(told := known())} {'ein schöner Käfer ' * 30}".encode()[:-2] + b"\xc3", told
    yield "half.txt", f"{(told := known())} and no mark of UTF-16".encode("utf-16-le"), told
    yield "cyrillic.txt", f"{(told := known())} Привет и ещё немного".encode("koi8-r"), told
    yield "wrong.html", b"<meta charset=utf-8><p>caf\xe9 " + (told := known()).encode(), told
    yield "open.html", b"<p><b><script>x</script><table><tr><td>" * 50 + (told := known()).encode(), told
    yield "deep.html", b"<div>" * 3_000 + (told := known()).encode(), told
    yield "comments.json", b"// no JSON at all\n{a: 1} " + (told := known()).encode(), told
    yield "deep.json", b"[" * 150 + json.dumps(told := known()).encode() + b"]" * 150, told
    yield "called.txt", documents.pdf([[told := known()]]), told
    yield "called.pdf", documents.docx(documents.paragraph(told := known())), told
    yield "LOUD.PDF", documents.pdf([[told := known()]]), told
    yield "README", (told := known()).encode(), told
    yield "-rf #1 100%?&.txt", (told := known()).encode(), told
    yield "\"quoted\" \\ 'name'.txt", (told := known()).encode(), told
    yield "🐦" * 50 + ".md", (told := known()).encode(), told
    yield "/".join("abcdefghijklmnopqrstuvwxyz") + "/deep.txt", (told := known()).encode(), told


def _known(number: int) -> str:
    return f"The heron{number} keeps watch over the lagoon{number} until the tide{number} comes in."


def _story(number: int, chance: random.Random) -> Story:
    def sentence() -> str:
        return " ".join(chance.choices(WRITTEN.split(), k=chance.randrange(6, 18))).capitalize() + "."

    length = chance.randrange(60, 120) if number % 40 == 0 else chance.randrange(1, 8)
    paragraphs = [" ".join(sentence() for _ in range(chance.randrange(1, 7))) for _ in range(length)]
    known = _known(number)
    paragraphs.insert(chance.randrange(len(paragraphs) + 1), known)
    return Story(number, f"On {' and '.join(chance.sample(WRITTEN.split(), 2))}", known, paragraphs)


# Formats


def _formats(documents: Any) -> dict[str, tuple[Write, int]]:
    """How a file of each ending is written, and how many of them there are beside the others."""
    return {
        "txt": (_txt, 14),
        "md": (_md, 20),
        "html": (_html, 16),
        "pdf": (_pdf, 16),
        "docx": (_docx, 12),
        "pptx": (_pptx, 6),
        "xlsx": (_xlsx, 8),
        "odt": (_odt, 6),
        "ods": (_ods, 4),
        "odp": (_odp, 4),
        "epub": (lambda story: _epub(story, documents), 5),
        "rtf": (_rtf, 6),
        "csv": (lambda story: _table(story, ","), 6),
        "tsv": (lambda story: _table(story, "\t"), 3),
        "json": (lambda story: json.dumps(_told(story), indent=1).encode(), 6),
        "jsonl": (lambda story: "".join(json.dumps({"text": each}) + "\n" for each in story.paragraphs).encode(), 4),
        "eml": (lambda story: _message(story).as_bytes(), 6),
        "mbox": (_mbox, 3),
        **{ending: (partial(_code, mark=mark), 1) for ending, mark in COMMENTS.items()},
    }


def _txt(story: Story) -> bytes:
    encoding = ("utf-8", "utf-8-sig", "utf-16", "cp1252")[story.number % 4]
    return "\r\n\r\n".join([story.title, *story.paragraphs]).encode(encoding)


def _md(story: Story) -> bytes:
    return "\n\n".join([f"---\ntitle: {story.title}\n---", f"# {story.title}", *story.paragraphs]).encode()


def _html(story: Story) -> bytes:
    encoding = ("utf-8", "iso-8859-1")[story.number % 2]
    body = "".join(f"<p>{escape(each)}</p>" for each in story.paragraphs)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="{encoding}"><title>{story.title}</title></head><body>'
        f"<nav><a href=/>home</a></nav><h1>{story.title}</h1>{body}"
        f"<table><tr><th>number<td>{story.number}</table></body></html>"
    )
    return page.encode(encoding)


def _code(story: Story, *, mark: str) -> bytes:
    lines = [line for each in story.paragraphs for line in (f"{mark} {each}", f"value{story.number} = {len(each)}", "")]
    return "\n".join(lines).encode()


def _told(story: Story) -> dict[str, object]:
    return {"title": story.title, "number": story.number, "parts": [{"text": each} for each in story.paragraphs]}


def _table(story: Story, delimiter: str) -> bytes:
    out = io.StringIO()
    table = csv.writer(out, delimiter=delimiter)
    table.writerow(["number", "title", "text"])
    table.writerows([n, story.title, each] for n, each in enumerate(story.paragraphs))
    return out.getvalue().encode()


def _message(story: Story) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "Ann <ann@example.org>", "ben@example.org", story.title
    message["Date"] = "Thu, 01 Jan 2026 10:00:00 +0100"
    message.set_content("\n\n".join(story.paragraphs))
    if story.number % 2:
        message.add_alternative("".join(f"<p>{escape(each)}</p>" for each in story.paragraphs), subtype="html")
    if story.number % 3:
        message.add_attachment(bytes(500), maintype="application", subtype="octet-stream", filename="data.bin")
    return message


def _mbox(story: Story) -> bytes:
    other = EmailMessage()
    other["From"], other["Subject"] = "ben@example.org", "Re: nothing"
    other.set_content("From here on there is nothing to see.")
    messages = [other, _message(story), other]
    return b"".join(b"From ann@example.org Thu Jan  1 10:00:00 2026\n%b\n" % each.as_bytes() for each in messages)


def _rtf(story: Story) -> bytes:
    body = "".join(rf"\pard {each}\par " for each in story.paragraphs)
    return (r"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Arial;}}{\info{\title " + story.title + "}}" + body + "}").encode(
        "cp1252"
    )


def _epub(story: Story, documents: Any) -> bytes:
    half = len(story.paragraphs) // 2
    parts = {"one.xhtml": story.paragraphs[:half], "two.xhtml": story.paragraphs[half:]}
    pages = {name: "".join(f"<p>{escape(each)}</p>" for each in part) for name, part in parts.items()}
    return bytes(documents.epub(pages, labels={"two.xhtml": story.title}))


def _pdf(story: Story) -> bytes:
    out = io.BytesIO()
    canvas = Canvas(out, pagesize=A4, pageCompression=story.number % 2)
    canvas.setTitle(story.title)
    lines = [line for each in story.paragraphs for line in (*_wrapped(each, 90), "")]
    for start in range(0, len(lines), 50):
        text = canvas.beginText(50, 780)
        text.setFont("Helvetica", 11)
        for line in lines[start : start + 50]:
            text.textLine(line)
        canvas.drawText(text)
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def _wrapped(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + len(word) >= width:
            yield line
            line = ""
        line = f"{line} {word}".strip()
    yield line


def _docx(story: Story) -> bytes:
    made = docx.Document()
    made.add_heading(story.title, 1)
    for each in story.paragraphs:
        made.add_paragraph(each)
    table = made.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "number", str(story.number)
    out = io.BytesIO()
    made.save(out)
    return out.getvalue()


def _pptx(story: Story) -> bytes:
    made = pptx.Presentation()
    for start in range(0, len(story.paragraphs), 3):
        slide = made.slides.add_slide(made.slide_layouts[1])
        title, body = slide.placeholders
        title.text_frame.text = story.title
        body.text_frame.text = "\n".join(story.paragraphs[start : start + 3])
    slide.notes_slide.notes_text_frame.text = "Speak slowly."
    out = io.BytesIO()
    made.save(out)
    return out.getvalue()


def _xlsx(story: Story) -> bytes:
    out = io.BytesIO()
    made = xlsxwriter.Workbook(out, {"in_memory": True})
    sheet = made.add_worksheet("Story")
    for row, each in enumerate(story.paragraphs):
        sheet.write_row(row, 0, [row, each, row / 7, row % 2 == 0])
    made.close()
    return out.getvalue()


def _saved(document: Any) -> bytes:
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def _odt(story: Story) -> bytes:
    made = odfdo.Document("text")
    made.body.clear()
    made.body.append(odfdo.Header(1, story.title))
    for each in story.paragraphs:
        made.body.append(odfdo.Paragraph(each))
    return _saved(made)


def _ods(story: Story) -> bytes:
    made = odfdo.Document("spreadsheet")
    made.body.clear()
    table = odfdo.Table("Story")
    table.set_values([[row, each, row / 7] for row, each in enumerate(story.paragraphs)])
    made.body.append(table)
    return _saved(made)


def _odp(story: Story) -> bytes:
    made = odfdo.Document("presentation")
    made.body.clear()
    for number in range(0, len(story.paragraphs), 3):
        page = odfdo.DrawPage(f"page{number}", name=f"Page {number}")
        said = [odfdo.Paragraph(each) for each in story.paragraphs[number : number + 3]]
        page.append(odfdo.Frame.text_frame(said, presentation_class="outline"))
        made.body.append(page)
    return _saved(made)
