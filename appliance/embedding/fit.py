"""Which of the models that answer to one name, or give vectors of one space, this machine should run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from appliance.embedding.spec import Card, RkllmRerankerSpec, RkllmSpec
from appliance.errors import InvalidInput

Policy: TypeAlias = Literal["auto", "npu", "cpu"]

_UNSUITED = 2

_USUAL = "rk3588"
"""The board that most have: meant where nobody knows which."""

C = TypeVar("C", bound=Card)


@dataclass(frozen=True, slots=True)
class Fit:
    """What the setting `engine` and the board say.

    Attributes:
        policy: `npu`: the NPU or an error; `cpu`: never the NPU; `auto`: the NPU where there is one, else the CPU.
        platform: what this board's NPU runs ("rk3588"); "" where there is none, or nobody knows.
    """

    policy: Policy = "auto"
    platform: str = ""

    def ordered(self, cards: Sequence[C]) -> list[C]:
        """The cards, those that suit this machine first, otherwise as they came. None is left out: one that does not
        suit tells why when it is asked for.
        """
        return sorted(cards, key=self._rank)

    def preferred(self, cards: Sequence[C], present: Callable[[C], bool]) -> C:
        """Which of several cards a name stands for that they share.

        Args:
            cards: at least one.
            present: whether a card's files are here.
        """
        ordered = self.ordered(cards)
        if self.insists(ordered[0]):
            return ordered[0]
        return next((card for card in ordered if self.allows(card) and present(card)), ordered[0])

    def allows(self, card: Card) -> bool:
        """Whether the policy lets the card's engine run at all."""
        return self.policy != "cpu" or not on_npu(card)

    def suits(self, card: Card) -> bool:
        """Whether the card is one for this machine and policy."""
        return self._rank(card)[0] < _UNSUITED

    def check_default(self, default: Card, cards: Sequence[Card]) -> None:
        """See to it that the default model is one that the policy wants.

        Raises:
            InvalidInput: the policy is the NPU, and the default model runs on the CPU.
        """
        if self.policy == "npu" and not on_npu(default):
            known = [card for card in self.ordered(cards) if on_npu(card) and card.task == "embed"]
            here = [card for card in known if self.suits(card)] or known
            raise InvalidInput(
                f"the setting engine is npu, and {default.name} runs on the CPU; models for the NPU are"
                f" {', '.join(card.name for card in here)}",
                param="model",
            )

    def insists(self, card: Card) -> bool:
        """Whether nothing may stand in for the card's engine, should it not be had."""
        return self.policy == "npu" and on_npu(card)

    def _rank(self, card: Card) -> tuple[int, bool]:
        if not isinstance(card, RkllmSpec | RkllmRerankerSpec):
            return 1, False
        here = card.platform == self.platform or (self.policy == "npu" and not self.platform)
        return 0 if here and self.allows(card) else _UNSUITED, card.platform != _USUAL


def on_npu(card: Card) -> bool:
    """Whether a card's model runs on the NPU."""
    return isinstance(card, RkllmSpec | RkllmRerankerSpec)
