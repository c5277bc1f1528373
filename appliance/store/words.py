"""From what a person types to the terms that are looked up."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final, NamedTuple
from unicodedata import category, is_normalized, normalize

MAX_TERMS: Final = 64
"""Different terms of one query; the rest is left out. Each costs a walk over the chunks that have it."""

MAX_PHRASE: Final = 64
"""Words of a phrase; the rest is left out."""

MAX_TOKENS: Final = 256
"""Words of one query in all its terms. Each word of a phrase costs a walk, too, and more than one that stands alone."""

MIN_PREFIX: Final = 2
"""Letters of a prefix; a shorter one is looked up as a word. Each word that begins with it costs a walk."""

_DEPTHS: Final = (128, 1024)

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

_LIST: Final = """
ability ables ably alism alities ally als ances ants ated ates ating ational ations ators edly eds
ements ences ents ers fully fulness ibility ibles ibly ically icate icative icity ied ies iness ings
ingly ionally ions ious isms ists iveness ivity ization izations izers izing ments nesses ors ousness ously
"""
_ENDINGS: Final = tuple(_LIST.split())
"""What porter takes off words, at its longest."""

_MAX_ENDING: Final = 7
_SHORTEST: Final = 3

_LETTERS: Final = (
    "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46"  # Thai
    "\u0e81-\u0eb0\u0eb2\u0eb3\u0ebd\u0ec0-\u0ec6\u0edc-\u0edf"  # Lao
    "\u1000-\u102a\u1780-\u17b3"  # Burmese, Khmer
    "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"  # Hangul
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u312f\u31f0-\u31ff"  # Kana, Bopomofo
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"  # Han
)
"""Letters of scripts that write without spaces, or whose words take endings that do: each is a token of its own."""

_MARKS: Final = "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3"
"""Vowels and tones that stand above, below or behind such letters, which FTS5 takes for spaces."""

_NARROW: Final = "\uff01-\uffef"
"""Letters in the width of Han, and Kana in the width of Latin."""

_DENSE: Final = re.compile(f"[{_LETTERS}{_NARROW}]")
_SEAM: Final = re.compile(rf"(?=[{_LETTERS}])|(?<=[{_LETTERS}])(?=\w)")
_RUN: Final = re.compile(f"[{_LETTERS}][{_LETTERS}{_MARKS}]*")
_TERM: Final = re.compile(r"(?:[^\W_]|[\u0300-\u036f\ue000-\uf8ff])+")
"""Letters, digits and diacritics: what FTS5's `unicode61` makes tokens of. https://sqlite.org/fts5.html#unicode61_tokenizer"""

_PART: Final = re.compile(
    rf'"(?P<phrase>[^"]*)"(?P<open>\*?)|(?P<run>{_RUN.pattern})'
    rf"|(?P<word>(?:(?![{_LETTERS}]){_TERM.pattern[:-1]})+)(?P<star>\*(?!\w))?"
)
"""A quoted phrase, a run of letters without spaces, or a word; the latter may end in an asterisk."""


_OTHER_MARKS: Final = "".join(
    chr(code) for code in chain(range(0x300, 0x1D00), range(0xA800, 0xAC00)) if category(chr(code)).startswith("M")
)
"""What stands on or around letters of any script. FTS5 takes those behind U+036F for spaces: of a word in Hindi it has
the letters, each alone."""

_WRITTEN: Final = re.compile(
    rf"(?P<letter>[{_LETTERS}])[{_MARKS}{_OTHER_MARKS}]*"
    rf"|(?:(?![{_LETTERS}]){_TERM.pattern[:-1]})(?:(?![{_LETTERS}])(?:{_TERM.pattern[:-1]}|[{_OTHER_MARKS}]))*"
)
_CLUSTER: Final = re.compile(r".[\u0300-\u036f\u1160-\u11ff\u3099\u309a\uff9e\uff9f]*", re.DOTALL)
"""Characters that may become one in Unicode's compositions."""


@dataclass(frozen=True, slots=True)
class Term:
    """Something to look for: words that follow each other, as typed, each a token. `prefix`: the last begins one."""

    tokens: tuple[str, ...]
    prefix: bool = False


def segmented(text: str) -> str:
    """The text with spaces around letters of scripts that write without, so that words within it can be found.

    Chinese, Japanese, Korean, Thai, Lao, Burmese and Khmer; their letters of odd width become the usual ones. The very
    same text where there are none.
    """
    if text.isascii() or not _DENSE.search(text):
        return text
    return _SEAM.sub(" ", normalize("NFKC", text))


def folded(text: str) -> str:
    """Without case and diacritics."""
    apart = normalize("NFD", text.casefold())
    return normalize("NFC", "".join(letter for letter in apart if not "\u0300" <= letter <= "\u036f"))


def shorter_stems(beginning: str) -> Iterator[str]:
    """Stems, shorter than the beginning of a word, of words that begin so: it reaches into their endings."""
    word = folded(beginning)
    if not (word.isascii() and word.isalpha()):
        return
    for cut in range(max(_SHORTEST, len(word) - _MAX_ENDING), len(word)):
        if any(ending.startswith(word[cut:]) for ending in _ENDINGS):
            yield word[:cut]


def depths(limit: int) -> list[int]:
    """For how many matches to look where so many are asked for, step by step (see `steps.joined`).

    It is the same number for all that ask for no more. So where only some chunks are scored, they are the same ones,
    and the first matches stay the first.
    """
    less = [each for each in _DEPTHS if each < limit]
    return [*less, next((each for each in _DEPTHS if each >= limit), limit)]


def tokens(text: str) -> list[str]:
    """Every token of a text in order, folded."""
    return [folded(match[0]) for match in _TERM.finditer(segmented(text))]


class Written(NamedTuple):
    """A word where it stands in a text; or a letter, of a script that writes without spaces.

    Attributes:
        text: the word with its marks, or the letter without; in the usual width.
        start, end: character range, marks included.
        is_letter: whether it is a letter, which is a token of its own.
    """

    text: str
    start: int
    end: int
    is_letter: bool


def written(text: str) -> Iterator[Written]:
    """What a person sees as the words of a text, or as their letters where nothing parts the words, in order.

    Each is one of `tokens`, but a word with marks that FTS5 takes for spaces is several of them.
    """
    if text.isascii():
        for match in _TERM.finditer(text):
            yield Written(match[0], *match.span(), is_letter=False)
        return
    plain, places = text, None
    if _DENSE.search(text) and not is_normalized("NFKC", text):
        plain, places = _composed(text)
    for match in _WRITTEN.finditer(plain):
        start, end = match.span()
        if places is not None:
            start, end = places[start][0], places[end - 1][1]
        yield Written(match["letter"] or match[0], start, end, is_letter=match["letter"] is not None)


def _composed(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text in its usual width and composition, and of each of its characters where it stood before."""
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    for match in _CLUSTER.finditer(text):
        parts.append(normalize("NFKC", match[0]))
        places += [match.span()] * len(parts[-1])
    return "".join(parts), places


def terms(words: str) -> list[Term]:
    """The different terms of a query, in order, without stop words unless there is nothing else.

    Words in double quotes are one term. So are two neighbours in a script that writes without spaces, as nobody has
    told its words apart. An asterisk behind a word or quote makes it a beginning. Any text is a query.
    """
    if not words.isascii() and _DENSE.search(words):
        words = normalize("NFKC", words)
    telling: dict[tuple[tuple[str, ...], bool], Term] = {}
    empty: dict[tuple[tuple[str, ...], bool], Term] = {}
    room = MAX_TOKENS
    for match in _PART.finditer(words):
        for term in _terms(match):
            key = tuple(token.casefold() for token in term.tokens), term.prefix
            stop = match["word"] and not term.prefix and key[0][0] in STOP_WORDS
            kept = empty if stop else telling
            if key not in kept and len(kept) < MAX_TERMS and len(key[0]) <= room:
                kept[key] = term
                room -= 0 if stop else len(key[0])
        if len(telling) == MAX_TERMS or not room:
            break
    return list((telling or empty).values())


def _terms(match: re.Match[str]) -> list[Term]:
    if match["phrase"] is not None:
        phrase = tuple(_TERM.findall(segmented(match["phrase"])))[:MAX_PHRASE]
        return [_open(Term(phrase), match["open"])] if phrase else []
    if match["run"]:
        letters = _TERM.findall(segmented(match["run"]))
        return [Term(pair) for pair in pairwise(letters)] or [Term(tuple(letters))]
    return [_open(Term((match["word"],)), match["star"])]


def _open(term: Term, star: str | None) -> Term:
    return Term(term.tokens, prefix=True) if star and len(term.tokens[-1]) >= MIN_PREFIX else term
