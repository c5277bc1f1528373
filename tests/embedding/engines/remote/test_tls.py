"""HTTP/2 where a server offers it, and no server whose certificate nobody vouches for."""

import asyncio
import base64
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from appliance.embedding.engines.remote.access import Remote
from appliance.errors import EngineUnavailable

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for 127.0.0.1 that vouches for itself, and its key, in one file."""
    folder = tmp_path_factory.mktemp("certificate")
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "certificate")]
    subprocess.run([*made, *names, *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "certificate").read_bytes() + (folder / "key").read_bytes())
    return both


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


class Http2:
    """Answers each stream as OpenAI would, for vectors of 4 dimensions; all streams of a connection at once."""

    def __init__(self) -> None:
        self.connections = 0
        self.headers: list[dict[str, str]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        bodies: dict[int, bytes] = {}
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, RequestReceived):
                    self.headers.append({str(name): str(value) for name, value in event.headers or []})
                    bodies[event.stream_id] = b""
                elif isinstance(event, DataReceived):
                    bodies[event.stream_id] += event.data or b""
                elif isinstance(event, StreamEnded):
                    self.answer(connection, event.stream_id, json.loads(bodies[event.stream_id]))
            writer.write(connection.data_to_send())
        writer.close()

    def answer(self, connection: H2Connection, stream: int, asked: Any) -> None:
        vector = base64.b64encode(np.ones(4, "<f4").tobytes()).decode()
        data = [{"index": place, "embedding": vector} for place in range(len(asked["input"]))]
        connection.send_headers(stream, [(":status", "200"), ("content-type", "application/json")])
        connection.send_data(stream, json.dumps({"data": data}).encode(), end_stream=True)


@pytest.fixture
async def http2(tls: ssl.SSLContext) -> AsyncIterator[Http2]:
    tls.set_alpn_protocols(["h2"])
    server = Http2()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    server.url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    yield server
    listening.close()


async def test_http2_takes_all_requests_over_one_connection(
    http2: Http2, certificate: Path, engine_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    engine = engine_of(http2.url, key="A_KEY", remote=Remote(secret={"A_KEY": "sk-1"}.get), max_inputs=1)

    await engine.encode(["a"], truncate=True)
    encoded = await engine.encode(["a"] * 20, truncate=True)
    await asyncio.to_thread(engine.close)

    assert encoded.vectors.shape == (20, 4)
    assert http2.connections == 1
    assert {headers["authorization"] for headers in http2.headers} == {"Bearer sk-1"}


async def test_a_certificate_that_nobody_vouches_for_is_not_trusted(
    upstream: Any, engine_of: Any, tls: ssl.SSLContext
) -> None:
    server = await upstream(tls=tls)

    with pytest.raises(EngineUnavailable, match="certificate is not one to trust"):
        await engine_of(server.url, retries=0).encode(["a"], truncate=True)

    assert server.asked == []
