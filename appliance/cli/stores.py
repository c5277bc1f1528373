"""Copies one store into another."""

from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from appliance.app import space_of, store_place
from appliance.catalog.catalog import Catalog
from appliance.database import Database
from appliance.settings import Settings, shipped
from appliance.store.base import Store
from appliance.store.copying import Copied, Marks, check_route, copy
from appliance.store.opening import Kind, Place, open_store

if TYPE_CHECKING:
    from rich.console import Console


def copied(settings: Settings, source: Kind, target: Kind, *, console: "Console") -> Copied:
    """Copy everything, with a bar where a person looks on.

    Raises:
        InvalidInput: not one of them is SQLite and the other a server, or it has no address.
        StoreError: one of them cannot be opened or does not answer.
        CollectionExists: the target has a collection of the same name for other vectors.
    """
    check_route(source, target)
    url = settings.store_address()
    mine = store_place(settings)
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    route = f"{source} {target} {sha256(url.encode()).hexdigest()[:16]}"  # the address itself may hold a password
    with ExitStack() as stack:
        database = Database(settings.database)
        stack.callback(database.close)
        database.migrate(shipped("migrations"))

        def opened(kind: Kind) -> Store:
            place = Place(kind="sqlite") if kind == "sqlite" else replace(mine, kind=kind, url=url)
            return open_store(
                place,
                database=database,
                migrations=shipped("migrations"),
                stack=stack,
                space_of=space_of(Catalog(database)),
                bulk=True,
            )

        stores = opened(source), opened(target)
        marks = Marks(settings.data / "store-copy.json", route)
        if not console.is_terminal:
            return copy(*stores, marks=marks)
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bars:
            bar = bars.add_task("copy and compare", total=2 * stores[0].total())

            def progress(name: str, chunks: int) -> None:
                bars.update(bar, advance=chunks, description=name)

            return copy(*stores, marks=marks, progress=progress)
