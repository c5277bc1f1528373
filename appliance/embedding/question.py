"""What a decoder that reranks is asked: the card's words around query and passage, as token ids."""

from collections.abc import Sequence

import numpy as np

from appliance.embedding.engine import Ids, Prompt
from appliance.embedding.spec import Asks
from appliance.embedding.tokenizer import Tokenizer
from appliance.errors import InputTooLong, InvalidInput


class Question:
    """Writes prompts for a decoder that answers yes or no. Any thread may call `encode_pairs`.

    Args:
        spec: the card.
        tokenizer: the model's own, and this one's alone: special tokens in query and passage become plain text.
    """

    def __init__(self, spec: Asks, tokenizer: Tokenizer) -> None:
        self._spec = spec
        self._tokenizer = tokenizer
        self._opening, self._closing = map(self._bare, tokenizer.encode([spec.opening, spec.closing], truncate=False))
        tokenizer.special_tokens_are_text()

    def encode_pairs(
        self, query: str, passages: Sequence[str], *, truncate: bool, max_tokens: int | None = None
    ) -> list[Prompt]:
        """Tokenise, as `RerankEngine.prepare` says. The end of a passage is cut, never what the model is asked."""
        limit = self._spec.max_tokens if max_tokens is None else min(max_tokens, self._spec.max_tokens)
        room = limit - len(self._opening) - len(self._closing)
        asked = f"{self._spec.before}{query}{self._spec.between}"
        (question,) = self._tokenizer.encode([asked], truncate=True)
        if question.truncated or question.tokens >= room:
            raise InvalidInput(f"the query leaves no room for a passage in {limit} tokens", param="query")
        prompts = []
        for prompt in self._tokenizer.encode([asked + passage for passage in passages], truncate=True):
            ids = self._bare(prompt)
            cut = prompt.truncated or len(ids) > room
            if cut and not truncate:
                raise InputTooLong(tokens=limit + 1, limit=limit, exact=False)
            ids = np.concatenate([self._opening, ids[:room], self._closing])
            prompts.append(Prompt(ids, tokens=len(ids), truncated=cut))
        return prompts

    def _bare(self, prompt: Prompt) -> Ids:
        """The ids without the special tokens that the tokenizer puts around any text."""
        head, tail = self._tokenizer.around
        ids = np.asarray(prompt.content, np.int64)
        return ids[len(head) : len(ids) - len(tail)]
