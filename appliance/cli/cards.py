"""The models of the settings, as cards, and their files."""

import sys
from typing import TYPE_CHECKING

import typer

from appliance.cli import printing
from appliance.errors import InvalidInput, LicenseNotAccepted, UpstreamFailed

if TYPE_CHECKING:  # imported when they are needed
    from rich.console import Console

    from appliance.embedding.pull import ModelFiles
    from appliance.embedding.spec import Card
    from appliance.settings import Settings


def cards_of(settings: "Settings") -> list["Card"]:
    """Every card that the settings know of."""
    if settings.simulate_npu:
        from appliance.app import read_models

        return read_models(settings)
    from appliance.embedding.spec import read_cards
    from appliance.settings import shipped

    return read_cards(shipped("config") / "models", settings.cards)


def card_of(settings: "Settings", name: str) -> "Card":
    """The card of this name that suits this machine. Raises ModelNotFound."""
    from appliance.cli.models import named
    from appliance.embedding.engines.rkllm.board import this_board
    from appliance.embedding.fit import Fit
    from appliance.embedding.pull import ModelFiles

    files = ModelFiles(settings.models, offline=True)
    fit = Fit(settings.engine, "rk3588" if settings.simulate_npu else this_board() or "")
    cards = cards_of(settings)
    card = named(cards, name, fit=fit, present=files.present)
    if name == settings.model:
        fit.check_default(card, cards)  # before it is fetched
    return card


def default_of(settings: "Settings") -> "Card":
    """The card of the settings' model, once it is known that their models do what they are for."""
    for name, task in ((settings.model, "embed"), (settings.reranker, "rerank")):
        if name and card_of(settings, name).task != task:
            raise InvalidInput(f"{name} does not {task}; `appliance list` shows which models do", param=name)
    return card_of(settings, settings.model)


def bring_in(settings: "Settings", model: str, *, name: str | None, accept: bool) -> "Card":
    """Bring a model of the hub that no card names."""
    from appliance.cli.bringing import bring, is_repository

    if not is_repository(model):
        raise InvalidInput("--name and @revision go with a repository of the hub: organisation/name", param="model")
    console = printing.console(stderr=True)

    def licensed(files: "ModelFiles", spec: "Card") -> None:
        show_license(files, spec, accept=accept, command=model, console=console)

    return bring(settings, model, name=name, cards=cards_of(settings), licensed=licensed, console=console)


def fetch(settings: "Settings", spec: "Card", *, only_missing: bool, accept: bool = False) -> None:
    """Bring a model's files, once its licence is accepted where that is needed; said and shown to who looks on."""
    from appliance.cli.pulling import reported
    from appliance.embedding.pull import ModelFiles
    from appliance.embedding.spec import HasFiles

    files = ModelFiles(settings.models, offline=settings.offline)
    if not isinstance(spec, HasFiles) or (only_missing and files.present(spec)):
        return
    console = printing.console(stderr=True)
    show_license(files, spec, accept=accept, command=spec.name, console=console)
    console.print(f"pulling {spec.name} into {settings.models}", soft_wrap=True)
    try:
        with reported(console) as report:
            files.pull(spec, report)
    except UpstreamFailed:
        if spec.own:
            console.print(f"models/{files.folder(spec).name} is {files.folder(spec)}", soft_wrap=True)
        raise


def show_license(files: "ModelFiles", spec: "Card", *, accept: bool, command: str, console: "Console") -> None:
    """Say under which licence a model is, and have it accepted where that is needed: by the flag, or at a terminal."""
    console.print(f"licence: {spec.license or 'none is named'}", soft_wrap=True)
    if files.accepted(spec):
        return
    question = f"This licence may forbid some uses. Accept it for {spec.name}?"
    if accept or (sys.stdin.isatty() and console.is_terminal and typer.confirm(question, err=True)):
        files.accept(spec)
        return
    raise LicenseNotAccepted(
        f"the licence of {spec.name} ({spec.license or 'of its own'}) may forbid some uses: read it on the model's"
        f" page, then run `appliance pull {command} --accept-licence`"
    )
