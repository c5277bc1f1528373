"""`/cache`, and what a remembered embedding looks like from outside."""

import base64
import concurrent.futures
import itertools
import json
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import httpx
import numpy as np
import pytest

TEXTS = ["otters hold hands", "whales sing", "otters hold hands"]


def embed(server: Any, inputs: Any, **options: Any) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "hash", "input": inputs, **options}, timeout=30)
    answer.raise_for_status()
    content: dict[str, Any] = answer.json()
    return content


def figures(server: Any) -> dict[str, Any]:
    content: dict[str, Any] = httpx.get(f"{server.url}/cache").json()
    return content | {layer["name"]: layer for layer in content["layers"]}


def test_a_hit_is_answered_and_counted_as_the_miss_was(start: Callable[..., Any]) -> None:
    server = start()

    first = httpx.post(f"{server.url}/v1/embeddings", json={"model": "hash", "input": TEXTS})
    second = httpx.post(f"{server.url}/v1/embeddings", json={"model": "hash", "input": TEXTS})

    assert first.content == second.content
    assert {name: first.headers[name] for name in first.headers if name.startswith("x-appliance")} == {
        name: second.headers[name] for name in second.headers if name.startswith("x-appliance")
    }
    told = figures(server)
    assert (told["hits"], told["misses"], told["hit_rate"]) == (4, 2, 4 / 6)
    assert told["memory"]["entries"] == 2
    assert told["memory"]["bytes"] > 2 * 4 * 384
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'appliance_embed_inputs_total{model="hash"} 7.0' in metrics  # one is the check after loading
    assert 'appliance_cache_hits_total{layer="memory"} 3.0' in metrics
    assert 'appliance_cache_misses_total{layer="memory"} 3.0' in metrics
    assert "appliance_cache_entries 2.0" in metrics


def test_the_other_apis_share_what_is_remembered_and_count_as_before(start: Callable[..., Any]) -> None:
    server = start()
    openai = embed(server, TEXTS[:2])

    ollama = httpx.post(f"{server.url}/api/embed", json={"model": "hash", "input": TEXTS[:2]}).json()

    assert ollama["prompt_eval_count"] == openai["usage"]["prompt_tokens"]
    assert np.allclose(ollama["embeddings"], [each["embedding"] for each in openai["data"]], atol=1e-6)
    assert figures(server)["misses"] == 2


def test_kinds_dimensions_and_ways_to_cut_do_not_mix(start: Callable[..., Any]) -> None:
    server = start()

    whole = embed(server, "otters")["data"][0]["embedding"]
    short = embed(server, "otters", dimensions=64)["data"][0]["embedding"]
    embed(server, "otters", input_type="query")
    embed(server, "otters", truncate=False)
    embed(server, "otters ")

    assert (len(whole), len(short)) == (len(embed(server, "otters")["data"][0]["embedding"]), 64)
    told = figures(server)
    assert (told["hits"], told["misses"]) == (1, 5)


def test_two_models_do_not_mix(start: Callable[..., Any], tmp_path: Any) -> None:
    cards = tmp_path / "data" / "cards"
    cards.mkdir(parents=True)
    card = 'name = "{0}"\nengine = "hash"\nfamily = "hash"\ndimensions = {1}\nmax_tokens = 64\n'
    for name, dimensions in (("one", 64), ("two", 64), ("three", 32)):
        (cards / f"{name}.toml").write_text(card.format(name, dimensions))
    server = start(data=tmp_path / "data")

    lengths = [len(embed(server, "otters", model=name)["data"][0]["embedding"]) for name in ("one", "two", "three")]

    assert lengths == [64, 64, 32]
    assert figures(server)["misses"] == 3


def test_a_text_that_was_cut_is_still_refused_where_it_must_not_be(start: Callable[..., Any]) -> None:
    server = start()
    long = "word " * 20_000
    body = {"model": "hash", "input": long}

    for _ in range(2):
        cut = httpx.post(f"{server.url}/v1/embeddings", json=body)
        assert (cut.status_code, cut.headers["x-appliance-truncated"]) == (200, "1")
        assert httpx.post(f"{server.url}/v1/embeddings", json=body | {"truncate": False}).status_code == 400

    told = figures(server)
    assert told["memory"]["entries"] == 1


def test_a_pattern_forgets_some_and_none_forgets_all(start: Callable[..., Any]) -> None:
    server = start(cache_on_disk=True)
    embed(server, TEXTS)
    embed(server, "otters", input_type="query")
    until(lambda: figures(server)["disk"]["entries"] == 3)

    def delete(**query: str) -> Any:
        return httpx.delete(f"{server.url}/cache", params=query).json()

    assert delete(pattern="no-such-model*") == {"removed": 0}
    assert delete(pattern="*:query:*") == {"removed": 2}
    assert delete(pattern="hash*") == {"removed": 4}
    embed(server, TEXTS)
    assert figures(server)["misses"] == 5
    assert delete()["removed"] >= 2
    assert figures(server)["memory"]["entries"] == 0


def test_a_pattern_that_is_none_is_a_problem(client: httpx.Client) -> None:
    for pattern in ("", "*a*b*c*d*e", "x" * 201):
        answer = client.delete("/cache", params={"pattern": pattern})

        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert "pattern" in answer.json()["detail"]
    assert client.delete("/cache?patern=a").status_code == 422


def test_without_a_cache_there_is_nothing_to_tell_and_nothing_to_forget(start: Callable[..., Any]) -> None:
    server = start(cache_entries=0)
    embed(server, TEXTS)

    assert httpx.get(f"{server.url}/cache").json() == {"hits": 0, "misses": 0, "hit_rate": 0, "layers": []}
    assert httpx.delete(f"{server.url}/cache").json() == {"removed": 0}
    assert httpx.delete(f"{server.url}/cache", params={"pattern": ""}).status_code == 422


def test_what_was_remembered_on_disk_is_there_after_a_restart(start: Callable[..., Any], tmp_path: Any) -> None:
    first = start(data=tmp_path / "data", cache_on_disk=True)
    before = embed(first, TEXTS)
    first.stop()

    second = start(data=tmp_path / "data", cache_on_disk=True)

    assert embed(second, TEXTS) == before
    assert figures(second)["misses"] == 0
    assert figures(second)["disk"]["hits"] == 2


def test_a_changed_card_is_another_model(start: Callable[..., Any], tmp_path: Any) -> None:
    cards = tmp_path / "data" / "cards"
    cards.mkdir(parents=True)
    card = 'name = "own"\nengine = "hash"\nfamily = "hash"\ndimensions = 64\nmax_tokens = 64\n'
    (cards / "own.toml").write_text(card)
    first = start(data=tmp_path / "data", cache_on_disk=True)
    before = embed(first, "otters", model="own")["data"][0]["embedding"]
    first.stop()
    (cards / "own.toml").write_text(card + '[prefixes]\ndocument = "passage: "\n')

    second = start(data=tmp_path / "data", cache_on_disk=True)

    assert embed(second, "otters", model="own")["data"][0]["embedding"] != before


def test_equal_requests_at_one_time_are_computed_once(start: Callable[..., Any]) -> None:
    server = start()
    texts = [f"text number {number} " * 50 for number in range(500)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: json.dumps(embed(server, texts)), range(8)))

    assert len(set(answers)) == 1
    assert figures(server)["misses"] == 500


class Load:
    """Callers that ask without a pause, for texts that others ask for and for some of their own."""

    def __init__(self, server: Any) -> None:
        self.reference = {text: embed(server, text)["data"][0]["embedding"] for text in map(str, range(20))}
        self.server = server
        self.wrong: list[str] = []
        self.took: list[float] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(6)]

    def _run(self, seed: int) -> None:
        with httpx.Client(base_url=self.server.url, timeout=20) as client:
            for turn in itertools.count(seed):
                if self._stop.is_set():
                    return
                text = str(turn % 20)
                began = time.monotonic()
                answer = client.post("/v1/embeddings", json={"model": "hash", "input": [text, f"{seed} {turn}"]})
                self.took.append(time.monotonic() - began)
                if answer.status_code != 200 or answer.json()["data"][0]["embedding"] != self.reference[text]:
                    self.wrong.append(answer.text[:200])

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("way", ["killed", "stopped"])
def test_losing_redis_costs_no_request_and_it_is_used_again(
    start: Callable[..., Any], redis_server: Any, way: str
) -> None:
    server = start(redis_url=redis_server.url, cache_entries=0)
    until(lambda: figures(server)["redis"]["up"])
    lose, bring = {
        "killed": (redis_server.kill, redis_server.start),
        "stopped": (
            lambda: redis_server.process.send_signal(signal.SIGSTOP),
            lambda: redis_server.process.send_signal(signal.SIGCONT),
        ),
    }[way]

    with Load(server) as load:
        until(lambda: len(load.took) > 50)
        lose()
        until(lambda: not figures(server)["redis"]["up"])
        before = len(load.took)
        until(lambda: len(load.took) > before + 50)
        bring()
        until(lambda: figures(server)["redis"]["up"])
        hits = figures(server)["redis"]["hits"]
        until(lambda: figures(server)["redis"]["hits"] > hits)

    assert not load.wrong
    assert max(load.took) < 1.5


def test_what_is_remembered_is_what_the_client_library_reads(start: Callable[..., Any]) -> None:
    server = start()
    plain = embed(server, TEXTS)
    coded = embed(server, TEXTS, encoding_format="base64")

    for one, other in zip(plain["data"], coded["data"], strict=True):
        vector = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
        assert np.array_equal(vector, np.array(one["embedding"], np.float32))


def test_long_inputs_are_remembered_as_well(start: Callable[..., Any]) -> None:
    server = start()
    texts = [str(number) + " long" * 60_000 for number in range(3)]

    assert embed(server, texts) == embed(server, texts)
    assert figures(server)["misses"] == 3
