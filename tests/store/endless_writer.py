"""A program that changes documents until it is killed, and says of each change when it is done.

endless_writer.py DATABASE SEED
"""

import json
import random
import sys
from pathlib import Path

import numpy as np

from appliance.database import Database
from appliance.store.base import Chunk
from appliance.store.sqlite import SqliteStore


def main(path: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # no secrets
    store = SqliteStore(Database(path), exact_below=0)
    store.create("c", 16)
    print("started", flush=True)  # noqa: T201  # how it speaks
    done: dict[str, object] = {"document": None, "chunks": 0}
    while True:
        document = f"d{rng.randrange(40)}"
        print(json.dumps({**done, "next": document}), flush=True)  # noqa: T201  # same
        if rng.random() < 0.2:
            store.remove("c", document)
            done = {"document": document, "chunks": 0}
        else:
            number = rng.randrange(1, 12)
            made = [Chunk(n, "words and more words " * 20, 0, 9, 80, title=document) for n in range(number)]
            store.put("c", document, made, np.eye(number, 16, dtype=np.float32))
            done = {"document": document, "chunks": number}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
