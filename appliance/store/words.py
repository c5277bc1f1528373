"""From what a person types to the terms that are looked up."""

import re
import unicodedata
from typing import Final

MAX_TERMS: Final = 64
"""Different terms of one query; the rest is left out. Each costs a walk over the chunks that have it."""

_STOP_WORDS: Final = """
a about above after again against all am an and any are aren as at be because been before being below between both but
by can could couldn did didn do does doesn doing don during each few for from further had hadn has hasn have haven
having he her here hers herself him himself his how i if in into is isn it its itself just ll me mightn more most my
myself no nor not now of on once only or other our ours ourselves re s same shall shan she should shouldn so some such
t than that the their theirs them themselves then there these they this those through to too until ve very was wasn we
were weren what when where which while who whom why will with won would wouldn you your yours yourself yourselves
"""

STOP_WORDS: Final = frozenset(_STOP_WORDS.split())
"""English words that say nothing about the subject; dropped from queries, kept in the index."""

_TERM: Final = re.compile(r"(?:[^\W_]|[\u0300-\u036f\ue000-\uf8ff])+")
"""Letters, digits and diacritics: what FTS5's `unicode61` makes tokens of. https://sqlite.org/fts5.html#unicode61_tokenizer"""


def folded(text: str) -> str:
    """Without case and diacritics."""
    apart = unicodedata.normalize("NFD", text.casefold())
    return "".join(letter for letter in apart if not unicodedata.combining(letter))


def tokens(text: str) -> list[str]:
    """Every term of a text in order, folded."""
    return [folded(match[0]) for match in _TERM.finditer(text)]


def terms(words: str) -> list[str]:
    """The different terms of a query, in order, as typed, without stop words unless there is nothing else."""
    telling: dict[str, str] = {}
    empty: dict[str, str] = {}
    for match in _TERM.finditer(words):
        key = match[0].casefold()
        kept = empty if key in STOP_WORDS else telling
        if len(kept) < MAX_TERMS:
            kept.setdefault(key, match[0])
        if len(telling) == MAX_TERMS:
            break
    return list((telling or empty).values())
