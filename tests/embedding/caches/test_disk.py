"""The layer in an SQLite file."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.database import PAGE_SIZE
from appliance.embedding.caches.disk import Disk
from appliance.embedding.caches.entry import Entry, Kept

MIB = 2**20


@pytest.fixture
async def opened(tmp_path: Path, clock: Any) -> AsyncIterator[Callable[..., Disk]]:
    """Opens layers on one file, with a clock that stands still; closes them."""
    disks: list[Disk] = []

    def open_disk(*, size: int = 8 * MIB, ttl: float = 1000) -> Disk:
        disks.append(Disk(tmp_path / "cache" / "embeddings.db", size=size, ttl=ttl, now=clock, clock=clock))
        return disks[-1]

    yield open_disk
    for each in disks:
        await each.close()


@pytest.fixture
def kept(clock: Any, entry: Callable[..., Entry]) -> Callable[..., dict[str, Kept]]:
    """Entries of keys, computed now."""
    return lambda *keys, dimensions=8: {key: Kept(entry(key, dimensions), clock()) for key in keys}


def file_of(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "embeddings.db"


async def test_what_was_put_is_there_after_a_restart(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], equal: Callable[..., bool]
) -> None:
    first = opened()
    await first.put(kept("a", "b"))
    await first.close()
    await first.close()

    found = await opened().get(["b", "c", "a"], dimensions=8)

    assert found.keys() == {"a", "b"}
    assert all(equal(found[key].entry, each.entry) for key, each in kept("a", "b").items())
    assert found["a"].made == 1_000_000
    assert await first.get(["a"], dimensions=8) == {}


async def test_an_entry_is_forgotten_after_its_time(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], clock: Any
) -> None:
    disk = opened(ttl=100)
    await disk.put(kept("a"))

    clock.now += 99
    assert await disk.get(["a"], dimensions=8)
    clock.now += 1
    assert not await disk.get(["a"], dimensions=8)

    clock.now += 100
    await disk.put(kept("b"))
    assert (await disk.figures()).entries == 1


async def test_the_file_stays_below_its_size_and_what_was_not_used_for_longest_goes(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], clock: Any, tmp_path: Path
) -> None:
    disk = opened(size=2 * MIB, ttl=10_000)
    await disk.put(kept("old", "used", dimensions=1024))

    for turn in range(12):
        clock.now += 600
        await disk.get(["used"], dimensions=1024)
        await disk.put(kept(*(f"{turn} {number}" for number in range(100)), dimensions=1024))
        assert file_of(tmp_path).stat().st_size <= 2 * MIB

    found = await disk.get(["old", "used", "0 0", "11 99"], dimensions=1024)
    figures = await disk.figures()
    assert found.keys() == {"used", "11 99"}
    assert figures.evictions > 500
    assert figures.entries is not None
    assert figures.entries > 250
    assert figures.errors == 0
    assert figures.bytes is not None
    assert figures.bytes <= 2 * MIB


async def test_the_widest_vectors_fit_into_the_smallest_file(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], tmp_path: Path
) -> None:
    disk = opened(size=MIB)

    await disk.put(kept(*(str(number) for number in range(100)), dimensions=8192))

    assert await disk.get(["99"], dimensions=8192)
    assert (await disk.figures()).errors == 0
    assert file_of(tmp_path).stat().st_size <= MIB


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"no database at all, and longer than a header " * 50),
        lambda file: file.write_bytes(file.read_bytes()[: PAGE_SIZE + 100]),
        lambda file: file.write_bytes(file.read_bytes()[:PAGE_SIZE] + b"\xff" * (3 * PAGE_SIZE)),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
    ],
    ids=["foreign", "cut", "overwritten", "empty", "gone"],
)
async def test_a_damaged_file_is_replaced(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    first = opened()
    await first.put(kept(*"abcdefgh", dimensions=384))
    await first.close()
    damage(file_of(tmp_path))

    disk = opened()
    for _ in range(2):  # one at least meets the damage
        await disk.get(["a"], dimensions=384)
        await disk.put(kept("z"))

    assert (await disk.get(["z"], dimensions=8)).keys() == {"z"}
    assert (await disk.figures()).up


async def test_a_file_of_another_version_or_of_another_program_is_replaced(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], tmp_path: Path
) -> None:
    first = opened()
    await first.put(kept("a"))
    await first.close()
    with sqlite3.connect(file_of(tmp_path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()

    second = opened()
    await second.put(kept("b"))
    assert (await second.figures()).entries == 1
    await second.close()

    file_of(tmp_path).unlink()
    with sqlite3.connect(file_of(tmp_path)) as connection:
        connection.execute("CREATE TABLE recipes (text)")
    connection.close()
    third = opened()
    await third.put(kept("c"))
    assert (await third.get(["a", "b", "c"], dimensions=8)).keys() == {"c"}
    assert (await third.figures()).errors == 0


@pytest.mark.parametrize("names", ["*", "embeddings.db"])
async def test_the_file_may_be_deleted_while_it_is_used(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], tmp_path: Path, names: str
) -> None:
    disk = opened()
    await disk.put(kept("a"))
    for each in file_of(tmp_path).parent.glob(names):
        each.unlink()

    assert await disk.get(["a"], dimensions=8) == {}
    await disk.put(kept("b"))

    assert (await opened().get(["a", "b"], dimensions=8)).keys() == {"b"}


async def test_a_changed_byte_of_a_vector_is_a_miss(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], tmp_path: Path
) -> None:
    first = opened()
    await first.put(kept("a", "b"))
    await first.close()
    with sqlite3.connect(file_of(tmp_path)) as connection:
        (value,) = connection.execute("SELECT value FROM entry WHERE key = 'a'").fetchone()
        connection.execute("UPDATE entry SET value = ? WHERE key = 'a'", (value[:-1] + bytes([value[-1] ^ 0x80]),))
    connection.close()

    disk = opened()
    assert (await disk.get(["a", "b"], dimensions=8)).keys() == {"b"}
    assert (await disk.figures()).errors == 1


async def test_where_no_file_can_be_made_everything_is_a_miss_until_it_can(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], tmp_path: Path, clock: Any
) -> None:
    (tmp_path / "cache").write_text("in the way")
    disk = opened()

    await disk.put(kept("a"))
    assert await disk.get(["a"], dimensions=8) == {}
    assert not (await disk.figures()).up
    (tmp_path / "cache").unlink()
    await disk.put(kept("a"))
    assert not (await disk.figures()).up
    clock.now += 31
    await disk.put(kept("a"))

    assert (await disk.get(["a"], dimensions=8)).keys() == {"a"}
    assert (await disk.figures()).up
    assert (await disk.figures()).errors == 1


async def test_two_layers_share_one_file(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], clock: Any
) -> None:
    one, other = opened(), opened()

    await asyncio.gather(
        *(each.put(kept(*(f"{name} {number}" for number in range(300)))) for name, each in (("1", one), ("2", other)))
    )

    assert len(await one.get([f"2 {number}" for number in range(300)], dimensions=8)) == 300
    assert await other.remove("1 *") == 300
    assert not await one.get(["1 5"], dimensions=8)
    assert await one.remove(None) == 300
    assert await other.get(["2 5"], dimensions=8) == {}
    await other.put(kept("c"))
    assert (await one.get(["c"], dimensions=8)).keys() == {"c"}
    assert (await one.figures()).errors == (await other.figures()).errors == 0


async def test_a_file_that_is_larger_than_it_may_be_now_is_begun_anew(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], tmp_path: Path
) -> None:
    first = opened(size=16 * MIB)
    await first.put(kept(*(str(number) for number in range(1000)), dimensions=1024))
    await first.close()

    disk = opened(size=2 * MIB)
    await disk.put(kept("a"))

    assert (await disk.figures()).entries == 1
    assert file_of(tmp_path).stat().st_size <= 2 * MIB


async def test_a_foreign_file_put_in_its_place_while_it_is_used_is_replaced(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]], tmp_path: Path
) -> None:
    disk = opened()
    await disk.put(kept("a"))
    other = tmp_path / "other"
    other.write_bytes(b"no database at all " * 1000)
    other.replace(file_of(tmp_path))

    for _ in range(2):
        await disk.put(kept("b"))

    assert (await disk.get(["b"], dimensions=8)).keys() == {"b"}


async def test_what_matches_is_removed_and_counted(
    opened: Callable[..., Disk], kept: Callable[..., dict[str, Kept]]
) -> None:
    disk = opened()
    await disk.put(kept(*(f"one@0:query:8::{number}" for number in range(1200)), "two@0:query:8::0", "[o]"))

    assert await disk.remove("one*") == 1200
    assert await disk.remove("[o]") == 1
    assert await disk.remove("*:document:*") == 0
    assert await disk.remove(None) == 1
    assert await disk.remove(None) == 0


WRITER = """
import asyncio, sys
from pathlib import Path
import numpy as np
from appliance.embedding.caches.disk import Disk
from appliance.embedding.caches.entry import Entry, Kept

async def main():
    disk = Disk(Path(sys.argv[1]), size=2**26, ttl=1e9, now=lambda: 1_000_000.0)
    turn = 0
    while True:
        vector = np.zeros(384, np.float32)
        vector[turn % 384] = 1
        await disk.put({f"{turn} {n}": Kept(Entry(vector, turn, False), 1_000_000.0) for n in range(50)})
        print(turn, flush=True)
        turn += 1

asyncio.run(main())
"""


async def test_a_writer_that_is_killed_leaves_a_file_that_is_right(opened: Callable[..., Disk], tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for life in range(3):
        writer = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs here
            [sys.executable, "-c", WRITER, str(file_of(tmp_path))], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 10 * (life + 1):
                break
        writer.send_signal(signal.SIGKILL)
        last = max([int(line), *map(int, writer.stdout.read().split())])
        writer.wait()
        writer.stdout.close()

        disk = opened(size=2**26, ttl=1e9)
        found = await disk.get([f"{turn} {n}" for turn in range(last + 1) for n in range(50)], dimensions=384)
        figures = await disk.figures()
        await disk.close()
        assert len(found) == 50 * (last + 1)
        assert all(each.entry.vector[each.entry.tokens % 384] == 1 for each in found.values())
        assert figures.errors == 0
        assert figures.entries is not None
        assert figures.entries % 50 == 0
