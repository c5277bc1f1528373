"""`appliance serve`: from settings to a listening process that ends well."""

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from appliance import __version__
from appliance.errors import ApplianceError, Conflict, InvalidInput

if TYPE_CHECKING:  # heavy; each function below imports what it runs
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from appliance.settings import Settings

BACKLOG = 2048
"""Connections the system holds for us while we are busy."""

KEEP_ALIVE = 75
"""Seconds an idle connection is kept: longer than clients' pools keep theirs, so that it is never us who hang up."""

GRACE = 7
"""Seconds that running requests get at the end: Docker kills after 10, and the index has to be closed as well."""

CONNECTIONS = 4
"""Connections for each request that may be worked on (`max_pending`): clients keep some for later."""

FILES = 256
"""Files that stay for everything but connections."""


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
        InvalidInput: it is no address of this machine.
        Conflict: it cannot be listened on now; the message says why.
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
                raise InvalidInput(f"--host {host} is no address of this machine", param="host") from error
            case errno.EACCES:
                reason = f"port {port} may not be opened by this user; those from 1024 on may"
            case _:
                reason = f"cannot listen on {host}:{port}: {error.strerror}"
        raise Conflict(reason) from error


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


def connections(pending: int) -> int:
    """How many connections to take where so many requests may be worked on. Asks the system for as many open files."""
    wanted = CONNECTIONS * pending
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted + FILES:
        soft = wanted + FILES if hard == resource.RLIM_INFINITY else min(hard, wanted + FILES)
        with suppress(OSError, ValueError):  # macOS has a limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(wanted, max(soft - FILES, soft // 2))


def serve(settings: "Settings", door: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests end.

    Args:
        settings: checked.
        door: listens; closed at the end.

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
    log = structlog.get_logger(__name__)
    host, port = door.getsockname()[:2]

    def started() -> None:
        log.info(
            "serving",
            address=f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}",
            data=str(settings.data),
            model=settings.model,
            engine=f"{settings.engine}, NPU simulated" if settings.simulate_npu else settings.engine,
            version=__version__,
        )

    app = _Watched(create_app(settings), started)
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
        limit_concurrency=connections(settings.max_pending),
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
    try:
        uvicorn.Server(config).run(sockets=[door])
    except SystemExit as end:
        if app.failure is not None:
            raise app.failure from None
        log.info("stopped")
        raise SystemExit(1 if end.code else 0) from None


class _Watched:
    """An ASGI application that tells when it has started, or remembers why it did not, so that one clear line can say
    it instead of a trace.
    """

    def __init__(self, app: "ASGIApp", started: Callable[[], None]) -> None:
        self._app = app
        self._started = started
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
            if message["type"] == "lifespan.startup.complete":
                self._started()

        try:
            await self._app(scope, receive, told)
        except ApplianceError as error:
            self.failure = error


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
