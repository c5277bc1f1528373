"""Which questions name a thing rather than describe it: there the words themselves say more than their meaning."""

import re
from typing import Final

# Each expression reads a text once, however long its words are: no part of one can end in many places.
_QUOTED: Final = re.compile(r'"[^"]*"|“[^“”]*”|«[^«»]*»|`[^`]*`')
_SAYING: Final = re.compile(r"\w")
_WORD: Final = re.compile(r"[^\s,;!?\[\]{}]+")
_NAME: Final = re.compile(
    r"""
      [^\W\d_]\d | \d[^\W\d_]       # letters beside digits: RK3588, 7z
    | \w_\w | \w::\w | \w\(\)       # snake_case, Type::name, call()
    | [^\W\d_]\.[^\W\d_]            # dotted.name, file.txt
    | [a-z][A-Z]                    # camelCase
    | \d[.\-/:]\d++[.\-/:]\d | \d{2}\.\d{4}    # 10.1145/1571941, 2024-01-31, 192.168.0.1
    | ^-{1,2}\w | ^[/~]\w | ^[@#$]\w  # --option, /path, @name
    """,
    re.VERBOSE,
)
_SENTENCE: Final = 3
"""Words in capitals that are a loud question, where fewer are acronyms."""

_CAPITALS: Final = re.compile(r"[A-Z][A-Z0-9\-]+")


def literalness(q: str) -> float:
    """The share of a question's words, 0 to 1, that stand in quotes or look like names: identifiers, codes, acronyms.

    A question written in capitals throughout is loud, not literal.
    """
    quoted = sum(len(_WORD.findall(each)) for each in _QUOTED.findall(q) if _SAYING.search(each))
    words = [_bare(each) for each in _WORD.findall(_QUOTED.sub(" ", q))]
    words = [each for each in words if each]
    if not quoted and not words:
        return 0.0
    spoken = [each for each in words if any(letter.isalpha() for letter in each)]
    loud = len(spoken) >= _SENTENCE and not any(letter.islower() for each in spoken for letter in each)
    names = sum(bool(_NAME.search(each)) or (not loud and bool(_CAPITALS.fullmatch(each))) for each in words)
    return (quoted + names) / (quoted + len(words))


def _bare(word: str) -> str:
    """Without the punctuation around it."""
    word = word.strip(".:\"'`(")
    return word if word.endswith("()") else word.rstrip(").:\"'`")
