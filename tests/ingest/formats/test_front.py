"""What a Markdown file says of itself, and where texts link to."""

import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.ingest.formats.front import LONGEST, MAX_FIELDS, MAX_SIZE, MAX_VALUES
from appliance.ingest.formats.links import LONGEST as LONGEST_LINK
from appliance.ingest.formats.links import MAX_LINKS, markdown_links
from appliance.ingest.parse import Parsed, parse

BODY = "# Head\n\nOtters."


def markdown(text: str) -> Parsed:
    return parse(text.encode(), media_type="text/markdown")


def fields(yaml: str) -> dict[str, Any]:
    return dict(markdown(f"---\n{yaml}\n---\n{BODY}").metadata)


# Front matter


def test_front_matter_is_metadata_and_no_part_of_the_text() -> None:
    parsed = markdown(
        "---\r\ntitle: 'On: otters'\r\ntags: [a, b/c]\r\naliases:\r\n  - Alt\r\n  - 'Über'\r\ndate: 2024-05-01\r\n"
        f"author: Ann # who\r\nstatus: done\r\nrating: 4.5\r\ndraft: false\r\n---\r\n\r\n{BODY}"
    )

    assert parsed.text == BODY
    assert parsed.title == "On: otters"
    assert parsed.metadata == {
        "tags": ["a", "b/c"],
        "aliases": ["Alt", "Über"],
        "date": "2024-05-01",
        "created_at": "2024-05-01T00:00:00",
        "author": "Ann",
        "status": "done",
        "rating": 4.5,
        "draft": False,
    }


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("12", 12),
        ("-0.5", -0.5),
        ("1e3", 1000.0),
        ("true", True),
        ("TRUE", True),
        ("no", "no"),
        ("12:30", "12:30"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("12345678901234567890", "12345678901234567890"),
        ("1e999", "1e999"),
        (".inf", ".inf"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("2024-05-01", "2024-05-01"),
        ("2024-05-01 10:00", "2024-05-01T10:00:00"),
        ("2024-05-01T10:00:00Z", "2024-05-01T10:00:00+00:00"),
        ("2024-05-01 10:00:00 +02:00", "2024-05-01T10:00:00+02:00"),
        ("2024-05-41 10:00", "2024-05-41 10:00"),
        (">-\n  a\n  b", "a b"),
        ("|\n  a\n  b\n", "a\nb"),
        ('"[[Other note]]"', "[[Other note]]"),
        ("[1, x, null, [2], {a: 3}, 1, true]", [1, "x", 1, True]),
        ("'a\\nb'", "a\\nb"),
        ('"a\\ud800\\0b"', "a\ufffd\ufffdb"),
    ],
)
def test_values_are_read_as_people_mean_them(written: str, value: object) -> None:
    told = fields(f"v: {written}\nw: x")["v"]

    assert (told, type(told)) == (value, type(value))


@pytest.mark.parametrize("written", ["", "~", "null", "''", "[]", "{a: 1}", "[[1]]", "*known", "\n  a:\n    b: 1"])
def test_what_is_no_value_and_no_list_of_values_is_left_out(written: str) -> None:
    assert fields(f"known: &known x\nv: {written}\nw: x") == {"known": "x", "w": "x"}


@pytest.mark.parametrize("name", ["'a\"b'", "'a\\b'", '"a\\nb"', "x" * 65, "[a]", "''", "&a [b]"])
def test_a_name_that_nobody_could_ask_for_is_left_out(name: str) -> None:
    assert fields(f"? {name}\n: 1\nw: x") == {"w": "x"}


@pytest.mark.parametrize(
    ("yaml", "created"),
    [
        ("created: 2024-05-01T10:00:00Z\ndate: 2020-01-01", "2024-05-01T10:00:00+00:00"),
        ("created: long ago\ndate: 20200101", "2020-01-01T00:00:00"),
        ("created_at: '2020-01-01'", "2020-01-01T00:00:00"),
        ("date: [2020-01-01]", None),
        ("date: soon", None),
    ],
)
def test_the_time_it_was_made_is_that_of_created_or_date(yaml: str, created: str | None) -> None:
    assert fields(yaml).get("created_at") == created


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nA paragraph\nbetween rules.\n\n---\n\nMore.",
        "---\n- a\n- b\n---\nMore.",
        "---\nJust words.\n---\nMore.",
        "----\na: b\n---\nMore.",
        " ---\na: b\n---\nMore.",
        "---\na: b\n\nno end",
        "---\n" + "a: b\n" * 1001 + "---\nMore.",
        "---\n# " + "x" * 20_000 + "\n---\nMore.",
        "x\n---\na: b\n---\n",
    ],
)
def test_what_is_no_front_matter_is_text(text: str) -> None:
    parsed = markdown(text)

    assert (parsed.text, parsed.metadata) == (text, {})


def test_front_matter_that_is_no_yaml_is_text_and_told() -> None:
    text = f"---\ntitle: On: otters\ntags: [a\n---\n{BODY}"

    parsed = markdown(text)

    assert (parsed.text, parsed.title) == (text, "On: otters")
    assert "no YAML" in str(parsed.metadata["note"])


@pytest.mark.parametrize("text", ["---\na: b\n---", "---\na: b\n---\n\n \n", "---\na: b\n..."])
def test_a_text_of_nothing_but_front_matter_keeps_it(text: str) -> None:
    parsed = markdown(text)

    assert (parsed.text, parsed.metadata) == (text, {"a": "b"})


@pytest.mark.parametrize("text", [f"---\n---\n{BODY}", f"---\n# nothing\n---\n{BODY}"])
def test_front_matter_may_be_empty(text: str) -> None:
    assert (markdown(text).text, markdown(text).metadata) == (BODY, {})


def test_front_matter_is_bounded() -> None:
    many = fields("\n".join(f"k{n}: {n}" for n in range(200)))
    long = fields(f"a: {'x ' * 2000}\nb: [{', '.join(map(str, range(300)))}]")
    large = fields("\n".join(f"k{n}: {'x' * 400}" for n in range(30)) + "\nsmall: 1")

    assert len(many) == MAX_FIELDS
    assert len(long["a"]) < LONGEST
    assert len(long["b"]) == MAX_VALUES
    assert MAX_SIZE - 1000 < len(str(large)) < MAX_SIZE + 1000
    assert large["small"] == 1


HOSTILE = {
    "sequences": "[" * 16_000,
    "mappings": "{" * 16_000,
    "pairs": "a: {b: " * 2000,
    "indented": "- " * 8000,
    "items": "a: [" + "x," * 8000 + "]",
    "laughs": "a: &a [x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi")),
    "itself": "a: &a [*a]",
    "merge": "a: &a {b: c}\n<<: *a\n<<: [*a, *a]",
    "object": "a: !!python/object/apply:os.system ['touch /tmp/never']\nb: !!python/name:os.system",
    "unknown anchor": "a: *b",
    "no character": 'a: "\\UFFFFFFFF"\nb: "\\U00110000"',
    "version": "%YAML 99999999999999999999.1",
    "documents": "a: 1\n--- \nb: 2\n--- x",
    "lines": "a\n" * 999 + "b: 1",
    "tabs": "\t" * 16_000,
    "quote": 'a: "' + "\\n" * 8000,
    "anchors": "".join(f"k{n}: &a{n} x\n" for n in range(990)),
    "digits": "a: " + "9" * 16_000,
    "real": "a: " + "1" * 8000 + "." + "1" * 8000,
}  # fmt: skip


@pytest.mark.parametrize("yaml", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_front_matter_is_harmless(yaml: str) -> None:
    started = time.process_time()

    parsed = markdown(f"---\n{yaml}\n---\n{BODY}")

    assert time.process_time() - started < 2
    assert parsed.text.endswith(BODY)
    assert len(str(dict(parsed.metadata))) < MAX_SIZE + 1000


@given(st.text(st.sampled_from("ab1:-[]{},#&*!|>'\"%@` \n\t?.~\\ué\x85\u2028\ufeff"), max_size=60))
def test_whatever_stands_in_front_the_text_is_read(yaml: str) -> None:
    parsed = markdown(f"---\n{yaml}\n---\n{BODY}")

    assert parsed.text.endswith(BODY)
    for value in (parsed.title, *parsed.metadata, *parsed.metadata.values()):
        assert str(value).encode().decode() == str(value)


# Links


def links(text: str) -> list[str]:
    found = markdown(text).links
    assert all(0 <= start < len(text) for start, _ in found)
    return [target for _, target in found]


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("[[Other note]] and [[A|b]], [[C#part|d]], [[#here]], ![[x.png]].", ["Other note", "A", "C", "x.png"]),
        ("[a](b.md) [c](<d e.md> 'title') [f](g%20h.md#i \"t\") [j](#k)", ["b.md", "d e.md", "g h.md"]),
        ("[a](https://x.org/y?z=1#w) <https://v.org> <mailto:a@b>", ["https://x.org/y?z=1#w", "https://v.org"]),
        ("[w](https://en.wikipedia.org/wiki/Otter_(animal))", ["https://en.wikipedia.org/wiki/Otter_(animal)"]),
        ("![picture](x.png) [![badge](b.svg)](https://x.org)", ["https://x.org"]),
        ("[a][1]\n\n[1]: https://x.org\n[^2]: a note", ["https://x.org"]),
        ("`[a](b)` and ``` [[c]] ```\n\n```\n[[d]] x[0](1)\n```\n\n~~~\n[[e]]\n", []),
        ("[a](javascript:alert(1)) [b](data:text/plain,x)", []),
        ("no [link] (here), [ ] task, [x] done", []),
    ],
)  # fmt: skip
def test_the_links_of_markdown_are_told(text: str, targets: list[str]) -> None:
    assert links(text) == targets


def test_links_are_told_where_they_stand_behind_front_matter() -> None:
    parsed = markdown("---\na: b\n---\n\nOne [[x]].\n\nTwo [y](z).")

    assert [(parsed.text[start : start + 3], target) for start, target in parsed.links] == [("[[x", "x"), ("[y]", "z")]


def test_the_links_of_a_page_are_told_where_their_text_stands() -> None:
    html = (
        "<nav><a href=/home>Home</a></nav><h1><a href='#top'>x</a><a href=/head> Head</a></h1>"
        "<p>See  <a href='a b.html#part'> <b>one</b></a> and <a href=https://x.org/?q=1#y>two</a>."
        "<p><a href=picture><img src=x></a><a>none</a> <a href='javascript:x()'>no</a>"
        "<table><tr><th><a href=cell>1</a><td>2</table><pre><a href=code>f()</a></pre><a href=end></a>"
        "<p>\U0010f000&#x10F001;"
    )

    parsed = parse(html.encode(), media_type="text/html")

    assert parsed.text == ("# x Head\n\nSee one and two.\n\nnone no\n\n| 1 | 2 |\n\n```\nf()\n```\n\n\ufffd\ufffd")
    assert [(parsed.text[start:].split()[0], target) for start, target in parsed.links] == [
        ("Head", "/head"),
        ("one", "a b.html"),
        ("two.", "https://x.org/?q=1#y"),
        ("none", "picture"),
        ("1", "cell"),
        ("\ufffd\ufffd", "code"),
        ("\ufffd\ufffd", "end"),
    ]


def test_links_are_bounded() -> None:
    many = "".join(f"[a]({n}) " for n in range(MAX_LINKS + 10))
    page = "".join(f"<a href={n}>a</a> " for n in range(MAX_LINKS + 10))

    assert len(links(many)) == MAX_LINKS
    assert len(parse(page.encode(), media_type="text/html").links) == MAX_LINKS
    assert links(f"[a]({'x' * (LONGEST_LINK + 1)}) [[{'x' * 600}]] [b](c)") == ["c"]


@pytest.mark.parametrize(
    "text",
    ["[" * 300_000, "[a" * 150_000, "[a](" * 100_000, "[[" + "a" * 300_000, "`" * 300_000, "![" * 150_000,
     "[a](x " + "'" * 300_000, "(" * 300_000, "[a](" + "(a)" * 100_000, "<https://" * 40_000, "[" + "[a]" * 100_000,
     "words and more words. " * 14_000, "[]: " * 80_000, "[x]:" + " " * 300_000],
)  # fmt: skip
def test_looking_for_links_takes_no_longer_for_a_hostile_text(text: str) -> None:
    started = time.process_time()

    list(markdown_links(text, ()))

    assert time.process_time() - started < 2
