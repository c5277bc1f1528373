"""Where passages can be looked up."""

import pytest

from appliance.search.cited import page, place, source


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, "notes/a.md"),
        ({"source": "a.md"}, "notes/a.md"),
        ({"source": "", "url": "https://example.org"}, "notes/a.md, https://example.org"),
        ({"page": 3}, "notes/a.md, page 3"),
        ({"page": "iv", "page_end": "vi"}, "notes/a.md, pages iv to vi"),
        ({"page": True, "section": 5}, "notes/a.md"),
        ({"section": "Title"}, "notes/a.md"),
        ({"section": "Title > Part", "page": 0}, "notes/a.md, page 0, Title > Part"),
    ],
)
def test_a_place_is_all_that_is_not_said_already(metadata: dict[str, object], expected: str) -> None:
    assert place(metadata, "notes/a.md", title="Title") == expected


def test_a_source_is_the_most_telling_there_is() -> None:
    assert source({"path": "p", "url": "u"}, "id") == "u"
    assert source({"source": 5}, "id") == "id"
    assert page({"page": [1]}) is None
