import re
from collections import Counter
from pathlib import Path

import pytest

from appliance.embedding.spec import NAME, HashSpec, OnnxRerankerSpec, OnnxSpec, WheelSource, read_card, read_cards
from appliance.errors import InvalidInput

SHIPPED = Path(__file__).parents[2] / "config" / "models"
HASH_CARD = 'name = "tiny"\nengine = "hash"\nfamily = "hash"\ndimensions = 64\nmax_tokens = 100\n'
FILE = f'files."m.onnx" = {{ sha256 = "{"0" * 64}", size = 1 }}\n'
HUB = f'sources = [{{ kind = "hub", repo = "a/b", revision = "{"0" * 40}" }}]\n'
RERANKER_CARD = (
    'name = "r"\ntask = "rerank"\nengine = "onnx"\nfamily = "bert"\nmax_tokens = 16\n'
    'own = ["m.onnx", "tokenizer.json"]\n'
)
ONNX_CARD = 'name = "m"\nengine = "onnx"\nfamily = "bert"\ndimensions = 8\nmax_tokens = 16\n'


def test_the_shipped_cards_are_these() -> None:
    assert {card.name: card.task for card in read_cards(SHIPPED)} == {
        "all-minilm-l6-v2": "embed",
        "all-minilm-l6-v2-int8": "embed",
        "hash": "embed",
        "ms-marco-minilm-l6-v2": "rerank",
    }


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_card_can_be_read_and_is_named_as_its_file(path: Path) -> None:
    card = read_card(path)

    assert card.name == path.stem
    assert re.fullmatch(NAME, card.name)
    assert card.description
    assert card.license


def test_no_two_shipped_models_answer_to_one_name() -> None:
    cards = read_cards(SHIPPED)

    names = Counter(
        name
        for card in cards
        for name in {card.name, *(alias.lower().removesuffix(":latest") for alias in card.aliases)}
    )

    assert [name for name, times in names.items() if times > 1] == []


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


@pytest.mark.parametrize(
    ("text", "says"),
    [
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
    ],
)
def test_what_is_no_card_is_refused_with_file_and_reason(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, errors="surrogateescape")

    with pytest.raises(InvalidInput, match=re.escape(says)) as caught:
        read_card(path)

    assert "bad.toml" in caught.value.message
