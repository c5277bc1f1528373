"""The way in and out: request ids, HEAD, the log line, size, crowd, and callers who leave."""

import asyncio
import io
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from appliance.api.admission import BUSY, Admission, Observed
from appliance.api.metrics import Metrics
from appliance.logs import configure

LIMIT = 100_000
CANARY = "canary"


@dataclass
class Told:
    """What the routes below saw, and how they ended."""

    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    async def until_released(self, name: str) -> None:
        self.entered.release()
        try:
            while not self.release.is_set():
                await asyncio.sleep(0.005)
            self.ended.append(f"{name} done")
        except asyncio.CancelledError:
            self.ended.append(f"{name} cancelled")
            raise

    def until_ended(self, what: str) -> None:
        deadline = time.monotonic() + 5
        while what not in self.ended:
            assert time.monotonic() < deadline, f"{what!r} did not happen: {self.ended}"
            time.sleep(0.005)


def routes(told: Told) -> FastAPI:  # noqa: C901 - many routes, each of a few lines
    app = FastAPI(openapi_url=None)

    @app.get("/search")
    async def search() -> str:
        await told.until_released("search")
        return "found"

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.get("/documents/{id}")
    async def document(id: str) -> Response:  # noqa: A002 - as a path names it
        return PlainTextResponse("a document", headers={"x-made": "by GET"})

    @app.post("/work")
    async def work(request: Request) -> str:
        size = len(await request.body())
        await told.until_released("work")
        return f"{size}"

    @app.post("/v1/embeddings")
    @app.post("/api/embed")
    @app.post("/documents")
    async def echo(request: Request) -> str:
        return f"{len(await request.body())}"

    @app.post("/broken")
    async def broken() -> None:
        raise ValueError(CANARY)

    @app.get("/broken-halfway")
    async def broken_halfway() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise ValueError(CANARY)

        return StreamingResponse(parts())

    @app.post("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            told.entered.release()
            try:
                while not told.release.is_set():
                    yield b"more\n"
                    await asyncio.sleep(0.005)
                told.ended.append("stream done")
            except asyncio.CancelledError:
                told.ended.append("stream cancelled")
                raise

        return StreamingResponse(parts())

    @app.post("/afterwards")
    async def afterwards() -> Response:
        from starlette.background import BackgroundTask

        async def later() -> None:
            await told.until_released("later")

        return PlainTextResponse("answered", background=BackgroundTask(later))

    return app


@dataclass
class Served:
    url: str
    port: int
    told: Told
    metrics: Metrics
    log: io.StringIO

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def raw(self, sent: bytes) -> socket.socket:
        """A connection on which this much was said."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        connection.sendall(sent)
        return connection


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts uvicorn with the layers around the routes above; all end with the test."""
    running: list[tuple[uvicorn.Server, threading.Thread, Told]] = []

    def _serve(*, max_pending: int = 8, patience: float = 30.0) -> Served:
        log = io.StringIO()
        configure(form="json", level="debug", stream=log)
        told, metrics = Told(), Metrics(version="0")
        app = routes(told)
        app.add_middleware(
            Admission, max_body=LIMIT, max_pending=max_pending, metrics=metrics, delay=0.1, patience=patience
        )
        app.add_middleware(Observed, metrics=metrics)
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="off")
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread, told))
        deadline = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        return Served(f"http://127.0.0.1:{port}", port, told, metrics, log)

    yield _serve
    for server, thread, told in running:
        told.release.set()
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def test_a_sane_request_id_is_kept_and_any_other_is_replaced(serve: Serve) -> None:
    served = serve()

    def given(name: str) -> str:
        return httpx.get(f"{served.url}/health", headers={"x-request-id": name}).headers["x-request-id"]

    assert given("a-B.7:_") == "a-B.7:_"
    assert given("x" * 65) != "x" * 65
    assert given('{"forged": "line"}') != '{"forged": "line"}'
    assert len(httpx.get(f"{served.url}/health").headers["x-request-id"]) == 16


def test_the_request_id_stands_in_the_log_and_is_gone_with_the_request(serve: Serve) -> None:
    served = serve()
    with httpx.Client(base_url=served.url) as client:
        client.get("/documents/1", headers={"x-request-id": "first"})
        client.get("/documents/1", headers={"x-request-id": "second"})

    assert [line["request_id"] for line in served.lines() if line["event"] == "request"] == ["first", "second"]


def test_head_is_get_without_its_body(serve: Serve) -> None:
    served = serve()
    got, head = httpx.get(f"{served.url}/documents/1"), httpx.head(f"{served.url}/documents/1")
    missing = httpx.head(f"{served.url}/nowhere")

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"] == "10"
    assert head.headers["x-made"] == "by GET"
    assert missing.status_code == 404
    assert httpx.head(f"{served.url}/work").status_code == 405
    assert (
        served.metrics.registry.get_sample_value(
            "appliance_http_requests_total", {"route": "/documents/{id}", "method": "HEAD", "code": "200"}
        )
        == 1
    )


def test_the_log_and_the_metrics_name_the_route_and_nothing_the_caller_wrote(serve: Serve) -> None:
    served = serve()
    httpx.get(f"{served.url}/documents/{CANARY}?q={CANARY}", headers={"authorization": f"Bearer {CANARY}"})
    httpx.post(f"{served.url}/documents?q={CANARY}", content=CANARY)
    httpx.get(f"{served.url}/{CANARY}")
    httpx.request("PURGE", f"{served.url}/health")

    lines = [line for line in served.lines() if line["event"] == "request"]
    assert CANARY not in served.log.getvalue()
    assert [(line["route"], line["status"]) for line in lines] == [
        ("/documents/{id}", 200),
        ("/documents", 200),
        ("none", 404),
        ("/health", 405),
    ]
    assert lines[0]["bytes"] == 10
    assert CANARY not in served.metrics.render().decode()
    assert 'method="other",route="/health"' in served.metrics.render().decode()


def test_watching_probes_do_not_fill_the_log(serve: Serve) -> None:
    served = serve()
    httpx.get(f"{served.url}/health")

    assert [line["level"] for line in served.lines() if line["event"] == "request"] == ["debug"]


def test_a_failure_is_answered_in_shape_and_logged_without_what_it_says(serve: Serve) -> None:
    served = serve()
    answer = httpx.post(f"{served.url}/broken", headers={"x-request-id": "r1"})

    failed = next(line for line in served.lines() if line["event"] == "request failed")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == failed["request_id"] == "r1"
    assert "in broken" in str(failed["exception"])
    assert CANARY not in served.log.getvalue() + answer.text


def test_a_failure_halfway_ends_the_connection(serve: Serve) -> None:
    served = serve()

    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{served.url}/broken-halfway")
    assert httpx.get(f"{served.url}/health").status_code == 200
    assert CANARY not in served.log.getvalue()


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed", "/documents"])
def test_a_body_announced_too_large_is_refused_unread_in_the_shape_of_the_api(path: str, serve: Serve) -> None:
    served = serve()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {LIMIT + 1}\r\n\r\n"
    with closing(served.raw(head.encode())) as connection:
        answer = connection.recv(65536)
        connection.shutdown(socket.SHUT_WR)
        rest = connection.recv(65536)

    status, _, body = answer.partition(b"\r\n\r\n")
    told = json.loads(body)
    assert status.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in status.lower()
    assert rest == b""
    if path.startswith("/v1"):
        assert set(told["error"]) == {"message", "type", "param", "code"}
    elif path.startswith("/api"):
        assert set(told) == {"error"}
    else:
        assert told["status"] == 413


@pytest.mark.parametrize("size", [LIMIT + 1, 40 * LIMIT])
@pytest.mark.parametrize("announced", [True, False])
def test_a_client_that_sends_it_all_the_same_can_read_the_refusal(size: int, announced: bool, serve: Serve) -> None:  # noqa: FBT001 - parametrized
    served = serve()
    content = b"x" * size
    answer = httpx.post(
        f"{served.url}/documents", content=content if announced else iter([content[:50_000], content[50_000:]])
    )

    assert answer.status_code == 413
    assert str(LIMIT) in answer.text
    assert served.metrics.registry.get_sample_value("appliance_rejected_total", {"reason": "body"}) == 1


def test_a_client_that_reads_only_once_it_has_sent_everything_is_not_reset(serve: Serve) -> None:
    served = serve()
    size = 80 * LIMIT
    head = f"POST /documents HTTP/1.1\r\nhost: localhost\r\ncontent-length: {size}\r\n\r\n"
    with closing(served.raw(head.encode())) as connection:
        connection.sendall(b"x" * size)
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_of_just_the_limit_is_taken_announced_or_in_chunks(serve: Serve) -> None:
    served = serve()
    content = b"x" * LIMIT

    assert httpx.post(f"{served.url}/documents", content=content).json() == str(LIMIT)
    assert httpx.post(f"{served.url}/documents", content=iter([content[:7], content[7:]])).json() == str(LIMIT)
    assert httpx.post(f"{served.url}/documents").json() == "0"


def test_chunks_without_end_are_cut_off_while_they_come(serve: Serve) -> None:
    served = serve()
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    head = b"POST /documents HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    with closing(served.raw(head + chunk * 30)) as connection:
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_waits_for_leave_is_refused_without_leave(serve: Serve) -> None:
    served = serve()
    head = f"POST /documents HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: {LIMIT + 1}\r\n\r\n"
    with closing(served.raw(head.encode())) as connection:
        said = b""
        while part := connection.recv(65536):
            said += part

    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in said


def test_a_body_that_stops_coming_is_told_so(serve: Serve) -> None:
    served = serve(patience=0.1)
    head = b"POST /documents HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nonly this"
    with closing(served.raw(head)) as connection:
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert served.metrics.registry.get_sample_value("appliance_rejected_total", {"reason": "slow"}) == 1


def test_one_too_many_is_told_to_come_back_and_later_is_served(serve: Serve) -> None:
    served = serve(max_pending=2)
    with ThreadPoolExecutor(4) as threads:
        working = [threads.submit(httpx.post, f"{served.url}/work", content=b"abc") for _ in range(2)]
        for _ in range(2):
            assert served.told.entered.acquire(timeout=5)
        started = time.monotonic()
        refused = {path: httpx.post(served.url + path) for path in ("/api/embed", "/v1/embeddings")}
        waited = time.monotonic() - started
        search = httpx.get(f"{served.url}/search")
        watched = httpx.get(f"{served.url}/health")
        served.told.release.set()
        done = [future.result().json() for future in working]
    later = httpx.post(f"{served.url}/api/embed", content=b"abc")

    assert [answer.status_code for answer in (*refused.values(), search)] == [503, 503, 503]
    assert all(answer.headers["retry-after"] == "1" for answer in (*refused.values(), search))
    assert refused["/api/embed"].json() == {"error": BUSY}
    assert refused["/v1/embeddings"].json()["error"]["message"] == BUSY
    assert waited >= 0.2
    assert watched.status_code == 200
    assert done == ["3", "3"]
    assert later.json() == "3"
    assert served.metrics.registry.get_sample_value("appliance_rejected_total", {"reason": "busy"}) == 3


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (b"GET /search HTTP/1.1\r\nhost: localhost\r\n\r\n", "search"),
        (b"POST /work HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\nabc", "work"),
        (b"POST /work HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "work"),
        (b"POST /stream HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n", "stream"),
    ],
)
def test_work_for_a_caller_who_hangs_up_is_cancelled(request_: bytes, name: str, serve: Serve) -> None:
    served = serve(max_pending=1)
    connection = served.raw(request_)
    assert served.told.entered.acquire(timeout=5)

    connection.close()

    served.told.until_ended(f"{name} cancelled")
    served.told.release.set()
    assert httpx.post(f"{served.url}/work", content=b"abc").json() == "3"  # its place is free again
    assert {line["level"] for line in served.lines()} <= {"info", "debug"}


def test_a_caller_who_hangs_up_is_logged_as_499_unless_an_answer_had_begun(serve: Serve) -> None:
    served = serve()
    connection = served.raw(b"GET /search HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert served.told.entered.acquire(timeout=5)
    connection.close()
    served.told.until_ended("search cancelled")
    httpx.get(f"{served.url}/health")

    assert [line["status"] for line in served.lines() if line["event"] == "request"] == [499, 200]


def test_a_request_that_the_ending_server_gives_up_is_answered_in_shape() -> None:
    async def endless(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await asyncio.sleep(60)

    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    async def ended() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": [], "query_string": b""}
        task = asyncio.create_task(Observed(endless, metrics=Metrics(version="1"))(scope, receive, send))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    asyncio.run(ended())

    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"]["message"] == "the appliance is stopping"


def test_a_caller_who_hangs_up_in_the_middle_of_a_body_reaches_no_route(serve: Serve) -> None:
    served = serve(max_pending=1)
    served.raw(b"POST /work HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nabc").close()
    served.told.release.set()
    deadline = time.monotonic() + 5
    while httpx.post(f"{served.url}/work", content=b"abc").status_code != 200:
        assert time.monotonic() < deadline

    assert served.told.ended == ["work done"]


def test_what_a_route_does_after_its_answer_is_not_cut_off(serve: Serve) -> None:
    served = serve()
    assert httpx.post(f"{served.url}/afterwards").text == "answered"
    assert served.told.entered.acquire(timeout=5)
    time.sleep(0.05)
    served.told.release.set()

    served.told.until_ended("later done")


def test_one_connection_serves_many_requests_one_after_the_other(serve: Serve) -> None:
    served = serve()
    served.told.release.set()
    with httpx.Client(base_url=served.url) as client:
        answers = [client.post("/work", content=b"x" * size).json() for size in range(20)]

    assert answers == [str(size) for size in range(20)]


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    served = serve()
    served.told.release.set()
    one = b"POST /documents HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\nabc"
    last = b"POST /documents HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 4\r\n\r\nabcd"
    with closing(served.raw(one + one + last)) as connection:
        said = b""
        while part := connection.recv(65536):
            said += part

    assert said.count(b"HTTP/1.1 200") == 3
    assert said.endswith(b'"4"')
