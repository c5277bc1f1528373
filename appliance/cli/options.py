"""What the options of several commands mean, and the settings that they come to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.errors import InvalidInput

if TYPE_CHECKING:  # what a command needs is imported when it runs: `--help` answers at once
    from appliance.settings import Settings


def utf8(param: typer.CallbackParam, value: Any) -> Any:
    """The words of an argument as they are; a file's name may be any bytes, these may not."""
    for each in value if isinstance(value, list) else [value]:
        try:
            (each or "").encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"{param.name} is not UTF-8", param=param.name) from error
    return value


Data = Annotated[Path | None, typer.Option(help="Directory of everything that is kept.", metavar="DIR")]
Config = Annotated[Path | None, typer.Option(help="Settings file.", metavar="FILE")]
Model = Annotated[str | None, typer.Option(help="Name of a model.", metavar="NAME", callback=utf8)]
Url = Annotated[
    str | None, typer.Option(help="Address of the server; the one of these settings if left out.", callback=utf8)
]
Key = Annotated[str | None, typer.Option(help="API key; safer in the environment, as APPLIANCE_API_KEYS.")]
Collection = Annotated[
    str, typer.Option("--collection", "-c", help="Name of a collection.", metavar="NAME", callback=utf8)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_of(**flags: Any) -> "Settings":
    """The settings with these flags, as far as they were given. Raises InvalidInput."""
    from appliance.settings import Settings

    return Settings(**{name: value for name, value in flags.items() if value is not None})
