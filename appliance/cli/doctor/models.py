"""What `doctor` finds of models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from appliance.cli.doctor.subject import Check, Status, Subject
from appliance.embedding.fit import Fit
from appliance.embedding.spec import RkllmRerankerSpec, RkllmSpec
from appliance.errors import ApplianceError, EngineUnavailable, InvalidInput

SMALLEST_MODEL: Final = 2**20
"""Bytes; what is smaller is no model but, for one, the pointer of a Git LFS file."""


def checks(subject: Subject) -> Iterator[Check]:
    """The default model, and every one for the NPU of which files are here."""
    try:
        cards = subject.cards
    except InvalidInput as error:
        yield Check("models", "fail", error.message, "correct or remove that card in cards/ of the data directory")
        return
    from appliance.cli.models import named

    if subject.settings.simulate_npu:
        yield _simulated(subject)
    fit = Fit(subject.settings.engine, subject.platform or "")
    try:
        card = named(
            [card for card in cards if card.task == "embed"],
            subject.settings.model,
            fit=fit,
            present=subject.files.present,
        )
        fit.check_default(card, cards)
    except ApplianceError as error:
        if not subject.settings.simulate_npu:  # whose models are no files
            yield Check("models", "fail", error.message, "set model to one of these")
    else:
        if subject.files.present(card):
            yield Check("models", "ok", f"{card.name} is the default and is installed")
        elif isinstance(card, RkllmSpec) and card.own:
            yield Check(
                "models",
                "fail",
                f"{card.name} is the default and is not installed; its files cannot be fetched",
                f"put {' and '.join(card.own)} into {subject.files.folder(card)}",
            )
        elif subject.settings.offline:
            yield Check(
                "models", "fail", f"{card.name} is the default and is not installed", f"appliance pull {card.name}"
            )
        else:
            yield Check("models", "ok", f"{card.name} is the default and is fetched by the first `appliance serve`")
    for each in subject.on_npu:
        yield _npu_model(subject, each)


def _simulated(subject: Subject) -> Check:
    if subject.machine.which("cc"):
        return Check("simulated npu", "warn", "an NPU is played: vectors tell which words texts share, no more", "")
    return Check("simulated npu", "fail", "it is built with a C compiler, and there is no cc", "apt install gcc")


def _npu_model(subject: Subject, card: RkllmSpec | RkllmRerankerSpec) -> Check:
    """One model for the NPU of which files are here."""
    name = f"model {card.name}"
    places = subject.places(card)
    grave: Status = "fail" if card.name == subject.settings.model else "warn"
    if lacking := [file for file, path in places.items() if not path.is_file()]:
        where = (
            f"put it into {subject.files.folder(card)}"
            if set(lacking) & set(card.own)
            else f"appliance pull {card.name}"
        )
        return Check(name, grave, f"not complete: {', '.join(lacking)} is not here", where)
    size = places[card.model].stat().st_size
    about = f"{card.model}, {size / 1e6:,.0f} MB, for {card.platform}, context {card.context}"
    if size < SMALLEST_MODEL:
        fix = "download it anew: this may be the pointer of a Git LFS file, or a web page"
        return Check(name, grave, f"{about}: that is too small for a model", fix)
    if subject.platform and card.platform != subject.platform:
        fix = f"take the file that was converted for {subject.platform}, and say so in its card"
        return Check(name, grave, f"{about}: it does not run on this {subject.platform}", fix)
    if subject.platform is None:
        return Check(name, grave, f"{about}: there is no NPU here to run it", "set model to one for the CPU")
    if told := _tokenizer(card, places[card.tokenizer]):
        fix = "take tokenizer.json from the very model that was converted, and compare eos and vocabulary of the card"
        return Check(name, grave, f"{about}; {told}", fix)
    return Check(name, "ok", about)


def _tokenizer(card: RkllmSpec | RkllmRerankerSpec, path: Path) -> str:
    """What is wrong with a model's tokenizer; "" where nothing is."""
    from appliance.embedding.tokenizer import Tokenizer

    try:
        tokenizer = Tokenizer(path, max_tokens=card.max_tokens)
    except EngineUnavailable as error:
        return error.message
    _, after = tokenizer.around
    if card.eos >= 0 and (not len(after) or int(after[-1]) != card.eos):
        closing = f"token {after[-1]}" if len(after) else "no token"
        return f"the tokenizer closes a text with {closing}, the card says eos = {card.eos}"
    if 0 < card.vocabulary < tokenizer.vocabulary:
        return f"the tokenizer has {tokenizer.vocabulary} tokens, more than the model's {card.vocabulary}"
    return ""
