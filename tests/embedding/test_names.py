"""What a name stands for."""

import pytest

from appliance.embedding.fit import Fit
from appliance.embedding.names import Names
from appliance.embedding.spec import HashSpec
from appliance.errors import InvalidInput, ModelNotFound


def card(name: str, *aliases: str) -> HashSpec:
    return HashSpec(name=name, family="hash", engine="hash", aliases=aliases, dimensions=64, max_tokens=100)


def names(*cards: HashSpec, **options: object) -> Names:
    return Names(cards, default=cards[0].name, fit=Fit(), present=lambda _: True, **options)  # type: ignore[arg-type]  # as given


def test_openais_names_stand_for_the_default_unless_an_alias_says_otherwise() -> None:
    found = names(card("a"), card("b"), aliases={"text-embedding-3-large": "b", "Mine": "B:latest"})

    assert found.card("text-embedding-3-small").name == "a"
    assert found.card("text-embedding-3-large").name == "b"
    assert found.card("mine").name == "b"
    assert found.aliases()["mine"] == "b"


def test_an_alias_of_the_settings_wins_over_a_cards_own_and_over_a_name() -> None:
    found = names(card("a", "x"), card("b"), aliases={"x": "b", "b": "a"})

    assert found.card("x").name == "b"
    assert found.card("b").name == "a"


def test_an_alias_may_stand_for_an_alias_written_before_it() -> None:
    found = names(card("a"), card("b"), aliases={"one": "b", "two": "one"})

    assert found.card("two").name == "b"


def test_an_alias_of_nothing_is_refused_by_its_name() -> None:
    with pytest.raises(ModelNotFound, match="the alias x stands for nowhere"):
        names(card("a"), aliases={"x": "nowhere"})


def test_the_default_may_be_an_alias_of_the_settings() -> None:
    found = Names([card("a"), card("b")], default="x", fit=Fit(), present=lambda _: True, aliases={"x": "b"})

    assert found.default.name == "b"


def test_two_cards_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInput, match="two cards are named 'a'"):
        names(card("a"), card("a"))
