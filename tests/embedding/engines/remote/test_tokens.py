"""Tokens are told well enough without the tokenizer."""

import shutil
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from appliance.api import cl100k
from appliance.embedding.engines.remote.tokens import cut, estimate, shared_out, spans

ENGLISH = """The quick brown fox jumps over the lazy dog. Embeddings are vectors that represent the meaning of texts;
retrieval-augmented generation looks for passages whose vectors are near that of a question, and hands them to a
language model (which then answers in its own words). In 2023 there were 1,234 of them, at $19.99 each.
"""
SAMPLES = {
    "English": ENGLISH,
    "code": "def vectors(texts: list[str]) -> Matrix:\n    return [embed(text) for text in texts if text.strip()]\n",
    "German": "Die Würde des Menschen ist unantastbar. Sie zu achten ist Verpflichtung aller staatlichen Gewalt.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах.",  # noqa: RUF001 - Russian
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",  # noqa: RUF001 - Greek
    "Arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।",
    "Chinese": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "hexadecimal": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}


@pytest.fixture
def encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """OpenAI's tokenizer, which takes its vocabulary from a cache named by the address's sha1."""
    shutil.copy(cl100k.FILE, tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tiktoken.get_encoding("cl100k_base")


@pytest.mark.parametrize("text", SAMPLES.values(), ids=SAMPLES)
def test_spans_are_hardly_ever_fewer_than_openais_tokens_and_not_far_more(
    text: str, encoding: tiktoken.Encoding
) -> None:
    real = len(encoding.encode(text))

    assert 0.7 * real <= len(spans(text)) <= 1.5 * real


@given(st.text())
def test_spans_are_in_order_and_leave_out_nothing_but_blanks(text: str) -> None:
    place = 0
    for start, stop in spans(text):
        assert place <= start < stop
        assert not text[place:start].strip()
        place = stop
    assert not text[place:].strip()


@pytest.mark.parametrize("text", ["a" * 200_000, " " * 200_000, "\n \n" * 70_000, "\t " * 100_000, "Aa" * 100_000])
def test_a_long_run_of_anything_takes_no_time(text: str) -> None:
    assert len(spans(text)) <= len(text)


@given(st.text(), st.integers(0, 50))
def test_a_cut_text_is_a_beginning_of_no_more_spans(text: str, limit: int) -> None:
    short = cut(text, limit)

    assert isinstance(short, str)
    assert text.startswith(short)
    assert len(spans(short)) <= limit
    assert short == text or len(spans(text)) > limit


def test_token_ids_are_cut_by_their_number() -> None:
    assert cut([1, 2, 3], 2) == [1, 2]
    assert cut([1, 2], 2) == [1, 2]


@pytest.mark.parametrize(
    ("given", "tokens"), [("", 1), ("abcdef", 3), ("日本", 3), ("\ud800", 2), ([5, 6], 2), ([], 1)]
)
def test_an_estimate_is_a_token_for_three_bytes(given: str | list[int], tokens: int) -> None:
    assert estimate(given) == tokens


@given(st.integers(0, 10**9), st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_what_is_shared_out_adds_up_and_is_in_proportion(total: int, weights: list[int]) -> None:
    shares = shared_out(total, weights)

    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) <= 1
