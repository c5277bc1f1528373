"""Words as servers are given them."""

import pytest

from appliance.store.asked import asked, worded
from appliance.store.words import tokens


@pytest.mark.parametrize(
    "text", ["", "Plain WORDS, and 12 more_of them!", "a\0b\tc", "x1e5 0x1F 3.14 don't", "Größe Äpfel", "e\u0301"]
)
def test_the_words_of_a_text_are_its_tokens(text: str) -> None:
    assert worded(text) == tokens(text)


def test_a_query_asks_for_its_terms_folded() -> None:
    assert asked("The Größe of APPLES?") == [("grosse", False), ("apples", False)]
    assert asked("?!") == []
    assert asked('"Sea  Ötters" ott* SEA*') == [("sea otters", False), ("ott", True), ("sea", True)]
    assert asked("東京都") == [("東 京", False), ("京 都", False)]


def test_the_phrases_of_a_query_have_so_many_words_together() -> None:
    phrases = [" ".join(f"word{number} other{place}" for place in range(32)) for number in range(64)]

    asked_for = asked(" ".join(f'"{phrase}"' for phrase in [*phrases[:4], "too many", *phrases[4:]]))

    assert [text for text, _ in asked_for] == phrases[:4]
    assert asked('one "' + "far " * 100 + '" two')[-1] == ("two", False)
