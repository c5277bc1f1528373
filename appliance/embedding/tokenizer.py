"""From text to token ids, as a model's `tokenizer.json` says, cut to what the model takes."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
import tokenizers

from appliance.embedding.engine import Ids, Prompt
from appliance.errors import EngineUnavailable, InputTooLong, InvalidInput


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
        probe = self._tokenizer.encode("a")
        added = probe.special_tokens_mask
        head = len(list(takewhile(bool, added)))
        tail = len(list(takewhile(bool, reversed(added[head:]))))
        self._head = np.array(probe.ids[:head], np.int64)
        self._tail = np.array(probe.ids[len(added) - tail :], np.int64)

    @property
    def specials(self) -> int:
        """Special tokens that every input costs: 2 for `[CLS] … [SEP]`."""
        return len(self._head) + len(self._tail)

    def encode(
        self, inputs: Sequence[str | Sequence[int]], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Tokenise texts, take token ids as they are, and put the special tokens around both.

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
        encoded = iter(
            self._tokenizer.encode_batch_fast(
                [text for text in inputs if isinstance(text, str)], add_special_tokens=False
            )
        )
        return [
            self._prompt(
                next(encoded).ids if isinstance(item, str) else self._known(item), limit=limit, truncate=truncate
            )
            for item in inputs
        ]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The character range of each token of `text`, without special tokens, in order."""
        # `encode` holds the GIL for as long as it takes, `encode_batch` does not.
        offsets: list[tuple[int, int]] = self._tokenizer.encode_batch([text], add_special_tokens=False)[0].offsets
        return offsets

    def _known(self, ids: Sequence[int]) -> Sequence[int]:
        if any(not 0 <= token < self._vocabulary for token in ids):
            raise InvalidInput(f"token ids must be from 0 to {self._vocabulary - 1} for this model", param="input")
        return ids

    def _prompt(self, ids: Sequence[int], *, limit: int, truncate: bool) -> Prompt:
        room = limit - self.specials
        if len(ids) > room and not truncate:
            raise InputTooLong(tokens=len(ids) + self.specials, limit=limit)
        content: Ids = np.concatenate([self._head, np.array(ids[:room], np.int64), self._tail])
        return Prompt(content, tokens=len(content), truncated=len(ids) > room)
