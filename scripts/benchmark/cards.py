"""The shipped cards by name."""

from appliance.embedding.spec import ModelSpec, read_cards
from appliance.settings import shipped


def shipped_card(name: str) -> ModelSpec:
    """The card of a shipped model that embeds, by its own name. StopIteration where there is none."""
    return next(card for card in read_cards(shipped("config") / "models") if card.task == "embed" and card.name == name)
