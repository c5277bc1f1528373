"""Every card that we ship does with its model what the reference does with a tiny one of the same architecture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from appliance.embedding.embedder import Embedder
from appliance.embedding.engines import open_engine
from appliance.embedding.spec import Kind, OnnxSpec, read_cards

SHIPPED = {
    card.name: card
    for card in read_cards(Path(__file__).parents[4] / "config" / "models")
    if isinstance(card, OnnxSpec)
}

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", SHIPPED)
async def test_a_shipped_card_embeds_pools_and_prefixes_as_the_reference_does(
    twin: Callable[[str], Any], graphs: Path, name: str
) -> None:
    shipped, model = SHIPPED[name], twin(name)
    reference = model.reference
    hidden = {} if shipped.dense else {"dense": None, "dimensions": reference["hidden"]}
    card = model.card(
        name="twin",
        pooling=shipped.pooling,
        precision=shipped.precision,
        prefixes={kind: shipped.prefixes.of(kind) for kind in get_args(Kind)},
        **hidden,
    )
    embedder = Embedder(card, open_engine(card, model.paths, cache=graphs))
    least = 0.9999 if shipped.precision == "fp32" else 0.985

    for kind in get_args(Kind):
        found = (await embedder.embed(reference["texts"], kind=kind)).vectors
        expected = np.array(reference["as"][name][kind])
        assert (found * expected).sum(axis=1).min() >= least, kind
    embedder.close()


def test_the_shipped_cards_keep_what_the_models_were_trained_with() -> None:
    prefixes = {name: card.prefixes for name, card in SHIPPED.items()}

    assert {name: len(card.dense) for name, card in SHIPPED.items() if card.dense} == {
        "embeddinggemma-300m": 2,
        "sentence-t5-base": 1,
    }
    assert {name for name, card in SHIPPED.items() if card.pooling == "cls"} == {
        "bge-base-en-v1.5",
        "bge-m3",
        "bge-small-en-v1.5",
        "gte-multilingual-base",
    }
    assert {name for name, card in SHIPPED.items() if card.pooling == "last"} == {"qwen3-embedding-0.6b"}
    assert {name: card.min_dimensions for name, card in SHIPPED.items() if card.min_dimensions > 1} == {
        "embeddinggemma-300m": 128,
        "gte-multilingual-base": 128,
        "nomic-embed-text-v1.5": 64,
        "nomic-embed-text-v2-moe": 256,
        "qwen3-embedding-0.6b": 32,
    }
    assert prefixes["multilingual-e5-small"].of("document") == "passage: "
    assert prefixes["multilingual-e5-small"].of("clustering") == "query: "
    assert prefixes["nomic-embed-text-v1.5"].of("query") == "search_query: "
    assert prefixes["embeddinggemma-300m"].of("document") == "title: none | text: "
