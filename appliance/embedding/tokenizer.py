"""From text to token ids, as a model's `tokenizer.json` says, cut to what the model takes."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from appliance.embedding.engine import Ids, Prompt, Token
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
            raise EngineUnavailable("tokenizer.json cannot be read: it is damaged; bring the model again") from error
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

    @property
    def around(self) -> tuple[Ids, Ids]:
        """The special tokens before and after every text."""
        return self._head, self._tail

    @property
    def special_ids(self) -> Ids:
        """Ids of the tokens that stand for no text: beginning, end, padding, unknown and the like."""
        added = self._tokenizer.get_added_tokens_decoder()
        return np.array(sorted(number for number, token in added.items() if token.special), np.int64)

    @property
    def vocabulary(self) -> int:
        """Tokens there are, added ones included; ids are below it."""
        return self._vocabulary

    def special_tokens_are_text(self) -> None:
        """From now on take a special token's name in a text for what it is, a few letters: nobody's text may then end a
        prompt early. The special tokens around a text stay.
        """
        self._tokenizer.encode_special_tokens = True

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
        limit = self._limit(max_tokens)
        if limit <= self.specials:
            raise InvalidInput("input after truncation exceeds maximum context length", param="input")
        texts = self._bounded([each for each in inputs if isinstance(each, str)], limit - self.specials)
        return [
            self._prompt(
                next(texts) if isinstance(each, str) else _Read(self._known(each), whole=True),
                limit=limit,
                truncate=truncate,
            )
            for each in inputs
        ]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The character range of each token of `text`, without special tokens, in order."""
        # `encode` holds the GIL for as long as it takes, `encode_batch` does not.
        offsets: list[tuple[int, int]] = self._tokenizer.encode_batch([text], add_special_tokens=False)[0].offsets
        return offsets

    def tokenize(self, texts: Sequence[str], *, special_tokens: bool) -> list[list[Token]]:
        """Every token of each text, with the special ones around it if wanted. Nothing is cut."""
        found: list[list[Token]] = []
        for part in _portions(list(enumerate(texts)), _FURTHEST):
            encodings = self._tokenizer.encode_batch([text for _, text in part], add_special_tokens=special_tokens)
            found += [_tokens(text, encoding) for (_, text), encoding in zip(part, encodings, strict=True)]
        return found

    def decode(self, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of each list of token ids.

        Raises:
            InvalidInput: a token id that the model does not have.
        """
        known = [list(self._known(each)) for each in ids]
        texts: list[str] = self._tokenizer.decode_batch(known, skip_special_tokens=skip_special_tokens)
        return texts

    def _limit(self, max_tokens: int | None) -> int:
        return self._max_tokens if max_tokens is None else min(max_tokens, self._max_tokens)

    def _bounded(self, texts: Sequence[str], most: int) -> Iterator["_Read"]:
        """The tokens of each text, in order: all, or so many that there are more than `most`."""
        found: dict[int, _Read] = {}
        left = list(enumerate(texts))
        reach = _REACH * most + self._margin
        while left:
            short = []
            for index, text, ids in self._read(left, reach):
                whole = len(text) <= reach
                if whole or len(ids) > most or reach >= _FURTHEST:
                    found[index] = _Read(ids, whole=whole)
                else:
                    short.append((index, text))
            left = short
            reach = min(reach * _FURTHER, _FURTHEST)
        return (found[index] for index in range(len(texts)))

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

    def _prompt(self, read: "_Read", *, limit: int, truncate: bool) -> Prompt:
        room = limit - self.specials
        if not truncate:
            _check_length(len(read.ids) + self.specials, limit=limit, whole=read.whole)
        content: Ids = np.concatenate([self._head, np.array(read.ids[:room], np.int64), self._tail])
        return Prompt(content, tokens=len(content), truncated=len(read.ids) > room or not read.whole)


class PairTokenizer(Tokenizer):
    """A model's own tokenizer, where the model reads two texts as one input: `[CLS] query [SEP] passage [SEP]`.

    What stands before, between and behind the two, and which tokens are of the second type, is what the file's
    post-processor says of pairs.

    Args:
        path: as for `Tokenizer`.
        max_tokens: tokens that the model takes, special tokens included.

    Raises:
        EngineUnavailable: the file is no tokenizer, or does not say how two texts are told apart.
    """

    def __init__(self, path: Path, *, max_tokens: int) -> None:
        super().__init__(path, max_tokens=max_tokens)
        probe = self._tokenizer.encode("a", "a")
        owners = probe.sequence_ids  # 0 and 1 for the two texts, None for special tokens
        if not (0 in owners and 1 in owners and None in owners[owners.index(0) : owners.index(1)]):
            raise EngineUnavailable("tokenizer.json does not say how a query and a passage are told apart")
        ids, types = np.array(probe.ids, np.int64), np.array(probe.type_ids, np.int64)
        first, second = owners.index(0), owners.index(1)
        around = (slice(first), slice(first + owners.count(0), second), slice(second + owners.count(1), None))
        self._around = [(ids[part], types[part]) for part in around]
        self._types = (types[first], types[second])

    @property
    def pair_specials(self) -> int:
        """Special tokens that every pair costs: 3 for `[CLS] query [SEP] passage [SEP]`."""
        return sum(len(ids) for ids, _ in self._around)

    def encode_pairs(
        self, query: str, passages: Sequence[str], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Tokenise the query with each passage. Texts are read as far as `encode` reads them.

        A pair that is too long loses the end of the passage. A query that takes more than half of the room gives way to
        the passage down to that half.

        Args:
            query: the first text of each pair.
            passages: the second, in order.
            truncate: cut, or refuse.
            max_tokens: a tighter limit than the model's own, special tokens included.

        Raises:
            InputTooLong: a pair is too long and `truncate` is false.
            InvalidInput: a limit that leaves no room for a token of each text.
        """
        limit = self._limit(max_tokens)
        room = limit - self.pair_specials
        if room < 2:  # noqa: PLR2004  # one for each
            raise InvalidInput("the query after truncation leaves no room for a passage", param="query")
        (asked,) = self._bounded([query], room)
        prompts = []
        for passage in self._bounded(passages, room):
            whole = asked.whole and passage.whole
            if not truncate:
                tokens = len(asked.ids) + len(passage.ids) + self.pair_specials
                _check_length(tokens, limit=limit, whole=whole)
            ids = asked.ids[: max(room // 2, room - len(passage.ids))]
            second = passage.ids[: room - len(ids)]
            content, types = self._joined(ids, second)
            cut = len(ids) < len(asked.ids) or len(second) < len(passage.ids) or not whole
            prompts.append(Prompt(content, tokens=len(content), truncated=cut, types=types))
        return prompts

    def _joined(self, first: Sequence[int], second: Sequence[int]) -> tuple[Ids, Ids | None]:
        head, between, tail = self._around
        one, two = self._types
        parts = [head, (first, np.full(len(first), one)), between, (second, np.full(len(second), two)), tail]
        content: Ids = np.concatenate([np.array(ids, np.int64) for ids, _ in parts])
        types: Ids = np.concatenate([types for _, types in parts])
        return content, types if types.any() else None


class _Read(NamedTuple):
    """Tokens of a text, and whether they are all there are."""

    ids: Sequence[int]
    whole: bool


def _tokens(text: str, encoding: tokenizers.Encoding) -> list[Token]:
    return [
        Token(ident, token, special=True, start=None, stop=None)
        if special
        else Token(ident, text[start:stop], special=False, start=start, stop=stop)
        for ident, token, special, (start, stop) in zip(
            encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
        )
    ]


def _check_length(tokens: int, *, limit: int, whole: bool) -> None:
    if tokens > limit:
        raise InputTooLong(tokens=tokens if whole else limit + 1, limit=limit, exact=whole)
    if not whole:
        raise InvalidInput(f"the input length exceeds the context length: over {_FURTHEST} characters", param="input")


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


def byte_level(vocabulary: Path, merges: Path) -> str:
    """The `tokenizer.json` of a model of RoBERTa's kind that has only `vocab.json` and `merges.txt`: byte-level pairs,
    `<s>` before and `</s>` behind every text (Liu et al. 2019).

    Raises:
        EngineUnavailable: the files are damaged, or of another kind.
    """
    try:
        made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the library raises nothing narrower
        raise EngineUnavailable("vocab.json and merges.txt cannot be read: bring the model again") from error
    found = {name: made.token_to_id(name) for name in ("<s>", "</s>", "<pad>", "<unk>")}
    ids = {name: token for name, token in found.items() if token is not None}
    if len(ids) < len(found):
        raise EngineUnavailable("vocab.json has no <s>, </s>, <pad> and <unk>: the model needs its tokenizer.json")
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
    )
    made.add_special_tokens(list(ids))
    if made.token_to_id("<mask>") is not None:
        made.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    return made.to_str()
