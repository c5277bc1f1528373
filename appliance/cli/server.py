"""`appliance serve`: from settings to a listening process that ends well."""

import errno
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from appliance import __version__
from appliance.errors import ApplianceError, InvalidInput

if TYPE_CHECKING:  # heavy; each function below imports what it runs
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from appliance.settings import Settings

BACKLOG = 2048
"""Connections the system holds for us while we are busy."""

KEEP_ALIVE = 75
"""Seconds an idle connection is kept: longer than clients' pools keep theirs, so that it is never us who hang up."""

GRACE = 10
"""Seconds that running requests get at the end."""


def lean() -> None:
    """Settle, before NumPy and tokenizers are imported, that each works on the thread that calls it.

    Batches run side by side on threads of our own; more threads inside each only take one another's core.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; from here on connections wait until the appliance is up.

    Raises:
        InvalidInput: the address cannot be listened on; the message says why.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (socket.gaierror, UnicodeError) as error:
        raise InvalidInput(f"--host {host} is no address of this machine", param="host") from error
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                reason = f"port {port} is in use on {host}: another server runs there, or choose one with --port"
            case errno.EADDRNOTAVAIL:
                reason = f"--host {host} is no address of this machine"
            case errno.EACCES:
                reason = f"port {port} may not be opened by this user; those from 1024 on may"
            case _:
                reason = f"cannot listen on {host}:{port}: {error.strerror}"
        raise InvalidInput(reason, param="port") from error


def check(settings: "Settings") -> None:
    """What can be known before a model is pulled.

    Raises:
        InvalidInput: it would let anyone in, or the data directory cannot be made.
    """
    from appliance.api.auth import check_exposure

    check_exposure(settings.host, settings.keys(), allow_open=settings.allow_open)
    try:
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidInput(
            f"the data directory {settings.data} cannot be made: {(error.strerror or 'failed').lower()}", param="data"
        ) from error


def serve(settings: "Settings") -> None:
    """Serve until SIGTERM or SIGINT, then let running requests end.

    Raises:
        ApplianceError: it could not start.
    """
    import structlog
    import uvicorn

    from appliance import logs
    from appliance.api.protocol import TolerantProtocol
    from appliance.app import create_app

    logs.configure(form=settings.log_format, level=settings.log_level)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))  # uvicorn puts its own in between and raises the signal again
    with bind(settings.host, settings.port) as door:
        app = _Watched(create_app(settings))
        config = uvicorn.Config(
            app,
            loop="uvloop" if _installed("uvloop") else "asyncio",
            http=TolerantProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
        )
        host, port = door.getsockname()[:2]
        log = structlog.get_logger(__name__)
        log.info(
            "serving",
            address=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}",
            data=str(settings.data),
            model=settings.model,
            version=__version__,
        )
        try:
            uvicorn.Server(config).run(sockets=[door])
        except SystemExit as end:
            if app.failure is not None:
                raise app.failure from None
            log.info("stopped")
            raise SystemExit(1 if end.code else 0) from None


class _Watched:
    """An ASGI application that remembers why it did not start, so that one clear line can say it instead of a trace."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app
        self.failure: ApplianceError | None = None

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def told(message: "Message") -> None:
            if self.failure is None and message["type"] == "lifespan.startup.failed":
                current = sys.exception()
                self.failure = current if isinstance(current, ApplianceError) else None
            await send({"type": message["type"]} if self.failure is not None else message)

        try:
            await self._app(scope, receive, told)
        except ApplianceError as error:
            self.failure = error


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
