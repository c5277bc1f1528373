"""The command line: serve, pull, list, embed, ingest, search, reindex, evaluate, doctor, tune, store."""

import sys
from typing import Annotated

import typer

from appliance import __version__
from appliance.cli.commands import local, remote
from appliance.errors import ApplianceError, InvalidInput, ModelNotFound

app = typer.Typer(
    name="appliance",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Embeddings and retrieval from one device.",
)


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


app.command()(local.serve)
app.command()(local.pull)
app.command("list")(local.list_models)
app.command()(local.embed)
app.command()(remote.ingest)
app.command()(remote.search)
app.command()(remote.reindex)
app.command()(remote.evaluate)
app.command()(local.doctor)
app.command()(local.tune)

_store = typer.Typer(no_args_is_help=True, help="The store behind the index.", rich_markup_mode=None)
_store.callback(help="The store behind the index.")(lambda: None)
_store.command("copy")(local.copy_store)
app.add_typer(_store, name="store")
