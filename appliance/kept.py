"""Text as servers can keep it that know no NUL."""


def kept(text: str) -> str:
    """A text as the server can keep it: it knows no NUL. Order is kept, too, and `given` undoes it."""
    if "\0" not in text and "\1" not in text:
        return text
    return text.replace("\1", "\1\2").replace("\0", "\1\1")


def given(text: str) -> str:
    """What `kept` was called with."""
    return text.replace("\1\1", "\0").replace("\1\2", "\1") if "\1" in text else text
