"""Passages as a text for a language model."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.search.context import context
from appliance.search.passages import Passage
from appliance.search.retriever import Found
from appliance.store.base import Chunk


def spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def passage(text: str, *, document: str = "d", title: str = "", **metadata: object) -> Passage:
    chunk = Chunk(0, text, 100, 100 + len(text), 1, title, metadata)
    return Passage(Found(document, chunk, 0.5, collection="c"), 0, 0, chunk.start, chunk.end, text)


@pytest.mark.parametrize(
    ("given_", "line"),
    [
        (passage("x"), "[1] (d)"),
        (passage("x", title="On otters"), "[1] On otters (d)"),
        (passage("x", title="d"), "[1] d"),
        (passage("x", title="T", page=3, url="http://x"), "[1] T (page 3, http://x)"),
        (passage("x", title="T", page="iv", source="s", url="http://x"), "[1] T (page iv, s)"),
        (passage("x", title="two\nlines", page=True, source=""), "[1] two lines (d)"),
    ],
)
def test_a_passage_stands_under_a_line_that_tells_where_it_is_from(given_: Passage, line: str) -> None:
    made = context([given_], tokens=100, spans=spans)

    assert made.text == f"{line}\nx"
    assert (made.citations[0].start, made.citations[0].end) == (100, 101)


def test_the_last_passage_is_cut_if_what_is_left_is_worth_it() -> None:
    long = " ".join(f"w{n}" for n in range(100))

    made = context([passage("a b"), passage(long), passage("c")], tokens=60, spans=spans)

    assert [(each.number, each.cut) for each in made.citations] == [(1, False), (2, True)]
    assert made.text.endswith(" …")
    assert made.tokens <= 60
    assert long[: made.citations[1].end - 100] in made.text
    short = context([passage("a b"), passage(long)], tokens=20, spans=spans)
    assert [each.number for each in short.citations] == [1]


def test_without_room_or_passages_there_is_no_context() -> None:
    assert context([], tokens=10, spans=spans).text == ""
    assert context([passage("x y z")], tokens=1, spans=spans).citations == []


@given(st.lists(st.integers(1, 120), max_size=6), st.integers(1, 300))
def test_a_context_never_passes_its_budget(lengths: list[int], tokens: int) -> None:
    passages = [passage(" ".join(["w"] * length), document=str(n)) for n, length in enumerate(lengths)]

    made = context(passages, tokens=tokens, spans=spans)

    assert made.tokens == len(spans(made.text)) <= tokens
    assert [each.document for each in made.citations] == [str(n) for n in range(len(made.citations))]
    assert all(each.end - each.start <= len(passages[int(each.document)].text) for each in made.citations)
