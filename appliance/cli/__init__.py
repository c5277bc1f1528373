"""The command line: serve, pull, list, embed, ingest, search, reindex, evaluate, doctor, tune, store."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from appliance import __version__
from appliance.cli import printing
from appliance.errors import ApplianceError, InvalidInput, LicenseNotAccepted, ModelNotFound, UpstreamFailed

if TYPE_CHECKING:  # what a command needs is imported when it runs: `--help` answers at once
    from rich.console import Console

    from appliance.cli.client import Server
    from appliance.embedding.pull import ModelFiles
    from appliance.embedding.spec import Card
    from appliance.settings import Settings

app = typer.Typer(
    name="appliance",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Embeddings and retrieval from one device.",
)


def _utf8(param: typer.CallbackParam, value: Any) -> Any:
    """The words of an argument as they are; a file's name may be any bytes, these may not."""
    for each in value if isinstance(value, list) else [value]:
        try:
            (each or "").encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"{param.name} is not UTF-8", param=param.name) from error
    return value


Data = Annotated[Path | None, typer.Option(help="Directory of everything that is kept.", metavar="DIR")]
Config = Annotated[Path | None, typer.Option(help="Settings file.", metavar="FILE")]
Model = Annotated[str | None, typer.Option(help="Name of a model.", metavar="NAME", callback=_utf8)]
Url = Annotated[
    str | None, typer.Option(help="Address of the server; the one of these settings if left out.", callback=_utf8)
]
Key = Annotated[str | None, typer.Option(help="API key; safer in the environment, as APPLIANCE_API_KEYS.")]
Collection = Annotated[
    str, typer.Option("--collection", "-c", help="Name of a collection.", metavar="NAME", callback=_utf8)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command line. Exit code 0: done; 1: something failed; 2: wrong usage."""
    try:
        app(prog_name="appliance")
    except ApplianceError as error:
        typer.echo(f"error: {error.message}", err=True)
        sys.exit(2 if isinstance(error, _USAGE) else 1)
    except BrokenPipeError:  # `appliance search … | head`
        sys.stderr.close()
        sys.exit(1)


_USAGE = (InvalidInput, ModelNotFound)
"""What is wrong with the command, its settings or its texts, wherever they were written; the rest failed on the way."""


@app.callback(invoke_without_command=True)
def _version(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False
) -> None:
    if version:
        typer.echo(f"appliance {__version__}")
        raise typer.Exit


@app.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for a free one [default: 8080].")] = None,
    data: Data = None,
    model: Model = None,
    config: Config = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    allow_open: Annotated[
        bool | None, typer.Option("--allow-open", help="Listen beyond this machine without a key.")
    ] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never reach out for model files.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, npu or cpu.")] = None,
    simulate_npu: Annotated[
        bool | None, typer.Option("--simulate-npu", help="Play an NPU, to try its path without one.")
    ] = None,
) -> None:
    """Serve; pull the default model first if it is missing.

    Every other setting stands in config/appliance.toml and goes by its name as APPLIANCE_<NAME>, too.
    """
    from appliance.cli.server import bind, check, lean, serve

    lean()
    settings = _settings(
        host=host,
        port=port,
        data=data,
        model=model,
        config=config,
        log_format=log_format,
        log_level=log_level,
        allow_open=allow_open,
        offline=offline,
        engine=engine,
        simulate_npu=simulate_npu,
    )
    check(settings)
    spec = _default(settings)
    with bind(settings.host, settings.port) as door:  # before the long wait for a model
        _fetch(settings, spec, only_missing=True)
        serve(settings, door)


@app.command()
def pull(
    model: Annotated[
        str,
        typer.Argument(
            help="Name of a model, or organisation/name of one on the Hugging Face hub, with @revision if need be.",
            callback=_utf8,
        ),
    ],
    *,
    name: Annotated[
        str | None, typer.Option(help="What to call a model of the hub here.", metavar="NAME", callback=_utf8)
    ] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-licence", "--accept-license", help="Accept the model's licence.")
    ] = False,
    data: Data = None,
    config: Config = None,
) -> None:
    """Fetch a model's files, or check that they are here.

    A model of the hub that has no card gets one, written from what its repository says. With a revision (a branch, a
    tag or a commit) such a card is made anew: NAME@main takes what is newest.
    """
    from appliance.cli.server import lean

    lean()
    from appliance.embedding.spec import HasFiles

    settings = _settings(data=data, config=config)
    try:
        spec = None if name is not None or "@" in model else _card(settings, model)
    except ModelNotFound:
        from appliance.cli.bringing import is_repository

        if not is_repository(model):
            raise
        spec = None
    if spec is None:
        spec = _bring(settings, model, name=name, accept=accept_license)
    else:
        _fetch(settings, spec, only_missing=False, accept=accept_license)
        if "/" in model and isinstance(spec, HasFiles) and spec.pinned:
            typer.echo(f"`appliance pull {model}@main` looks for a newer revision", err=True)
    typer.echo(f"{spec.name} is installed")


@app.command("list")
def list_models(*, data: Data = None, config: Config = None, as_json: AsJson = False) -> None:
    """List the models and which are installed."""
    from appliance.cli.models import listed

    settings = _settings(data=data, config=config)
    rows = listed(_cards(settings), settings)
    if as_json:
        printing.as_json(rows)
        return
    printing.models(rows)


@app.command()
def embed(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; the lines of standard input if left out.", callback=_utf8)
    ] = None,
    *,
    model: Model = None,
    query: Annotated[bool, typer.Option("--query", help="The texts are questions, not documents.")] = False,
    dimensions: Annotated[int | None, typer.Option(help="Shorten to this many.")] = None,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Embed texts here, without a server.

    Prints a line of numbers for each text.
    """
    from appliance.cli.server import lean

    lean()
    from appliance.cli.models import embedded

    settings = _settings(data=data, config=config, model=model)
    given = texts if texts is not None else _lines()
    _fetch(settings, _default(settings), only_missing=True)
    answer = embedded(settings, given, kind="query" if query else "document", dimensions=dimensions)
    if as_json:
        printing.as_json(
            {
                "model": answer.model,
                "tokens": list(answer.tokens),
                "embeddings": [row.tolist() for row in answer.vectors],
            }
        )
        return
    for row in answer.vectors:
        typer.echo(" ".join(f"{value:.7g}" for value in row.tolist()))


@app.command()
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
    with _server(_settings(data=data, config=config), url, key) as server:
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


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="A question, or words.", callback=_utf8)],
    *,
    collection: Collection = "default",
    k: Annotated[int, typer.Option("-k", "--limit", min=1, max=1000, help="Matches at most.")] = 10,
    mode: Annotated[Literal["hybrid", "vector", "keyword"], typer.Option(help="What is compared.")] = "hybrid",
    rerank: Annotated[bool, typer.Option("--rerank", help="Have the server's reranker order the best.")] = False,
    filter_: Annotated[
        str | None,
        typer.Option("--filter", help="What metadata must hold: 'year >= 2020 and not draft = true'.", callback=_utf8),
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
    with _server(_settings(data=data, config=config), url, key) as server:
        answer = server.search(query, options=options)
    if as_json:
        printing.as_json(answer)
    elif context is not None:
        typer.echo(answer["context"])
    else:
        printing.matches(answer["matches"])


@app.command()
def reindex(
    collection: Annotated[str, typer.Argument(help="Name of a collection.", callback=_utf8)],
    *,
    model: Annotated[
        str | None, typer.Option(help="Name of the new model; the present one if left out.", callback=_utf8)
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
    with _server(_settings(data=data, config=config), url, key) as server:
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


@app.command()
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
            callback=_utf8,
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
    settings = _settings(data=data, config=config)
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


store_app = typer.Typer(no_args_is_help=True, help="The store behind the index.", rich_markup_mode=None)
app.add_typer(store_app, name="store")

StoreKind = Literal["sqlite", "postgres", "milvus"]


@store_app.callback()
def _store() -> None:
    """The store behind the index."""


@store_app.command("copy")
def copy_store(
    *,
    source: Annotated[StoreKind, typer.Option("--from", help="Where everything is.")],
    target: Annotated[StoreKind, typer.Option("--to", help="Where it is to be, too.")],
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Copy everything that one store holds into another, and compare the two.

    The server has to be stopped. Run it again where it was cut short: it goes on there. The address of a server is
    store_url, best as APPLIANCE_STORE_URL in the environment.
    """
    from appliance.cli.stores import copied

    copy = copied(_settings(data=data, config=config), source, target, console=printing.console(stderr=True))
    if as_json:
        from dataclasses import asdict

        printing.as_json(asdict(copy))
    else:
        typer.echo(f"{copy.chunks} chunks copied, {copy.compared} compared, {len(copy.differences)} differences")
        for line in copy.differences[:20]:
            typer.echo(line, err=True)
    if copy.differences:
        raise typer.Exit(1)


@app.command()
def doctor(*, data: Data = None, config: Config = None, as_json: AsJson = False) -> None:
    """Check this machine, and say what to do where something is wrong. Changes nothing.

    Exit code 0: all is well; 1: something could be better; 2: something does not work.
    """
    from appliance.cli.doctor import examine, verdict
    from appliance.cli.machine import this_machine

    checks = examine(this_machine(), _settings(data=data, config=config))
    status = verdict(checks)
    if as_json:
        from dataclasses import asdict

        printing.as_json({"status": status, "checks": [asdict(check) for check in checks]})
    else:
        printing.checks(checks)
    raise typer.Exit({"ok": 0, "warn": 1, "fail": 2}[status])


@app.command()
def tune(
    *,
    max_memory: Annotated[str | None, typer.Option(help="Most memory, like 512MB.", metavar="SIZE")] = None,
    target_latency: Annotated[
        str | None, typer.Option(help="Most time for 32 short texts, 95 times of 100, like 100ms.", metavar="TIME")
    ] = None,
    target_rate: Annotated[
        float | None, typer.Option(help="Fewest texts per second, of mixed lengths.", metavar="NUMBER")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds to measure for; starting processes comes on top.")
    ] = 20,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Measure this machine with the default model, and write the settings that suit it best.

    Tries threads, batch_tokens, and the cards of the model's space whose files are here. Of what keeps every limit, the
    one with the most texts per second goes into the settings file. Where nothing does, nothing is written, and the exit
    code is 1.
    """
    from appliance.cli.tune.command import tune

    flags = {"data": data, "config": config}
    settings = _settings(**flags)
    spec = _default(settings)
    tune(
        settings,
        spec,
        _cards(settings),
        fetch=lambda: _fetch(settings, spec, only_missing=True),
        again=lambda: _settings(**flags),
        limits=(max_memory, target_latency, target_rate),
        seconds=seconds,
        dry_run=dry_run,
        as_json=as_json,
    )


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


def _lines() -> list[str]:
    """Standard input, whatever the locale says."""
    try:
        return [line.decode().rstrip("\r\n") for line in sys.stdin.buffer]
    except UnicodeDecodeError as error:
        raise InvalidInput("standard input is not UTF-8") from error


def _settings(**flags: Any) -> "Settings":
    from appliance.settings import Settings

    return Settings(**{name: value for name, value in flags.items() if value is not None})


def _cards(settings: "Settings") -> list["Card"]:
    if settings.simulate_npu:
        from appliance.app import read_models

        return read_models(settings)
    from appliance.embedding.spec import read_cards
    from appliance.settings import shipped

    return read_cards(shipped("config") / "models", settings.cards)


def _card(settings: "Settings", name: str) -> "Card":
    from appliance.cli.models import named
    from appliance.embedding.engines.rkllm.board import this_board
    from appliance.embedding.fit import Fit
    from appliance.embedding.pull import ModelFiles

    files = ModelFiles(settings.models, offline=True)
    fit = Fit(settings.engine, "rk3588" if settings.simulate_npu else this_board() or "")
    cards = _cards(settings)
    card = named(cards, name, fit=fit, present=files.present)
    if name == settings.model:
        fit.check_default(card, cards)  # before it is fetched
    return card


def _default(settings: "Settings") -> "Card":
    """The card of the settings' model, once it is known that their models do what they are for."""
    for name, task in ((settings.model, "embed"), (settings.reranker, "rerank")):
        if name and _card(settings, name).task != task:
            raise InvalidInput(f"{name} does not {task}; `appliance list` shows which models do", param=name)
    return _card(settings, settings.model)


def _bring(settings: "Settings", model: str, *, name: str | None, accept: bool) -> "Card":
    """Bring a model of the hub that no card names."""
    from appliance.cli.bringing import bring, is_repository

    if not is_repository(model):
        raise InvalidInput("--name and @revision go with a repository of the hub: organisation/name", param="model")
    console = printing.console(stderr=True)

    def licensed(files: "ModelFiles", spec: "Card") -> None:
        _show_license(files, spec, accept=accept, command=model, console=console)

    return bring(settings, model, name=name, cards=_cards(settings), licensed=licensed, console=console)


def _fetch(settings: "Settings", spec: "Card", *, only_missing: bool, accept: bool = False) -> None:
    from appliance.cli.pulling import reported
    from appliance.embedding.pull import ModelFiles
    from appliance.embedding.spec import HasFiles

    files = ModelFiles(settings.models, offline=settings.offline)
    if not isinstance(spec, HasFiles) or (only_missing and files.present(spec)):
        return
    console = printing.console(stderr=True)
    _show_license(files, spec, accept=accept, command=spec.name, console=console)
    console.print(f"pulling {spec.name} into {settings.models}", soft_wrap=True)
    try:
        with reported(console) as report:
            files.pull(spec, report)
    except UpstreamFailed:
        if spec.own:
            console.print(f"models/{files.folder(spec).name} is {files.folder(spec)}", soft_wrap=True)
        raise


def _show_license(files: "ModelFiles", spec: "Card", *, accept: bool, command: str, console: "Console") -> None:
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


def _server(settings: "Settings", url: str | None, key: str | None) -> "Server":
    """The server named, or else the one of these settings. A key from a file goes to that one only."""
    from appliance.cli.client import Server

    if key is None and (url is None or settings.origin("api_keys").startswith("APPLIANCE_")):
        key = next(iter(settings.keys()), None)
    if url is None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  # compared, not bound
        url = f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
    return Server(url, key=key)
