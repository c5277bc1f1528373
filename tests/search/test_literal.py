"""Questions that name a thing."""

import time

import pytest

from appliance.search.literal import literalness


@pytest.mark.parametrize(
    ("q", "share"),
    [
        ("how do otters sleep", 0.0),
        ("What is the capital of France?", 0.0),
        ("", 0.0),
        ("?!", 0.0),
        ("HOW DO OTTERS SLEEP", 0.0),
        ('"hold hands"', 1.0),
        ("“hold hands” otters", 2 / 3),
        ("`x`", 1.0),
        ('an unfinished "quote', 0.0),
        ('""', 0.0),
        ('"" otters "hold hands"', 2 / 3),
        ('"?!"', 0.0),
        ("„hold“ and “hands”", 1 / 3),
        ("get_user_id", 1.0),
        ("getUserId", 1.0),
        ("std::vector", 1.0),
        ("os.path.join", 1.0),
        ("open()", 1.0),
        ("RK3588", 1.0),
        ("NASA", 1.0),
        ("what does NASA do", 1 / 4),
        ("error 0x80070057 today", 1 / 3),
        ("RFC 9457", 1 / 2),
        ("ls --color", 1 / 2),
        ("/etc/passwd", 1.0),
        ("10.1145/1571941.1572114", 1.0),
        ("2024-01-31", 1.0),
        ("I", 0.0),
        ("in 1999", 0.0),
        ("end of a sentence.", 0.0),
        ("水獺怎麼睡", 0.0),
    ],
)
def test_the_share_of_words_that_are_quoted_or_look_like_names(q: str, share: float) -> None:
    assert literalness(q) == pytest.approx(share)


@pytest.mark.parametrize(
    "part", ["a", "A", "1", "漢", "한", "ab1", "1.", "11/", '"', "“", "“a", "«a", "`a ", "«“`", "*", "_"]
)
def test_a_long_question_is_looked_at_once(part: str) -> None:
    q = (part * 32_768)[:32_768]
    began = time.perf_counter()

    literalness(q)

    assert time.perf_counter() - began < 0.5
