"""Where a search goes on."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidInput
from appliance.search.cursor import Cursor

KEYS = [("c", "d", n) for n in range(5)]


def test_what_was_given_is_known_again_and_nothing_else() -> None:
    begun = Cursor.begun(["q"])

    read = begun.read(str(begun.followed(KEYS[:2]).followed(KEYS[2:3])))

    assert [read.has(key) for key in KEYS] == [True, True, True, False, False]
    assert not begun.has(KEYS[0])


@pytest.mark.parametrize(
    "text", ["", "x", "x" * 50, "é", "A" * 9, "====", base64.urlsafe_b64encode(b"\x02" + b"x" * 6).decode()]
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="after is none of") as refused:
        Cursor.begun(["q"]).read(text)

    assert refused.value.param == "after"


def test_a_cursor_of_another_question_is_refused() -> None:
    other = str(Cursor.begun(["q", 1]).followed(KEYS))

    with pytest.raises(InvalidInput, match="another search"):
        Cursor.begun(["q", 2]).read(other)


def test_a_cursor_that_holds_too_much_is_refused() -> None:
    raw = b"\x01" + Cursor.begun(["q"]).question + bytes(5 * 1001)

    with pytest.raises(InvalidInput, match="more than 1000"):
        Cursor.begun(["q"]).read(base64.urlsafe_b64encode(raw).decode().rstrip("="))


@given(st.text(max_size=300))
def test_any_text_is_a_cursor_or_a_clear_error(text: str) -> None:
    try:
        Cursor.begun(["q"]).read(text)
    except InvalidInput as error:
        assert error.param == "after"  # noqa: PT017 - either way is right
