"""Feature hashing: vectors from words and their letters, with no model; the same on every machine.

It is honest about being lexical: texts are near when they share words or pieces of words, not when they mean the same.
Whatever changes a vector must change the card's `space` too.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from appliance.embedding.engine import Matrix, Output, Prompt, Sparse
from appliance.errors import EngineFailed, InputTooLong, InvalidInput

_Numbers: TypeAlias = npt.NDArray[np.uint64]

# Code points are listed because what Python calls a letter changes from version to version.
_BETWEEN = (
    r"\x00-/:-@\[-`{-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7"  # ASCII and Latin-1, but letters and digits
    r"\u1680\u2000-\u206f\u20a0-\u20cf\u2190-\u2bff\u2e00-\u2e7f"  # spaces, punctuation, currency, arrows, symbols
    r"\u3000-\u3004\u3008-\u3020\u3030\u30fb\ufe10-\ufe1f\ufe30-\ufe6f"  # of Chinese and Japanese
    r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"  # full width
)
_NO_SPACES = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    r"\u3005-\u3007\u3021-\u302f\u3031-\u30fa\u30fc-\u312f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"  # Chinese and Japanese
)
_WORD = re.compile(rf"[{_NO_SPACES}]|[^{_BETWEEN}{_NO_SPACES}]{{1,32}}")
"""A word. In a script written without spaces each character is one; a run of more than 32 characters is several."""

_FUNCTION_WORDS = frozenset(
    """
    a an and are as at be been but by can did do does for from had has have he her his how i if in into is it its
    may more most no nor not of on or our she so such than that the their them then there these they this those to
    was we were what when where which while who will with would you your
    """.split()  # noqa: SIM905 - ninety quoted words are hard to read
)
"""They say nothing of what an English text is about, and are in all of them; dropped unless there is nothing else."""

_GRAM = 4
_GRAM_WEIGHT = 0.8
_FIRST_BLOCK = 32
_SLICE = 1 << 18
"""Characters hashed at a time: bounds memory to some tens of megabytes, however long the texts are."""

_ROWS = 256
"""Texts hashed at a time: a third quicker than a thousand, whose numbers fall out of the processor's cache. A key has
room for 65,536.
"""
_SPARSE = 31
"""Bits of a feature's place in a sparse embedding: what databases for such take, and hardly ever two in one place."""

_SPACE, _TEXT_END = 32, 10
_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_BASE = np.uint64(_ODD)
_ROW = np.uint64(48)  # a key is 16 bits of row, one that tells pieces from words, 47 of hash
_PIECE = np.uint64(1 << 47)
_HASH = np.uint64((1 << 47) - 1)


class HashingEngine:
    """An `EmbeddingEngine` that counts words and groups of four letters (Weinberger et al. 2009, signed).

    A feature falls into one place of each block 0-32, 32-64, 64-128, ..., with a weight that gives all places equal
    share. That costs no precision against one place in the whole vector, and the front of a vector is a vector too.

    Args:
        dimensions: length of the vectors, 32 to 4096.
        max_tokens: words of one input.
        lanes: threads that may be inside `run` at once.

    Raises:
        InvalidInput: `dimensions` out of range.
    """

    label = "hash"
    batch_tokens = 32_768
    outputs: frozenset[Output] = frozenset({"sparse"})

    def __init__(self, *, dimensions: int, max_tokens: int = 8192, lanes: int = 1) -> None:
        if not _FIRST_BLOCK <= dimensions <= 4096:  # noqa: PLR2004 - the engine's stated range
            raise InvalidInput(f"feature hashing takes 32 to 4096 dimensions, not {dimensions}", param="dimensions")
        self.lanes = lanes
        self._dimensions = dimensions
        self._max_tokens = max_tokens
        doubling = itertools.takewhile(lambda edge: edge < dimensions, (_FIRST_BLOCK << n for n in itertools.count()))
        self._blocks = list(itertools.pairwise([0, *doubling, dimensions]))

    def prepare(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Find the words; a text without any costs one token. See `EmbeddingEngine.prepare`.

        Raises:
            InputTooLong: more words than the limit, and `truncate` is false.
            InvalidInput: token ids (there is no vocabulary), or a limit below 1.
        """
        limit = self._max_tokens if max_tokens is None else min(max_tokens, self._max_tokens)
        if limit < 1:
            raise InvalidInput(f"a limit of {limit} tokens leaves no room for the text", param="max_tokens")
        return [self._prompt(text, limit=limit, truncate=truncate) for text in inputs]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The character range of each word, in order."""
        return [match.span() for match in _WORD.finditer(text)]

    def run(self, prompts: Sequence[Prompt]) -> Matrix:
        """Vectors of the prompts; none is all zeros, not even of a text without a word, nor are its first 32."""
        vectors = np.empty((len(prompts), self._dimensions), dtype=np.float32)
        for first, texts in _slices(prompts):
            rows, weights, hashes = _features(texts)
            for low, high in self._blocks:
                width = high - low
                mixed = _mixed(hashes + np.uint64((low + 1) * _ODD % 2**64))
                place = (mixed >> np.uint64(32)) * np.uint64(width) >> np.uint64(32)
                sign = 1.0 - 2.0 * (mixed & np.uint64(1)).astype(np.float64)
                block = np.bincount(
                    rows * width + place.astype(np.int64),
                    weights=sign * weights * np.sqrt(width / self._dimensions),
                    minlength=len(texts) * width,
                )
                vectors[first : first + len(texts), low:high] = block.reshape(len(texts), width)
        # No word at all, or (hardly ever) features that cancel out: a vector of zeros has no direction.
        vectors[~vectors[:, :_FIRST_BLOCK].any(axis=1), 0] = 1.0
        return vectors

    def run_sparse(self, prompts: Sequence[Prompt]) -> list[Sparse]:
        """The features themselves, each in one of 2^31 places, and their weights; none for a text without a word."""
        found: list[Sparse] = []
        for _, texts in _slices(prompts):
            rows, weights, hashes = _features(texts)
            places = (_mixed(hashes) >> np.uint64(64 - _SPARSE)).astype(np.int64)
            keys, inverse = np.unique((rows << _SPARSE) | places, return_inverse=True)
            summed = np.bincount(inverse, weights=weights, minlength=len(keys)).astype(np.float32)
            borders = np.searchsorted(keys, np.arange(1, len(texts)) << _SPARSE)
            ids = np.split(keys & ((1 << _SPARSE) - 1), borders)
            found += [Sparse(*each) for each in zip(ids, np.split(summed, borders), strict=True)]
        return found

    def run_tokens(self, prompts: Sequence[Prompt]) -> list[Matrix]:
        """Not among its outputs.

        Raises:
            EngineFailed: always.
        """
        raise EngineFailed(f"feature hashing has no vectors of tokens, asked for {len(prompts)} texts")

    def close(self) -> None:
        """Nothing to let go of."""

    def _prompt(self, text: str | Sequence[int], *, limit: int, truncate: bool) -> Prompt:
        if not isinstance(text, str):
            raise InvalidInput("feature hashing has no vocabulary: send text, not token ids", param="input")
        # One more than the limit tells that there are more; a text of millions is not taken apart for it.
        words = [match[0] for match in itertools.islice(_WORD.finditer(text), limit + 1)]
        count = len(words)
        if count > limit:
            if not truncate:
                raise InputTooLong(tokens=count, limit=limit, exact=False)
            words = words[:limit]
        # Normalised only now that words are short: reordering a long run of accents takes quadratic time.
        words = unicodedata.normalize("NFKC", " ".join(words)).casefold().split()
        content = " ".join([word for word in words if word not in _FUNCTION_WORDS] or words)
        return Prompt(content, tokens=max(min(count, limit), 1), truncated=count > limit)


def _slices(prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[str]]]:
    """Neighbours that are hashed together, with the index of the first of them."""
    texts: list[str] = []
    characters = 0
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt.content, str):
            raise EngineFailed("a prompt of another engine")
        if texts and (characters + len(prompt.content) > _SLICE or len(texts) == _ROWS):
            yield index - len(texts), texts
            texts, characters = [], 0
        texts.append(prompt.content)
        characters += len(prompt.content)
    if texts:
        yield len(prompts) - len(texts), texts


def _features(texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], _Numbers]:
    """Row, weight and hash of each different feature of each text. A feature that comes n times weighs sqrt(n)."""
    joined = "".join(f" {text} \n" for text in texts).encode("utf-32-le", "surrogatepass")
    codes: _Numbers = np.frombuffer(joined, dtype="<u4").astype(np.uint64)
    row = np.cumsum(codes == _TEXT_END).astype(np.uint64) << _ROW
    letter = codes > _SPACE

    starts = np.flatnonzero(letter[1:] & ~letter[:-1]) + 1
    words = _hashed_words(codes, letter, starts)
    inner = np.flatnonzero(letter[1:-2] & letter[2:-1])  # a group's ends may be the spaces around its word
    groups = _polynomial(codes, inner, range(_GRAM))
    single = starts[~letter[starts + 1]]  # words of one character: where there are no spaces, pairs of them tell more
    pairs = single[:-1][(single[1:] == single[:-1] + 2) & (codes[single[:-1]] > 0xFF)]  # noqa: PLR2004 - Latin-1 ends
    keys = np.concatenate(
        [
            row[starts] | words,
            row[inner] | _PIECE | groups,
            row[pairs] | _PIECE | _polynomial(codes, pairs, (0, 2)),
        ]
    )
    features, times = np.unique(keys, return_counts=True)
    weights = np.sqrt(times) * np.where(features & _PIECE, _GRAM_WEIGHT, 1.0)
    return (features >> _ROW).astype(np.int64), weights, features & (_PIECE | _HASH)


def _hashed_words(codes: _Numbers, letter: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64]) -> _Numbers:
    """47 bits for each word, a polynomial of its characters modulo 2^64, mixed."""
    if not len(starts):
        return np.empty(0, dtype=np.uint64)
    ends = np.append(starts[1:], len(codes))
    place = np.arange(starts[0], len(codes)) - np.repeat(starts, ends - starts)
    powers = np.cumprod(np.full(int(place.max()) + 1, _BASE, dtype=np.uint64))
    terms = np.where(letter[starts[0] :], codes[starts[0] :], 0) * powers[place]
    hashes: _Numbers = _mixed(np.add.reduceat(terms, starts - starts[0])) & _HASH
    return hashes


def _polynomial(codes: _Numbers, places: npt.NDArray[np.int64], offsets: Sequence[int]) -> _Numbers:
    """47 bits for the characters at `offsets` from each of `places`."""
    total = np.zeros(len(places), dtype=np.uint64)
    for offset in offsets:
        total = total * _BASE + codes[places + offset]
    return _mixed(total) & _HASH


def _mixed(numbers: _Numbers) -> _Numbers:
    """Every bit of the result depends on every bit (finaliser of MurmurHash3, Appleby 2011, public domain)."""
    numbers = (numbers ^ (numbers >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    numbers = (numbers ^ (numbers >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return numbers ^ (numbers >> np.uint64(33))
