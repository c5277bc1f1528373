"""Processes that read documents: what ends them, and what that costs."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import EngineFailed, InvalidInput
from appliance.ingest import child, sandbox
from appliance.ingest.formats import detect
from appliance.ingest.formats.detect import Kind
from appliance.ingest.sandbox import Sandbox

CSV = Kind("text/csv")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def made() -> Iterator[Sandbox]:
    found = Sandbox(processes=1)
    yield found
    found.close()


def acting(folder: Path, action: str, **limits: Any) -> Sandbox:
    """A sandbox whose processes do something else than read, when they are given b"act"."""
    program = folder / "acting.py"
    program.write_text(
        textwrap.dedent(
            """
            import os, resource, signal, socket, sys, threading, time
            from appliance.ingest import child
            from appliance.ingest.formats.document import Parsed
            def acted(body, kind):
                if body == b"act":
                    return act() or Parsed("done", "", "text/plain")
                return Parsed(body.decode(), "", "text/plain")
            def act():
            """
        )
        + textwrap.indent(textwrap.dedent(action), "    ")
        + "\nchild.read = acted\nchild.main(int(sys.argv[1]))\n"
    )
    return Sandbox(processes=1, command=(sys.executable, "-B", str(program)), **limits)


def gone(pid: int, *, within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_process_is_kept_for_the_next_document(made: Sandbox) -> None:
    assert made.pids() == []
    made.read(b"a,b", CSV)
    first = made.pids()
    made.read(b"c,d", CSV)

    assert made.pids() == first
    assert len(first) == 1


def test_a_process_is_replaced_after_many_documents(made: Sandbox) -> None:
    made.read(b"a,b", CSV)
    (first,) = made.pids()
    for _ in range(sandbox.MAX_FILES - 1):
        made.read(b"a,b", CSV)
    made.read(b"a,b", CSV)

    assert made.pids() != [first]
    assert gone(first)


def test_a_process_that_went_while_idle_costs_no_document(made: Sandbox) -> None:
    made.read(b"a,b", CSV)
    (first,) = made.pids()
    os.kill(first, signal.SIGKILL)
    assert gone(first)

    assert made.read(b"c,d", CSV).text == "| c | d |\n| --- | --- |"


@pytest.mark.parametrize(
    ("action", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os.abort()", "SIGABRT"),
        ("os._exit(3)", "status 3"),
        ("raise KeyError('secret')", "unexpected KeyError"),
        ("bytearray(2**31)", "takes more than the 600 MiB of memory"),
        ("x = []\nwhile True: x.append(bytearray(10_000_000))", "takes more than the 600 MiB of memory"),
        ("while True: pass", "could not be read within"),
        ("time.sleep(60)", "could not be read within"),
        ("os.write(3, bytes(100))", "ended the process|cannot be used"),
        ("os.write(3, child.ANSWER.pack(0, 2**31, 2**31))", "cannot be used"),
        ("return Parsed('x', '', 'text/plain', ((9, 1),))", "cannot be used"),
        ("return Parsed('x', '', 'text/plain', ((1, 1), (0, 2)))", "cannot be used"),
        ("return Parsed('a\\0b', '', 'text/plain')", "cannot be used"),
        ("return Parsed('x', '', 'text/plain', links=((9, 'y'),))", "cannot be used"),
        ("return Parsed('x', '', 'text/plain', links=((1, 'y'), (0, 'y')))", "cannot be used"),
        ("return Parsed('x', '', 'text/plain', links=((0, 'y' * 513),))", "cannot be used"),
        ("return Parsed('x', '', 'text/plain', links=((0, 'a\\0b'),))", "cannot be used"),
        ("return Parsed('x', '', 'text/plain', links=((0, 'y'),) * 1001)", "cannot be used"),
    ],
)
def test_a_document_that_ends_its_process_fails_alone_and_says_why(tmp_path: Path, action: str, why: str) -> None:
    made = acting(tmp_path, action, seconds=3 if "within" in why else 15)
    made.read(b"before", CSV)
    (first,) = made.pids()

    started = time.monotonic()
    with pytest.raises(InvalidInput, match=why) as caught:
        made.read(b"act", CSV)

    assert "secret" not in caught.value.message
    assert time.monotonic() - started < 15
    assert gone(first)
    assert made.read(b"after", CSV).text == "after"
    made.close()


@pytest.mark.parametrize(
    "action",
    [
        "socket.socket()",
        "open('/etc/passwd')",
        "open('/dev/shm/canary', 'w')",
        "os.pipe()",
        "os.memfd_create('x')",
    ],
)
def test_a_reader_can_open_nothing(tmp_path: Path, action: str) -> None:
    made = acting(
        tmp_path, f"try:\n    {action}\nexcept OSError as error:\n    return Parsed(str(error.errno), '', 'x')"
    )

    assert made.read(b"act", CSV).text == "24"  # EMFILE
    assert not Path("/dev/shm/canary").exists()  # noqa: S108  # nothing is to be there
    made.close()


def test_what_a_library_prints_is_lost_and_harms_nothing(tmp_path: Path) -> None:
    made = acting(tmp_path, "print('noise', flush=True)\nprint('noise', file=sys.stderr, flush=True)")

    assert made.read(b"act", CSV).text == "done"
    made.close()


def test_a_process_gets_no_key_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPLIANCE_API_KEYS", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    made = acting(tmp_path, "return Parsed(' '.join(os.environ), '', 'x')")

    assert "KEY" not in made.read(b"act", CSV).text
    made.close()


def test_no_process_outlives_the_server_not_even_one_that_reads(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import sys, threading, time; sys.path.insert(0, sys.argv[2])\n"
                "from pathlib import Path\n"
                "from appliance.ingest.sandbox import Sandbox\nfrom appliance.ingest.formats.detect import Kind\n"
                "s = Sandbox(command=(sys.executable, '-B', sys.argv[1]))\n"
                "threading.Thread(target=s.read, args=(b'act', Kind('text/csv')), daemon=True).start()\n"
                "s.read(b'x', Kind('text/csv'))\nprint(*s.pids(), flush=True)\ntime.sleep(60)\n"
            ),
            str(_program(tmp_path)),
            str(ROOT),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    pids = [int(each) for each in server.stdout.readline().split()]
    assert len(pids) == 2

    server.kill()
    server.wait()
    server.stdout.close()

    assert all(gone(pid) for pid in pids)


def _program(folder: Path) -> Path:
    acting(folder, "while True: pass").close()
    return folder / "acting.py"


def test_closing_ends_what_is_being_read(tmp_path: Path) -> None:
    made = acting(tmp_path, "time.sleep(60)")
    failures: list[Exception] = []

    def read() -> None:
        try:
            made.read(b"act", CSV)
        except (InvalidInput, EngineFailed) as error:
            failures.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    while not made.pids():
        time.sleep(0.01)
    (pid,) = made.pids()
    made.close()
    reading.join(5)

    assert not reading.is_alive()
    assert len(failures) == 1
    assert gone(pid)
    with pytest.raises(EngineFailed, match="stopping"):
        made.read(b"x", CSV)


def test_a_process_that_cannot_be_begun_is_no_documents_fault(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="no process could be begun"):
        Sandbox(command=(str(tmp_path / "nothing"),)).read(b"x", CSV)
    with pytest.raises((EngineFailed, InvalidInput)):
        Sandbox(command=("false",)).read(b"x" * 10_000_000, CSV)


def test_every_format_is_read_where_no_file_can_be_opened(made: Sandbox, documents: Any) -> None:
    body = documents.pdf([["Café otters"]])

    assert all(made.read(each, Kind(kind)).text for kind, each in documents.every_format().items())
    assert made.read(body, Kind(detect.PDF)).text == "Café otters"
    assert made.read(documents.RTF, Kind(detect.RTF)).title == "On otters"
    mail = b"From: =?cp037?q?x?= <a@b>\nContent-Type: text/plain; charset=utf-7\n\nhello"
    assert made.read(mail, Kind(detect.EML)).text.endswith("hello")


def test_the_links_of_a_page_are_handed_on(made: Sandbox) -> None:
    parsed = made.read(b"<p>One <a href=a>two</a>", Kind("text/html"))

    assert (parsed.text, parsed.links) == ("One two", ((4, "a"),))


def test_what_a_reader_takes_is_little(made: Sandbox) -> None:
    made.read(b"a,b", CSV)
    (pid,) = made.pids()
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    assert resident < 80 * 2**20
    assert child.MEMORY > 400 * 2**20
