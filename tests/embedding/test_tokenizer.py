from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from appliance.embedding.engine import Ids
from appliance.embedding.tokenizer import Tokenizer, byte_level
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


PIECES = [
    *["sky", "unicode", "unicodes", "I", "we", "12345", "the sky is blue", " ", "  ", "\n\n", "\t", "\u3000", "\xa0"],
    *[".", "...", "'ll", "'", "!?", "-", "[SEP]", "[SE", "[MASK]", " [MASK]", "<|end of text|>", "<|end", "P]"],
    *["漢", "かな", "각", "\u1100\u1161", "e\u0301", "\u0301", "\u0323\u0301", "ﬁ", "Å", "ß", "İ", "Σ", "\ufdfa"],
    *["🙂", "👩\u200d👧", "\u200d", "\u202e", "\0", "\ufffd", "\x85", "\x1c", "नि", "ก็"],
]
LONG_TOKENS = st.builds(str.__mul__, st.sampled_from(["s", " "]), st.integers(1, 24))  # where a cut is near what counts
TEXTS = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from([1, 1, 2, 7, 40, 300])), max_size=12).map(
    lambda runs: "".join(piece * times for piece, times in runs)
) | st.lists(st.sampled_from(PIECES) | LONG_TOKENS | LONG_TOKENS, max_size=60).map("".join)


def kinds() -> dict[str, tokenizers.Tokenizer]:
    """A tokenizer of each family that published models have."""
    words = {word: index for index, word in enumerate([*WORDS, "e", "漢", ".", "'", "["])}
    wordpiece = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))  # noqa: S106  no password
    wordpiece.normalizer = normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("s", "k"), ("sk", "y"), ("Ġ", "sky"), ("l", "l"), ("'", "ll"), ("Ċ", "Ċ"), (".", ".")]
    pairs += [(letter * length, letter * length) for length in [1, 2, 4, 8] for letter in "sĠ"]
    symbols = [*alphabet, *(left + right for left, right in pairs)]
    bytelevel = tokenizers.Tokenizer(models.BPE({symbol: n for n, symbol in enumerate(symbols)}, pairs))
    bytelevel.normalizer = normalizers.NFC()
    bytelevel.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bytelevel.decoder = decoders.ByteLevel()
    scores = [("<unk>", 0.0), ("▁", -2.0), ("▁sky", -3.0), ("s", -4.0), ("ky", -4.0), ("漢", -5.0), ("▁the", -3.0)]
    scores += [("s" * length, -4.0) for length in [4, 8, 9, 16]]
    unigram = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    unigram.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    found = {"wordpiece": wordpiece, "bytelevel": bytelevel, "unigram": unigram}
    for each in found.values():
        each.add_special_tokens(["[SEP]", "<|end of text|>", tokenizers.AddedToken("[MASK]", lstrip=True)])
    return found


KINDS = kinds()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for name, each in KINDS.items():
        each.save(str(folder / name))
    return folder


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, limit=st.integers(1, 12))
@settings(deadline=None)
def test_a_long_text_gives_the_tokens_that_the_whole_of_it_begins_with(
    folder: Path, kind: str, text: str, limit: int
) -> None:
    tokenizer = Tokenizer(folder / kind, max_tokens=limit)

    (prompt,) = tokenizer.encode([text], truncate=True)

    whole = KINDS[kind].encode(text, add_special_tokens=False).ids
    assert ids(prompt.content) == whole[:limit]
    assert prompt.truncated == (len(whole) > limit)


@pytest.mark.parametrize(
    "tail", ["unicodes", "we'll", "<|end of text|>", " [MASK]", "s" * 24, "e\u0301", "\u1100\u1161"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_it_does_not_matter_where_a_long_text_is_cut(folder: Path, kind: str, tail: str) -> None:
    for limit in [1, 2, 3, 5]:
        tokenizer = Tokenizer(folder / kind, max_tokens=limit)
        texts = [f"sky{filler * count}{tail} sky sky sky" for filler in [" ", "s"] for count in range(70)]

        prompts = tokenizer.encode(texts, truncate=True)

        wholes = [encoding.ids for encoding in KINDS[kind].encode_batch(texts, add_special_tokens=False)]
        assert [ids(prompt.content) for prompt in prompts] == [whole[:limit] for whole in wholes]
        assert [prompt.truncated for prompt in prompts] == [len(whole) > limit for whole in wholes]


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, limit=st.integers(1, 12))
@settings(deadline=None)
def test_a_long_text_is_refused_when_the_whole_of_it_is_too_long(
    folder: Path, kind: str, text: str, limit: int
) -> None:
    tokenizer = Tokenizer(folder / kind, max_tokens=limit)
    whole = KINDS[kind].encode(text, add_special_tokens=False).ids

    if len(whole) <= limit:
        assert ids(tokenizer.encode([text], truncate=False)[0].content) == whole
    else:
        with pytest.raises(InputTooLong, match=r"^the input length exceeds the context length") as caught:
            tokenizer.encode([text], truncate=False)
        assert limit < caught.value.tokens <= len(whole)


@pytest.mark.parametrize("piece", ["a", " ", "\u0301", "\0"])
def test_a_million_characters_before_the_first_token_are_read_to_their_end(tokenizer: Tokenizer, piece: str) -> None:
    (prompt,) = tokenizer.encode([piece * 1_000_000 + " sky"], truncate=False)

    assert ids(prompt.content)[-2:] == [SKY, SEP]


def test_a_text_without_an_end_is_not_read_to_its_end(tokenizer: Tokenizer) -> None:
    text = "a" * 5_000_000 + " sky"

    (prompt,) = tokenizer.encode([text], truncate=True)
    with pytest.raises(InvalidInput, match=r"^the input length exceeds the context length: over 1048576 characters"):
        tokenizer.encode([text], truncate=False)

    assert (prompt.tokens, prompt.truncated) == (3, True)


@pytest.mark.parametrize("piece", ["why is the sky ", "漢", ".", "sky\n"])
def test_a_huge_text_costs_no_more_than_the_part_that_counts(tokenizer: Tokenizer, piece: str) -> None:
    text = piece * (8_000_000 // len(piece))

    start = perf_counter()
    (prompt,) = tokenizer.encode([text], truncate=True)
    with pytest.raises(InputTooLong, match=r"^the input length exceeds the context length: more than 8 tokens"):
        tokenizer.encode([text, text], truncate=False)
    seconds = perf_counter() - start

    assert (prompt.tokens, prompt.truncated) == (8, True)
    assert seconds < 0.5  # all of it takes seconds


def test_many_long_texts_are_read_in_portions(tokenizer: Tokenizer) -> None:
    texts = ["a" * length + " sky" * 9 for length in [300_000, 10, 200_000, 100_000, 3, 262_144]]

    together = tokenizer.encode([[WHY], *texts, [IS]], truncate=True)

    alone = [tokenizer.encode([text], truncate=True)[0] for text in texts]
    assert ids(together[0].content) == [CLS, WHY, SEP]
    assert [ids(prompt.content) for prompt in together[1:-1]] == [ids(prompt.content) for prompt in alone]
    assert ids(together[-1].content) == [CLS, IS, SEP]


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


@pytest.mark.model
@given(text=TEXTS, limit=st.integers(3, 40))
@settings(deadline=None)
def test_the_real_tokenizer_gives_of_a_long_text_what_the_whole_of_it_gives(
    minilm: dict[str, Path], text: str, limit: int
) -> None:
    tokenizer = Tokenizer(minilm["tokenizer.json"], max_tokens=100_000)

    (cut,) = tokenizer.encode([text], truncate=True, max_tokens=limit)

    (whole,) = tokenizer.encode([text], truncate=False)
    assert ids(cut.content)[:-1] == ids(whole.content)[:-1][: limit - 1]
    assert cut.truncated == (whole.tokens > limit)


def test_tokens_are_told_with_the_characters_they_stand_for(tokenizer: Tokenizer) -> None:
    texts = ["Why ünicode?", "", "the " * 20]

    first, empty, long = tokenizer.tokenize(texts, special_tokens=True)
    bare = tokenizer.tokenize(texts, special_tokens=False)

    assert [tuple(token) for token in first] == [
        (CLS, "[CLS]", True, None, None),
        (WHY, "Why", False, 0, 3),
        (WORDS.index("uni"), "üni", False, 4, 7),
        (WORDS.index("##code"), "code", False, 7, 11),
        (WORDS.index("[UNK]"), "?", False, 11, 12),
        (SEP, "[SEP]", True, None, None),
    ]
    assert [token.text for token in empty] == ["[CLS]", "[SEP]"]
    assert len(long) == 22  # nothing is cut
    assert bare[0] == first[1:-1]
    assert bare[1] == []


def test_token_ids_become_text_again(path: Path) -> None:
    published = tokenizers.Tokenizer.from_file(str(path))
    published.add_special_tokens(["[CLS]", "[SEP]"])
    published.save(str(path))
    tokenizer = Tokenizer(path, max_tokens=8)

    assert tokenizer.decode([[CLS, WHY, IS, SEP], [], [SEP]], skip_special_tokens=True) == ["why is", "", ""]
    assert tokenizer.decode([[CLS, WHY, SEP]], skip_special_tokens=False) == ["[CLS] why [SEP]"]
    for wrong in (-1, len(WORDS), 2**40):
        with pytest.raises(InvalidInput, match="from 0 to 10"):
            tokenizer.decode([[WHY, wrong]], skip_special_tokens=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `vocab.json` and `merges.txt` of RoBERTa's kind."""
    folder = tmp_path_factory.mktemp("pairs")
    trained = tokenizers.ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(["def add(a, b): return a + b", "the sum of two numbers"] * 9, 400, 2, False, specials)  # noqa: FBT003  # theirs
    trained.save_model(str(folder))
    return folder


def test_a_tokenizer_is_made_of_a_vocabulary_and_merges_as_robertas_own(pairs: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(byte_level(pairs / "vocab.json", pairs / "merges.txt"))
    own = tokenizers.ByteLevelBPETokenizer(str(pairs / "vocab.json"), str(pairs / "merges.txt"))
    tokenizer = Tokenizer(file, max_tokens=64)
    text = "def sum(x):  return ≠ x"

    (prompt,) = tokenizer.encode([text], truncate=True)

    assert ids(prompt.content) == [0, *own.encode(text).ids, 2]
    assert own.encode(text).ids


def test_other_vocabularies_are_refused(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "none.txt").write_text("#version: 0.2\n")

    with pytest.raises(EngineUnavailable, match="has no <s>"):
        byte_level(tmp_path / "vocab.json", tmp_path / "none.txt")
    with pytest.raises(EngineUnavailable, match="cannot be read"):
        byte_level(pairs / "merges.txt", pairs / "merges.txt")
