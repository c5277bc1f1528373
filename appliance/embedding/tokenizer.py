"""From text to token ids, as a model's `tokenizer.json` says, cut to what the model takes."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
import tokenizers

from appliance.embedding.engine import Ids, Prompt
from appliance.errors import EngineUnavailable, InputTooLong, InvalidInput

_REACH = 8
"""Characters read for each token wanted, at first: twice what prose needs."""

_FURTHER = 4
"""How much further to read when that gave too few."""

_FURTHEST = 1 << 20
"""Characters of one text that are ever read, if the model's own limit does not ask for more."""

_AT_ONCE = 1 << 18
"""Characters handed to the library at a time; it takes some 100 bytes, at worst 600, for each of them."""

_MARGIN = 16
"""Characters before a cut that may become other words than in the whole text: `'l` and `'ll`, marks on a letter."""


class Tokenizer:
    """A model's own tokenizer. Any thread may call any method at any time; long work lets go of the GIL.

    Args:
        path: a `tokenizer.json` of the `tokenizers` library. Padding and truncation set in it are ignored.
        max_tokens: tokens that the model takes, special tokens included.

    Raises:
        EngineUnavailable: the file is no tokenizer.
    """

    def __init__(self, path: Path, *, max_tokens: int) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise EngineUnavailable("tokenizer.json cannot be read; pull the model again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._max_tokens = max_tokens
        self._vocabulary = self._tokenizer.get_vocab_size(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._margin = max([_MARGIN, *(len(token.content) for token in added)])
        probe = self._tokenizer.encode("a")
        special = probe.special_tokens_mask
        head = len(list(takewhile(bool, special)))
        tail = len(list(takewhile(bool, reversed(special[head:]))))
        self._head = np.array(probe.ids[:head], np.int64)
        self._tail = np.array(probe.ids[len(special) - tail :], np.int64)

    @property
    def specials(self) -> int:
        """Special tokens that every input costs: 2 for `[CLS] … [SEP]`."""
        return len(self._head) + len(self._tail)

    def encode(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Tokenise texts, take token ids as they are, and put the special tokens around both.

        Of a long text only as much is read as the limit needs; what comes out is what the whole text would give. Only a
        text of which a million characters are not enough (one word, or nothing but spaces) ends there.

        Args:
            inputs: texts or token ids (without special tokens), in order.
            truncate: cut the end of what is too long, keeping the closing special token; or refuse it.
            max_tokens: a tighter limit than the model's own, special tokens included.

        Raises:
            InputTooLong: an input is too long and `truncate` is false.
            InvalidInput: a token id that the model does not have, or a limit that leaves no room for the text.
        """
        limit = self._max_tokens if max_tokens is None else min(max_tokens, self._max_tokens)
        if limit <= self.specials:
            raise InvalidInput("input after truncation exceeds maximum context length", param="input")
        prompts: dict[int, Prompt] = {}
        left: list[tuple[int, str]] = []
        for index, item in enumerate(inputs):
            if isinstance(item, str):
                left.append((index, item))
            else:
                prompts[index] = self._prompt(self._known(item), whole=True, limit=limit, truncate=truncate)
        reach = _REACH * limit + self._margin
        while left:
            short = []
            for index, text, ids in self._read(left, reach):
                whole = len(text) <= reach
                if whole or len(ids) > limit - self.specials or reach >= _FURTHEST:
                    prompts[index] = self._prompt(ids, whole=whole, limit=limit, truncate=truncate)
                else:
                    short.append((index, text))
            left = short
            reach = min(reach * _FURTHER, _FURTHEST)
        return [prompts[index] for index in range(len(inputs))]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The character range of each token of `text`, without special tokens, in order."""
        # `encode` holds the GIL for as long as it takes, `encode_batch` does not.
        offsets: list[tuple[int, int]] = self._tokenizer.encode_batch([text], add_special_tokens=False)[0].offsets
        return offsets

    def _read(self, texts: Sequence[tuple[int, str]], reach: int) -> Iterator[tuple[int, str, list[int]]]:
        """Each text with the tokens of its first `reach` characters that do not depend on those after them."""
        for part in _portions(texts, reach):
            encodings = self._tokenizer.encode_batch([text[:reach] for _, text in part], add_special_tokens=False)
            for (index, text), encoding in zip(part, encodings, strict=True):
                ids: list[int] = encoding.ids
                if ids and reach < min(len(text), _FURTHEST):
                    # Every word that comes near the cut, and the one before it, may be another word in the whole text.
                    words = [word for word in encoding.word_ids if word is not None]  # None: a special token, not here
                    near = bisect_right(encoding.offsets, reach - self._margin, key=lambda span: span[1])
                    ids = ids[: bisect_left(words, words[min(near, len(words) - 1)] - 1)]
                yield index, text, ids

    def _known(self, ids: Sequence[int]) -> Sequence[int]:
        if any(not 0 <= token < self._vocabulary for token in ids):
            raise InvalidInput(f"token ids must be from 0 to {self._vocabulary - 1} for this model", param="input")
        return ids

    def _prompt(self, ids: Sequence[int], *, whole: bool, limit: int, truncate: bool) -> Prompt:
        room = limit - self.specials
        if not truncate and len(ids) > room:
            tokens = len(ids) + self.specials if whole else limit + 1
            raise InputTooLong(tokens=tokens, limit=limit, exact=whole)
        if not (truncate or whole):
            raise InvalidInput(
                f"the input length exceeds the context length: over {_FURTHEST} characters", param="input"
            )
        content: Ids = np.concatenate([self._head, np.array(ids[:room], np.int64), self._tail])
        return Prompt(content, tokens=len(content), truncated=len(ids) > room or not whole)


def _portions(texts: Sequence[tuple[int, str]], reach: int) -> Iterator[Sequence[tuple[int, str]]]:
    """Neighbours whose first `reach` characters are `_AT_ONCE` together, or one text that has more."""
    first = characters = 0
    for place, (_, text) in enumerate(texts):
        size = min(len(text), reach)
        if place > first and characters + size > _AT_ONCE:
            yield texts[first:place]
            first, characters = place, 0
        characters += size
    if texts:
        yield texts[first:]
