"""The Hugging Face hub: what a repository holds at a revision, and its files. What it says is bounded and checked.

HF_ENDPOINT, HF_TOKEN (or a stored token) and HF_HUB_OFFLINE mean what they mean to `huggingface_hub`. Its own functions
are not used: they try again for minutes where the hub cannot be reached, and keep every file a second time.
"""

import hashlib
import re
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from appliance.embedding.sources import CHUNK, Patience, Refused, SourceFailed, Write
from appliance.embedding.spec import HubSource, Sha256

if TYPE_CHECKING:
    import httpx

LARGEST_ANSWER = 4 << 20
"""Bytes of one answer of the hub's API, and of one file that is read to make a card of."""

MOST_FILES = 20_000
"""Entries of a repository's tree."""

_MOST_PAGES = 100

_LISTING = 60.0
"""Seconds for all pages of a tree."""

_TOKEN = re.compile(r"[\x21-\x7e]+")

_DENIED = (401, 403)

GitHash = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file has to be: its bytes, counted, and one hash at least.

    Attributes:
        size: bytes.
        sha256: of the content; empty where nobody knows it yet.
        blob: of git: the sha1 of `blob <size>`, a zero byte and the content; empty where the sha256 is known.
    """

    size: int
    sha256: str = ""
    blob: str = ""

    @property
    def digest(self) -> str:
        """The hash that is known, with its kind before it."""
        return f"sha256:{self.sha256}" if self.sha256 else f"sha1:{self.blob}"


class Check:
    """Takes in a file and says whether it is the expected one."""

    def __init__(self, expected: Expected) -> None:
        self.completed = 0
        """Bytes taken in."""
        self._expected = expected
        self._sha256 = hashlib.sha256()
        self._blob = hashlib.sha1(f"blob {expected.size}\0".encode(), usedforsecurity=False)  # git's own hash

    def take(self, chunk: bytes) -> None:
        """Take in the next bytes.

        Raises:
            Refused: more than there should be.
        """
        self.completed += len(chunk)
        if self.completed > self._expected.size:
            raise Refused(f"more than its {self._expected.size} bytes")
        self._sha256.update(chunk)
        if self._expected.blob:
            self._blob.update(chunk)

    def done(self) -> str:
        """The sha256, once all is taken in.

        Raises:
            Refused: another file than the expected one.
        """
        if self.completed != self._expected.size:
            raise Refused(f"{self.completed} of its {self._expected.size} bytes")
        found, wanted = self._sha256.hexdigest(), self._expected.sha256
        if wanted and found != wanted:
            raise Refused(f"wrong bytes (sha256 {found[:12]}…)")
        if self._expected.blob and self._blob.hexdigest() != self._expected.blob:
            raise Refused(f"wrong bytes (git's sha1 of them is {self._blob.hexdigest()[:12]}…)")
        return found


class Commit(BaseModel):
    """What the hub tells of a repository at one revision; nothing but `sha` need be there."""

    sha: GitHash
    tags: list[str] = []
    about: Any = Field(default=None, alias="cardData")
    safetensors: Any = None


class _Lfs(BaseModel):
    oid: Sha256
    size: int = Field(ge=0)


class _Entry(BaseModel):
    """One line of a tree. Of a large file `oid` is the hash of a pointer, and `lfs.oid` is the content's."""

    type: str
    path: str
    size: int = Field(default=0, ge=0)
    oid: GitHash
    lfs: _Lfs | None = None


_ENTRIES = TypeAdapter(list[_Entry])


class Hub:
    """One hub. Blocking; any thread.

    Args:
        patience: how long to wait for it.
        endpoint: another hub than HF_ENDPOINT's.
    """

    def __init__(self, *, patience: Patience | None = None, endpoint: str | None = None) -> None:
        self._patience = patience or Patience()
        self._endpoint = endpoint
        self._certificates: ssl.SSLContext | None = None  # read once: that takes longer than a request

    def commit(self, repo: str, revision: str) -> Commit:
        """What the hub tells of a repository at a branch, a tag or a commit.

        Raises:
            SourceFailed: no answer, or none that makes sense.
            Refused: there is no such repository or revision, or it is not for everybody.
        """
        url = f"{self._base()}/api/models/{repo}/revision/{quote(revision, safe='')}"
        content, _ = self._asked(url, repo, deadline=monotonic() + _LISTING)
        try:
            return Commit.model_validate_json(content)
        except ValidationError as error:
            raise SourceFailed("the hub's answer makes no sense") from error

    def tree(self, repo: str, revision: str, folder: str = "") -> dict[str, Expected]:
        """Every file at a revision, by its path below `folder`.

        Raises:
            SourceFailed: no answer, none that makes sense, or more files than `MOST_FILES`.
            Refused: there is no such repository, revision or folder, or it is not for everybody.
        """
        below = f"/{quote(folder)}" if folder else ""
        base = f"{self._base()}/api/models/{repo}/tree/{revision}{below}"
        found: dict[str, Expected] = {}
        query = "recursive=true"
        deadline = monotonic() + _LISTING
        for _ in range(_MOST_PAGES):
            content, further = self._asked(f"{base}?{query}", repo, deadline=deadline)
            try:
                entries = _ENTRIES.validate_json(content)
            except ValidationError as error:
                raise SourceFailed("the hub's list of files makes no sense") from error
            for entry in entries:
                if entry.type != "file":
                    continue
                name = entry.path.removeprefix(f"{folder}/") if folder else entry.path
                if name in found:
                    raise SourceFailed("the hub's list of files names one twice")
                found[name] = (
                    Expected(entry.lfs.size, sha256=entry.lfs.oid)
                    if entry.lfs
                    else Expected(entry.size, blob=entry.oid)
                )
                if len(found) > MOST_FILES:
                    raise SourceFailed(f"the repository holds more than {MOST_FILES} files")
            if not further:
                return found
            # Only what it asks for is taken from the link, not where it leads: the token goes nowhere else.
            query = urlsplit(further).query
        raise SourceFailed("the hub's list of files does not end")

    def read(self, source: HubSource, name: str, expected: Expected) -> bytes:
        """A small file, whole and checked.

        Raises:
            SourceFailed: no answer.
            Refused: larger than `LARGEST_ANSWER`, or not what the tree says.
        """
        if expected.size > LARGEST_ANSWER:
            raise Refused(f"it has {expected.size / 1e6:,.0f} MB, which is too much for what it is")
        check, parts = Check(expected), []
        with self._body(source, name) as chunks:
            for chunk in chunks:
                check.take(chunk)
                parts.append(chunk)
        check.done()
        return b"".join(parts)

    def fetch(self, source: HubSource, names: Sequence[str], write: Write) -> None:
        """Fetch files at the pinned revision, straight into `write`.

        Args:
            source: repository and revision.
            names: files of the card.
            write: takes each.

        Raises:
            SourceFailed: the hub cannot be reached, or lacks a file, or `write` refused one; it was given the others.
        """
        failures = []
        for name in names:
            try:
                with self._body(source, name) as chunks:
                    write(name, chunks)
            except Refused as refusal:
                failures.append(f"{name}: {refusal}")
        if failures:
            raise SourceFailed("; ".join(failures))

    def _base(self) -> str:
        from huggingface_hub import constants

        return (self._endpoint or constants.ENDPOINT).rstrip("/")

    def _trusted(self) -> ssl.SSLContext:
        import httpx

        if self._certificates is None:
            try:
                self._certificates = httpx.create_ssl_context()
            except OSError as error:  # the environment names some wrongly
                raise SourceFailed(f"cannot be asked ({error})") from error
        return self._certificates

    @contextmanager
    def _body(self, source: HubSource, name: str) -> Iterator[Iterator[bytes]]:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(source.repo, name, subfolder=source.folder, revision=source.revision, endpoint=self._endpoint)
        with self._answer(url, source.repo) as response:
            yield response.iter_bytes(CHUNK)

    def _asked(self, url: str, repo: str, *, deadline: float) -> tuple[bytes, str]:
        """One answer of the API, and the address of the next page, if there is one."""
        content = bytearray()
        with self._answer(url, repo) as response:
            for chunk in response.iter_bytes(CHUNK):
                content += chunk
                if len(content) > LARGEST_ANSWER:
                    raise SourceFailed("the hub's answer does not end")
                if monotonic() > deadline:
                    raise SourceFailed("no answer in time")
            return bytes(content), response.links.get("next", {}).get("url", "")

    @contextmanager
    def _answer(self, url: str, repo: str) -> "Iterator[httpx.Response]":
        """An answer whose body is still to come, with every failure as one of ours."""
        import httpx

        try:
            with _sent(url, _headers(), patience=self._patience, certificates=self._trusted()) as response:
                if response.status_code != httpx.codes.OK:
                    raise Refused(_refusal(response, repo, asked=httpx.URL(url)))
                yield response
        except httpx.TimeoutException as error:
            raise SourceFailed("no answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SourceFailed(f"cannot be reached ({error})") from error


def _headers() -> Mapping[str, str]:
    """What every request says.

    Raises:
        SourceFailed: the environment says that nothing is to be asked, or has a token that is none.
    """
    from huggingface_hub import constants, get_token, is_offline_mode

    if is_offline_mode():
        raise SourceFailed("HF_HUB_OFFLINE is set")
    headers = {"Accept-Encoding": "identity"}  # of no length but the file's; the files hardly shrink
    if token := None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token():
        if not _TOKEN.fullmatch(token):  # an error of the HTTP library would show it
            raise SourceFailed("cannot be asked (HF_TOKEN is malformed)")
        headers["Authorization"] = f"Bearer {token}"  # httpx drops it where a redirect leads to another host
    return headers


def _refusal(response: "httpx.Response", repo: str, *, asked: "httpx.URL") -> str:
    """What a status means to whoever pulls."""
    status = f"HTTP status {response.status_code}"
    if response.status_code not in _DENIED or response.url.host != asked.host:
        return status
    if response.headers.get("X-Error-Code") == "GatedRepo":
        return f"{status}: the model {repo} is gated: accept its terms on the hub and set HF_TOKEN"
    return (
        f"{status}: {repo} is gated or private, or there is no such model: if it is gated, accept its terms on the hub"
        " and set HF_TOKEN"
    )


@contextmanager
def _sent(
    url: str, headers: Mapping[str, str], *, patience: Patience, certificates: ssl.SSLContext
) -> "Iterator[httpx.Response]":
    """The answer to a GET, its body still to come.

    The request is made in a thread of its own and left behind when late: no timeout of a socket bounds name
    resolution, and a connect timeout counts anew for each address (the hub has a dozen).
    """
    import httpx

    try:
        client = httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(patience.silence, connect=patience.connect),
            verify=certificates,
        )
    except (OSError, ImportError, ValueError) as error:  # a proxy that the environment names wrongly
        raise SourceFailed(f"cannot be asked ({error})") from error
    coming: Future[httpx.Response] = Future()

    def ask() -> None:
        try:
            coming.set_result(client.send(client.build_request("GET", url, headers=headers), stream=True))
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits
            coming.set_exception(error)

    def close(future: Future[httpx.Response]) -> None:
        if future.exception() is None:
            future.result().close()
        client.close()

    threading.Thread(target=ask, name="hub", daemon=True).start()
    try:
        try:
            response = coming.result(patience.answer)
        except TimeoutError as error:
            raise SourceFailed(f"no answer within {patience.answer:g} seconds") from error
        except ValueError as error:
            raise SourceFailed("cannot be asked (HF_ENDPOINT is malformed)") from error
        yield response
    finally:
        coming.add_done_callback(close)
