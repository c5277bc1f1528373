"""How much is measured, and how it is shown."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: rounds of so many seconds, starts, documents."""

    rounds: int
    seconds: float
    starts: int
    documents: int


FULL = Plan(rounds=6, seconds=4.0, starts=5, documents=2400)
QUICK = Plan(rounds=2, seconds=1.5, starts=2, documents=200)


class Table:
    """A Markdown table, printed row by row as figures come in."""

    def __init__(self, title: str, *columns: str) -> None:
        print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        self._columns = len(columns)

    def row(self, *cells: object) -> None:
        """Print one row. Raises ValueError for more or fewer cells than there are columns."""
        if len(cells) != self._columns:
            raise ValueError(f"{len(cells)} cells for {self._columns} columns")
        print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def met(value: float, limit: float, *, least: bool) -> str:
    """The target and whether it was met."""
    fine = value >= limit if least else value <= limit
    return f"{'≥' if least else '≤'} {limit:g} {'✓' if fine else '✗'}"
