"""A request that offers HTTP/2 is answered like any other."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from appliance.api.protocol import TolerantProtocol


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI application that says what it was sent."""
    await Response(b"said:" + await Request(scope, receive).body())(scope, receive, send)


@pytest.fixture
def port() -> Iterator[int]:
    config = uvicorn.Config(echo, port=0, lifespan="off", log_config=None, http=TolerantProtocol)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def exchange(port: int, *parts: bytes) -> bytes:
    """What the server answers to these bytes, sent one part after another, until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.02)
        received = b""
        while more := connection.recv(65536):
            received += more
    return received


OFFER = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: %b, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 5\r\n\r\n"
)


@pytest.mark.parametrize("cut", [None, len(OFFER) - 2])
def test_an_offer_to_upgrade_does_not_cost_the_body(port: int, cut: int | None) -> None:
    head = OFFER % b"close"
    parts = [head + b"hello"] if cut is None else [head, b"hello"]

    assert exchange(port, *parts).endswith(b"said:hello")


def test_an_offer_on_a_kept_connection_does_not_cost_the_body(port: int) -> None:
    answer = exchange(port, OFFER % b"keep-alive" + b"first", OFFER % b"close" + b"other")

    assert b"said:first" in answer
    assert answer.endswith(b"said:other")


def test_a_body_that_looks_like_an_offer_is_left_alone(port: int) -> None:
    body = b"a\r\nUpgrade: h2c\r\n\r\nb"
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)

    assert exchange(port, head + body).endswith(b"said:" + body)
    assert exchange(port, head, body).endswith(b"said:" + body)
