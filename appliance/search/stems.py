"""The stem of an English word by Porter's algorithm, as SQLite's `porter` tokenizer takes it.

So what is marked as a match is what was found as one.

Porter 1980, https://tartarus.org/martin/PorterStemmer/; https://sqlite.org/fts5.html#porter_tokenizer
"""

import re
from functools import lru_cache
from typing import Final

_SHORTEST, _LONGEST = 3, 64
"""Bytes of a word that has a stem; others are left as they are."""

_STEP_2: Final = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "logi": "log", "bli": "ble",
    "alli": "al", "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate",
    "alism": "al", "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive",
    "biliti": "ble",
}  # fmt: skip
_STEP_3: Final = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_STEP_4: Final = dict.fromkeys(
    (
        "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate",
        "iti", "ous", "ive", "ize",
    ),
    "",
)  # fmt: skip


def stem(word: str) -> str:
    """The stem of a word in small letters."""
    return _stem(word) if _SHORTEST <= len(word.encode()) <= _LONGEST else word


@lru_cache(maxsize=20_000)
def _stem(word: str) -> str:
    word = _without_ending(_without_plural(word))
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    word = _replaced(word, _STEP_2, least=1)
    word = _replaced(word, _STEP_3, least=1)
    word = _replaced(word, _STEP_4, least=2)
    if word.endswith("e") and (_measure(word[:-1]) > 1 or (_measure(word[:-1]) == 1 and not _ends_like_hop(word[:-1]))):
        word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _shape(word: str) -> str:
    """`v` for each vowel, `c` for what is none; y is a vowel behind a consonant."""
    shape = ""
    for letter in word:
        shape += "v" if letter in "aeiou" or (letter == "y" and shape.endswith("c")) else "c"
    return shape


def _measure(word: str) -> int:
    """How often a vowel is followed by a consonant."""
    return len(re.findall("vc", _shape(word)))


def _has_vowel(word: str) -> bool:
    return "v" in _shape(word)


def _ends_like_hop(word: str) -> bool:
    return _shape(word).endswith("cvc") and word[-1] not in "wxy"


def _without_plural(word: str) -> str:
    if (word.endswith("sses") and len(word) > len("sses")) or (word.endswith("ies") and len(word) > len("ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _without_ending(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for ending in ("ed", "ing"):
        rest = word.removesuffix(ending)
        if rest != word and _has_vowel(rest):
            break
    else:
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    double = len(rest) > 1 and rest[-1] == rest[-2] and rest[-1] not in "aeiou"
    if double and rest[-1] not in "lsz":
        return rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _ends_like_hop(rest) else rest


def _replaced(word: str, endings: dict[str, str], *, least: int) -> str:
    """With the longest of the endings replaced, if what stands before it has the least measure."""
    ending = next((each for each in sorted(endings, key=len, reverse=True) if word.endswith(each)), None)
    if ending is None:
        return word
    rest = word.removesuffix(ending)
    if _measure(rest) < least or (ending == "ion" and not rest.endswith(("s", "t"))):
        return word
    return rest + endings[ending]
