"""Servers that fail, stall, lie and come back."""

import asyncio
import gzip
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from appliance.embedding.engine import RemoteEngine
from appliance.embedding.engines.remote.access import Remote
from appliance.embedding.engines.remote.refusals import LONGEST_REST, rest_of
from appliance.errors import ApplianceError, EngineUnavailable, UpstreamFailed

SHORT = Remote(pause=0.2)


async def first_then(upstream: Any, usual: Any, *replies: Any) -> Any:
    """A server that gives these answers first, then good ones."""
    left = list(replies)
    return await upstream(lambda asked: left.pop(0) if left else usual["openai"](asked))


async def test_it_is_a_remote_engine_and_opens_without_a_word_to_anybody(upstream: Any, engine_of: Any) -> None:
    server = await upstream()

    engine = engine_of(server.url)

    assert isinstance(engine, RemoteEngine)
    assert engine.label == "openai"
    assert server.connections == 0


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 424])
async def test_a_passing_failure_is_tried_again(
    status: int, upstream: Any, engine_of: Any, usual: Any, reply: Any
) -> None:
    server = await first_then(upstream, usual, *[reply({"error": "later"}, status=status)] * 2)

    encoded = await engine_of(server.url).encode(["a"], truncate=True)

    assert encoded.vectors.shape == (1, 4)
    assert len(server.asked) == 3


async def test_a_failure_that_does_not_pass_is_told_after_the_last_retry(
    upstream: Any, engine_of: Any, reply: Any
) -> None:
    server = await upstream(lambda _: reply(status=500, raw=b"<html><b>Internal</b> error</html>"))

    with pytest.raises(UpstreamFailed, match=r"openai at 127\.0\.0\.1:\d+ answered 500$"):
        await engine_of(server.url, retries=2).encode(["a"], truncate=True)

    assert len(server.asked) == 3


async def test_retry_after_is_waited_for(upstream: Any, engine_of: Any, usual: Any, reply: Any) -> None:
    server = await first_then(upstream, usual, reply(status=429, headers={"Retry-After": "0.5"}))
    engine = engine_of(server.url)
    began = time.monotonic()

    await asyncio.gather(*(engine.encode(["a"], truncate=True) for _ in range(2)))

    assert time.monotonic() - began >= 0.5


async def test_a_long_retry_after_is_handed_on_at_once_to_everybody(upstream: Any, engine_of: Any, reply: Any) -> None:
    server = await upstream(lambda _: reply(status=429, headers={"Retry-After": "40"}))
    engine = engine_of(server.url, timeout=2.0)

    for _ in range(2):
        with pytest.raises(EngineUnavailable) as caught:
            await engine.encode(["a"], truncate=True)
        assert caught.value.retry_after == 40

    assert len(server.asked) == 1, "it said when to come back"


def test_retry_after_may_be_a_date_and_is_believed_up_to_a_minute() -> None:
    in_ten = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    assert 8 < (rest_of({"retry-after": in_ten}) or 0) <= 10
    assert rest_of({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}) == 0
    assert rest_of({"retry-after": "3600"}) == LONGEST_REST
    assert rest_of({"retry-after": "soon"}) is None
    assert rest_of({"retry-after": "Fri, 31 Dec 1999 23:59:59 +9999999999"}) is None
    assert rest_of({}) is None


async def test_a_server_that_hangs_is_left_after_the_timeout(upstream: Any, engine_of: Any, reply: Any) -> None:
    server = await upstream(lambda _: reply([], wait=30))
    began = time.monotonic()

    with pytest.raises(EngineUnavailable, match="did not answer in time"):
        await engine_of(server.url, timeout=0.3, retries=1).encode(["a"], truncate=True)

    assert 0.5 < time.monotonic() - began < 2
    assert len(server.asked) == 2


async def test_a_body_that_drips_ends_at_the_timeout(upstream: Any, engine_of: Any, reply: Any) -> None:
    server = await upstream(lambda _: reply(raw=b" " * 1000, piece=1, pause=0.02))
    began = time.monotonic()

    with pytest.raises(EngineUnavailable, match="did not answer in time"):
        await engine_of(server.url, timeout=0.3, retries=0).encode(["a"], truncate=True)

    assert time.monotonic() - began < 1


async def test_half_a_body_is_asked_for_again(upstream: Any, engine_of: Any, usual: Any, reply: Any) -> None:
    server = await first_then(upstream, usual, reply(raw=b'{"data": [', length=5000))

    encoded = await engine_of(server.url).encode(["a"], truncate=True)

    assert encoded.vectors.shape == (1, 4)
    assert len(server.asked) == 2


@pytest.mark.parametrize("broken", [b"", b'{"data": [', b"\xff\xfe", b"<html>hello</html>", b"[" * 5000])
async def test_an_answer_that_is_no_json_is_none(broken: bytes, upstream: Any, engine_of: Any, reply: Any) -> None:
    server = await upstream(lambda _: reply(raw=broken))

    with pytest.raises(UpstreamFailed, match="not JSON"):
        await engine_of(server.url).encode(["a"], truncate=True)


async def test_an_endless_answer_is_not_read_to_its_end(upstream: Any, engine_of: Any, reply: Any) -> None:
    sent = 0

    def endless(_: Any) -> Any:
        nonlocal sent
        sent += 1
        return reply(raw=b" " * (50 << 20), piece=1 << 16)

    server = await upstream(endless)
    began = time.monotonic()

    with pytest.raises(UpstreamFailed, match="more than the vectors can be"):
        await engine_of(server.url).encode(["a"], truncate=True)

    assert sent == 1
    assert time.monotonic() - began < 1


async def test_a_compressed_answer_is_not_unpacked(upstream: Any, engine_of: Any, reply: Any) -> None:
    bomb = gzip.compress(b" " * (10 << 20))
    server = await upstream(lambda _: reply(raw=bomb, headers={"content-encoding": "gzip"}))

    with pytest.raises(UpstreamFailed, match="compressed"):
        await engine_of(server.url).encode(["a"], truncate=True)

    assert server.asked[0].headers["accept-encoding"] == "identity"


async def test_a_long_error_page_is_not_read_to_its_end(upstream: Any, engine_of: Any, reply: Any) -> None:
    server = await upstream(lambda _: reply(raw=b"<html>" * (5 << 20), status=500))

    with pytest.raises(UpstreamFailed, match="answered 500"):
        await engine_of(server.url, retries=0).encode(["a"], truncate=True)


async def test_a_redirect_is_not_followed(upstream: Any, engine_of: Any, usual: Any, reply: Any) -> None:
    other = await upstream()
    server = await upstream(lambda _: reply(status=307, headers={"location": other.url + "/embeddings"}))

    with pytest.raises(UpstreamFailed, match="redirects"):
        await engine_of(server.url).encode(["a"], truncate=True)

    assert other.asked == []


async def test_nobody_at_the_port_is_told_and_soon_not_asked(upstream: Any, engine_of: Any) -> None:
    server = await upstream()
    await server.stop()
    engine = engine_of(server.url, retries=2, remote=SHORT)

    with pytest.raises(EngineUnavailable, match=r"openai at 127\.0\.0\.1:\d+ cannot be reached"):
        await engine.encode(["a"], truncate=True)
    with pytest.raises(EngineUnavailable, match="cannot be reached; it is asked again in 1 s") as caught:
        await engine.encode(["a"], truncate=True)
    assert caught.value.retry_after == 1

    await server.start(port=int(server.url.rpartition(":")[2]))
    await asyncio.sleep(0.25)

    assert (await engine.encode(["a"], truncate=True)).vectors.shape == (1, 4)


@pytest.mark.parametrize("host", ["nobody.invalid", "a" * 70, "xn--"])
async def test_a_name_that_nobody_has_is_told(host: str, engine_of: Any) -> None:
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await engine_of(f"http://{host}", retries=0).encode(["a"], truncate=True)


async def test_no_key_is_in_any_error_or_repr(upstream: Any, engine_of: Any, reply: Any) -> None:
    server = await upstream(lambda _: reply({"error": "Bearer sk-canary is wrong"}, status=400))
    engine = engine_of(server.url, key="A_KEY", remote=Remote(secret={"A_KEY": "sk-canary"}.get))

    with pytest.raises(ApplianceError) as caught:
        await engine.encode(["a"], truncate=True)

    chain = repr(caught.value) + repr(caught.value.__cause__) + repr(engine) + repr(engine._all) + repr(engine._spec)
    assert "canary" not in chain


async def test_a_server_that_is_left_alone_is_logged_once_and_when_it_is_back(
    upstream: Any, engine_of: Any, usual: Any, reply: Any
) -> None:
    server = await first_then(upstream, usual, *[reply({"error": "sick"}, status=500)] * 3)
    secret = {"A_KEY": "sk-canary"}.get
    engine = engine_of(server.url, key="A_KEY", retries=0, remote=Remote(secret=secret, pause=0.1))

    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(UpstreamFailed):
                await engine.encode(["my diary"], truncate=True)
        await asyncio.sleep(0.12)
        for _ in range(2):
            await engine.encode(["my diary"], truncate=True)

    assert [each["event"] for each in logs] == ["remote server left alone", "remote server is back"]
    assert "canary" not in str(logs)
    assert "diary" not in str(logs)


async def test_requests_are_spread_and_each_server_gets_no_more_than_it_should(upstream: Any, engine_of: Any) -> None:
    def slow(asked: Any) -> Any:
        answer = usual_answer(asked)
        answer.wait = 0.02
        return answer

    servers = [await upstream() for _ in range(3)]
    usual_answer = servers[0].answer
    for server in servers:
        server.answer = slow
    engine = engine_of(*(server.url for server in servers), concurrency=2)

    await asyncio.gather(*(engine.encode(["a"], truncate=True) for _ in range(60)))

    assert [len(server.asked) for server in servers] == pytest.approx([20, 20, 20], abs=3)
    assert [server.most for server in servers] == [2, 2, 2]
    assert [server.connections for server in servers] == [2, 2, 2], "connections are kept"


async def test_one_large_request_is_shared_by_the_servers(upstream: Any, engine_of: Any) -> None:
    servers = [await upstream() for _ in range(3)]

    await engine_of(*(server.url for server in servers)).encode(["a"] * 60, truncate=True)

    assert [[len(asked.body["input"]) for asked in server.asked] for server in servers] == [[20]] * 3


@pytest.mark.parametrize("status", [401, 404, 429, 500])
async def test_another_server_answers_at_once_for_one_that_does_not(
    status: int, upstream: Any, engine_of: Any, reply: Any
) -> None:
    bad = await upstream(lambda _: reply(status=status))
    good = await upstream()
    engine = engine_of(bad.url, good.url)
    began = time.monotonic()

    for _ in range(10):
        await engine.encode(["a"], truncate=True)

    assert time.monotonic() - began < 1
    assert len(good.asked) == 10
    assert len(bad.asked) <= (5 if status == 429 else 3), "the breaker leaves it alone"


async def test_a_busy_server_is_waited_for_rather_than_a_dead_one_asked_again(
    upstream: Any, engine_of: Any, reply: Any
) -> None:
    good, dead = await upstream(), await upstream()
    usual_answer = good.answer

    def slow(asked: Any) -> Any:
        answer = usual_answer(asked)
        answer.wait = 0.05
        return answer

    good.answer = slow
    await dead.stop()
    engine = engine_of(good.url, dead.url, concurrency=1, retries=1)

    encoded = await asyncio.gather(*(engine.encode(["a"], truncate=True) for _ in range(10)))

    assert len(encoded) == len(good.asked) == 10


async def test_retries_never_take_longer_than_they_may(upstream: Any, engine_of: Any, reply: Any) -> None:
    server = await upstream(lambda _: reply(status=500, wait=0.15))
    began = time.monotonic()

    with pytest.raises(ApplianceError):
        await engine_of(server.url, timeout=0.2, retries=3, remote=Remote(failures=100)).encode(["a"], truncate=True)

    assert time.monotonic() - began < 0.2 * 4 + 0.3


async def test_a_part_that_fails_ends_the_others(upstream: Any, engine_of: Any, usual: Any, reply: Any) -> None:
    def answer(asked: Any) -> Any:
        return reply({"error": "no"}, status=400) if "bad" in asked.body["input"] else reply([], wait=30)

    server = await upstream(answer)
    began = time.monotonic()

    with pytest.raises(UpstreamFailed, match="answered 400: no"):
        await engine_of(server.url, max_inputs=1).encode(["a", "bad", "c"], truncate=True)

    assert time.monotonic() - began < 1


async def test_a_caller_that_leaves_makes_room(upstream: Any, engine_of: Any, usual: Any, reply: Any) -> None:
    server = await first_then(upstream, usual, reply([], wait=30))
    engine = engine_of(server.url, concurrency=1)
    gone = asyncio.create_task(engine.encode(["a"], truncate=True))
    while not server.asked:
        await asyncio.sleep(0.01)
    waiting = [asyncio.create_task(engine.encode(["a"], truncate=True)) for _ in range(3)]
    await asyncio.sleep(0.01)

    waiting[0].cancel()
    gone.cancel()
    done = await asyncio.wait_for(asyncio.gather(*waiting[1:]), 2)

    assert len(done) == 2


async def test_closing_ends_what_is_under_way_and_what_comes_later(upstream: Any, engine_of: Any, reply: Any) -> None:
    server = await upstream(lambda _: reply([], wait=30))
    engine = engine_of(server.url)
    under_way = asyncio.create_task(engine.encode(["a"], truncate=True))
    while not server.asked:
        await asyncio.sleep(0.01)

    closer = threading.Thread(target=lambda: (engine.close(), engine.close()))
    closer.start()
    with pytest.raises(EngineUnavailable, match="unloaded"):
        await asyncio.wait_for(under_way, 2)
    with pytest.raises(EngineUnavailable, match="unloaded"):
        await engine.encode(["a"], truncate=True)

    await asyncio.to_thread(closer.join, 5)
    assert not closer.is_alive()
    assert all(each.client.is_closed for each in engine._all)


async def test_it_can_be_closed_on_the_loop_and_unused(upstream: Any, engine_of: Any) -> None:
    server = await upstream()
    unused, used = engine_of(server.url), engine_of(server.url)
    await used.encode(["a"], truncate=True)

    unused.close()
    used.close()
    await asyncio.sleep(0)
    await used._ending

    assert all(each.client.is_closed for each in used._all)


async def test_a_hundred_callers_at_two_slots_all_get_their_turn(upstream: Any, engine_of: Any) -> None:
    server = await upstream()
    engine = engine_of(server.url, concurrency=2)

    done = await asyncio.gather(*(engine.encode([f"{n}"], truncate=True) for n in range(100)))

    assert [each.vectors[0, 1] for each in done] == [len(f"{n}") for n in range(100)]
    assert (server.most, engine._servers._waiters) == (2, {})


async def test_a_proxy_of_the_environment_that_is_none_is_told_at_once(
    engine_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "gopher://proxy")

    with pytest.raises(EngineUnavailable, match="proxy"):
        engine_of("https://api.example.com/v1")


@pytest.mark.parametrize("provider", ["openai", "ollama", "tei"])
async def test_vectors_that_another_model_gave_for_the_one_that_was_asked_are_refused(
    provider: str, upstream: Any, engine_of: Any, usual: Any
) -> None:
    def answered(asked: Any) -> Any:
        given = usual[provider](asked)
        given.headers["x-appliance-fallback"] = "m"
        return given

    server = await upstream(answered)

    with pytest.raises(UpstreamFailed, match="had another model answer for"):
        await engine_of(server.url, provider=provider).encode(["a"], truncate=True)


async def test_one_request_that_fails_however_often_does_not_have_its_server_left_alone(
    upstream: Any, engine_of: Any, usual: Any, reply: Any
) -> None:
    def answered(asked: Any) -> Any:
        return reply(status=500, raw=b"") if "poison" in asked.body["input"] else usual["openai"](asked)

    server = await upstream(answered)
    engine = engine_of(server.url, retries=4)

    with pytest.raises(UpstreamFailed):
        await engine.encode(["poison"], truncate=True)

    assert (await engine.encode(["a"], truncate=True)).vectors.shape == (1, 4)
    assert len(server.asked) == 6


async def test_a_server_whose_rest_is_over_is_asked_though_the_others_are_busy(
    upstream: Any, engine_of: Any, usual: Any, reply: Any
) -> None:
    rests = [reply({"error": "slow down"}, status=429, headers={"retry-after": "1"})]
    first = await upstream(lambda asked: rests.pop() if rests else usual["openai"](asked))
    busy = await upstream(lambda asked: replace(usual["openai"](asked), wait=5.0))
    engine = engine_of(first.url, busy.url, concurrency=1, retries=3)
    start = time.monotonic()

    waiting = [asyncio.create_task(engine.encode([text], truncate=True)) for text in ("a", "b", "c")]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    assert time.monotonic() - start < 4
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
