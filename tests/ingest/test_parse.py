import codecs
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidInput
from appliance.ingest.parse import LONGEST_TITLE, SUPPORTED, parse


def page(html: str) -> str:
    return parse(html.encode(), media_type="text/html").text


# What it is


@pytest.mark.parametrize(
    ("media_type", "name", "body", "kind"),
    [
        ("text/plain", "", "# x", "text/plain"),
        ("text/markdown; charset=utf-8", "", "x", "text/markdown"),
        ("TEXT/X-Markdown", "", "x", "text/markdown"),
        ("application/xhtml+xml", "", "<p>x", "text/html"),
        ("text/csv", "", "a,b", "text/csv"),
        ("", "READ.ME.MD", "x", "text/markdown"),
        ("application/octet-stream", "notes/a.markdown", "x", "text/markdown"),
        ("", "x.htm", "x", "text/html"),
        ("", "x.py", "x = 1", "text/x-python"),
        ("", "", "x", "text/plain"),
        ("", "", "\n <!-- saved -->\n<!DOCTYPE HTML><p>x", "text/html"),
        ("application/octet-stream", "page", "<html lang=en>x", "text/html"),
        ("text/plain", "x.html", "<html>x", "text/plain"),
    ],
)
def test_a_document_is_what_it_is_said_to_be_else_what_name_and_content_tell(
    media_type: str, name: str, body: str, kind: str
) -> None:
    assert parse(body.encode(), media_type=media_type, name=name).media_type == kind


@pytest.mark.parametrize(
    ("body", "media_type", "what"),
    [
        (b"%!PS-Adobe", "text/plain", "a PostScript document"),
        (b"PK\x03\x04" + bytes(40), "", "a ZIP archive: send the files in it"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "text/plain", "a PNG image"),
        (b"GIF89a" + bytes(40), "text/markdown", "a GIF image"),
        (bytes(range(256)), "text/plain", "not text"),
        (b"\x93text\x00more text, but no text of any kind that we know of", "text/plain", "not text"),
        (b"w\0i\0d\0e\0\0\0", "text/plain", "not text"),
        ("wide text".encode("utf-16-le") + b"\0", "text/plain; charset=utf-16le", "not text"),
        (codecs.BOM_UTF16_LE + bytes(64), "text/plain", "not text"),
        (b"x", "application/msword", "application/msword"),
        (b"x", "image/png; a=b", "image/png"),
        (b"x", "no type <script>", "of unknown type"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(body: bytes, media_type: str, what: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(body, media_type=media_type)

    assert caught.value.message == f"the document is {what}; supported are {SUPPORTED}"


@pytest.mark.parametrize("text", ["GIF89a is a format.", "ID3 tags", "MZ starts programs", "RIFF"])
def test_text_that_begins_like_a_binary_file_is_text(text: str) -> None:
    assert parse(text.encode()).text == text


@pytest.mark.parametrize("media_type", ["text/plain", "text/markdown", "text/html", ""])
@pytest.mark.parametrize("body", [b"", b" \n\t", codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
def test_a_document_may_have_no_text(body: bytes, media_type: str) -> None:
    assert parse(body, media_type=media_type).text.strip() == ""


# What its bytes mean


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        ("naïve → 文".encode(), "text/plain"),
        (codecs.BOM_UTF8 + "naïve → 文".encode(), "text/plain; charset=latin-1"),
        (codecs.BOM_UTF16_LE + "naïve → 文".encode("utf-16-le"), "text/plain"),
        (codecs.BOM_UTF16_BE + "naïve → 文".encode("utf-16-be"), ""),
        (codecs.BOM_UTF32_LE + "naïve → 文".encode("utf-32-le"), ""),
        ("naïve → 文".encode("utf-16-le"), "text/plain; charset=UTF-16LE"),
        ("naïve → 文".encode("gb18030"), 'text/plain; charset="GB18030"'),
        ("naïve → 文".encode(), "text/plain; charset=us-ascii; x=y"),
        ("naïve → 文".encode(), "text/plain; charset=rot13"),
        ("naïve → 文".encode(), "text/plain; charset=no\0such"),
    ],
)
def test_encodings_are_read(body: bytes, media_type: str) -> None:
    text = parse(body, media_type=media_type).text

    assert text == "naïve → 文" or "us-ascii" in media_type  # ASCII is taken for Windows-1252, as browsers do


@pytest.mark.parametrize(
    "declared", ['<meta charset="windows-1251">', "<meta http-equiv=x content='text/html; charset=windows-1251'>"]
)
def test_a_page_may_declare_its_encoding(declared: str) -> None:
    body = f"<!doctype html><head>{declared}</head><p>Привет".encode("cp1251")

    assert parse(body, media_type="text/html").text == "Привет"
    assert parse(body, name="x.html").text == "Привет"


def test_text_that_is_not_utf_8_is_read_as_windows_1252() -> None:
    assert parse("“naïve” café • über".encode("cp1252"), media_type="text/plain").text == "“naïve” café • über"


def test_a_damaged_byte_does_not_spoil_the_rest_of_utf_8() -> None:
    body = "Größe und Übermut, ähnlich".encode() + b"\xff und mehr"

    assert parse(body, media_type="text/plain").text == "Größe und Übermut, ähnlich\ufffd und mehr"


def test_only_line_ends_marks_and_nul_are_changed() -> None:
    body = "\ufeffa\r\nb\rc\n\x0cd\u2028e\x00f\u200b\ufeff\u202e  \n".encode() + b" " * 100

    assert parse(body, media_type="text/plain").text == "a\nb\nc\n\x0cd\u2028e\ufffdf\u200b\ufeff\u202e  \n" + " " * 100


@given(body=st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda text: text.encode("utf-8"))))
def test_any_bytes_give_text_or_are_refused(body: bytes) -> None:
    for media_type in ("text/plain", "text/markdown", "text/html", ""):
        try:
            parsed = parse(body, media_type=media_type)
        except InvalidInput:
            continue
        for text in (parsed.text, parsed.title):
            assert text.encode().decode() == text
            assert "\r" not in text
            assert "\x00" not in text


# What it calls itself


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Hello\n\n## A *title* ##\n\n# Later", "A *title*"),
        ("Under\nlined\n\nTitle\n=====\n", "Title"),
        ("```\n# comment\n```\n", ""),
        ("#hashtag and # more", ""),
        ("", ""),
        ("# " + "x" * 999, "x" * LONGEST_TITLE),
    ],
)
def test_markdown_is_kept_and_titled_by_its_first_heading(text: str, title: str) -> None:
    parsed = parse(text.encode(), media_type="text/markdown")

    assert (parsed.text, parsed.title) == (text, title)


@pytest.mark.parametrize(
    ("front", "title"),
    [("date: 1\ntitle: 'From: front' ", "From: front"), ("date: 1", "Heading"), ("title: [x]", "Heading")],
)
def test_markdown_is_titled_by_its_front_matter_before_its_heading(front: str, title: str) -> None:
    parsed = parse(f"---\n{front}\n---\n\n# Heading".encode(), media_type="text/markdown")

    assert (parsed.text, parsed.title) == ("# Heading", title)


def test_plain_text_has_no_title() -> None:
    assert parse(b"# x\n\ny", media_type="text/plain").title == ""


@pytest.mark.parametrize(
    ("html", "title"),
    [
        ("<title> A\n page &amp; more</title><h1>H</h1>", "A page & more"),
        ("<title> </title><h1>The <b>first</b></h1><h1>second</h1>", "The first"),
        ("<svg><title>drawing</title></svg><h1>H</h1>", "H"),
        ("<p>x", ""),
    ],
)
def test_a_page_is_titled_by_its_title_or_first_heading(html: str, title: str) -> None:
    assert parse(html.encode(), media_type="text/html").title == title


# What a page says


def test_a_page_becomes_lines_of_markdown() -> None:
    html = """<!doctype html><html><head><title>T</title><style>p{}</style></head><body>
      <nav><a href=/>Home</a></nav><h1>Hello <b>World</b></h1>
      <p>One <i>two</i>,<br>three &amp;   four.</p>Loose<div>text</div>
      <ul><li>a<li><p>b</p><ol><li>c<li>d</ol></ul>
      <h2>Data</h2><table><caption>Cap</caption><tr><th>x<th>y<tr><td>1<td><p>2<br>3</p></table>
      <script>bad()</script><noscript>bad</noscript><template><p>bad</template><dl><dt>t<dd>d</dl></body></html>"""

    assert page(html) == (
        "# Hello World\n\nOne two,\nthree & four.\n\nLoose\n\ntext\n\n- a\n- b\n  1. c\n  2. d\n\n"
        "## Data\n\nCap\n\n| x | y |\n| --- | --- |\n| 1 | 2 3 |\n\nt\n\nd"
    )


def test_code_keeps_its_lines_inside_a_fence() -> None:
    html = "<pre><code>def f():\n    <b>return</b> 1<br>\n\nx &lt; y\n</code></pre><pre>```\nold\n```</pre><pre> </pre>"

    assert page(html) == "```\ndef f():\n    return 1\n\n\nx < y\n```\n\n````\n```\nold\n```\n````"


def test_a_table_used_for_layout_is_read_as_paragraphs() -> None:
    html = "<table><tr><td>menu<td><h1>H</h1><p>a</p><p>b</p><table><tr><td>1<td>2</table></table>end"

    assert page(html) == "menu\n\n# H\n\na\n\nb\n\n| 1 | 2 |\n\nend"


def test_a_page_holds_no_nul_and_no_surrogate() -> None:
    assert page("a&#0;b&#xD800;c\0d") == "a\ufffdb\ufffdc\ufffdd"


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 100_000,
        "<div></x>" * 100_000,
        "<div><p>" * 100_000,
        "<ul><li>" * 100_000,
        "<table><tr><td>" * 100_000,
        "<font><div>" * 100_000,
        "<p " + " ".join(f"a{n}=1" for n in range(100_000)) + ">",
        "<p " + " ".join(f"a{n}=1'" for n in range(100_000)) + ">",
    ],
    ids=["div", "false ends", "p", "lists", "tables", "font", "attributes", "quotes"],
)
def test_a_page_built_to_exhaust_the_parser_is_refused_at_once(html: str) -> None:
    started = time.process_time()

    with pytest.raises(InvalidInput, match="more than 4000"):
        parse(html.encode(), media_type="text/html")

    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    "html",
    [
        '<p>Hello <b>big</b> world, all things in <a href="x">it</a>.</p>\n' * 75_000,
        "<p>unclosed" * 100_000,
        "<li>x" * 100_000,
        "<tr><td>x" * 100_000,
        "<table>" + "<tr><td>x<td>y" * 40_000,
        "<div>" * 3_999 + "deep",
        "<table><tr><td>a<td>" * 1_999 + "deep",
        "<" * 1_000_000,
        "<!--" * 300_000,
        f'<img src="data:{"x" * 2_000_000}">',
        "<pre>" + "x\n" * 500_000,
    ],
    ids=["page", "p", "li", "rows", "table", "deep", "deep tables", "signs", "comments", "data", "pre"],
)
def test_a_large_or_deep_page_is_read_in_seconds(html: str) -> None:
    started = time.process_time()

    page(html)

    assert time.process_time() - started < 10
