"""What a connection may take, and a request that offers HTTP/2, on real sockets."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from appliance.api.protocol import TolerantProtocol

PATIENCE = 0.3


class Impatient(TolerantProtocol):
    patience = PATIENCE


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI application that says what it was sent, unless asked for a refusal before the body has come."""
    if scope["path"] == "/refuse":
        await Response(b"no", 403)(scope, receive, send)
        return
    await Response(b"said:" + await Request(scope, receive).body())(scope, receive, send)


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., int]]:
    """Starts servers; returns their ports."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(http: type[TolerantProtocol] = TolerantProtocol, **options: Any) -> int:
        config = uvicorn.Config(echo, port=0, lifespan="off", log_config=None, http=http, **options)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        port: int = server.servers[0].sockets[0].getsockname()[1]
        return port

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join()


@pytest.fixture(scope="module")
def port(serve: Callable[..., int]) -> int:
    return serve()


@pytest.fixture(scope="module")
def impatient(serve: Callable[..., int]) -> int:
    """The port of a server that waits for less long."""
    return serve(Impatient)


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    while more := connection.recv(65536):
        received += more
    return received


def exchange(port: int, *parts: bytes, pause: float = 0.02) -> bytes:
    """What the server answers to these bytes, sent one part after another, until it closes."""
    with connected(port) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        return rest(connection)


OFFER = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: %b, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 5\r\n\r\n"
)
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


class TestOffers:
    @pytest.mark.parametrize("cut", [None, -2, -1, 3, OFFER.index(b"grade: h2c"), OFFER.index(b"2c\r\n")])
    def test_an_offer_to_upgrade_does_not_cost_the_body(self, port: int, cut: int | None) -> None:
        request = OFFER % b"close" + b"hello"
        cut = len(request) if cut is None else cut

        assert exchange(port, request[:cut], request[cut:]).endswith(b"said:hello")

    def test_an_offer_that_comes_byte_by_byte_does_not_cost_the_body(self, port: int) -> None:
        request = OFFER % b"close" + b"hello"

        parts = (request[place : place + 1] for place in range(len(request)))

        assert exchange(port, *parts, pause=0.001).endswith(b"said:hello")

    def test_an_offer_at_the_end_of_the_head_does_not_cost_the_body(self, port: int) -> None:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nContent-Length: 5\r\nUPGRADE: H2C\r\n\r\n"

        assert exchange(port, head + b"hello").endswith(b"said:hello")

    def test_an_offer_on_a_kept_connection_does_not_cost_the_body(self, port: int) -> None:
        answer = exchange(port, OFFER % b"keep-alive" + b"first", OFFER % b"close" + b"other")

        assert b"said:first" in answer
        assert answer.endswith(b"said:other")

    def test_a_body_that_looks_like_an_offer_is_left_alone(self, port: int) -> None:
        body = b"a\r\nUpgrade: h2c\r\n\r\nb"
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)

        assert exchange(port, head + body).endswith(b"said:" + body)
        assert exchange(port, head, body).endswith(b"said:" + body)


class TestSize:
    @pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
    def test_a_head_that_is_too_long_is_refused_whether_it_ends_or_not(self, port: int, end: bytes) -> None:
        answer = exchange(port, GET + b"X-Long: " + b"a" * TolerantProtocol.max_head + end)

        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"\r\nconnection: close\r\n" in answer

    def test_a_head_that_is_just_short_enough_is_taken(self, port: int) -> None:
        filled = GET + b"X-Long: " + b"a" * (TolerantProtocol.max_head - len(GET) - len(b"X-Long: "))

        assert exchange(port, filled + b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        assert exchange(port, filled + b"a\r\n\r\n").startswith(b"HTTP/1.1 431")

    def test_an_endless_header_is_not_swallowed(self, port: int) -> None:
        sent = 0
        with connected(port) as connection, suppress(ConnectionError):
            connection.sendall(GET + b"X-Long: ")
            while sent < 100 * 2**20:
                connection.sendall(b"a" * 65536)
                sent += 65536

        assert sent < 20 * 2**20  # what the system's own buffers hold

    def test_too_many_headers_are_refused(self, port: int) -> None:
        most = b"".join(b"x-%d: 1\r\n" % number for number in range(TolerantProtocol.max_headers - 2))

        assert exchange(port, GET + most + b"\r\n").startswith(b"HTTP/1.1 200")
        assert exchange(port, GET + most + b"x: 1\r\n\r\n").startswith(b"HTTP/1.1 431")

    def test_a_long_head_that_follows_in_the_bytes_of_another_request_ends_the_connection(self, port: int) -> None:
        first = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nX-Long: "

        answer = exchange(port, first, b"a" * (TolerantProtocol.max_head + 1))

        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"HTTP/1.1 ") == 2
        assert b"HTTP/1.1 431" in answer

    def test_endless_trailers_end_the_connection(self, port: int) -> None:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Long: "

        assert exchange(port, head, b"a" * (TolerantProtocol.max_head + 1)) == b""

    def test_a_body_may_be_longer_than_a_head(self, port: int) -> None:
        body = b"a" * (TolerantProtocol.max_head * 5)
        head = GET.replace(b"GET", b"POST") + b"Content-Length: %d\r\n\r\n" % len(body)

        assert exchange(port, head + body).endswith(b"said:" + body)
        assert exchange(port, head, body[:99], body[99:]).endswith(b"said:" + body)


class TestTime:
    @pytest.mark.parametrize("start", [b"G", GET, b"\r\n" + GET])
    def test_half_a_head_is_answered_408(self, impatient: int, start: bytes) -> None:
        began = time.monotonic()

        answer = exchange(impatient, start)

        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert PATIENCE * 0.9 < time.monotonic() - began < PATIENCE + 1

    def test_bytes_that_trickle_in_do_not_move_the_deadline(self, impatient: int) -> None:
        began = time.monotonic()
        with connected(impatient) as connection:
            connection.sendall(GET + b"X-Slow: ")
            connection.settimeout(0.05)
            answer = b""
            while not answer:
                assert time.monotonic() - began < PATIENCE + 1
                connection.sendall(b"a")
                try:
                    answer = connection.recv(65536)
                except TimeoutError:
                    continue

        assert answer.startswith(b"HTTP/1.1 408")

    def test_a_silent_connection_is_closed_without_a_word(self, impatient: int) -> None:
        assert exchange(impatient) == b""

    def test_half_a_head_after_an_answer_is_answered_408(self, impatient: int) -> None:
        answer = exchange(impatient, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", GET)

        assert answer.startswith(b"HTTP/1.1 200")
        assert b"said:HTTP/1.1 408" in answer

    def test_half_a_head_in_the_bytes_of_another_request_is_answered_408_after_the_response(
        self, impatient: int
    ) -> None:
        answer = exchange(impatient, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + GET)

        assert answer.startswith(b"HTTP/1.1 200")
        assert b"said:HTTP/1.1 408" in answer

    def test_a_body_and_a_pause_between_requests_may_take_longer_than_a_head(self, impatient: int) -> None:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n"

        answer = exchange(impatient, head, b"hello", GET + b"\r\n", pause=PATIENCE * 1.5)

        assert answer.count(b"HTTP/1.1 200") == 2

    def test_silence_after_an_answer_ends_the_connection_even_in_a_body(self, serve: Callable[..., int]) -> None:
        port = serve(timeout_keep_alive=1)

        answer = exchange(
            port, b"POST /refuse HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n", b"part of it"
        )

        assert answer.startswith(b"HTTP/1.1 403")

    def test_what_is_no_request_is_refused_at_once(self, port: int) -> None:
        for opening in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\nHost: localhost\n\n"):
            assert exchange(port, opening).startswith(b"HTTP/1.1 400")


def test_connections_have_a_limit(serve: Callable[..., int]) -> None:
    port = serve(limit_concurrency=3)
    with connected(port) as first, connected(port) as second:
        for connection in (first, second):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"said:"):
                answer += connection.recv(65536)
        with connected(port) as third:
            assert rest(third).startswith(b"HTTP/1.1 503")
        second.sendall(GET + b"\r\n")
        assert rest(second).startswith(b"HTTP/1.1 200")

    assert exchange(port, GET + b"\r\n").startswith(b"HTTP/1.1 200")
