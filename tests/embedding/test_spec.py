import re
from pathlib import Path

import pytest

from appliance.embedding.spec import (
    NAME,
    Card,
    HashSpec,
    OnnxAskedSpec,
    OnnxRerankerSpec,
    OnnxSpec,
    RkllmRerankerSpec,
    RkllmSpec,
    WheelSource,
    read_card,
    read_cards,
)
from appliance.errors import InvalidInput

SHIPPED = Path(__file__).parents[2] / "config" / "models"
HASH_CARD = 'name = "tiny"\nengine = "hash"\nfamily = "hash"\ndimensions = 64\nmax_tokens = 100\n'
REMOTE_CARD = """
name = "far"
engine = "remote"
family = "bert"
provider = "openai"
urls = ["http://board/v1"]
model = "m"
key = "A_KEY"
dimensions = 64
max_tokens = 100
"""
FILE = f'files."m.onnx" = {{ sha256 = "{"0" * 64}", size = 1 }}\n'
HUB = f'sources = [{{ kind = "hub", repo = "a/b", revision = "{"0" * 40}" }}]\n'
RERANKER_CARD = (
    'name = "r"\ntask = "rerank"\nengine = "onnx"\nfamily = "bert"\nmax_tokens = 16\n'
    'own = ["m.onnx", "tokenizer.json"]\n'
)
ASKED_CARD = RERANKER_CARD + 'yes = 2\nno = 1\nopening = "o"\nbetween = "b"\nclosing = "c"\n'
RKLLM_CARD = (
    'name = "m"\nengine = "rkllm"\nfamily = "qwen3"\ndimensions = 8\nmax_tokens = 1000\ncontext = 1024\n'
    'platform = "rk3588"\nmodel = "m.rkllm"\nown = ["m.rkllm", "tokenizer.json"]\n'
)
ONNX_CARD = 'name = "m"\nengine = "onnx"\nfamily = "bert"\ndimensions = 8\nmax_tokens = 16\n'


def test_the_shipped_cards_are_these() -> None:
    assert {card.name: card.task for card in read_cards(SHIPPED)} == {
        "all-minilm-l6-v2": "embed",
        "all-minilm-l6-v2-int8": "embed",
        "all-mpnet-base-v2": "embed",
        "bert-base-uncased": "embed",
        "bge-base-en-v1.5": "embed",
        "bge-m3": "embed",
        "bge-reranker-base": "rerank",
        "bge-small-en-v1.5": "embed",
        "clip-vit-b-32": "embed",
        "codebert-base": "embed",
        "embeddinggemma-300m": "embed",
        "gte-multilingual-base": "embed",
        "hash": "embed",
        "jina-embeddings-v2-base-en": "embed",
        "ms-marco-minilm-l6-v2": "rerank",
        "multilingual-e5-small": "embed",
        "nomic-embed-text-v1.5": "embed",
        "nomic-embed-text-v2-moe": "embed",
        "openai-3-large": "embed",
        "openai-3-small": "embed",
        "openai-ada-002": "embed",
        "qwen3-embedding-0.6b": "embed",
        "qwen3-embedding-0.6b-rk3576": "embed",
        "qwen3-embedding-0.6b-rk3588": "embed",
        "qwen3-reranker-0.6b": "rerank",
        "qwen3-reranker-0.6b-rk3576": "rerank",
        "qwen3-reranker-0.6b-rk3588": "rerank",
        "sentence-t5-base": "embed",
    }


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_card_can_be_read_and_is_named_as_its_file(path: Path) -> None:
    card = read_card(path)

    assert card.name == path.stem
    assert re.fullmatch(NAME, card.name)
    assert card.description
    assert card.license


def test_shipped_models_that_answer_to_one_name_are_one_model_for_different_machines() -> None:
    cards: dict[str, list[Card]] = {}
    for card in read_cards(SHIPPED):
        for name in {card.name, *(alias.lower().removesuffix(":latest") for alias in card.aliases)}:
            cards.setdefault(name, []).append(card)

    for sharing in cards.values():
        assert len({(card.engine, getattr(card, "platform", "")) for card in sharing}) == len(sharing)
        assert len({(card.task, getattr(card, "space", ""), card.family) for card in sharing}) == 1


def test_the_qwen3_cards_say_what_the_model_was_trained_with() -> None:
    cards = {card.name: card for card in read_cards(SHIPPED)}

    for platform in ("rk3588", "rk3576"):
        embeds, reranks = cards[f"qwen3-embedding-0.6b-{platform}"], cards[f"qwen3-reranker-0.6b-{platform}"]
        assert isinstance(embeds, RkllmSpec)
        assert isinstance(reranks, RkllmRerankerSpec)
        assert (embeds.platform, embeds.pooling, embeds.eos) == (platform, "last", 151643)
        assert (embeds.dimensions, embeds.min_dimensions, embeds.space) == (1024, 32, "qwen3-embedding-0.6b")
        assert embeds.prefixes.document == ""
        assert re.fullmatch(r"Instruct: .+\nQuery:", embeds.prefixes.query)
        assert (reranks.yes, reranks.no) == (9693, 2152)
        assert reranks.opening.endswith("<|im_end|>\n<|im_start|>user\n")
        assert reranks.before.startswith("<Instruct>: ")
        assert reranks.before.endswith("\n<Query>: ")


def test_the_default_model_takes_256_tokens_and_its_int8_card_shares_files_and_space() -> None:
    cards = {card.name: card for card in read_cards(SHIPPED)}
    full, small = cards["all-minilm-l6-v2"], cards["all-minilm-l6-v2-int8"]

    assert isinstance(full, OnnxSpec)
    assert isinstance(small, OnnxSpec)
    assert (full.dimensions, full.max_tokens, full.pooling, full.precision) == (384, 256, "mean", "fp32")
    assert [source.kind for source in full.sources] == ["hub", "wheel"]
    assert small.precision == "int8"
    assert (small.space, small.files, small.sources) == (full.space, full.files, full.sources)


def test_the_archives_size_on_the_card_leaves_room_for_a_progress_bar() -> None:
    (card,) = (card for card in read_cards(SHIPPED) if card.name == "all-minilm-l6-v2")
    assert isinstance(card, OnnxSpec)

    assert [source.size for source in card.sources if isinstance(source, WheelSource)] == [83_506_384]


def test_the_hash_card_says_it_is_lexical() -> None:
    (card,) = (card for card in read_cards(SHIPPED) if card.name == "hash")

    assert isinstance(card, HashSpec)
    assert "lexical" in card.description.lower()
    assert (card.dimensions, card.min_dimensions, card.max_tokens) == (1024, 32, 8192)


def test_a_card_without_a_space_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(HASH_CARD)

    card = read_card(tmp_path / "tiny.toml")
    assert isinstance(card, HashSpec)
    assert card.space == "tiny"


def test_a_later_folders_card_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    for folder, dimensions in [("shipped", 64), ("own", 128)]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.toml").write_text(HASH_CARD.replace("64", str(dimensions)))

    cards = read_cards(tmp_path / "shipped", tmp_path / "own", tmp_path / "not-there")

    assert [(card.name, card.model_dump()["dimensions"]) for card in cards] == [("tiny", 128)]


def test_a_reranker_has_no_dimensions_and_may_have_files_of_its_owner(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RERANKER_CARD)

    card = read_card(tmp_path / "r.toml")

    assert isinstance(card, OnnxRerankerSpec)
    assert (card.task, card.own, card.files) == ("rerank", ("m.onnx", "tokenizer.json"), {})


def test_a_reranker_that_is_asked_says_so_by_its_answers(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(ASKED_CARD)

    card = read_card(tmp_path / "r.toml")

    assert isinstance(card, OnnxAskedSpec)
    assert (card.yes, card.no, card.before, card.precision) == (2, 1, "", "fp32")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ASKED_CARD.replace("no = 1", ""), "no: Field required"),
        (ASKED_CARD.replace("yes = 2", ""), "no: Extra inputs"),
        (RERANKER_CARD + "dimensions = 8\n", "dimensions"),
        (RERANKER_CARD.replace('onnx"\n', 'hash"\n'), "task is embed"),
        (RERANKER_CARD.replace('own = ["m.onnx", "tokenizer.json"]', ""), "files"),
        ("name = ", "not TOML"),
        ("\udc80", "not TOML"),
        (HASH_CARD.replace("hash", "magic"), "not a card"),
        (HASH_CARD + "colour = 1\n", "colour"),
        (HASH_CARD.replace('"tiny"', '"../tiny"'), "name"),
        (HASH_CARD.replace("64", "0"), "dimensions"),
        (ONNX_CARD + HUB, "files"),
        (ONNX_CARD + FILE, "sources"),
        (ONNX_CARD + FILE.replace("m.onnx", "../m.onnx") + HUB, "plain relative path"),
        (ONNX_CARD + FILE.replace("m.onnx", "/m.onnx") + HUB, "plain relative path"),
        (ONNX_CARD + FILE.replace("0000", "zzzz") + HUB, "sha256"),
        (ONNX_CARD + FILE + HUB.replace("0000", ""), "revision"),
        (ONNX_CARD + FILE + HUB.replace("a/b", "a/b/../c"), "repo"),
        (RKLLM_CARD.replace("context = 1024", "context = 1000"), "context"),
        (RKLLM_CARD.replace("context = 1024", "context = 32768"), "context"),
        (RKLLM_CARD.replace("max_tokens = 1000", "max_tokens = 1020"), "max_tokens may be 1016 at most"),
        (RKLLM_CARD.replace("rk3588", "rk3566"), "platform"),
        (RKLLM_CARD.replace('own = ["m.rkllm", "tokenizer.json"]', 'own = ["m.rkllm"]'), "'tokenizer.json' is neither"),
        (REMOTE_CARD.replace("http:", "ftp:"), "no http or https address"),
        (REMOTE_CARD.replace("board", "board:99999"), "urls"),
        (REMOTE_CARD.replace("board", "bo ard"), "no http or https address"),
        (REMOTE_CARD.replace("board", "[::1"), "urls"),
        (REMOTE_CARD.replace("board", "me:secret@board"), "name a secret in `key`"),
        (REMOTE_CARD.replace("/v1", "/v1?key=1"), "no http or https address"),
        (REMOTE_CARD.replace('["http://board/v1"]', '["http://board/v1", "http://board/v1"]'), "listed twice"),
        (REMOTE_CARD.replace('["http://board/v1"]', "[]"), "urls"),
        (REMOTE_CARD.replace('model = "m"', ""), "model is needed"),
        (REMOTE_CARD.replace("A_KEY", "sk-123"), "key"),
        (RKLLM_CARD + "reference = { text = 'a', vector = [1, 2] }\n", "reference.vector"),
    ],
)
def test_what_is_no_card_is_refused_with_file_and_reason(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, errors="surrogateescape")

    with pytest.raises(InvalidInput, match=re.escape(says)) as caught:
        read_card(path)

    assert "bad.toml" in caught.value.message
