"""Copies one store into another, and the catalog where it goes along."""

from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from appliance.app import space_of, store_place
from appliance.catalog import copying
from appliance.catalog.catalog import Catalog
from appliance.catalog.copying import check_empty
from appliance.catalog.members import SharedCatalog, member_id
from appliance.catalog.opening import migrated, own_name
from appliance.database import Database, Transactions
from appliance.settings import Settings, shipped
from appliance.store.base import Store
from appliance.store.copying import Copied, Marks, check_route, copy
from appliance.store.opening import Kind, open_store

if TYPE_CHECKING:
    from rich.console import Console


def copied(settings: Settings, source: Kind, target: Kind, *, console: "Console") -> Copied:
    """Copy everything, with a bar for who looks on: first the store, where a copy that was cut short goes on, then
    the catalog in one step, if the settings have it on a server.

    Raises:
        Conflict: the other catalog is not empty.
        InvalidInput: not one of them is SQLite and the other a server, or it has no address.
        StoreError: one of them cannot be opened or does not answer.
        CollectionExists: the target has a collection of the same name for other vectors.
    """
    check_route(source, target)
    url = settings.store_address()
    server = source if target == "sqlite" else target
    catalog_url = settings.model_copy(update={"store": server}).catalog_address()
    mine = store_place(settings)
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    route = f"{source} {target} {sha256(url.encode()).hexdigest()[:16]}"  # the address itself may hold a password
    with ExitStack() as stack:
        database = Database(settings.database)
        stack.callback(database.close)
        database.migrate(shipped("migrations"))

        def opened(kind: Kind) -> Store:
            place = replace(mine, kind=kind, url="" if kind == "sqlite" else url)
            return open_store(
                place,
                database=database,
                migrations=shipped("migrations"),
                stack=stack,
                space_of=space_of(Catalog(database)),
                bulk=True,
            )

        shared = migrated(catalog_url, migrations=shipped("migrations"), stack=stack) if catalog_url else None
        member = (
            0 if shared is None or target == "sqlite" else member_id(SharedCatalog(shared), own_name(settings.data))
        )
        catalogs = None if shared is None else _route(database, SharedCatalog(shared), target)
        marks = Marks(settings.data / "store-copy.json", route)
        if catalogs is not None and marks.read() is None:
            check_empty(catalogs[1])
        stores = opened(source), opened(target)

        def both(progress: copying.Progress) -> Copied:
            result = copy(*stores, marks=marks, progress=progress)
            if catalogs is None:
                return result
            check_empty(catalogs[1])
            differences = copying.copy(*catalogs, member=member, progress=progress)
            return replace(result, differences=(*result.differences, *differences))

        if not console.is_terminal:
            return both(lambda _name, _done: None)
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bars:
            total = stores[0].total() + (0 if catalogs is None else copying.rows(catalogs[0]))
            bar = bars.add_task("copy and compare", total=2 * total)

            def progress(name: str, done: int) -> None:
                bars.update(bar, advance=done, description=name)

            return both(progress)


def _route(file: Transactions, server: Transactions, target: Kind) -> tuple[Transactions, Transactions]:
    return (server, file) if target == "sqlite" else (file, server)
