"""The layer in a Redis server: a real one."""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from time import perf_counter, time
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis as Client
from structlog.testing import capture_logs

from appliance.embedding.caches.entry import Entry, Kept, packed
from appliance.embedding.caches.redis import PREFIX, Redis
from appliance.errors import InvalidInput


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture
async def client(redis_server: Any) -> AsyncIterator[Client]:
    async with Client.from_url(redis_server.url) as client:
        yield client


@pytest.fixture
async def opened() -> AsyncIterator[Callable[..., Any]]:
    """Opens layers, and waits until they are used; closes them. They are patient, as tests run beside each other."""
    layers: list[Redis] = []

    async def open_redis(url: str, *, ttl: float = 300, patience: float = 10, wait: bool = True) -> Redis:
        layers.append(Redis(url, ttl=ttl, pause=0.05, patience=patience))
        layers[-1].start()
        if wait:
            await until(lambda: layers[-1]._up)
        return layers[-1]

    yield open_redis
    for each in layers:
        await each.close()


@pytest.fixture
def kept(entry: Callable[..., Entry]) -> Callable[..., dict[str, Kept]]:
    """Entries of keys, computed now."""
    return lambda *keys, dimensions=8, age=0: {key: Kept(entry(key, dimensions), time() - age) for key in keys}


async def test_two_layers_share_what_one_puts(
    redis_server: Any, opened: Any, kept: Callable[..., dict[str, Kept]], equal: Callable[..., bool]
) -> None:
    one, other = await opened(redis_server.url), await opened(redis_server.url)
    given = kept(*(str(number) for number in range(600)), dimensions=384)

    await one.put(given)
    found = await other.get([*given, "none"], dimensions=384)

    assert found.keys() == given.keys()
    assert all(equal(found[key].entry, each.entry) for key, each in given.items())
    figures = await other.figures()
    assert (figures.hits, figures.misses, figures.errors, figures.up) == (600, 1, 0, True)


async def test_keys_have_our_prefix_and_the_rest_of_their_time(
    redis_server: Any, client: Client, opened: Any, kept: Callable[..., dict[str, Kept]]
) -> None:
    layer = await opened(redis_server.url, ttl=300)

    await layer.put(kept("a") | kept("old", age=200) | kept("over", age=300))

    assert sorted(await client.keys()) == [b"appliance:embedding:a", b"appliance:embedding:old"]
    assert 299 <= await client.ttl(PREFIX + "a") <= 300
    assert 99 <= await client.ttl(PREFIX + "old") <= 100


async def test_hostile_values_are_ignored(
    redis_server: Any, client: Client, opened: Any, kept: Callable[..., dict[str, Kept]]
) -> None:
    layer = await opened(redis_server.url)
    (right,) = (packed(key, each) for key, each in kept("a").items())
    unit = Entry(np.eye(8, dtype=np.float32)[0], 1, truncated=False)
    await client.set(PREFIX + "a", right)
    await client.set(PREFIX + "other's", right)
    await client.set(PREFIX + "short", right[:-1])
    await client.set(PREFIX + "huge", right + bytes(10_000_000))
    await client.set(PREFIX + "text", "hello")
    await client.rpush(PREFIX + "list", "hello")
    for name, factor in (("nan", np.nan), ("zero", 0.0), ("long", 3.0), ("inf", np.inf)):
        with np.errstate(all="ignore"):
            bad = unit._replace(vector=unit.vector * np.float32(factor))
        await client.set(PREFIX + name, packed(name, Kept(bad, 1.0)))
    await client.set(PREFIX + "wide", packed("wide", Kept(unit._replace(vector=np.eye(9, dtype=np.float32)[0]), 1.0)))
    names = ["a", "other's", "short", "huge", "text", "list", "nan", "zero", "long", "inf", "wide"]

    found = await layer.get(names, dimensions=8)

    assert found.keys() == {"a"}
    assert (await layer.figures()).errors == len(names) - 1
    assert (await layer.figures()).up


async def test_what_matches_is_removed_and_nothing_that_is_not_ours(
    redis_server: Any, client: Client, opened: Any, kept: Callable[..., dict[str, Kept]]
) -> None:
    layer = await opened(redis_server.url)
    await client.set("one@", "another program's")
    await layer.put(kept(*(f"one@0:query:8::{number}" for number in range(1500)), "two@0:query:8::0", "[t]"))

    assert await layer.remove("one*") == 1500
    assert await layer.remove("[t]") == 1
    assert await layer.remove("t[w]o*") == 0
    assert await layer.remove(None) == 1
    assert await client.keys() == [b"one@"]


async def test_a_server_that_dies_is_left_alone_and_used_when_it_is_back(
    redis_server: Any, opened: Any, kept: Callable[..., dict[str, Kept]]
) -> None:
    layer = await opened(redis_server.url)
    await layer.put(kept("a"))

    with capture_logs() as logs:
        redis_server.kill()
        assert await layer.get(["a"], dimensions=8) == {}
        began = perf_counter()
        for _ in range(200):
            assert await layer.get(["a"], dimensions=8) == {}
            await layer.put(kept("b"))
        assert perf_counter() - began < 0.2
        assert await layer.remove("*") == 0
        await asyncio.sleep(0.2)
        assert not (await layer.figures()).up
        redis_server.start()
        await until(lambda: layer._up)

    await layer.put(kept("c"))
    assert (await layer.get(["a", "c"], dimensions=8)).keys() == {"c"}
    assert [each["event"] for each in logs if each["log_level"] == "warning"] == ["redis is not used for now"]
    assert logs[0]["reason"] == "no connection"


async def test_a_server_that_hangs_costs_one_short_wait(opened: Any, redis_server: Any) -> None:
    layer = await opened(redis_server.url, patience=0.25)
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        began = perf_counter()
        answers = await asyncio.gather(*(layer.get(["a"], dimensions=8) for _ in range(50)))
        first = perf_counter() - began
        began = perf_counter()
        await layer.get(["a"], dimensions=8)
        second = perf_counter() - began
    finally:
        redis_server.process.send_signal(signal.SIGCONT)

    assert answers == [{}] * 50
    assert first < 0.6
    assert second < 0.05
    await until(lambda: layer._up)


async def test_a_caller_that_leaves_disturbs_no_other(
    redis_server: Any, opened: Any, kept: Callable[..., dict[str, Kept]], equal: Callable[..., bool]
) -> None:
    layer = await opened(redis_server.url)
    given = kept(*(str(number) for number in range(40)))
    await layer.put(given)

    async def ask(key: str, patience: float) -> None:
        task = asyncio.create_task(layer.get([key], dimensions=8))
        await asyncio.sleep(patience)
        task.cancel()
        await asyncio.wait([task])

    for turn in range(30):
        await asyncio.gather(*(ask(str(number), turn * 5e-5) for number in range(10)))
        found = await layer.get(list(given), dimensions=8)
        assert all(equal(each.entry, given[key].entry) for key, each in found.items())

    assert len(await layer.get(list(given), dimensions=8)) == 40
    assert (await layer.figures()).errors == 0


async def test_what_is_no_redis_is_never_used(opened: Any) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        layer = await opened(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", wait=False)
        await asyncio.sleep(0.2)

        assert await layer.get(["a"], dimensions=8) == {}
        assert not (await layer.figures()).up
        await layer.close()


async def test_a_wrong_password_is_told_once_and_never_what_it_was(
    redis_server: Any, client: Client, opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await client.config_set("requirepass", "right")
    caplog.set_level(logging.DEBUG)

    with capture_logs() as logs:
        layer = await opened(f"redis://:canary@127.0.0.1:{redis_server.port}/0", wait=False)
        await asyncio.sleep(0.3)

    assert not (await layer.figures()).up
    assert len(logs) == 1
    assert "canary" not in f"{logs} {caplog.text}"


@pytest.mark.parametrize("url", ["http://canary@host", "redis://:canary@host:99999/0", "redis://:canary@host:port/0"])
async def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidInput, match="redis_url") as caught:
        Redis(url, ttl=1)

    assert "canary" not in str(caught.value)
    assert caught.value.__suppress_context__


async def test_a_server_that_is_away_at_the_start_is_not_waited_for(opened: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    layer = await opened(f"redis://127.0.0.1:{port}", wait=False)

    assert await layer.get(["a"], dimensions=8) == {}
