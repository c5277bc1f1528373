"""Real appliances behind others: the vectors are theirs, and one may be killed at any time."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from appliance.embedding.embedder import Embedder
from appliance.embedding.engines import open_engine
from appliance.embedding.engines.remote.access import Remote
from appliance.embedding.spec import HashSpec, RemoteSpec, read_card
from appliance.settings import shipped

pytestmark = pytest.mark.slow

TEXTS = ["The otter sleeps on its back.", "Otters hold hands.", "", "鲸鱼在唱歌", "x " * 300]


class Board:
    """An appliance of its own process, always at the same port."""

    def __init__(self, data: Path, begin: Callable[..., Any]) -> None:
        self._data = data
        self._begin = begin
        self._server = begin(data)
        self.url: str = self._server.url

    def start(self) -> None:
        self._server = self._begin(self._data, port=self._server.port)

    def wait_until_ready(self) -> None:
        self._server.wait_until_ready(seconds=60)  # three begin at once

    def kill(self) -> None:
        self._server.kill()

    def embedded(self) -> int:
        """Inputs that it has embedded since its start."""
        found = re.search(r'embed_inputs_total\{model="hash"\} (\S+)', httpx.get(f"{self.url}/metrics").text)
        return int(float(found[1])) if found else 0


@pytest.fixture(scope="module")
def boards(server_process: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Board]]:
    three = [Board(tmp_path_factory.mktemp("board"), server_process) for _ in range(3)]
    try:
        for board in three:
            board.wait_until_ready()
        yield three
    finally:
        for board in three:
            board.kill()


def hash_card() -> HashSpec:
    card = read_card(shipped("config") / "models" / "hash.toml")
    assert isinstance(card, HashSpec)
    return card


def test_another_appliance_gives_its_own_vectors_by_both_apis(boards: list[Board], tmp_path: Path) -> None:
    card = hash_card()
    given: dict[str, Any] = {"name": "far", "family": "hash", "model": "hash", "engine": "remote", "space": card.space}
    given |= {"dimensions": card.dimensions, "max_tokens": card.max_tokens, "max_inputs": 2}

    async def embedded() -> list[Any]:
        specs: list[HashSpec | RemoteSpec] = [card]
        specs += [RemoteSpec(provider="openai", urls=(boards[0].url + "/v1",), **given)]
        specs += [RemoteSpec(provider="ollama", urls=(boards[0].url,), **given)]
        embedders = [Embedder(spec, open_engine(spec, {}, cache=tmp_path)) for spec in specs]
        answers = [await embedder.embed(TEXTS) for embedder in embedders]
        for embedder in embedders:
            await asyncio.to_thread(embedder.close)
        return answers

    own, openai, ollama = asyncio.run(embedded())

    assert (openai.engine, ollama.engine) == ("openai", "ollama")
    np.testing.assert_allclose(openai.vectors, own.vectors, atol=1e-6)
    np.testing.assert_allclose(ollama.vectors, own.vectors, atol=1e-6)
    assert abs(sum(openai.tokens) - sum(own.tokens)) <= 1, "an empty text is sent as a blank"
    assert sum(ollama.tokens) == sum(own.tokens)


def test_three_boards_share_the_load_and_one_may_die_and_come_back(
    boards: list[Board], start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = hash_card()
    (tmp_path / "data" / "cards").mkdir(parents=True)
    urls = ", ".join(f'"{board.url}/v1"' for board in boards)
    (tmp_path / "data" / "cards" / "front.toml").write_text(
        f'name = "front"\nfamily = "hash"\nengine = "remote"\nprovider = "openai"\nmodel = "hash"\nurls = [{urls}]\n'
        f"dimensions = {card.dimensions}\nmax_tokens = {card.max_tokens}\ntimeout = 10\n"
    )
    monkeypatch.setattr("appliance.app.Remote", partial(Remote, pause=0.3))
    front = start(data=tmp_path / "data", model="front", cache_entries=0)

    def embed(client: httpx.Client, number: int) -> None:
        answer = client.post("/v1/embeddings", json={"model": "front", "input": [f"text {number}", f"otter {number}"]})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"]) == 2

    with httpx.Client(base_url=front.url, timeout=30) as client, ThreadPoolExecutor(8) as pool:

        def load(requests: int, between: Callable[[], None] = lambda: None) -> None:
            calls = [pool.submit(embed, client, number) for number in range(requests)]
            while sum(call.done() for call in calls) < requests // 4:
                time.sleep(0.002)
            between()
            for call in calls:
                call.result()

        before = [board.embedded() for board in boards]
        load(120)
        shares = [board.embedded() - earlier for board, earlier in zip(boards, before, strict=True)]
        assert sum(shares) == 240
        assert min(shares) >= 40, shares

        load(240, between=boards[1].kill)

        boards[1].start()
        boards[1].wait_until_ready()
        time.sleep(0.4)
        load(120)
        assert boards[1].embedded() >= 40
