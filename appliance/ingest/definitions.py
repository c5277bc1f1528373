"""Where source code may be cut, and which definitions each place lies in, read from its lines without a grammar."""

import re
from dataclasses import dataclass, field
from typing import Final

from appliance.ingest.borders import BLOCK, HEADING, LINE, ROW, Borders, Heading

_LONGEST: Final = 300
"""Characters of a line that is looked at for a definition; longer ones are data or made by a machine."""

_NAME: Final = 100
"""Characters of a definition's first line that stand for it."""

_DEEPEST: Final = 16
"""Definitions inside each other that are told apart."""

_DEFINITION: Final = re.compile(
    r"(?>(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|virtual|override|inline|extern|"
    r"unsafe|const(?=\s+fn)|sealed|partial|open|data|suspend|pub(?:\([^)]*\))?|CREATE(?:\s+OR\s+REPLACE)?)\s+)*)"
    r"(?:(?:def|class|fun|func|fn|function|sub|struct|enum|union|trait|impl|interface|module|namespace|protocol|extension|"
    r"object|record|type|proc|procedure|macro_rules|TABLE|VIEW|FUNCTION|PROCEDURE|TRIGGER)\b!?\s*\*?\s*[\w(<\"`\[.:$]"
    r"[^;]*(?:[:{(=,)]|\bend|\bis|\bas|\w)\s*$"
    r"|(?:const|let|var)\s+\w+\s*=\s*(?:async\s+)?(?:function\b|\([^)]*\)\s*=>|\w+\s*=>)"
    r"|(?!(?:if|for|while|switch|else|return|catch|do|try|with|case|throw|new|await|yield|elif|elsif|foreach|until)\b)"
    r"[A-Za-z_~@$][\w<>\[\],.*&:~?$ \t]*\([^;{}]*\)[^;{}()=]*\{\s*$)",
)
"""A definition's first line, in the languages that say so by a word, or by a name, parentheses and a brace.

An atomic group, as before Python 3.11.5 a group that is repeated possessively matches what it should not
(https://github.com/python/cpython/issues/106052).
"""

_LEAD: Final = re.compile(r"@|#(?!\s*(?:if|else|elif|endif|include|define|pragma)\b)|//|/\*|\*|--|;;|\"\"\"|'''")
"""What begins the lines that belong to the definition below them: decorators, attributes, comments."""

_ENDS: Final = re.compile(r"[})\]]|(?:end|else|elif|elsif|except|finally|catch|rescue|then|begin)\b|\{")
"""What begins a line that still belongs to the definition at its indentation."""


@dataclass(slots=True)
class _Reader:
    """The state from line to line: `inside` holds indentation and index of each definition around the line."""

    borders: Borders = field(default_factory=Borders)
    inside: list[tuple[int, int]] = field(default_factory=list)

    def leave(self, indent: int, place: int) -> None:
        """Close the definitions that a line of this indentation is no part of."""
        headings = self.borders.headings
        left = len(self.inside)
        while self.inside and self.inside[-1][0] >= indent:
            self.inside.pop()
        if len(self.inside) < left:
            headings.append(Heading(place, place, indent + 1, "", self._parent()))

    def enter(self, indent: int, *, lead: int, place: int, follows: int, name: str) -> None:
        """Open a definition; `lead` is where the comments and decorators above it start."""
        kind = HEADING if not self.inside else BLOCK
        if lead:
            self.borders.kinds[kind].append(lead)
        heading = Heading(place, follows, indent + 1, name, self._parent())
        self.borders.headings.append(heading)
        self.borders.leads[lead] = len(self.borders.headings) - 1
        if len(self.inside) < _DEEPEST:
            self.inside.append((indent, len(self.borders.headings) - 1))

    def _parent(self) -> int:
        return self.inside[-1][1] if self.inside else -1


def definition_borders(text: str) -> Borders:
    r"""Read the borders of source code in one pass over its lines.

    Before a definition that lies in none is a `HEADING`, before one inside another a `BLOCK`, after a blank line a
    `ROW`, before any other line a `LINE`. A definition's own first line is its heading.

    Args:
        text: with `\n` as its only line end.
    """
    reader = _Reader()
    lead = -1
    after_blank = True
    place = 0
    while place < len(text):
        end = text.find("\n", place)
        end = len(text) if end < 0 else end
        line = text[place : min(end, place + _LONGEST)]
        code = line.strip()
        if not code:
            after_blank, lead = True, -1
            place = end + 1
            continue
        indent = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip())
        is_lead = _LEAD.match(code) is not None
        if not _ENDS.match(code):
            reader.leave(indent, place)
        if not is_lead and end - place <= _LONGEST and _DEFINITION.match(code):
            start = place if lead < 0 else lead
            name = code.rstrip("{: \t")[:_NAME].rstrip()
            reader.enter(indent, lead=start, place=place, follows=min(end + 1, len(text)), name=name)
        elif place:
            reader.borders.kinds[ROW if after_blank else LINE].append(place)
        lead = (place if lead < 0 else lead) if is_lead else -1
        after_blank = False
        place = end + 1
    return reader.borders
