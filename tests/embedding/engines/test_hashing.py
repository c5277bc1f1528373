import os
import subprocess
import sys

import numpy as np
import pytest

from appliance.embedding.engine import Matrix, Sparse, TokenEngine
from appliance.embedding.engines.hashing import HashingEngine
from appliance.embedding.pooling import normalized, shortened
from appliance.errors import EngineFailed, InputTooLong, InvalidInput

GOLDEN_FIRST = [0.000000, 0.141421, -0.565685, 0.000000, 0.000000, -0.565685, -0.141421, 0.000000]
GOLDEN_SECOND = [0.000000, 0.000000, -0.707107, -0.565685, 1.272792, 0.000000, 0.707107, -0.565685]
"""Of algorithm 1. When they change, so must `space` on the card: vectors made before are not comparable."""


def embedded(texts: list[str], *, dimensions: int = 1024) -> Matrix:
    engine = HashingEngine(dimensions=dimensions)
    return engine.run(engine.prepare(texts, truncate=True))


def similarity(one: str, other: str, *, dimensions: int = 1024) -> float:
    first, second = normalized(embedded([one, other], dimensions=dimensions))
    return float(first @ second)


def test_vectors_are_the_ones_that_every_machine_makes() -> None:
    first, second = embedded(["The quick brown fox jumps over the lazy dog", "Größe 東京都 ½ naïve"], dimensions=64)

    assert first.dtype == np.float32
    assert first[:8].tolist() == pytest.approx(GOLDEN_FIRST, abs=1e-6)
    assert second[-8:].tolist() == pytest.approx(GOLDEN_SECOND, abs=1e-6)


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_seed_of_pythons_own_hash_changes_nothing(seed: str) -> None:
    program = (
        "from appliance.embedding.engines.hashing import HashingEngine as E;"
        "e = E(dimensions=100); print(e.run(e.prepare(['one two three'], truncate=True)).tobytes().hex())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )

    assert answer.stdout.strip() == embedded(["one two three"], dimensions=100).tobytes().hex()


def test_a_text_has_the_same_vector_whatever_its_neighbours_are() -> None:
    texts = ["first text", "", "second, longer text of words", "日本語のテキスト", "!?"] * 3

    together = embedded(texts)

    for text, vector in zip(texts, together, strict=True):
        assert vector.tolist() == embedded([text])[0].tolist()


def test_a_batch_larger_than_a_slice_is_the_same_as_its_texts_alone() -> None:
    texts = [f"word{n} " * 8000 for n in range(8)]

    together = embedded(texts, dimensions=64)

    assert together.tolist() == [embedded([text], dimensions=64)[0].tolist() for text in texts]


@pytest.mark.parametrize("text", ["", " ", "\n", "!?…", "\x00", "—"])
def test_a_text_without_words_has_a_direction_still(text: str) -> None:
    engine = HashingEngine(dimensions=32)
    (prompt,) = engine.prepare([text], truncate=False)

    assert prompt.tokens == 1
    assert np.linalg.norm(engine.run([prompt])[0]) == pytest.approx(1)


@pytest.mark.parametrize("dimensions", [32, 33, 100, 384, 1024, 4096])
def test_any_dimension_in_range_works(dimensions: int) -> None:
    vectors = normalized(embedded(["alpha beta gamma", "x"], dimensions=dimensions))

    assert vectors.shape == (2, dimensions)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)


@pytest.mark.parametrize("dimensions", [0, 31, 4097])
def test_other_dimensions_are_refused(dimensions: int) -> None:
    with pytest.raises(InvalidInput, match="32 to 4096"):
        HashingEngine(dimensions=dimensions)


def test_the_front_of_a_vector_is_a_vector_of_the_same_text() -> None:
    near, far, query = embedded(
        [
            "ribosomes assemble proteins from amino acids",
            "the parliament voted on a new fishing quota",
            "how do ribosomes assemble proteins",
        ]
    )

    front = shortened(np.stack([near, far, query]), 64)

    assert np.isfinite(front).all()
    assert np.linalg.norm(front, axis=1) == pytest.approx(1)
    assert front[2] @ front[0] > front[2] @ front[1] + 0.2


def test_words_and_their_pieces_make_texts_near_and_case_does_not_matter() -> None:
    assert similarity("Mitochondrial Membrane", "mitochondrial membrane") == pytest.approx(1)
    assert similarity("\uff57\uff49\uff44\uff45 \ufb01re", "wide fire") == pytest.approx(1)
    assert similarity("embedding", "embeddings") > 0.5
    assert abs(similarity("embedding", "fishing quota")) < 0.35
    assert similarity("the cat sat on the mat", "a cat and a mat") > similarity(
        "the dog on the sofa", "a cat and a mat"
    )


def test_english_function_words_count_only_when_there_is_nothing_else() -> None:
    assert similarity("the cat", "a cat") == pytest.approx(1)
    assert similarity("to be or not to be", "what is this") < 0.9


def test_text_without_spaces_is_found_by_its_pairs_of_characters() -> None:
    assert similarity("私は東京都に住む", "東京都") > similarity("私は東京都に住む", "都京東")


def test_no_tokens_ids() -> None:
    with pytest.raises(InvalidInput, match="no vocabulary"):
        HashingEngine(dimensions=32).prepare([[1, 2, 3]], truncate=True)


def test_a_long_text_is_cut_or_refused_at_the_limit_in_words() -> None:
    engine = HashingEngine(dimensions=64, max_tokens=4)
    text = "one two three four five"

    with pytest.raises(InputTooLong) as caught:
        engine.prepare([text], truncate=False)
    cut, tighter, whole = (
        *engine.prepare([text], truncate=True),
        *engine.prepare([text], truncate=True, max_tokens=2),
        *engine.prepare(["one two three four"], truncate=False, max_tokens=99),
    )

    assert (caught.value.tokens, caught.value.limit) == (5, 4)
    assert (cut.tokens, cut.truncated) == (4, True)
    assert (tighter.tokens, tighter.truncated) == (2, True)
    assert (whole.tokens, whole.truncated) == (4, False)
    assert engine.run([cut]).tolist() == engine.run([whole]).tolist()


def test_a_limit_below_one_word_is_refused() -> None:
    with pytest.raises(InvalidInput, match="leaves no room"):
        HashingEngine(dimensions=32).prepare(["a"], truncate=True, max_tokens=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's snake_case, x=1.", ["It", "s", "snake", "case", "x", "1"]),
        ("東京 tower", ["東", "京", "tower"]),
        ("naïve हिन्दी", ["naïve", "हिन्दी"]),
        ("x" * 70, ["x" * 32, "x" * 32, "x" * 6]),
        (" \n", []),
    ],
)
def test_spans_are_the_ranges_of_words_and_as_many_as_the_tokens(text: str, words: list[str]) -> None:
    engine = HashingEngine(dimensions=32)

    assert [text[start:end] for start, end in engine.spans(text)] == words
    assert engine.prepare([text], truncate=False)[0].tokens == max(len(words), 1)


@pytest.mark.parametrize("text", ["\ud800 lone", "a\x00b", "a" + "\u0300\u0323" * 20_000, "\ufdfa" * 1000, "🙂 🙃"])
def test_strange_text_is_only_text(text: str) -> None:
    vector = embedded([text])[0]

    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) > 0


def test_nothing_in_nothing_out_and_closing_twice_is_fine() -> None:
    engine = HashingEngine(dimensions=48)

    assert engine.run(engine.prepare([], truncate=True)).shape == (0, 48)
    engine.close()
    engine.close()


def sparse(texts: list[str]) -> list[Sparse]:
    engine = HashingEngine(dimensions=64)
    return engine.run_sparse(engine.prepare(texts, truncate=True))


def test_sparse_embeddings_are_ascending_places_with_weights_above_zero() -> None:
    texts = ["otters hold hands, otters sleep", "", "東京都 otters", "!?", "the"] * 3

    together = sparse(texts)

    assert len(together) == len(texts)
    for text, row in zip(texts, together, strict=True):
        alone = sparse([text])[0]
        assert (row.ids.tolist(), row.weights.tolist()) == (alone.ids.tolist(), alone.weights.tolist())
        assert row.ids.dtype == np.int64
        assert row.weights.dtype == np.float32
        assert bool((np.diff(row.ids) > 0).all())
        assert bool((row.weights > 0).all())
        assert row.ids.size == 0 or 0 <= row.ids[0] <= row.ids[-1] < 2**31
    assert not together[1].ids.size


def test_sparse_embeddings_share_places_for_shared_words_only() -> None:
    one, other, apart = sparse(["otters sleep", "a sleepy otters' den", "whales sing"])

    assert {*one.ids.tolist()} & {*other.ids.tolist()}
    assert not {*one.ids.tolist()} & {*apart.ids.tolist()}
    word = sparse(["otter otter otter otter"])[0]
    assert word.weights.max() == pytest.approx(2.0)  # the square root of how often it comes


def test_there_are_no_vectors_of_tokens() -> None:
    engine = HashingEngine(dimensions=64)

    assert isinstance(engine, TokenEngine)
    assert engine.outputs == {"sparse"}
    with pytest.raises(EngineFailed, match="no vectors of tokens"):
        engine.run_tokens(engine.prepare(["a"], truncate=True))
