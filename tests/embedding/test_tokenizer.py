from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from appliance.embedding.engine import Ids
from appliance.embedding.tokenizer import Tokenizer
from appliance.errors import EngineUnavailable, InputTooLong, InvalidInput

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "why", "is", "the", "sky", "blue", "uni", "##code"]
CLS, SEP, WHY, IS, THE, SKY = 2, 3, 4, 5, 6, 7


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small WordPiece tokenizer whose file pads to 16 and cuts to 3, as published ones do."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106  no password
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(max_length=3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer(path, max_tokens=8)


def ids(content: Ids | str) -> list[int]:
    assert not isinstance(content, str)
    assert content.dtype == np.int64
    return [int(token) for token in content]


def test_padding_and_truncation_set_in_the_file_are_ignored(tokenizer: Tokenizer) -> None:
    (prompt,) = tokenizer.encode(["Why is the sky"], truncate=False)

    assert ids(prompt.content) == [CLS, WHY, IS, THE, SKY, SEP]
    assert (prompt.tokens, prompt.truncated) == (6, False)


def test_truncation_keeps_the_closing_special_token(tokenizer: Tokenizer) -> None:
    (prompt,) = tokenizer.encode(["why is the sky"], truncate=True, max_tokens=3)

    assert ids(prompt.content) == [CLS, WHY, SEP]
    assert (prompt.tokens, prompt.truncated) == (3, True)


def test_token_ids_and_texts_come_back_in_their_order(tokenizer: Tokenizer) -> None:
    prompts = tokenizer.encode([[WHY, IS], "the", [], "", [SKY] * 9], truncate=True)

    assert [ids(prompt.content) for prompt in prompts] == [
        [CLS, WHY, IS, SEP],
        [CLS, THE, SEP],
        [CLS, SEP],
        [CLS, SEP],
        [CLS, *[SKY] * 6, SEP],
    ]
    assert [prompt.truncated for prompt in prompts] == [False] * 4 + [True]


def test_an_input_of_exactly_the_limit_passes_and_one_token_more_does_not(tokenizer: Tokenizer) -> None:
    (prompt,) = tokenizer.encode(["sky " * 6], truncate=False)
    with pytest.raises(InputTooLong) as caught:
        tokenizer.encode(["sky " * 7], truncate=False)

    assert prompt.tokens == 8
    assert (caught.value.tokens, caught.value.limit) == (9, 8)


def test_a_limit_above_the_models_own_changes_nothing(tokenizer: Tokenizer) -> None:
    (prompt,) = tokenizer.encode(["sky " * 20], truncate=True, max_tokens=1000)

    assert prompt.tokens == 8


@pytest.mark.parametrize("limit", [2, 1, 0, -5])
def test_a_limit_without_room_for_text_is_refused(tokenizer: Tokenizer, limit: int) -> None:
    with pytest.raises(InvalidInput, match="input after truncation exceeds maximum context length"):
        tokenizer.encode(["sky"], truncate=True, max_tokens=limit)


@pytest.mark.parametrize("token", [-1, len(WORDS), 2**70])
def test_token_ids_that_the_model_does_not_have_are_refused(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(InvalidInput, match="from 0 to 10"):
        tokenizer.encode(["sky", [token]], truncate=True)


@pytest.mark.parametrize("text", ["\0", "\0sky\0", "￿", "\u202e", "🙂" * 3, "a" * 100_000])
def test_odd_text_is_text(tokenizer: Tokenizer, text: str) -> None:
    (prompt,) = tokenizer.encode([text], truncate=True)

    assert ids(prompt.content)[0] == CLS
    assert ids(prompt.content)[-1] == SEP


def test_spans_count_characters_and_leave_special_tokens_out(tokenizer: Tokenizer) -> None:
    text = "🙂 Ünicode, sky"

    spans = tokenizer.spans(text)

    assert [text[start:end] for start, end in spans] == ["🙂", "Üni", "code", ",", "sky"]


def test_spans_are_not_cut(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.spans("sky " * 500)) == 500


def test_a_tokenizer_without_special_tokens_adds_none(path: Path) -> None:
    bare = tokenizers.Tokenizer.from_file(str(path))
    bare.post_processor = processors.ByteLevel()
    bare.save(str(path))
    tokenizer = Tokenizer(path, max_tokens=8)

    (prompt,) = tokenizer.encode(["the sky"], truncate=True)

    assert tokenizer.specials == 0
    assert ids(prompt.content) == [THE, SKY]


def test_many_threads_may_share_one(tokenizer: Tokenizer) -> None:
    texts = ["why is the sky blue " * repeat for repeat in range(1, 30)]
    alone = [tokenizer.encode([text], truncate=True)[0].tokens for text in texts]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: tokenizer.encode([text], truncate=True)[0].tokens, texts))

    assert together == alone


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"'])
def test_a_file_that_is_no_tokenizer_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(EngineUnavailable, match=r"tokenizer\.json"):
        Tokenizer(path, max_tokens=8)


@pytest.mark.model
def test_the_real_tokenizer_gives_what_the_reference_gives(minilm: dict[str, Path]) -> None:
    tokenizer = Tokenizer(minilm["tokenizer.json"], max_tokens=256)

    why, empty = tokenizer.encode(["Why is the sky blue?", ""], truncate=False)

    assert ids(why.content) == [101, 2339, 2003, 1996, 3712, 2630, 1029, 102]
    assert ids(empty.content) == [101, 102]
