"""Questions that name a thing."""

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
