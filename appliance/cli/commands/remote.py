"""Commands that ask a running server: ingest, search, reindex, evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from appliance.cli import printing
from appliance.cli.options import AsJson, Collection, Config, Data, Key, Model, Url, settings_of, utf8
from appliance.errors import InvalidInput

if TYPE_CHECKING:  # imported when they are needed
    from appliance.cli.client import Server
    from appliance.settings import Settings


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files, and folders with all they hold.", exists=True)],
    *,
    collection: Collection = "default",
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on, and follow every change; what is removed is removed there as well.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove the documents whose files are no more.")] = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; with --watch, a line for each change.")] = False,
) -> None:
    """Put files into a running server. What it has already, unchanged, is left as it is.

    A document's id is its path, beginning with the folder that was named: for `notes`, notes/2024/plan.md. A file that
    was moved is not embedded again. What .applianceignore names, as .gitignore would, is left out.
    """
    import time

    from appliance.cli.files import Found, Skipped, find, prefixes

    console = printing.console(stderr=True)
    with _server(settings_of(data=data, config=config), url, key) as server:
        if watch:
            _follow(server, paths, collection, as_json=as_json)
            return
        found = list(find(paths))
        files = [each for each in found if isinstance(each, Found)]
        began = time.monotonic()
        server.ensure(collection)
        known = {name: size for each in prefixes(paths) for name, size in server.documents(collection, each).items()}
        here = {each.id for each in files}
        unseen = tuple(each.id for each in found if isinstance(each, Skipped) and each.unseen)
        gone = {name: size for name, size in known.items() if name not in here and not name.startswith(unseen)}
        with printing.progress(console, f"into {collection}", total=len(files)) as advance:
            summary = server.send(files, collection=collection, gone=gone, advance=advance)
        if prune and files:
            summary.removed = server.remove(gone, collection=collection)
    summary.skipped[:0] = [each for each in found if isinstance(each, Skipped)]
    summary.seconds = round(time.monotonic() - began, 3)
    if as_json:
        from dataclasses import asdict

        printing.as_json(asdict(summary))
    else:
        printing.summary(summary)
    if summary.failed:
        raise typer.Exit(1)


def search(
    query: Annotated[
        str, typer.Argument(help='A question, or words: "new york" is a phrase, walr* a beginning.', callback=utf8)
    ],
    *,
    collection: Collection = "default",
    k: Annotated[int, typer.Option("-k", "--limit", min=1, max=1000, help="Matches at most.")] = 10,
    mode: Annotated[Literal["hybrid", "vector", "keyword"], typer.Option(help="What is compared.")] = "hybrid",
    rerank: Annotated[bool, typer.Option("--rerank", help="Have the server's reranker order the best.")] = False,
    filter_: Annotated[
        str | None,
        typer.Option("--filter", help="What metadata must hold: 'year >= 2020 and not draft = true'.", callback=utf8),
    ] = None,
    by_document: Annotated[
        bool, typer.Option("--by-document", help="A match is a document, with its best passage.")
    ] = False,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="How much a match must differ from those before it.")
    ] = 0.0,
    context: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Print a context for a language model of so many tokens.", metavar="N"),
    ] = None,
    url: Url = None,
    key: Key = None,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Search a running server's documents.

    COLLECTION may be several, parted by commas.
    """
    if not query.strip():
        raise InvalidInput("the query is empty", param="query")
    options: dict[str, object] = {"collection": collection, "k": k, "mode": mode}
    if rerank:
        options["rerank"] = True
    if filter_ is not None:
        options["filter"] = filter_
    if by_document:
        options |= {"group": "document", "per_document": 1}
    if diversity:
        options["diversity"] = diversity
    if context is not None:
        options |= {"format": "context", "tokens": context}
    elif not as_json:
        options["snippet"] = printing.TEXT_SHOWN
    with _server(settings_of(data=data, config=config), url, key) as server:
        answer = server.search(query, options=options)
    if as_json:
        printing.as_json(answer)
    elif context is not None:
        typer.echo(answer["context"])
    else:
        printing.matches(answer["matches"])


def reindex(
    collection: Annotated[str, typer.Argument(help="Name of a collection.", callback=utf8)],
    *,
    model: Annotated[
        str | None, typer.Option(help="Name of the new model; the present one if left out.", callback=utf8)
    ] = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Of the vectors.")] = None,
    strategy: Annotated[
        Literal["structure", "sentences", "fixed", "code"] | None, typer.Option(help="How documents are cut.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=16, max=8192, help="Of a chunk at most; with --strategy.")] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="End a reindex without the documents that hold it back.")
    ] = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Embed everything in a collection anew, by another model or cut otherwise, while it goes on answering.

    What is there is replaced in one step when all is done. Ctrl-C leaves the server at it; follow it as a job.
    """
    changes: dict[str, object] = {"model": model, "dimensions": dimensions}
    if tokens is not None and strategy is None:
        raise InvalidInput("--tokens goes with --strategy", param="tokens")
    if finish and (model or dimensions or strategy):
        raise InvalidInput("--finish goes alone: the reindex was begun already", param="finish")
    if strategy is not None:
        changes["chunking"] = {"strategy": strategy, "tokens": tokens}
    with _server(settings_of(data=data, config=config), url, key) as server:
        given = {name: value for name, value in changes.items() if value is not None}
        job = server.finish_reindex(collection) if finish else server.reindex(collection, given)
        with printing.progress(printing.console(stderr=True), collection, total=job["counts"]["total"]) as advance:
            job = server.followed(job["id"], advance=advance)
    if as_json:
        printing.as_json(job)
    else:
        printing.reindexed(job)
    if job["state"] != "done":
        raise typer.Exit(1)


def evaluate(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A data set as BEIR lays it out: corpus.jsonl, queries.jsonl, and qrels.tsv or qrels/test.tsv.",
            exists=True,
            file_okay=False,
        ),
    ],
    *,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            "-c",
            help="Name of a collection; evaluate-FOLDER if left out.",
            metavar="NAME",
            callback=utf8,
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Compare fusions, weights and reranking on a collection that is there; change nothing."
        ),
    ] = False,
    alone: Annotated[
        bool, typer.Option("--alone", help="Start a server for this, with a data directory that goes with it.")
    ] = False,
    model: Model = None,
    url: Url = None,
    key: Key = None,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a server finds what people judged relevant.

    Indexes the corpus into a collection of its own and asks every question. With --compare nothing is indexed: the
    questions and judgements are about documents that the collection has.
    """
    from contextlib import ExitStack

    from appliance.cli import evaluation

    if alone and (compare or url is not None):
        raise InvalidInput("--alone goes with neither --compare nor --url", param="alone")
    if compare and (collection is None or model is not None):
        raise InvalidInput("--compare needs a --collection, and no --model", param="collection")
    name = collection or f"evaluate-{folder.resolve().name}"
    settings = settings_of(data=data, config=config)
    evaluation.read_judgements(folder)  # before a server is asked, or started
    with ExitStack() as stack:
        if alone:
            url = stack.enter_context(evaluation.own_server(settings, model))
            key = None
        server = stack.enter_context(_server(settings, url, key))
        progress = printing.said
        if compare:
            result = evaluation.compare(server, folder, collection=name, progress=progress)
        else:
            result = evaluation.evaluate(server, folder, collection=name, model=model, progress=progress)
    progress("")
    if as_json:
        printing.as_json(result)
    else:
        typer.echo(evaluation.table(result))


def _follow(server: "Server", paths: list[Path], collection: str, *, as_json: bool) -> None:
    """Keep a collection as folders are, until the person wants an end."""
    from dataclasses import asdict

    from appliance.cli.files import Round, Watched, prefixes

    watched = Watched(paths)
    server.ensure(collection)
    watched.adopt([name for each in prefixes(paths) for name in server.documents(collection, each)])
    typer.echo("following; Ctrl-C ends it", err=True)

    def act(todo: Round) -> None:
        gone = {}
        if todo.gone:
            known = {
                name: size for each in prefixes(paths) for name, size in server.documents(collection, each).items()
            }
            gone = {name: known[name] for name in todo.gone if name in known}
        summary = server.send(todo.files, collection=collection, gone=gone)
        summary.removed = server.remove(gone, collection=collection)
        summary.skipped[:0] = todo.skipped
        printing.as_json(asdict(summary), line=True) if as_json else printing.summary(summary)

    try:
        watched.rounds(act, failed=lambda error: typer.echo(f"error: {error.message}", err=True))
    except KeyboardInterrupt:
        typer.echo("ended", err=True)


def _server(settings: "Settings", url: str | None, key: str | None) -> "Server":
    """The server named, or else the one of these settings. A key from a file goes to that one only."""
    from appliance.cli.client import Server

    if key is None and (url is None or settings.origin("api_keys").startswith("APPLIANCE_")):
        key = next(iter(settings.keys()), None)
    if url is None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  # compared, not bound
        url = f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
    return Server(url, key=key)
