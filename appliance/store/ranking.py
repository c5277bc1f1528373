"""The best chunks by words, out of very many, without scoring all that have one of them.

FTS5 takes some microseconds to count a chunk's BM25, and a common word is in a tenth of all chunks. So where there are
many, the rare words of a query lead: only a chunk that has one of them is scored, by all words. When those are fewer
than asked for, the common words lead, all of them together first.
"""

# ruff: noqa: S608  # table names hold numbers of ours; whatever a caller gave is bound

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from appliance.store.base import Value
from appliance.store.mirror import Ids, Stored
from appliance.store.passing import Filter
from appliance.store.steps import joined
from appliance.store.words import Term, depths, shorter_stems

_LISTED: Final = 20_000
"""Chunks that pass a condition which are named to FTS5; where more do, it looks at what each has."""

SCORED: Final = 3_000
"""Chunks that are scored in a step, at most, where there is a choice of which."""

_COUNTED: Final = 100_000
"""Chunks with a word that are counted; more are as many."""

_KEPT: Final = 4096
"""Words whose counts are remembered for a collection."""

_LONGEST: Final = 256
"""Characters of one whose count is remembered."""

Scored: TypeAlias = tuple[Ids, npt.NDArray[np.float64]]


def expression(term: Term) -> str:
    """A term in FTS5's query language, with any operator in it taken for a word."""
    phrase = f'"{" ".join(term.tokens)}"'
    if not term.prefix:
        return phrase
    first, last = term.tokens[:-1], term.tokens[-1]
    shorter = [f'"{" ".join((*first, stem))}"' for stem in shorter_stems(last)]
    return f"({' OR '.join([f'{phrase} *', *shorter])})"


class Frequencies:
    """How many chunks have a word, about: what leads is chosen by it, no score is counted with it. Any thread.

    A count is made again once the collection has changed by more than an eighth of it.
    """

    def __init__(self) -> None:
        self._counts: dict[int, dict[str, tuple[int, int]]] = {}
        self._lock = Lock()

    def of(self, connection: Connection, stored: Stored, expressions: Sequence[str]) -> Mapping[str, int]:
        """The number of chunks for each expression; a great one stands for any greater."""
        changes = stored.added + stored.removed
        with self._lock:
            known = dict(self._counts.get(stored.id, {}))
        counts: dict[str, tuple[int, int]] = {}
        for each in expressions:
            count, then = known.get(each, (0, -_COUNTED))
            if abs(changes - then) > max(count // 8, 64):
                counts[each] = _counted(connection, stored, each), changes
            else:
                counts[each] = count, then
        with self._lock:
            kept = self._counts.setdefault(stored.id, {})
            if len(kept) + len(counts) > _KEPT:
                kept.clear()
            kept.update({each: count for each, count in counts.items() if len(each) <= _LONGEST})
        return {each: count for each, (count, _) in counts.items()}

    def forget(self, collection: int) -> None:
        """Let go of a collection."""
        with self._lock:
            self._counts.pop(collection, None)


def _counted(connection: Connection, stored: Stored, wanted: str) -> int:
    index = f"chunk_fts_{stored.id}"
    some = connection.exec_driver_sql(
        f"SELECT count(*) FROM (SELECT 1 FROM {index} WHERE {index} MATCH ? LIMIT ?)", (wanted, _COUNTED)
    )
    return int(some.scalar_one())


@dataclass(frozen=True, slots=True)
class Index:
    """The words of a collection, as a transaction sees them.

    Attributes:
        weights: what a word counts in title and text.
        where: the condition that chunks pass, if any.
        passing: ids of those that pass, if that is known; some may be there no longer.
    """

    connection: Connection
    stored: Stored
    weights: tuple[float, float]
    where: Filter | None = None
    passing: Ids | None = None

    def best(self, wanted: Sequence[str], *, limit: int, frequencies: Frequencies) -> Scored:
        """Ids and scores of the best chunks that have any of the expressions, in no order; as many as asked for where
        there are so many, and all that have the score of the last of them.

        The score is BM25 whatever leads.
        """
        every = " OR ".join(wanted)
        sizes = depths(limit)
        if self.stored.chunks <= SCORED:
            return self._ranked(every, sizes[-1])
        counts = frequencies.of(self.connection, self.stored, wanted)
        order = sorted(wanted, key=lambda each: counts[each])
        sums = list(accumulate(counts[each] for each in order))
        if sums[-1] <= 2 * SCORED:
            return self._ranked(every, sizes[-1])
        cut = sum(total <= SCORED for total in sums)
        rare, common = order[:cut], order[cut:]
        leads = [_led(rare, common)] if rare else []
        leads += [[" AND ".join(common)], _led(common[:1], common[1:]), [every]]
        found = joined([self._until(leads, size) for size in sizes], sizes, limit)
        return np.array(list(found), np.int64), np.array(list(found.values()), np.float64)

    def _until(self, leads: Sequence[Sequence[str]], limit: int) -> dict[int, float]:
        """What the first of these ask for, until there is enough; the last one asks for all, which are scored all."""
        found: dict[int, float] = {}
        for lead in leads[:-1]:
            for asked in lead:
                ids, scores = self._ranked(asked, limit, most=SCORED)
                found = dict(zip(ids.tolist(), scores.tolist(), strict=True)) | found
            if len(found) >= limit:
                return found
        ids, scores = self._ranked(leads[-1][0], limit)
        return dict(zip(ids.tolist(), scores.tolist(), strict=True))

    def _ranked(self, wanted: str, limit: int, *, most: int = -1) -> Scored:
        """The best by BM25 of the newest `most` chunks that match and pass, and all that are no worse than the last."""
        index = f"chunk_fts_{self.stored.id}"
        source, condition = index, "TRUE"
        values: tuple[Value, ...] = ()
        if self.passing is not None and len(self.passing) <= _LISTED:
            condition = f"+{index}.rowid IN (SELECT value FROM json_each(?))"
            values = (json.dumps(self.passing.tolist()),)
        elif self.where is not None:
            source = f"{index} CROSS JOIN chunk ON chunk.id = {index}.rowid"
            condition, values = self.where
        rows = self.connection.exec_driver_sql(
            f"WITH found AS MATERIALIZED (SELECT {index}.rowid AS id, -bm25({index}, ?, ?) AS score FROM {source} "
            f"WHERE {index} MATCH ? AND {condition} {f'ORDER BY {index}.rowid DESC' if most > 0 else ''} LIMIT ?) "
            "SELECT id, score FROM found "
            "WHERE score >= ifnull((SELECT score FROM found ORDER BY score DESC LIMIT 1 OFFSET ?), -1e999)",
            (*self.weights, wanted, *values, most, limit - 1),
        ).all()
        return np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.float64)


def _led(leading: Sequence[str], others: Sequence[str]) -> list[str]:
    """What asks for the chunks that have one of the leading words: scored by all words, then those that have no other.

    The second asks for chunks of the first as well, with less than their score. FTS5 knows no word that need not be
    there and yet counts; a word that is asked for twice counts twice.
    """
    lead = " OR ".join(leading)
    return [f"({lead}) AND ({' OR '.join(others)})", lead] if others else [lead]
