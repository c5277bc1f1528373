"""A query and a passage as one input."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from appliance.embedding.engine import Prompt
from appliance.embedding.tokenizer import PairTokenizer
from appliance.errors import EngineUnavailable, InputTooLong, InvalidInput

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", *"abcdefgh", "sky", "##y", "why"]
ID = {word: index for index, word in enumerate(WORDS)}


def tokenizer_with(processor: processors.PostProcessor | None) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ID, unk_token="[UNK]"))  # noqa: S106  no password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if processor is not None:
        tokenizer.post_processor = processor
    return tokenizer


def template(single: str, pair: str | None) -> processors.PostProcessor:
    specials = [(word, ID[word]) for word in ("[CLS]", "[SEP]", "<s>", "</s>")]
    more = {} if pair is None else {"pair": pair}
    return processors.TemplateProcessing(single=single, special_tokens=specials, **more)


KINDS = {
    "bert": tokenizer_with(processors.BertProcessing(("[SEP]", ID["[SEP]"]), ("[CLS]", ID["[CLS]"]))),
    "template": tokenizer_with(template("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")),
    "roberta": tokenizer_with(processors.RobertaProcessing(("</s>", ID["</s>"]), ("<s>", ID["<s>"]))),
    "roberta template": tokenizer_with(template("<s> $A </s>", "<s> $A </s> </s> $B </s>")),
    "no end": tokenizer_with(template("[CLS] $A", "[CLS] $A [SEP] $B:1")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, each in KINDS.items():
        each.enable_padding(length=32)
        each.enable_truncation(max_length=4)
        each.save(str(folder / name))
        each.no_padding()
        each.no_truncation()
    return folder


def shown(prompt: Prompt) -> tuple[list[int], list[int]]:
    """Ids and types."""
    assert not isinstance(prompt.content, str)
    assert prompt.content.dtype == np.int64
    assert prompt.tokens == len(prompt.content)
    types = np.zeros_like(prompt.content) if prompt.types is None else prompt.types
    assert types.dtype == np.int64
    return prompt.content.tolist(), types.tolist()


TEXTS = st.lists(st.sampled_from(["a", "b", "sky", "why", "??", "x", " ", "\n", "漢"]), max_size=12).map(" ".join)


@pytest.mark.parametrize("kind", KINDS)
@given(query=TEXTS, passages=st.lists(TEXTS, max_size=4))
@settings(deadline=None)
def test_a_pair_that_fits_is_what_the_library_makes_of_it(
    folder: Path, kind: str, query: str, passages: list[str]
) -> None:
    tokenizer = PairTokenizer(folder / kind, max_tokens=64)

    prompts = tokenizer.encode_pairs(query, passages, truncate=False)

    whole = [KINDS[kind].encode(query, passage) for passage in passages]
    assert [shown(prompt) for prompt in prompts] == [(each.ids, each.type_ids) for each in whole]
    assert not any(prompt.truncated for prompt in prompts)


@pytest.mark.parametrize("kind", KINDS)
@given(query=TEXTS, passage=TEXTS, limit=st.integers(6, 24))
@settings(deadline=None)
def test_a_pair_that_is_cut_keeps_its_special_tokens_the_query_and_the_passages_beginning(
    folder: Path, kind: str, query: str, passage: str, limit: int
) -> None:
    tokenizer = PairTokenizer(folder / kind, max_tokens=limit)
    asked, said = (KINDS[kind].encode(text, add_special_tokens=False).ids for text in (query, passage))
    room = limit - tokenizer.pair_specials

    (prompt,) = tokenizer.encode_pairs(query, [passage], truncate=True)

    ids, types = shown(prompt)
    kept = min(len(asked), max(room // 2, room - len(said)))
    rest = min(len(said), room - kept)
    shape = KINDS[kind].encode("a", "a")
    filled, kinds = [], []
    for owner, token, of in zip(shape.sequence_ids, shape.ids, shape.type_ids, strict=True):
        part = [token] if owner is None else (asked[:kept], said[:rest])[owner]
        filled += part
        kinds += [of] * len(part)
    assert (ids, types) == (filled, kinds)
    assert len(ids) <= limit
    assert prompt.truncated == (len(asked) + len(said) > room)
    assert len(ids) == min(limit, len(asked) + len(said) + tokenizer.pair_specials)


def test_only_the_passage_is_cut_where_the_query_takes_half_or_less(folder: Path) -> None:
    tokenizer = PairTokenizer(folder / "template", max_tokens=11)

    (prompt,) = tokenizer.encode_pairs("a b", ["c " * 20], truncate=True)

    a, b, c, cls, sep = (ID[word] for word in ("a", "b", "c", "[CLS]", "[SEP]"))
    assert shown(prompt) == ([cls, a, b, sep, *[c] * 6, sep], [0] * 4 + [1] * 7)


def test_a_pair_of_exactly_the_limit_passes_and_one_token_more_does_not(folder: Path) -> None:
    tokenizer = PairTokenizer(folder / "template", max_tokens=9)

    (prompt,) = tokenizer.encode_pairs("a b", ["c d e f"], truncate=False)
    with pytest.raises(InputTooLong) as caught:
        tokenizer.encode_pairs("a b", ["c", "c d e f g"], truncate=False)

    assert prompt.tokens == 9
    assert (caught.value.tokens, caught.value.limit) == (10, 9)


def test_a_tighter_limit_can_be_asked_for_as_long_as_there_is_room(folder: Path) -> None:
    tokenizer = PairTokenizer(folder / "template", max_tokens=64)

    (prompt,) = tokenizer.encode_pairs("a b", ["c d"], truncate=True, max_tokens=5)

    assert shown(prompt)[0] == [ID[word] for word in ("[CLS]", "a", "[SEP]", "c", "[SEP]")]
    with pytest.raises(InvalidInput, match="no room for a passage"):
        tokenizer.encode_pairs("a b", ["c d"], truncate=True, max_tokens=4)


def test_long_texts_are_read_no_further_than_the_limit_needs(folder: Path) -> None:
    tokenizer = PairTokenizer(folder / "template", max_tokens=32)
    long = "sky why " * 3_000_000

    (prompt,) = tokenizer.encode_pairs(long, [long], truncate=True)

    assert prompt.truncated
    assert (prompt.tokens, prompt.types is not None and prompt.types.sum()) == (32, 16)
    with pytest.raises(InputTooLong, match="more than"):
        tokenizer.encode_pairs("sky", [long], truncate=False)


@pytest.mark.parametrize(
    "processor", [None, template("[CLS] $A [SEP]", None), template("[CLS] $A [SEP]", "[CLS] $A $B:1 [SEP]:1")]
)
def test_a_tokenizer_that_knows_no_pairs_is_refused(tmp_path: Path, processor: processors.PostProcessor | None) -> None:
    tokenizer_with(processor).save(str(tmp_path / "tokenizer.json"))

    with pytest.raises(EngineUnavailable, match="told apart"):
        PairTokenizer(tmp_path / "tokenizer.json", max_tokens=8)
