"""Clients of a server under test, in a process of their own and cheap enough not to be what is measured.

Reads one job a line from standard input and writes one result a line: {"port", "path", "bodies", "clients", "seconds"}
sends the bodies over and over from that many connections for so long; without "seconds" each body is sent once.
"""

import asyncio
import json
import sys
from itertools import cycle
from time import perf_counter
from typing import Any


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send one request on a kept connection and read the answer through; its status."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return status


async def job(port: int, path: str, bodies: list[str], clients: int, seconds: float | None) -> dict[str, Any]:
    """Run one job. The result: requests done, seconds taken, seconds of each request, statuses other than 2xx."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [f"{head}{len(body)}\r\n\r\n{body}".encode() for body in bodies]
    source = iter(requests) if seconds is None else cycle(requests)
    took: list[float] = []
    bad: list[int] = []
    began = perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        for request in source:
            start = perf_counter()
            status = await exchange(reader, writer, request)
            now = perf_counter()
            took.append(now - start)
            if not 200 <= status < 300:  # noqa: PLR2004  # HTTP's own ranges
                bad.append(status)
            if seconds is not None and now - began >= seconds:
                break
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return {"requests": len(took), "seconds": perf_counter() - began, "took": took, "bad": bad}


def main() -> None:
    """Work until standard input ends."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(job(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
