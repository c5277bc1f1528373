"""A model of the hub that no card names: described, fetched, tried, and only then a card."""

import errno
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from appliance.cli.models import tried
from appliance.cli.pulling import reported
from appliance.embedding.hub import Hub
from appliance.embedding.pull import ModelFiles
from appliance.embedding.repository import REPOSITORY, REVISION, describe
from appliance.embedding.spec import NAME, Card, HasFiles, HubSource, check_spaces, plain, read_card
from appliance.embedding.writing import write_whole
from appliance.errors import ApplianceError, InvalidInput, StoreFull, StoreUnavailable, UpstreamFailed
from appliance.settings import Settings


def is_repository(asked: str) -> bool:
    """Whether a model's name may be that of a repository on the hub, with or without a revision."""
    return REPOSITORY.fullmatch(asked.partition("@")[0]) is not None


def bring(
    settings: Settings,
    asked: str,
    *,
    name: str | None,
    cards: Sequence[Card],
    licensed: Callable[[ModelFiles, Card], None],
    console: Console,
    hub: str | None = None,
) -> Card:
    """Bring a model of the hub here, with a card for it.

    The card is written last: whatever goes wrong before leaves no model that does not work.

    Args:
        settings: where cards and files are.
        asked: `organisation/name`, or that with `@` and a revision: a branch, a tag or a commit.
        name: of the card; None for the repository's own, or for that of the card that is for it already.
        cards: all that there are.
        licensed: shows the licence; raises LicenseNotAccepted where it has to be accepted and is not.
        console: for what happens.
        hub: address of another hub than HF_ENDPOINT's.

    Raises:
        InvalidInput: no such repository; its model cannot be run here; or the name is taken.
        UpstreamFailed: the hub did not answer.
        EngineUnavailable, EngineFailed: the model was fetched and does not work here; its files are removed again.
        StoreFull, StoreUnavailable: files or card cannot be written.
    """
    repo, at, revision = asked.partition("@")
    if not REPOSITORY.fullmatch(repo) or not REVISION.fullmatch(revision if at else "main") or ".." in asked:
        raise InvalidInput(f"{asked!r} names no repository of the hub, and no revision of one", param="model")
    if settings.offline:
        raise UpstreamFailed(f"no card names {repo}, and the hub is not asked for it: offline")
    mine = _own(settings.cards)
    old = _for(repo, mine, name)
    if old is not None and not revision:
        raise InvalidInput(
            f"the card {old.name} is for {repo} already: `appliance pull {old.name}` fetches its files, and"
            f" `appliance pull {repo}@main` makes it anew of what is newest",
            param="model",
        )
    chosen = old.name if old is not None else _free(repo, name, cards)
    place = next((path for path, card in mine.items() if card is old), settings.cards / f"{_file(chosen)}.toml")
    if old is None and place.exists():
        raise InvalidInput(f"cards/{place.name} is another model's card: choose another name with --name")
    others = [card for card in cards if card.name != chosen]
    taken = {alias.lower() for card in others for alias in card.aliases}
    console.print(f"reading {repo} on the hub")
    text, card = describe(Hub(endpoint=hub), repo, revision or "main", name=chosen, alias=repo.lower() not in taken)
    check_spaces([*others, card])
    console.print(text, soft_wrap=True)
    files = ModelFiles(settings.models, hub=hub)
    licensed(files, card)
    console.print(f"pulling {chosen} into {settings.models}", soft_wrap=True)
    with reported(console) as report:
        files.pull(card, report)
    try:
        console.print(f"tried it: {tried(settings, card, files)}")
        _write(place, text, console)
    except ApplianceError:
        files.remove(card, keep=[*others, *([old] if old is not None else [])])
        raise
    if old is not None:
        with suppress(ApplianceError):  # what is left of the old revision is in nobody's way
            files.remove(old, keep=[*others, card])
    return card


def _own(folder: Path) -> dict[Path, Card]:
    return {path: read_card(path) for path in sorted(folder.glob("*.toml"))}


def _for(repo: str, mine: dict[Path, Card], name: str | None) -> Card | None:
    """The owner's card for the repository, if there is one, and of this name, if one is wished for."""
    for card in mine.values():
        sources = card.sources if isinstance(card, HasFiles) else ()
        hubs = {source.repo.lower() for source in sources if isinstance(source, HubSource)}
        if repo.lower() in hubs and name in {None, card.name}:
            return card
    return None


def _free(repo: str, name: str | None, cards: Sequence[Card]) -> str:
    """A name for a new card that no other has.

    Raises:
        InvalidInput: it is none, or taken.
    """
    taken = {each.lower(): card.name for card in cards for each in (card.name, *card.aliases)}
    if name is not None:
        if not re.fullmatch(NAME, name):
            raise InvalidInput(f"{name!r} cannot be a model's name: it matches {NAME}", param="name")
        if plain(name) in taken:
            raise InvalidInput(
                f"{name} is the name of another model, {taken[plain(name)]}: choose another", param="name"
            )
        return name
    if repo.lower() in taken:
        raise InvalidInput(
            f"{repo} is the model of a card that comes with the appliance, {taken[repo.lower()]}: name the new card"
            " with --name",
            param="name",
        )
    for candidate in (repo.rpartition("/")[2], repo.replace("/", "-")):
        sane = re.sub(r"[^a-z0-9._-]", "-", candidate.lower()).lstrip("._-")[:64]
        if re.fullmatch(NAME, sane) and sane not in taken:
            return sane
    raise InvalidInput(f"the names that would do for {repo} are taken: choose one with --name", param="name")


def _file(name: str) -> str:
    return name.replace(":", "-")


def _write(place: Path, text: str, console: Console) -> None:
    """Write the card; what was there before stays beside it."""
    try:
        if place.exists() and (before := place.read_bytes()) != text.encode():
            write_whole(place.with_name(f"{place.name}.old"), before)
            console.print(f"the card that was there is cards/{place.name}.old now")
        write_whole(place, text.encode())
    except OSError as error:
        kind = StoreFull if error.errno == errno.ENOSPC else StoreUnavailable
        raise kind(f"the card cannot be written: {error.strerror}") from error
    console.print(f"wrote cards/{place.name}")
