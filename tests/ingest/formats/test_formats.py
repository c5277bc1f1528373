"""What is read from each format: its text, its headings and tables, its pages, and what it says of itself."""

import json
from typing import Any

import pytest

from appliance.errors import InvalidInput
from appliance.ingest.formats import detect
from appliance.ingest.formats.document import LONGEST_TITLE, Parsed, about
from appliance.ingest.parse import parse

TWICE = ' table:number-columns-repeated="2"'
TITLE = ' presentation:class="title"'
BODY = ["Otters hold hands while they sleep at sea.", "So they do not drift apart from each other."]


def on_page(parsed: Parsed, words: str) -> int:
    """The number of the page that the words are on."""
    place = parsed.text.index(words)
    return [number for start, number in parsed.pages if start <= place][-1]


# PDF


def test_a_pdf_is_read_page_by_page(documents: Any) -> None:
    parsed = parse(documents.pdf([["first page"], [], ["third page"]]))

    assert parsed.text == "first page\n\nthird page"
    assert parsed.pages == ((0, 1), (12, 2), (12, 3))
    assert (on_page(parsed, "first"), on_page(parsed, "third")) == (1, 3)
    assert (parsed.media_type, parsed.title, parsed.metadata) == (detect.PDF, "", {})


def test_a_pdf_tells_of_itself(documents: Any) -> None:
    body = documents.pdf(
        [BODY], title="On otters", author="A. Author", created="D:20240229123005+01'00'", language="en-GB"
    )

    parsed = parse(body)

    assert parsed.title == "On otters"
    assert parsed.metadata == {"author": "A. Author", "created_at": "2024-02-29T12:30:05+01:00", "language": "en-GB"}


def test_the_outline_of_a_pdf_makes_its_headings(documents: Any) -> None:
    pages = [["Introduction", *BODY], ["2 Food", "They eat fish."], ["All that is left."]]

    parsed = parse(documents.pdf(pages, outline=[("1. Introduction", 0), ("Food", 1), ("Not a line", 2)]))

    assert parsed.text == (
        f"# 1. Introduction\n\n{BODY[0]}\n{BODY[1]}\n\n# Food\n\nThey eat fish.\n\n# Not a line\n\nAll that is left."
    )
    assert parsed.title == "1. Introduction"


def test_lines_in_large_letters_are_headings_where_a_pdf_has_no_outline(documents: Any) -> None:
    pages = [[("On otters", 24), *BODY * 4, ("Food and", 16), ("drink", 16), *BODY * 4, "", "A paragraph of its own."]]

    parsed = parse(documents.pdf(pages))

    assert parsed.text.startswith(f"# On otters\n\n{BODY[0]}\n{BODY[1]}\n")
    assert "\n\n## Food and drink\n\nOtters" in parsed.text
    assert parsed.text.endswith("each other.\n\nA paragraph of its own.")


def test_a_pdf_of_large_letters_everywhere_has_no_headings(documents: Any) -> None:
    assert "#" not in parse(documents.pdf([[("large", 20), "small", ("large too", 20), "small"]])).text


def test_a_line_of_a_pdf_is_no_markdown(documents: Any) -> None:
    assert parse(documents.pdf([["# no heading", "```", "----"]])).text == "\\# no heading\n\\```\n\\----"


def test_a_page_that_is_damaged_does_not_take_the_others_with_it(documents: Any) -> None:
    whole = documents.pdf([["first"], ["second"], ["third"]])
    damaged = whole.replace(b"(second) Tj", b"(second\xff Tx")

    parsed = parse(damaged)

    assert "first" in parsed.text
    assert on_page(parsed, "third") == 3


@pytest.mark.parametrize("name", ["x.pdf", ""])
@pytest.mark.parametrize("before", [b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", b"\0" * 900, b"x" * 1024])
def test_a_pdf_may_begin_behind_other_bytes(documents: Any, before: bytes, name: str) -> None:
    parsed = parse(before + documents.pdf([["Otters hold hands."]]), name=name)

    assert (parsed.media_type, parsed.text) == (detect.PDF, "Otters hold hands.")


def test_a_text_about_pdf_is_none() -> None:
    text = "A file begins with %PDF-1.7 and ends with %%EOF"

    assert parse(text.encode(), name="x.md").text == text


# Office


def test_a_word_document_has_headings_lists_and_tables(documents: Any) -> None:
    p = documents.paragraph
    body = (
        p("Otters", "H1")
        + p("They hold  hands & sleep.")
        + p("Own style", "Own")
        + p("one", num="1")
        + p("inside", num="1", depth=1)
        + p("two", num="1")
        + documents.word_table([["Name", "Kg"], ["sea | otter", "45"], ["", ""]])
        + p("# no heading")
    )

    parsed = parse(documents.docx(body, about=documents.core("T", "A", "2020-01-02T03:04:05Z", "de-AT")))

    assert parsed.text == (
        "# Otters\n\nThey hold hands & sleep.\n\n## Own style\n\n1. one\n  - inside\n2. two\n\n"
        "| Name | Kg |\n| --- | --- |\n| sea \\| otter | 45 |\n\n\\# no heading"
    )
    assert (parsed.title, parsed.pages) == ("T", ())
    assert parsed.metadata == {"author": "A", "created_at": "2020-01-02T03:04:05+00:00", "language": "de-AT"}


def test_what_is_deleted_or_there_twice_is_not_read_and_notes_are(documents: Any) -> None:
    run = "<w:r><w:t>{}</w:t></w:r>".format
    body = (
        f"<w:p>{run('kept')}<w:del>{run(' deleted')}</w:del><w:r><w:tab/><w:br/><w:instrText>PAGE</w:instrText></w:r>"
        f"{run('also')}</w:p><w:p><w:r><mc:AlternateContent xmlns:mc='m'><mc:Choice><w:txbxContent>"
        f"<w:p>{run('box')}</w:p>"
        f"</w:txbxContent></mc:Choice><mc:Fallback><w:p>{run('box')}</w:p></mc:Fallback></mc:AlternateContent></w:r></w:p>"
    )
    notes = (
        f'<w:footnotes xmlns:w="{documents.W}"><w:footnote>{documents.paragraph("a note")}</w:footnote></w:footnotes>'
    )

    parsed = parse(documents.docx(body, more={"word/footnotes.xml": notes}))

    assert parsed.text == "kept\nalso\n\nbox\n\na note"


def test_a_table_in_a_cell_is_read_as_its_text(documents: Any) -> None:
    inner = documents.word_table([["x", "y"]])
    cells = f"<w:tc>{documents.paragraph('a')}{inner}</w:tc><w:tc>{documents.paragraph('b')}</w:tc>"
    body = f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>"

    assert parse(documents.docx(body)).text == "| a x y | b |\n| --- | --- |"


def test_slides_are_pages_in_the_order_of_the_presentation(documents: Any) -> None:
    shape = documents.shape
    slides = [
        shape("", "free text") + shape("ctrTitle", "Welcome") + shape("sldNum", "1"),
        shape("title", "Plan") + shape("body", "first", "second"),
        shape("body", "untitled"),
    ]

    parsed = parse(documents.pptx(slides, notes={1: "say it slowly"}, about=documents.core("PowerPoint Presentation")))

    assert parsed.text == (
        "## Welcome\n\nfree text\n\n## Plan\n\n- first\n- second\n\nNotes: say it slowly\n\n## Slide 3\n\n- untitled"
    )
    assert [on_page(parsed, words) for words in ("free", "second", "slowly", "untitled")] == [1, 2, 2, 3]
    assert parsed.title == "Welcome"


def test_sheets_are_pages_and_tables(documents: Any) -> None:
    rows = [
        ['<c r="A1" t="s"><v>0</v></c>', '<c r="C1" t="s"><v>1</v></c>'],
        [
            '<c r="A2" s="1"><v>43831</v></c>',
            '<c r="B2"><v>0.30000000000000004</v></c>',
            '<c r="C2" t="b"><v>1</v></c>',
        ],
        ['<c r="A3" s="2"><v>43831.5</v></c>', '<c r="C3" t="inlineStr"><is><t>in line</t></is></c>'],
        ['<c r="A4" t="s"><v>99</v></c>', '<c r="ZZZ4"><v>far</v></c>'],
    ]

    parsed = parse(documents.xlsx({"Costs": rows, "More": [["<c><v>7</v></c>"]]}, strings=["day", "sum | all"]))

    assert parsed.text == (
        "## Costs\n\n| day |  | sum \\| all |\n| --- | --- | --- |\n| 2020-01-01 | 0.3 | TRUE |\n"
        "| 2020-01-01 12:00:00 |  | in line |\n\n## More\n\n| 7 |\n| --- |"
    )
    assert [on_page(parsed, words) for words in ("day", "7")] == [1, 2]
    assert parsed.title == ""


# OpenDocument


def test_an_opendocument_text_has_headings_lists_tables_and_notes(documents: Any) -> None:
    items = "<text:list><text:list-item><text:p>{}</text:p>{}</text:list-item></text:list>".format
    body = (
        "<office:text><text:tracked-changes><text:p>deleted</text:p></text:tracked-changes>"
        '<text:p text:style-name="Title">Otters</text:p><text:h text:outline-level="2">Food</text:h>'
        '<text:p>fish<text:s text:c="3"/>and\ncrabs<text:note><text:note-citation>1</text:note-citation>'
        "<text:note-body>"
        f"<text:p>mostly</text:p></text:note-body></text:note></text:p>{items('one', items('inside', ''))}"
        "<table:table><table:table-row><table:table-cell><text:p>a</text:p></table:table-cell><table:table-cell>"
        "<text:p>b</text:p></table:table-cell></table:table-row></table:table></office:text>"
    )

    parsed = parse(
        documents.opendocument("text", body, title="T", author="A", created="2020-01-02T03:04:05", language="en")
    )

    assert parsed.text == (
        "# Otters\n\n## Food\n\nfish and crabs (mostly)\n\n- one\n  - inside\n\n| a | b |\n| --- | --- |"
    )
    assert (parsed.title, parsed.media_type) == ("T", detect.ODT)
    assert parsed.metadata == {"author": "A", "created_at": "2020-01-02T03:04:05", "language": "en"}


def test_a_spreadsheets_blank_cells_are_not_repeated(documents: Any) -> None:
    cell = "<table:table-cell{}><text:p>{}</text:p></table:table-cell>".format
    body = (
        f'<office:spreadsheet><table:table table:name="One"><table:table-row>{cell("", "a")}'
        f"{cell(TWICE, 'b')}"
        '<table:table-cell table:number-columns-repeated="16000"/></table:table-row>'
        '<table:table-row table:number-rows-repeated="1048000"><table:table-cell/></table:table-row></table:table>'
        f'<table:table table:name="Two"><table:table-row>{cell("", "c")}</table:table-row></table:table>'
        "</office:spreadsheet>"
    )

    parsed = parse(documents.opendocument("spreadsheet", body))

    assert parsed.text == "## One\n\n| a | b | b |\n| --- | --- | --- |\n\n## Two\n\n| c |\n| --- |"
    assert [number for _, number in parsed.pages] == [1, 2]
    assert parsed.title == ""


def test_slides_of_an_opendocument_are_pages(documents: Any) -> None:
    box = "<draw:frame{}><draw:text-box>{}</draw:text-box></draw:frame>".format
    item = "<text:list><text:list-item><text:p>point</text:p></text:list-item></text:list>"
    body = (
        f'<office:presentation><draw:page draw:name="p1">{box("", item)}'
        f"{box(TITLE, '<text:p>Welcome</text:p>')}"
        f"<presentation:notes>{box('', '<text:p>say it</text:p>')}</presentation:notes></draw:page>"
        '<draw:page draw:name="Second"><draw:frame/></draw:page></office:presentation>'
    )

    parsed = parse(documents.opendocument("presentation", body))

    assert parsed.text == "## Welcome\n\n- point\n\nNotes: say it\n\n## Second"
    assert on_page(parsed, "Second") == 2


# Books, RTF, mail


def test_a_book_is_read_in_its_order_under_its_chapters_names(documents: Any) -> None:
    chapters = {
        "b.xhtml": "<html><body><p>It begins.</p></body></html>",
        "a.xhtml": "<html><body><h1>Two</h1><p>It ends.</p></body></html>",
        "c.xhtml": "<html><body/></html>",
    }

    parsed = parse(documents.epub(chapters, labels={"b.xhtml": "Chapter one", "a.xhtml": "Chapter two"}))

    assert parsed.text == "# Chapter one\n\nIt begins.\n\n# Two\n\nIt ends."
    assert parsed.title == "The Book"
    assert parsed.metadata == {
        "author": "A. Author, B. Author",
        "created_at": "2001-02-03T00:00:00",
        "language": "en-GB",
    }


def test_a_protected_book_is_told_as_one_and_obscured_fonts_do_no_harm(documents: Any) -> None:
    chapters = {"a.xhtml": "<p>text</p>"}
    fonts = {"META-INF/encryption.xml": '<e><CipherReference URI="OEBPS/font.otf"/></e>'}
    all_of_it = {"META-INF/encryption.xml": '<e><CipherReference URI="OEBPS/a.xhtml"/></e>'}

    assert parse(documents.epub(chapters, more=fonts)).text == "text"
    with pytest.raises(InvalidInput, match="DRM"):
        parse(documents.epub(chapters, more=all_of_it))


def test_an_rtf_document_is_read_in_its_encodings(documents: Any) -> None:
    parsed = parse(documents.RTF)

    assert parsed.text == (
        "# Otters\n\nThey hold hands — café.\n\nЁж\n\n## Food\n\n- fish\n- crabs\n\n"
        "| Name | Kg |\n| --- | --- |\n| Sea \\| otter | 45 |\n\nThe end."
    )
    assert parsed.title == "On otters"
    assert parsed.metadata == {"author": "José", "created_at": "2020-05-06T07:08:00"}


MAIL = (
    b"Received: from x\r\nFrom: =?utf-8?q?J=C3=B6rg?= <joerg@example.org>\r\nTo: a@example.org\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nDate: Mon, 1 Jan 2024 10:00:00 +0100\r\nMIME-Version: 1.0\r\n"
)


def test_a_mail_is_read_with_who_when_and_about_what() -> None:
    body = MAIL + (
        b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n'
        b'Content-Type: multipart/alternative; boundary="c"\r\n'
        b"\r\n--c\r\nContent-Type: text/plain; charset=iso-8859-1\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
        b"Sch=F6n.\r\n\r\n# no heading\r\n--c\r\nContent-Type: text/html\r\n\r\n<p>Other</p>\r\n--c--\r\n--b\r\n"
        b'Content-Type: application/pdf; name="plan.pdf"\r\n'
        b'Content-Disposition: attachment; filename="plan.pdf"\r\n\r\nx'
        b"\r\n--b--\r\n"
    )

    parsed = parse(body)

    assert parsed.text == (
        "# Grüße\n\nFrom: Jörg <joerg@example.org>\nTo: a@example.org\nDate: Mon, 1 Jan 2024 10:00:00 +0100\n\n"
        "Schön.\n\n\\# no heading\n\nAttached: plan.pdf"
    )
    assert (parsed.media_type, parsed.title) == (detect.EML, "Grüße")
    assert parsed.metadata == {"author": "Jörg <joerg@example.org>", "created_at": "2024-01-01T10:00:00+01:00"}


def test_a_mail_in_html_alone_is_read_as_a_page() -> None:
    body = MAIL + b"Content-Type: text/html; charset=utf-8\r\n\r\n<h2>Hi</h2><ul><li>a<li>b</ul>"

    assert parse(body, name="x.eml").text.endswith("\n\n## Hi\n\n- a\n- b")


def test_a_mailbox_is_read_message_by_message() -> None:
    one = b"From a@b Mon Jan  1 00:00:00 2024\nSubject: %s\nFrom: a@b\n\n%s\n\n"
    body = one % (b"first", b">From here\nFrom: not a message") + one % (b"", b"more")

    parsed = parse(body)

    assert parsed.text == (
        "# first\n\nFrom: a@b\n\nFrom here\nFrom: not a message\n\n# (no subject)\n\nFrom: a@b\n\nmore"
    )
    assert (parsed.media_type, parsed.title) == (detect.MBOX, "")


# Data and code


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_a_table_of_values_is_a_table(sign: str) -> None:
    body = f'name{sign}note\nA{sign}"x\n""y""{sign}z"\n\nB{sign}\nC'.encode()

    parsed = parse(body, name="x.csv")

    inside = {"\t": " ", "|": "\\|"}.get(sign, sign)
    assert parsed.text == f'| name | note |\n| --- | --- |\n| A | x "y"{inside}z |\n| B |  |\n| C |  |'
    assert parsed.structured


def test_json_is_read_value_by_value() -> None:
    body = (
        b'[{"name": "a", "tags": ["x", 1, null], "in": {"deep": [{"k": 1.50}, true]}}, {"big": 1234567890123456789012}]'
    )

    parsed = parse(body, name="x.json")

    assert parsed.text == "name: a\ntags: x, 1, null\nin.deep.k: 1.50\nin.deep: true\n\nbig: 1234567890123456789012"
    assert not parsed.structured


def test_json_lines_are_records_and_a_wrong_line_is_named() -> None:
    assert parse(b'{"a": "x\\ud800"}\n\n{"a": 2}\n', name="x.jsonl").text == "a: x\ufffd\n\na: 2"
    with pytest.raises(InvalidInput, match="line 2"):
        parse(b"1\n{", media_type="application/x-ndjson")


def test_a_notebook_is_read_cell_by_cell_without_its_pictures() -> None:
    picture = "iVBORw0KGgo" * 2000
    cells = [
        {"cell_type": "markdown", "source": ["# Otters\n", "\n", f"![x](data:image/png;base64,{picture}) They dive."]},
        {
            "cell_type": "code",
            "source": ["print('one')\n", "plot()"],
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": [" 9%|  |\r100%|##|\n", "\x1b[31mone\x1b[0m\n"]},
                {
                    "output_type": "display_data",
                    "data": {"image/png": picture, "text/plain": ["<Figure size 640x480 with 1 Axes>"]},
                },
                {"output_type": "execute_result", "data": {"text/html": "<b>2</b>", "text/plain": "   a\n0  2"}},
                {"output_type": "error", "ename": "KeyError", "evalue": "'x'", "traceback": [picture]},
            ],
        },
        {"cell_type": "code", "source": "x = '```'", "outputs": []},
        {"cell_type": "raw", "source": "# as it is"},
        {"cell_type": "code", "source": "", "outputs": [{"output_type": "stream", "text": "y" * 20_000}]},
    ]
    info = {"language_info": {"name": "python"}, "authors": [{"name": "Ann"}, {"name": "Bo"}]}
    body = json.dumps({"cells": cells, "metadata": info, "nbformat": 4}).encode()

    parsed = parse(body, name="x.ipynb", media_type="application/json")

    assert parsed.text == (
        "# Otters\n\n![x]() They dive.\n\n```python\nprint('one')\nplot()\n```\n\n"
        "```\n100%|##|\none\n   a\n0  2\nKeyError: 'x'\n```\n\n````python\nx = '```'\n````\n\n\\# as it is\n\n"
        f"```\n{'y' * 10_000}\n```"
    )
    assert (parsed.title, parsed.media_type, parsed.metadata) == ("Otters", detect.NOTEBOOK, {"author": "Ann, Bo"})
    assert parsed.structured


def test_an_old_notebook_is_read_and_what_is_none_is_json() -> None:
    old = {"cell_type": "heading", "level": 2, "source": "Otters"}
    code = {"cell_type": "code", "input": ["1"], "outputs": [{"output_type": "pyout", "text": ["1"]}]}
    body = json.dumps({"worksheets": [{"cells": [old, code]}], "nbformat": 3}).encode()

    assert parse(body, name="x.ipynb").text == "## Otters\n\n```\n1\n```\n\n```\n1\n```"
    assert parse(b'{"a": 1}', name="x.ipynb").text == "a: 1"
    assert parse(b"no JSON", name="x.ipynb").text == "no JSON"


@pytest.mark.parametrize(
    "cells",
    ["[1, null, {}]", '[{"cell_type": "code", "source": {}, "outputs": [1, {"data": 2}]}]', '[{"source": [1]}]'],
)
def test_a_notebook_that_holds_anything_is_read(cells: str) -> None:
    assert parse(b'{"cells": %s, "metadata": []}' % cells.encode(), name="x.ipynb").text == ""


def test_json_with_comments_is_text() -> None:
    parsed = parse(b'// why\n{"a": 1}', name="tsconfig.json")

    assert (parsed.text, parsed.media_type) == ('// why\n{"a": 1}', "text/plain")


@pytest.mark.parametrize(
    ("name", "media_type", "kind"),
    [
        ("a.py", "", "text/x-python"),
        ("a.py", "text/plain", "text/x-python"),
        ("a.py", "text/x-python", "text/x-python"),
        ("a.ts", "video/mp2t", "text/x-typescript"),
        ("a.js", "text/javascript", "text/x-javascript"),
        ("a.RS", "application/octet-stream", "text/x-rust"),
        ("a.cpp", "text/x-c++src", "text/x-c++"),
        ("a.yml", "application/yaml", "text/x-yaml"),
        ("a", "text/x-fortran", "text/x-fortran"),
    ],
)
def test_source_code_is_kept_as_it_is(name: str, media_type: str, kind: str) -> None:
    parsed = parse(b"# not a heading\nx = 1\n", name=name, media_type=media_type)

    assert (parsed.text, parsed.media_type, parsed.structured) == ("# not a heading\nx = 1\n", kind, False)


def test_a_page_tells_of_itself() -> None:
    page = (
        b'<html lang="pt-BR"><meta name=author content=" A  B ">'
        b'<meta property="article:published_time" content="2020-01-02">x'
    )

    assert parse(page).metadata == {"author": "A B", "language": "pt-BR", "created_at": "2020-01-02T00:00:00"}


@pytest.mark.parametrize("meta", ['name="DC.Date"', 'name="Date"', 'itemprop="datePublished"', "name=dcterms.created"])
def test_a_page_tells_when_it_was_made(meta: str) -> None:
    page = f"<meta name=other content=2021><meta {meta} content=2020-01-02T10:00:00Z>x"

    assert parse(page.encode(), name="x.html").metadata == {"created_at": "2020-01-02T10:00:00+00:00"}


# What it is


def test_what_a_document_is_counts_more_than_what_it_is_called(documents: Any) -> None:
    body = documents.pdf([["text"]])

    for name, media_type in [("x.docx", ""), ("", "text/html"), ("x.docx", "application/msword")]:
        parsed = parse(body, name=name, media_type=media_type)
        assert parsed.media_type == detect.PDF
        assert "note" in parsed.metadata or not name

    assert "note" not in parse(body, name="x.pdf", media_type="application/pdf").metadata


@pytest.mark.parametrize(
    ("body", "name", "why"),
    [
        (b"just text", "x.pdf", "said to be a PDF document, and is none"),
        (b"x" * 1025 + b"%PDF-1.7", "x.pdf", "said to be a PDF document, and is none"),
        (b"just text", "x.docx", "said to be a Word document, and is none"),
        (b"\x89PNG\r\n\x1a\n", "x.docx", "is a PNG image"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "x.doc", "Office document of before 2007"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"), "x.docx", "is encrypted"),
        (b"PK\x03\x04" + bytes(60), "x.zip", "a ZIP archive: send the files in it"),
        (b"PK\x05\x06" + bytes(18), "x.docx", "an empty ZIP archive"),
    ],
)
def test_what_is_not_what_its_name_says_is_told(body: bytes, name: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        parse(body, name=name)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("D:2024", "2024-01-01T00:00:00"),
        ("D:20240229123005Z", "2024-02-29T12:30:05+00:00"),
        ("20240229123005-08'30", "2024-02-29T12:30:05-08:30"),
        ("D:20240230", None),
        ("D:20240101000000+99'99'", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_a_date_is_told_as_iso_8601_or_not_at_all(written: str, told: str | None) -> None:
    assert about(created=written).get("created_at") == told


def test_what_a_document_says_of_itself_is_bounded_and_sound() -> None:
    told = about(author="A\ud800\n " * 10_000, language="en_US; DROP")

    assert len(str(told["author"])) == 500
    assert str(told["author"]).startswith("A\ufffd A")
    assert "language" not in told


def test_a_title_is_bounded(documents: Any) -> None:
    parsed = parse(documents.docx("<w:p/>", about=documents.core("x" * 999)))

    assert len(parsed.title) == LONGEST_TITLE
