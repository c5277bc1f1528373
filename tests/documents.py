"""Documents of every format, made by hand: what their programs would write, and no more."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
P = "http://schemas.openxmlformats.org/presentationml/2006/main"
A = "http://schemas.openxmlformats.org/drawingml/2006/main"
S = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
ODF = "urn:oasis:names:tc:opendocument:xmlns:"

Line = str | tuple[str, int]
"""A line of a page: its text, and the size of its letters in points where it is not 11."""


def zipped(files: Mapping[str, str | bytes], *, first: str = "") -> bytes:
    """An archive of these files; `first` is the content of an unpacked `mimetype` at its front."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        if first:
            archive.writestr(zipfile.ZipInfo("mimetype"), first)
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def core(title: str = "", author: str = "", created: str = "", language: str = "") -> str:
    """docProps/core.xml."""
    return (
        '<cp:coreProperties xmlns:cp="x" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:dcterms="y">'
        f"<dc:title>{escape(title)}</dc:title><dc:creator>{escape(author)}</dc:creator>"
        f"<dcterms:created>{created}</dcterms:created><dc:language>{language}</dc:language></cp:coreProperties>"
    )


def relations(**targets: str) -> str:
    """A .rels file: `rId1_slide="slides/slide1.xml"`."""
    links = "".join(
        f'<Relationship Id="{key.split("_")[0]}" Type="{R}/{key.split("_")[1]}" Target="{target}"/>'
        for key, target in targets.items()
    )
    return f'<Relationships xmlns="{RELATIONS}">{links}</Relationships>'


# PDF


def pdf(
    pages: Sequence[Sequence[Line]],
    *,
    title: str = "",
    author: str = "",
    created: str = "",
    outline: Sequence[tuple[str, int]] = (),
    language: str = "",
    encrypted: bool = False,
) -> bytes:
    """A PDF document with a page for each list of lines, and an outline of (title, page from 0)."""
    objects: list[bytes] = [b"", b""]  # catalog and page tree, written last

    def add(content: str | bytes) -> int:
        objects.append(content.encode("latin-1") if isinstance(content, str) else content)
        return len(objects)

    font = add("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
    kids = []
    for lines in pages:
        y = 800.0
        drawn = ["BT"]
        for line in lines:
            text, size = line if isinstance(line, tuple) else (line, 11)
            y -= size * 1.2 if text else 20
            shown = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
            if text:
                drawn.append(f"/F1 {size} Tf 1 0 0 1 50 {y:.1f} Tm ({shown}) Tj")
        stream = "\n".join([*drawn, "ET"]).encode("cp1252")
        content = add(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream))
        kids.append(
            add(
                f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {content} 0 R "
                f"/Resources << /Font << /F1 {font} 0 R >> >> >>"
            )
        )
    first = len(objects) + 2
    top = ""
    if outline:
        root = add(
            f"<< /Type /Outlines /First {first} 0 R /Last {first + len(outline) - 1} 0 R /Count {len(outline)} >>"
        )
        for place, (name, page) in enumerate(outline):
            following = f"/Next {first + place + 1} 0 R " if place + 1 < len(outline) else ""
            before = f"/Prev {first + place - 1} 0 R " if place else ""
            add(f"<< /Title ({name}) /Parent {root} 0 R {following}{before}/Dest [{kids[page]} 0 R /XYZ 0 800 0] >>")
        top = f"/Outlines {root} 0 R "
    info = add(f"<< /Title ({title}) /Author ({author}) /CreationDate ({created}) >>")
    spoken = f"/Lang ({language}) " if language else ""
    objects[0] = f"<< /Type /Catalog /Pages 2 0 R {top}{spoken}>>".encode()
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] /Count {len(kids)} >>".encode()
    trailer = f"/Info {info} 0 R"
    if encrypted:
        key = "00" * 32
        lock = add(f"<< /Filter /Standard /V 2 /R 3 /Length 128 /P -4 /O <{key}> /U <{key}> >>")
        trailer += f" /Encrypt {lock} 0 R /ID [<00> <00>]"
    return assembled(objects, trailer)


def assembled(objects: Sequence[bytes], trailer: str = "") -> bytes:
    """A PDF file of these objects, the first of which is the catalog."""
    out = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
    places = []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += f"trailer << /Size {len(objects) + 1} /Root 1 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(out)


# Office


def paragraph(text: str, style: str = "", *, num: str = "", depth: int = 0) -> str:
    """A paragraph of Word."""
    numbered = f'<w:numPr><w:ilvl w:val="{depth}"/><w:numId w:val="{num}"/></w:numPr>' if num else ""
    named = f'<w:pStyle w:val="{style}"/>' if style else ""
    return f'<w:p><w:pPr>{named}{numbered}</w:pPr><w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'


def word_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of Word."""
    made = "".join(f"<w:tr>{''.join(f'<w:tc>{paragraph(cell)}</w:tc>' for cell in row)}</w:tr>" for row in rows)
    return f"<w:tbl>{made}</w:tbl>"


def docx(body: str, *, about: str = "", more: Mapping[str, str | bytes] | None = None) -> bytes:
    """A Word document of this body."""
    styles = "".join(
        f'<w:style w:styleId="H{level}"><w:name w:val="heading {level}"/></w:style>' for level in range(1, 4)
    )
    return zipped(
        {
            "[Content_Types].xml": "<Types/>",
            "word/document.xml": f'<?xml version="1.0"?><w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>',
            "word/styles.xml": f'<w:styles xmlns:w="{W}">{styles}'
            '<w:style w:styleId="Own"><w:name w:val="Mine"/><w:basedOn w:val="H2"/></w:style></w:styles>',
            "word/numbering.xml": f'<w:numbering xmlns:w="{W}"><w:abstractNum w:abstractNumId="7">'
            '<w:lvl w:ilvl="0"><w:numFmt w:val="decimal"/></w:lvl><w:lvl w:ilvl="1"><w:numFmt w:val="bullet"/></w:lvl>'
            '</w:abstractNum><w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num></w:numbering>',
            "word/_rels/document.xml.rels": relations(
                rId1_styles="styles.xml", rId2_numbering="numbering.xml", rId3_footnotes="footnotes.xml"
            ),
            "docProps/core.xml": about or core(),
            **(more or {}),
        }
    )


def shape(kind: str, *lines: str) -> str:
    """A shape of a slide: a placeholder of this kind, or a free text where it is empty."""
    placed = f'<p:nvPr><p:ph type="{kind}"/></p:nvPr>' if kind else "<p:nvPr/>"
    said = "".join(f"<a:p><a:r><a:t>{escape(line)}</a:t></a:r></a:p>" for line in lines)
    return f"<p:sp><p:nvSpPr>{placed}</p:nvSpPr><p:txBody>{said}</p:txBody></p:sp>"


def pptx(slides: Sequence[str], *, notes: Mapping[int, str] | None = None, about: str = "") -> bytes:
    """A presentation: the shapes of each slide, and notes by slide from 0."""
    files: dict[str, str | bytes] = {"[Content_Types].xml": "<Types/>", "docProps/core.xml": about or core()}
    ids = "".join(f'<p:sldId id="{256 + n}" r:id="r{n}"/>' for n in range(len(slides)))
    files["ppt/presentation.xml"] = (
        f'<p:presentation xmlns:p="{P}" xmlns:r="{R}"><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>'
    )
    # the parts are numbered backwards: only the presentation tells their order
    part = {n: f"slides/slide{len(slides) - n}.xml" for n in range(len(slides))}
    files["ppt/_rels/presentation.xml.rels"] = relations(**{f"r{n}_slide": part[n] for n in part})
    for n, shapes in enumerate(slides):
        files[f"ppt/{part[n]}"] = (
            f'<p:sld xmlns:p="{P}" xmlns:a="{A}"><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:sld>'
        )
        if notes and n in notes:
            name = part[n].removeprefix("slides/")
            files[f"ppt/slides/_rels/{name}.rels"] = relations(rId1_notesSlide=f"../notesSlides/{name}")
            files[f"ppt/notesSlides/{name}"] = (
                f'<p:notes xmlns:p="{P}" xmlns:a="{A}">{shape("body", notes[n])}{shape("sldNum", "7")}</p:notes>'
            )
    return zipped(files)


def xlsx(sheets: Mapping[str, Sequence[Sequence[str]]], *, strings: Sequence[str] = (), about: str = "") -> bytes:
    """A workbook: by name, rows of cells, each as XML (`<c r="A1"><v>1</v></c>`)."""
    listed = "".join(f'<sheet name="{name}" sheetId="{n + 1}" r:id="r{n}"/>' for n, name in enumerate(sheets))
    shared = "".join(f"<si><t>{escape(each)}</t></si>" for each in strings)
    files: dict[str, str | bytes] = {
        "[Content_Types].xml": "<Types/>",
        "docProps/core.xml": about or core(),
        "xl/workbook.xml": f'<workbook xmlns="{S}" xmlns:r="{R}"><sheets>{listed}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": relations(
            **{f"r{n}_worksheet": f"worksheets/sheet{n + 1}.xml" for n in range(len(sheets))},
            x_sharedStrings="sharedStrings.xml",
            y_styles="styles.xml",
        ),
        "xl/sharedStrings.xml": f'<sst xmlns="{S}">{shared}</sst>',
        "xl/styles.xml": f'<styleSheet xmlns="{S}"><numFmts><numFmt numFmtId="164" formatCode="yyyy\\-mm\\-dd"/>'
        "</numFmts>"
        '<cellXfs><xf numFmtId="0"/><xf numFmtId="14"/><xf numFmtId="164"/></cellXfs></styleSheet>',
    }
    for n, rows in enumerate(sheets.values()):
        cells = "".join(f"<row>{''.join(row)}</row>" for row in rows)
        files[f"xl/worksheets/sheet{n + 1}.xml"] = f'<worksheet xmlns="{S}"><sheetData>{cells}</sheetData></worksheet>'
    return zipped(files)


def opendocument(
    kind: str, body: str, *, title: str = "", author: str = "", created: str = "", language: str = ""
) -> bytes:
    """An OpenDocument: kind is text, spreadsheet or presentation."""
    names = ["office", "text", "table", "draw", "presentation"]
    spaces = " ".join(f'xmlns:{name}="{ODF}{name}:1.0"' for name in names)
    return zipped(
        {
            "content.xml": f"<office:document-content {spaces}>{body}</office:document-content>",
            "meta.xml": f'<office:document-meta xmlns:office="o" xmlns:meta="m" xmlns:dc="d"><office:meta>'
            f"<dc:title>{title}</dc:title><meta:initial-creator>{author}</meta:initial-creator>"
            "<dc:creator>Editor</dc:creator>"
            f"<meta:creation-date>{created}</meta:creation-date><dc:language>{language}</dc:language>"
            "</office:meta></office:document-meta>",
            "META-INF/manifest.xml": "<manifest/>",
        },
        first=f"application/vnd.oasis.opendocument.{kind}",
    )


def epub(
    chapters: Mapping[str, str], *, labels: Mapping[str, str] | None = None, more: Mapping[str, str] | None = None
) -> bytes:
    """A book: pages by name, in their order, and names in the table of contents."""
    items = "".join(f'<item id="{name}" href="{name}" media-type="application/xhtml+xml"/>' for name in chapters)
    spine = "".join(f'<itemref idref="{name}"/>' for name in chapters)
    points = "".join(
        f'<navPoint><navLabel><text>{label}</text></navLabel><content src="{name}#x"/></navPoint>'
        for name, label in (labels or {}).items()
    )
    return zipped(
        {
            "META-INF/container.xml": '<container><rootfile full-path="OEBPS/book.opf"/></container>',
            "OEBPS/book.opf": '<!DOCTYPE package><package xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
            "<dc:title>The Book</dc:title><dc:creator>A. Author</dc:creator><dc:creator>B. Author</dc:creator>"
            "<dc:language>en-GB</dc:language><dc:date>2001-02-03</dc:date></metadata><manifest>"
            f'{items}<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/></manifest>'
            f"<spine>{spine}</spine></package>",
            "OEBPS/toc.ncx": f"<ncx><navMap>{points}</navMap></ncx>",
            **{f"OEBPS/{name}": content for name, content in chapters.items()},
            **(more or {}),
        },
        first="application/epub+zip",
    )


RTF = (
    rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0\fcharset0 Arial;}{\f1\fcharset204 Arial;}}"
    rb"{\stylesheet{\s1\outlinelevel0 heading 1;}{\s2 heading 2;}}"
    rb"{\info{\title On otters}{\author Jos\'e9}{\creatim\yr2020\mo5\dy6\hr7\min8}}"
    rb"\pard\s1 Otters\par\pard\plain\f0 They hold hands \u8212? caf\'e9.\par{\f1 \'a8\'e6}\par"
    rb"\pard\s2 Food\par\pard{\pntext\bullet\tab}fish\par{\pntext\bullet\tab}crabs\par"
    rb"\pard\trowd\intbl Name\cell Kg\cell\row\trowd\intbl Sea | otter\cell 45\cell\row"
    rb"\pard{\*\secret hidden}{\pict\bin5 }}{}x}The end.\par}"
)


def every_format() -> dict[str, bytes]:
    """A sound file of each format that is read in a process of its own."""
    slide = shape("title", "T") + shape("body", "a")
    return {
        "application/pdf": pdf([["one", ("two", 20)], ["three"]], outline=[("one", 0)]),
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document": docx(
            paragraph("a", "H1") + word_table([["a", "b"]])
        ),
        "application/vnd.openxmlformats-officedocument.presentationml.presentation": pptx([slide], notes={0: "n"}),
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": xlsx(
            {"S": [['<c t="s"><v>0</v></c>']]}, strings=["x"]
        ),
        "application/vnd.oasis.opendocument.text": opendocument(
            "text", "<office:text><text:p>x</text:p></office:text>"
        ),
        "application/epub+zip": epub({"a.xhtml": "<p>x</p>"}, labels={"a.xhtml": "A"}),
        "application/rtf": RTF,
        "message/rfc822": b"From: a@b\nSubject: =?utf-8?b?eA==?=\nContent-Type: text/plain; charset=x\n\nhello\n",
        "application/mbox": b"From a\nSubject: x\n\nhello\n",
        "text/csv": b'a,b\n"1",2\n',
        "application/json": b'[{"a": [1, 2]}, {"b": null}]',
        "application/x-ipynb+json": b'{"cells": [{"cell_type": "code", "source": ["x"], "outputs": [{"text": "y"}]}]}',
        "text/html": b"<html lang=en><h1>x</h1><table><tr><th>a<td>b</table>",
    }
