"""Commands that need no running server: serve, pull, list, embed, store copy, doctor, tune."""

import sys
from typing import Annotated, Literal

import typer

from appliance.cli import printing
from appliance.cli.cards import bring_in, card_of, cards_of, default_of, fetch
from appliance.cli.options import AsJson, Config, Data, Model, settings_of, utf8
from appliance.errors import InvalidInput, ModelNotFound

StoreKind = Literal["sqlite", "postgres", "milvus"]


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
    settings = settings_of(
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
    spec = default_of(settings)
    with bind(settings.host, settings.port) as door:  # before the long wait for a model
        fetch(settings, spec, only_missing=True)
        serve(settings, door)


def pull(
    model: Annotated[
        str,
        typer.Argument(
            help="Name of a model, or organisation/name of one on the Hugging Face hub, with @revision if need be.",
            callback=utf8,
        ),
    ],
    *,
    name: Annotated[
        str | None, typer.Option(help="What to call a model of the hub here.", metavar="NAME", callback=utf8)
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

    settings = settings_of(data=data, config=config)
    try:
        spec = None if name is not None or "@" in model else card_of(settings, model)
    except ModelNotFound:
        from appliance.cli.bringing import is_repository

        if not is_repository(model):
            raise
        spec = None
    if spec is None:
        spec = bring_in(settings, model, name=name, accept=accept_license)
    else:
        fetch(settings, spec, only_missing=False, accept=accept_license)
        if "/" in model and isinstance(spec, HasFiles) and spec.pinned:
            typer.echo(f"`appliance pull {model}@main` looks for a newer revision", err=True)
    typer.echo(f"{spec.name} is installed")


def list_models(*, data: Data = None, config: Config = None, as_json: AsJson = False) -> None:
    """List the models and which are installed."""
    from appliance.cli.models import listed

    settings = settings_of(data=data, config=config)
    rows = listed(cards_of(settings), settings)
    if as_json:
        printing.as_json(rows)
        return
    printing.models(rows)


def embed(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; the lines of standard input if left out.", callback=utf8)
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

    settings = settings_of(data=data, config=config, model=model)
    given = texts if texts is not None else _lines()
    fetch(settings, default_of(settings), only_missing=True)
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

    copy = copied(settings_of(data=data, config=config), source, target, console=printing.console(stderr=True))
    if as_json:
        from dataclasses import asdict

        printing.as_json(asdict(copy))
    else:
        typer.echo(f"{copy.chunks} chunks copied, {copy.compared} compared, {len(copy.differences)} differences")
        for line in copy.differences[:20]:
            typer.echo(line, err=True)
    if copy.differences:
        raise typer.Exit(1)


def doctor(*, data: Data = None, config: Config = None, as_json: AsJson = False) -> None:
    """Check this machine, and say what to do where something is wrong. Changes nothing.

    Exit code 0: all is well; 1: something could be better; 2: something does not work.
    """
    from appliance.cli.doctor import examine, verdict
    from appliance.cli.machine import this_machine

    checks = examine(this_machine(), settings_of(data=data, config=config))
    status = verdict(checks)
    if as_json:
        from dataclasses import asdict

        printing.as_json({"status": status, "checks": [asdict(check) for check in checks]})
    else:
        printing.checks(checks)
    raise typer.Exit({"ok": 0, "warn": 1, "fail": 2}[status])


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
    settings = settings_of(**flags)
    spec = default_of(settings)
    tune(
        settings,
        spec,
        cards_of(settings),
        fetch=lambda: fetch(settings, spec, only_missing=True),
        again=lambda: settings_of(**flags),
        limits=(max_memory, target_latency, target_rate),
        seconds=seconds,
        dry_run=dry_run,
        as_json=as_json,
    )


def _lines() -> list[str]:
    """Standard input, whatever the locale says."""
    try:
        return [line.decode().rstrip("\r\n") for line in sys.stdin.buffer]
    except UnicodeDecodeError as error:
        raise InvalidInput("standard input is not UTF-8") from error
