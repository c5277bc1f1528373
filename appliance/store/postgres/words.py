"""Search by words in PostgreSQL: its index finds the chunks that have one, and BM25 ranks them.

PostgreSQL's own ranks know nothing of how rare a word is. But `ts_rank` of a single word is Σ 1/j² over its occurrences
j = 1…n, times 6/π²: from that comes n, and the rest of BM25 is arithmetic that the server does beside its index.
"""

# ruff: noqa: S608  # table names hold numbers of ours; whatever a caller gave is bound

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import Any, Final

from sqlalchemy import Connection

from appliance.store.asked import asked, worded
from appliance.store.steps import joined
from appliance.store.words import depths, shorter_stems

CONFIGURATION: Final = "'appliance_words'::regconfig"
"""How the server reads words; a migration makes it."""

SCORED: Final = 10_000
"""Chunks that are scored for one query, about, before there is a choice of which."""

MAX_TOKENS: Final = 50_000
MAX_LETTERS: Final = 64
"""Words of a text that are indexed, and letters of each: the server's index of one text has less than 1 MiB."""

_KEPT: Final = 4096
"""Words whose counts are remembered for a collection."""

_K1: Final = 1.2
_B: Final = 0.75
"""As the other stores count BM25."""

_ZETA: Final = "1.64493406685"
"""What `ts_rank` divides by."""


def spaced(text: str) -> str:
    """The words of a text as the server indexes them, between spaces."""
    return " ".join(token[:MAX_LETTERS] for token in worded(text)[:MAX_TOKENS])


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a collection, as a transaction sees them.

    Attributes:
        number: of the collection.
        chunks: how many it has.
        tokens: how many words they have together.
        weights: what a word counts in title and text.
    """

    connection: Connection
    number: int
    chunks: int
    tokens: int
    weights: tuple[float, float]

    def stems(self, words: str) -> list[str]:
        """A query's words as tsqueries, stemmed by the server."""
        given = [
            (place, spaced(text), open_)
            for place, term in enumerate(asked(words))
            for text, open_ in [term, *_shorter(*term)]
        ]
        if not given:
            return []
        places, texts, prefixes = zip(*given, strict=True)
        rows = self.connection.exec_driver_sql(
            f"SELECT place, phraseto_tsquery({CONFIGURATION}, text)::text || CASE WHEN prefix THEN ':*' ELSE '' END "
            "FROM unnest(%s::integer[], %s::text[], %s::boolean[]) WITH ORDINALITY AS asked (place, text, prefix, nth) "
            "ORDER BY nth",
            (list(places), list(texts), list(prefixes)),
        )
        ways: dict[int, dict[str, None]] = {}
        for place, way in rows:
            if way not in {"", ":*"}:
                ways.setdefault(place, {})[way] = None
        return list(
            dict.fromkeys(f"({' | '.join(each)})" if len(each) > 1 else next(iter(each)) for each in ways.values())
        )

    def best(
        self, stems: Sequence[str], *, limit: int, condition: str, values: Sequence[Any], frequencies: "Frequencies"
    ) -> dict[int, float]:
        """The best chunks that have any of the stems, with their BM25, and all that have the score of the last of them.
        Where very many have a stem, a chunk has to have one of the rare ones to be scored, unless these are too few.
        """
        counts = frequencies.of(self, stems)
        order = sorted(stems, key=lambda each: counts[each])
        sums = list(accumulate(counts[each] for each in order))
        leads = [" | ".join(order)]
        if sums[-1] > SCORED:
            cut = sum(total <= SCORED for total in sums)
            common = order[cut:]
            leads = [*([" | ".join(order[:cut])] if cut else []), " & ".join(common), common[0], *leads]

        def led(enough: int) -> dict[int, float]:
            found: dict[int, float] = {}
            for lead in dict.fromkeys(leads):
                found |= self._scored(lead, order, counts, limit=enough, condition=condition, values=values)
                if len(found) >= enough:
                    break
            return found

        sizes = depths(limit)
        if len(leads) == 1:
            return led(sizes[-1])
        return joined([led(size) for size in sizes], sizes, limit)

    def _scored(
        self,
        lead: str,
        stems: Sequence[str],
        counts: Mapping[str, int],
        *,
        limit: int,
        condition: str,
        values: Sequence[Any],
    ) -> dict[int, float]:
        average = max(self.tokens / max(self.chunks, 1), 1e-9)
        parts: list[str] = []
        given: list[Any] = []
        for stem in stems:
            count = counts[stem]
            rarity = max(math.log((self.chunks - count + 0.5) / (count + 0.5)), 1e-6) if count <= self.chunks else 1e-6
            often, stems_asked = self._often(stem)
            parts.append(
                f"(SELECT %s::float8 * often * {_K1 + 1} / (often + {_K1} * ({1 - _B} + {_B} * length / %s::float8)) "
                f"FROM (SELECT {often} AS often OFFSET 0) AS counted WHERE often > 0)"
            )
            given += [rarity, average, *stems_asked]
        total = " + ".join(f"coalesce({part}, 0)" for part in parts)
        source = f"words_{self.number} AS w"
        if condition:
            source += f" JOIN vector_{self.number} AS v ON v.id = w.id AND {condition}"
        rows = self.connection.exec_driver_sql(
            f"SELECT id, {total} AS score FROM (SELECT w.id, w.words, w.length FROM {source} "
            "WHERE w.words @@ %s::tsquery LIMIT %s) AS found ORDER BY score DESC FETCH FIRST (%s) ROWS WITH TIES",
            (*given, *values, lead, max(2 * SCORED, limit), limit),
        )
        return {row[0]: float(row[1]) for row in rows}

    def _often(self, stem: str) -> tuple[str, list[Any]]:
        """How often `words` has the stem, in SQL, title and text weighed; a phrase and a beginning count once."""
        title, text = self.weights
        if "<->" in stem or ":*" in stem:
            return f"{max(title, text)} * (words @@ %s::tsquery)::integer", [stem]

        def times(weights: str) -> str:
            rank = f"ts_rank('{weights}', words, %s::tsquery)::float8 * {_ZETA}"
            return f"round(1 / greatest({_ZETA} - {rank}, 0.002) - 0.5)"

        if title == text:
            return f"{text} * {times('{1,1,1,1}')}", [stem]
        # the words of the title come first, so that they alone make up the first terms of the sum
        return f"({title - text} * {times('{0,0,0,1}')} + {text} * {times('{1,1,1,1}')})", [stem, stem]


def _shorter(text: str, prefix: bool) -> list[tuple[str, bool]]:  # noqa: FBT001  # a term of `asked`
    """Whole words that a beginning reaches into the endings of, behind the words before it."""
    *before, last = text.split(" ")
    return [(" ".join((*before, stem)), False) for stem in shorter_stems(last)] if prefix else []


class Frequencies:
    """How many chunks have a word, remembered where counting takes long: made again once a collection has changed by
    more than an eighth. Any thread.
    """

    def __init__(self) -> None:
        self._counts: dict[int, dict[str, tuple[int, int]]] = {}
        self._lock = Lock()

    def of(self, words: Words, stems: Sequence[str]) -> Mapping[str, int]:
        """The number of chunks for each stem."""
        with self._lock:
            known = self._counts.get(words.number, {})
            counts = {
                stem: known[stem]
                for stem in stems
                if stem in known
                and words.chunks > SCORED
                and abs(words.chunks - known[stem][1]) <= max(known[stem][1] // 8, 1)
            }
        missing = [stem for stem in stems if stem not in counts]
        if missing:
            rows = words.connection.exec_driver_sql(
                f"SELECT asked, (SELECT count(*) FROM words_{words.number} WHERE words @@ asked::tsquery) "
                "FROM unnest(%s::text[]) AS asked",
                (missing,),
            )
            counts |= {row[0]: (row[1], words.chunks) for row in rows}
            with self._lock:
                kept = self._counts.setdefault(words.number, {})
                if len(kept) + len(counts) > _KEPT:
                    kept.clear()
                kept.update(counts)
        return {stem: count for stem, (count, _) in counts.items()}
