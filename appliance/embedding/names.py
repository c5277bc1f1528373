"""Which card a name stands for."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from appliance.embedding.fit import Fit
from appliance.embedding.spec import Card, ModelSpec, RerankerSpec, check_spaces, plain
from appliance.errors import InvalidInput, ModelMismatch, ModelNotFound

OPENAI_NAMES = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
"""Names that programs ask for unasked: each stands for the default model, unless an alias says otherwise."""


class Names:
    """The cards there are, by every name they have. Never changes: new cards make a new one.

    Args:
        cards: names unique without regard to case. Several may have one alias: it stands for the one that suits this
            machine best, and of equals for the first whose files are here.
        default: name or alias of the model that OpenAI's names stand for.
        reranker: name or alias of the model that reranks where a request names none; empty for none in particular.
        aliases: more names, each with the name or alias that it stands for; these win.
        fallback: names of what answers for a model whose card names nothing.
        fit: which cards suit this machine.
        present: whether a card's model is here.

    Raises:
        ModelNotFound: no card for `default`, `reranker`, a fallback, or what an alias stands for.
        InvalidInput: two cards of one name, or of one space and unequal dimensions; or `default` or a fallback does not
            embed, or `reranker` does not rerank; or a model falls back on itself, by whatever way.
    """

    def __init__(
        self,
        cards: Iterable[Card],
        *,
        default: str,
        fit: Fit,
        present: Callable[[Card], bool],
        reranker: str = "",
        aliases: Mapping[str, str] | None = None,
        fallback: Sequence[str] = (),
    ) -> None:
        self._fit = fit
        self._present = present
        self.by_name: dict[str, Card] = {}
        """Every card by its own name."""
        for card in cards:
            if card.name in self.by_name:
                raise InvalidInput(f"two cards are named {card.name!r}")
            self.by_name[card.name] = card
        check_spaces(self.by_name.values())
        self._aliases: dict[str, list[Card]] = {}
        for card in self.by_name.values():
            for alias in card.aliases:
                self._aliases.setdefault(alias.lower(), []).append(card)
        for alias, name in (aliases or {}).items():
            self._aliases[plain(alias)] = [self._meant(alias, name)]
        self.default = self.resolve(default)
        """The model where a request names none."""
        for name in OPENAI_NAMES:
            self._aliases.setdefault(name, [self.default])
        self.reranker = self.resolve_reranker(reranker) if reranker else None
        """The reranker where a request names none, if it is settled."""
        chain = [self._found(name, "the setting fallback names it") for name in fallback]
        self._fallback = list({card.name: card for card in chain}.values())
        for card in self.by_name.values():
            if card.task == "embed":
                self.chain(card)

    def all(self) -> list[Card]:
        """Every card, the default first."""
        return [self.default, *(card for card in self.by_name.values() if card is not self.default)]

    def aliases(self) -> Mapping[str, str]:
        """Lower-case alias to the name of the card that it stands for now."""
        return {alias: self._fit.preferred(cards, self._present).name for alias, cards in self._aliases.items()}

    def card(self, name: str) -> Card:
        """The card of a name or alias, in any case, with or without `:latest`.

        Raises:
            ModelNotFound: none has it.
        """
        wanted = plain(name)
        if cards := self._aliases.get(wanted):
            return self._fit.preferred(cards, self._present)
        if card := self.by_name.get(wanted):
            return card
        raise ModelNotFound(f'model "{name}" not found, try pulling it first', name=name)

    def resolve(self, name: str) -> ModelSpec:
        """The card to embed with, of a name or alias as for `card`.

        Raises:
            ModelNotFound: none has it.
            InvalidInput: the card is of a model that does not embed.
        """
        card = self.card(name)
        if card.task == "rerank":
            raise InvalidInput(f'"{name}" does not support embeddings', param="model")
        return card

    def resolve_reranker(self, name: str) -> RerankerSpec:
        """The card to rerank with, of a name or alias as for `card`.

        Raises:
            ModelNotFound: none has it.
            InvalidInput: the card is of a model that does not rerank.
        """
        card = self.card(name)
        if card.task != "rerank":
            raise InvalidInput(f'"{name}" does not support reranking', param="model")
        return card

    def chain(self, spec: ModelSpec) -> list[ModelSpec]:
        """What answers for a model, in order: what its card names, then what those cards name; else the settings'.

        Raises:
            ModelNotFound: a card names a model that is none.
            InvalidInput: a model in it does not embed, or the chain leads back to where it was.
        """
        if not spec.fallback:
            return [card for card in self._fallback if card is not spec]
        found: list[ModelSpec] = []
        self._follow(spec, (spec,), found)
        return found

    def asked_chain(self, spec: ModelSpec, names: Sequence[str]) -> list[ModelSpec]:
        """A chain that a caller names.

        Raises:
            ModelNotFound: a name of no model.
            InvalidInput: a model that does not embed, or one that is named twice or is `spec` itself.
        """
        found = [self.resolve(name) for name in names]
        for place, card in enumerate(found):
            if card is spec or card in found[:place]:
                raise InvalidInput(f"the fallback chain comes back to {card.name}", param="use_fallback")
        return found

    def within(
        self, space: str, made_with: str, *, loaded: Callable[[Card], bool], asked: str | None = None
    ) -> ModelSpec:
        """The card to embed with where vectors of `space` are wanted; as `Registry.within`.

        Args:
            space: what the vectors are to be compared with.
            made_with: the card that a collection was made with.
            loaded: whether a card's model is in memory.
            asked: a model the caller insists on.
        """
        if asked is not None:
            spec = self.resolve(asked)
            if spec.space == space:
                return spec
            raise ModelMismatch(
                f"the collection holds vectors of {space!r}, {spec.name!r} gives vectors of {spec.space!r}:"
                f" use {made_with!r}, or make a collection for {spec.name!r} and add the documents to it"
            )
        kin = [card for card in self.all() if card.task == "embed" and card.space == space]
        kin.sort(key=lambda card: (not self._fit.suits(card), card.name != made_with))
        for card in kin:
            if loaded(card) or self._present(card):
                return card
        if kin and kin[0].name == made_with:
            return kin[0]
        raise ModelMismatch(
            f"the collection holds vectors of {space!r} made with {made_with!r}, and no model here gives such vectors:"
            f" bring the card of {made_with!r} back, or make a new collection and add the documents to it"
        )

    def _follow(self, spec: ModelSpec, way: tuple[ModelSpec, ...], found: list[ModelSpec]) -> None:
        for name in spec.fallback:
            card = self._found(name, f"the card {spec.name} falls back on it")
            if card in way:
                names = " → ".join(each.name for each in (*way, card))
                raise InvalidInput(f"the fallback of {way[0].name} leads in a circle: {names}", param="fallback")
            if card not in found:
                found.append(card)
                self._follow(card, (*way, card), found)

    def _found(self, name: str, who: str) -> ModelSpec:
        try:
            return self.resolve(name)
        except ModelNotFound as error:
            raise ModelNotFound(f'there is no model "{name}": {who}', name=name) from error

    def _meant(self, alias: str, name: str) -> Card:
        try:
            return self.card(name)
        except ModelNotFound as error:
            message = f"the alias {alias} stands for {name}, and there is no such model"
            raise ModelNotFound(message, name=name) from error
