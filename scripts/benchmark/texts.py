"""Texts to measure with: those of `appliance tune`, and documents made of them."""

import json
import random
from itertools import islice
from pathlib import Path

from appliance.cli.tune.texts import LONG, SHORT, texts

__all__ = ["LONG", "SHORT", "documents", "texts"]


def documents(count: int, *, folder: Path | None, seed: int) -> list[dict[str, str]]:
    """Documents as `POST /documents` takes them: of a BEIR folder's corpus, or made up, of 20 to 400 words."""
    if folder is not None:
        with (folder / "corpus.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in islice(lines, count)]
        return [{"id": row["_id"], "title": row.get("title", ""), "text": row["text"]} for row in rows]
    source = random.Random(seed)  # noqa: S311  # not for secrets
    return [
        {"id": f"{seed}-{n}", "title": "", "text": next(texts(source.randint(20, 400), seed=seed + n))}
        for n in range(count)
    ]
