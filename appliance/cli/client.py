"""Talks to a running appliance: sends files to it, asks it questions."""

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpx

from appliance.cli.files import Found, Skipped, batches, why
from appliance.errors import InvalidInput, NotAllowed, Overloaded, UpstreamFailed

IN_FLIGHT = 4
"""Requests at the same time: enough that the server never waits for the next one."""

WAIT = 30
"""Seconds the server may take before it answers that a batch is still queued."""

_PAGE = 1000
"""Documents of a listing, and old names of a request, at most."""

_ATTEMPTS = 5
_BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE})
_THIS_FILE = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
"""Statuses that are about what was sent: the next file may fare better."""


class Refused(InvalidInput):
    """The server will not have what was sent; another query or file it may."""


@dataclass(slots=True)
class Summary:
    """What became of the files of one run."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    moved: int = 0
    removed: int = 0
    chunks: int = 0
    seconds: float = 0.0
    skipped: list[Skipped] = field(default_factory=list)
    failed: list[Skipped] = field(default_factory=list)


class Server:
    """A running appliance.

    Args:
        url: where it is; `http://` may be left out.
        key: sent as a bearer token.

    Raises:
        InvalidInput: either is none.
    """

    def __init__(self, url: str, *, key: str | None = None) -> None:
        if key is not None and not re.fullmatch(r"[!-~]+", key):
            raise InvalidInput("an API key is one word of printable ASCII characters", param="key")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        timeout = httpx.Timeout(WAIT + 60, connect=10)
        self._http = httpx.Client(base_url=_address(url), headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def search(self, query: str, *, options: Mapping[str, object]) -> dict[str, Any]:
        """The answer of `/search`, asked with these fields besides; UpstreamFailed and NotAllowed as for every call."""
        return self._call("POST", "/search", json={"q": query, **options})

    def collection(self, name: str) -> dict[str, Any]:
        """What `/collections/<name>` tells."""
        return self._call("GET", f"/collections/{_quoted(name)}")

    def ensure(self, collection: str, *, model: str | None = None) -> None:
        """Make the collection, with this model or the server's default, unless it exists."""
        try:
            self.collection(collection)
        except _Missing:
            body = {"name": collection} | ({"model": model} if model else {})
            self._call("POST", "/collections", json=body)

    def reindex(self, collection: str, changes: Mapping[str, object]) -> dict[str, Any]:
        """Begin to embed everything in a collection anew; its job."""
        return self._call("POST", f"/collections/{_quoted(collection)}/reindex", json=changes)

    def finish_reindex(self, collection: str) -> dict[str, Any]:
        """Have what holds a reindex back left out; its job."""
        return self._call("POST", f"/collections/{_quoted(collection)}/reindex/finish")

    def followed(self, job: int, *, advance: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """A job, when it has ended or something holds it back.

        Args:
            job: its number.
            advance: told how many more of its documents are done with.
        """
        done = 0
        while True:
            now = self._call("GET", f"/jobs/{job}")
            finished = now["counts"]["total"] - now["counts"]["waiting"]
            advance(finished - done)
            done = finished
            if now["ended"] is not None or (now["error"] and not now["counts"]["waiting"]):
                return now
            time.sleep(0.5)

    def put(self, collection: str, documents: Sequence[Mapping[str, object]]) -> list[dict[str, Any]]:
        """Queue documents, later if the server says so; what became of each. One that makes the server refuse them all,
        as an id that is none does, is left out.
        """
        body = {"collection": collection, "wait": 0, "documents": documents}
        try:
            outcomes: list[dict[str, Any]] = self._call("POST", "/documents", json=body)["documents"]
        except Refused as error:
            half = len(documents) // 2
            if not half:
                reason = error.message.removeprefix("documents.0.")
                return [_refused(str(each.get("id", "")), reason) for each in documents]
            return [*self.put(collection, documents[:half]), *self.put(collection, documents[half:])]
        return outcomes

    def documents(self, collection: str, prefix: str) -> dict[str, int]:
        """Bytes of each document whose id begins with `prefix`, by id; the collection exists."""
        found: dict[str, int] = {}
        after: int | None = None
        while True:
            query: dict[str, Any] = {"collection": collection, "prefix": prefix, "limit": _PAGE}
            page = self._call("GET", "/documents", params=query if after is None else {**query, "after": after})
            found.update((each["id"], each["bytes"]) for each in page["documents"])
            after = page["next"]
            if after is None:
                return found

    def remove(self, documents: Iterable[str], *, collection: str) -> int:
        """Remove documents; how many there were."""
        removed = 0
        for each in documents:
            with suppress(_Missing):
                self._call("DELETE", f"/documents/{_quoted(each)}", params={"collection": collection})
                removed += 1
        return removed

    def send(
        self,
        files: Iterable[Found],
        *,
        collection: str,
        gone: Mapping[str, int] | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Summary:
        """Send files, a few batches at a time, and wait until each can be found. Many are one job, so that the server
        does what others ask for before it.

        What the server has already, unchanged, costs it nothing: a run that was cut short is simply repeated.

        Args:
            files: read when their turn comes.
            collection: it exists.
            gone: bytes of documents whose files are gone, by id: a file of the same content takes that one's place.
            advance: told how many more files are done with: found, or failed.

        Raises:
            UpstreamFailed: the server cannot be reached, or failed for a reason that no other file would change.
            NotAllowed: the key is missing or wrong.
        """
        summary = Summary()
        queued: deque[tuple[str, str]] = deque()
        running: set[Future[_Answer]] = set()
        parts = list(batches(files))
        batch_of = _Batch(collection, gone or {}, job=None)

        def count(answer: _Answer) -> None:
            for outcome in answer.outcomes:
                if outcome["state"] in {"waiting", "working"}:
                    queued.append((outcome["id"], outcome["change"]))
                else:
                    advance(1)
                _count(summary, outcome)

        def collect() -> None:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            running.difference_update(finished)
            for future in finished:
                count(future.result())

        while len(parts) > 1 and batch_of.job is None:  # where no file of a batch can be read, there is no job yet
            first = self._put(parts.pop(0), replace(batch_of, job="true"), seconds=0)
            batch_of = replace(batch_of, job=first.job)
            count(first)
        with ThreadPoolExecutor(max_workers=IN_FLIGHT) as pool:
            try:
                for batch in parts:
                    if len(running) == IN_FLIGHT:
                        collect()
                    running.add(pool.submit(self._put, batch, batch_of))
                while running:
                    collect()
            finally:
                pool.shutdown(cancel_futures=True)
        self._wait_for(queued, collection, summary, advance)
        return summary

    def _wait_for(
        self,
        queued: Iterable[tuple[str, str]],
        collection: str,
        summary: Summary,
        advance: Callable[[int], None],
    ) -> None:
        for document, change in queued:
            state = self._settled(document, collection)
            advance(1)
            if state["state"] == "failed":
                summary.added -= change == "created"
                summary.updated -= change == "updated"
                summary.failed.append(Skipped(state["id"], state["error"] or "failed"))
            else:
                summary.chunks += state["chunks"]

    def _put(self, batch: list[Found], into: "_Batch", *, seconds: int = WAIT) -> "_Answer":
        parts: list[tuple[str, tuple[str, bytes]]] = []
        ids: list[str] = []
        outcomes: list[dict[str, Any]] = []
        for file in batch:
            try:
                content = file.read()
            except OSError as error:
                outcomes.append(_refused(file.id, why(error)))
                continue
            parts.append(("file", (file.path.name, content)))
            ids.append(file.id)
        if not parts:
            return _Answer(outcomes, None)
        form: dict[str, Any] = {"collection": into.collection, "wait": str(seconds), "id": ids}
        if into.job is not None:
            form["job"] = into.job
        sizes = {len(content) for _, (_, content) in parts}
        if moved_from := [name for name, size in into.gone.items() if size in sizes][:_PAGE]:
            form["moved_from"] = moved_from
        try:
            answer = self._call("POST", "/documents", files=parts, data=form)
        except Refused as error:
            if len(batch) == 1:
                return _Answer([_refused(batch[0].id, error.message)], None)
            alone = into if into.job != "true" else replace(into, job=None)
            answers = [self._put([file], alone, seconds=seconds) for file in batch]
            return _Answer([outcome for each in answers for outcome in each.outcomes], None)
        outcomes.extend(answer["documents"])
        return _Answer(outcomes, str(answer["job"]) if "job" in answer else None)

    def _settled(self, document: str, collection: str) -> dict[str, Any]:
        while True:
            state = self._call("GET", f"/documents/{_quoted(document)}", params={"collection": collection})
            if state["state"] not in {"waiting", "working"}:
                return state
            time.sleep(0.5)

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        for attempt in range(_ATTEMPTS):
            try:
                answer = self._http.request(method, path, **request)
            except httpx.ConnectError as error:
                raise UpstreamFailed(
                    f"no server answers at {self._http.base_url}; start one with `appliance serve`, or name it: --url"
                ) from error
            except httpx.HTTPError as error:
                if attempt == _ATTEMPTS - 1:
                    raise UpstreamFailed(f"the server stopped answering ({type(error).__name__})") from error
                time.sleep(2**attempt / 4)
                continue
            if answer.status_code in _BUSY and attempt < _ATTEMPTS - 1:
                time.sleep(_seconds(answer.headers.get("retry-after"), 2**attempt / 4))
                continue
            return _content(answer)
        raise Overloaded("the server is too busy; run the same command again later")


@dataclass(frozen=True, slots=True)
class _Batch:
    """Where files go: `job` is the number of one, `true` for a new one, or None."""

    collection: str
    gone: Mapping[str, int]
    job: str | None


@dataclass(frozen=True, slots=True)
class _Answer:
    outcomes: list[dict[str, Any]]
    job: str | None


class _Missing(UpstreamFailed):
    """404."""


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url if "://" in url else f"http://{url}")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidInput(f"{url!r} is no address of a server", param="url") from error
    odd = not re.fullmatch(r"[0-9A-Za-z.:_-]+", address.raw_host.decode())  # httpx takes `foo bar` for foo%20bar
    if odd or address.scheme not in {"http", "https"} or not 0 < (address.port or 1) < 2**16:
        raise InvalidInput(f"{url!r} is no address of a server", param="url")
    return address


def _content(answer: httpx.Response) -> dict[str, Any]:
    if answer.status_code == HTTPStatus.NO_CONTENT:
        return {}
    try:
        content = answer.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UpstreamFailed(f"what answers at {answer.url.host}:{answer.url.port} is no appliance")
    if answer.is_success or "documents" in content:  # 207 and 422 say of each document what became of it
        return content
    reason = str(content.get("detail") or content.get("title") or f"status {answer.status_code}")
    match answer.status_code:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            raise NotAllowed(f"{reason} (give a key with --key or APPLIANCE_API_KEYS)")
        case HTTPStatus.NOT_FOUND:
            raise _Missing(reason)
        case status if status in _THIS_FILE:
            raise Refused(reason)
        case _:
            raise UpstreamFailed(f"the server says: {reason}")


def _count(summary: Summary, outcome: Mapping[str, Any]) -> None:
    if outcome["state"] == "failed":
        summary.failed.append(Skipped(outcome["id"], outcome["error"] or "failed"))
        return
    match outcome["change"]:
        case "created":
            summary.added += 1
        case "updated":
            summary.updated += 1
        case "unchanged":
            summary.unchanged += 1
        case "moved":
            summary.moved += 1
        case _:
            summary.skipped.append(Skipped(outcome["id"], outcome["error"] or "refused"))
            return
    if outcome["state"] == "ready":
        summary.chunks += outcome["chunks"]


def _refused(document: str, reason: str) -> dict[str, Any]:
    return {"id": document, "change": "refused", "state": "refused", "chunks": 0, "error": reason}


def _quoted(part: str) -> str:
    from urllib.parse import quote

    return quote(part, safe="")


def _seconds(header: str | None, default: float) -> float:
    try:
        return min(float(header or default), 30.0)
    except ValueError:
        return default
