"""Where the words of a question stand."""

import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.search.highlights import Marker, snippet
from appliance.store.base import Chunk
from appliance.store.memory import MemoryStore


def marked(q: str, text: str) -> list[str]:
    return [text[start:end] for start, end in Marker(q).ranges(text)]


@pytest.mark.parametrize(
    ("q", "text", "expected"),
    [
        ("sleeping otters", "Otters sleep; an otter slept.", ["Otters", "sleep", "otter"]),
        ("the otter", "The otter and the sea", ["otter"]),
        ("the", "The otter and the sea", ["The", "the"]),
        ("CAFE", "Café, cafés, cafeteria", ["Café", "cafés"]),
        ("comput*", "Computers compute computation; com", ["Computers", "compute", "computation"]),
        ('"hold hands"', "They hold each other's hands", ["hold", "hands"]),
        ("水獺睡覺", "水獺會睡覺,獺", ["水獺", "睡覺"]),
        ("海", "海獺在海裡", ["海", "海"]),
        ("海獺在", "看海獺在海", ["海獺在"]),
        ("서울", "서울에서 부산까지, 서 울", ["서울"]),
        ("서울에서", "저는 서울에서 살고 있습니다", ["서울에서"]),
        ("서울", "\u1109\u1165\u110b\u116e\u11af시", ["\u1109\u1165\u110b\u116e\u11af"]),
        ("ไทย", "ภาษาไทยไม่มีช่องว่าง", ["ไทย"]),
        ("ช่อง", "ภาษาไทยไม่มีช่องว่าง", ["ช่อง"]),
        ("ລາວ", "ພາສາລາວ", ["ລາວ"]),
        ("မြန်မာ", "မြန်မာစာ", ["မြန်မာ"]),
        ("ភាសា", "ភាសាខ្មែរ", ["ភាសា"]),
        ("インストール", "ソフトをｲﾝｽﾄｰﾙする", ["ｲﾝｽﾄｰﾙ"]),
        ("ガイド", "これはｶﾞｲﾄﾞ、か\u3099く", ["ｶﾞｲﾄﾞ"]),
        ("がく", "か\u3099くせい", ["か\u3099く"]),
        ("平成", "㍻の人", ["㍻"]),
        ("ﾀﾜｰ abc", "東京タワー\uff1a\uff21\uff22\uff23", ["タワー", "\uff21\uff22\uff23"]),
        ("python3 編程", "使用Python3編程", ["Python3編程"]),
        ("python3", "使用Python3編程", ["Python3"]),
        ("किताब", "किताब मेज़ पर, कब किताबें", ["किताब"]),
        ("किताब मेज़", "वह मेज़ पर है", ["मेज़"]),
        ("הספר", "הספר על השולחן", ["הספר"]),
        ("кӣно", "Кӣно и кино", ["Кӣно", "кино"]),
        ('"the sea ott"*', "Sea otters", ["Sea", "otters"]),
        ("ott*er", "otters, ottoman", []),
        ("x", "", []),
        ("", "anything", []),
        ("?!", "anything", []),
    ],
)
def test_words_are_marked_by_their_stems_prefixes_and_pairs(q: str, text: str, expected: list[str]) -> None:
    assert marked(q, text) == expected


@pytest.mark.parametrize("scraps", ["서울에서", "ภาษาไทย", "ພາສາລາວ", "မြန်မာစာ", "ភាសាខ្មែរ", "東京タワーｶﾞﾀ"])
def test_what_the_word_index_finds_in_a_script_without_spaces_is_marked(scraps: str) -> None:
    store = MemoryStore()
    store.create("c", 1)
    store.put("c", "d", [Chunk(0, f"so: {scraps}.", 0, 9, 1)], np.ones((1, 1), np.float32))

    for start, end in combinations(range(len(scraps) + 1), 2):
        found = store.matching("c", scraps[start:end], limit=1)
        assert bool(marked(scraps[start:end], scraps)) == bool(found), scraps[start:end]


@given(st.text(max_size=60), st.text(max_size=200), st.integers(1, 100))
def test_ranges_lie_in_the_text_in_order_and_so_does_the_snippet(q: str, text: str, length: int) -> None:
    ranges = Marker(q).ranges(text)

    part = snippet(text, ranges, length=length)

    flat = [place for each in ranges for place in each]
    assert flat == sorted(flat)
    assert all(0 <= start < end <= len(text) for start, end in ranges)
    assert text[part.start : part.end] == part.text
    assert len(part.text) <= length
    assert all(0 <= start < end <= len(part.text) for start, end in part.highlights)


def test_a_snippet_is_the_part_with_the_most_words_and_ends_between_words() -> None:
    text = "An otter is mentioned. " + "Nothing else happens here at all. " * 5 + "Otters sleep and otters dream now."
    ranges = Marker("otters sleep dream").ranges(text)

    part = snippet(text, ranges, length=50)

    assert part.text.endswith("Otters sleep and otters dream now.")
    assert [part.text[a:b] for a, b in part.highlights] == ["Otters", "sleep", "otters", "dream"]
    assert text[part.start - 1] == " "


def test_a_snippet_without_words_is_the_beginning_and_a_short_text_is_whole() -> None:
    text = "One two three four five six seven."

    assert snippet(text, [], length=12).text == "One two"
    assert snippet(text, [(4, 7)], length=99).text == text
    assert snippet(text, [(4, 7)], length=99).highlights == ((4, 7),)


def test_a_word_longer_than_the_snippet_does_not_break_it() -> None:
    text = "a " + "x" * 100 + " b"

    assert len(snippet(text, Marker("x" * 100).ranges(text), length=20).text) <= 20


@pytest.mark.parametrize("part", ["a", "1", "漢", "한", "ก", '"', "*", "a*", "漢*"])
def test_a_long_question_and_a_long_text_are_looked_at_once(part: str) -> None:
    text = (part * 32_768)[:32_768]
    began = time.perf_counter()

    Marker(text).ranges(text)

    assert time.perf_counter() - began < 2
