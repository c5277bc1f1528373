"""Logs: one form for all loggers, and no person's words in any."""

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import structlog
from pydantic import TypeAdapter, ValidationError

from appliance.errors import EngineFailed
from appliance.logs import PRIVATE, configure

CANARY = "the canary's own words"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure(form="json", level="info", stream=stream)
    yield stream
    logging.captureWarnings(capture=False)


def _read(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_our_lines_and_other_libraries_lines_have_one_form(lines: io.StringIO) -> None:
    structlog.get_logger().info("pulled", model="hash", bytes=3)
    logging.getLogger("uvicorn.error").warning("Started on %s", "a port")

    ours, theirs = _read(lines)
    assert (ours["event"], ours["level"], ours["model"], ours["bytes"]) == ("pulled", "info", "hash", 3)
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("Started on a port", "warning", "uvicorn.error")
    assert {"timestamp"} <= set(ours) & set(theirs)


@pytest.mark.parametrize("name", sorted(PRIVATE | {"TEXT", "Authorization"}))
def test_a_field_named_for_a_persons_words_or_a_key_is_dropped(name: str, lines: io.StringIO) -> None:
    structlog.get_logger().info("embedded", **{name: CANARY}, model="hash")
    structlog.get_logger().info("embedded", request={"inside": [{name: CANARY, "model": "hash"}]})
    with structlog.contextvars.bound_contextvars(**{name: CANARY}):
        structlog.get_logger().info("embedded")
        logging.getLogger("alembic").warning("embedded")

    assert "canary" not in lines.getvalue()
    assert lines.getvalue().count('"model": "hash"') == 2
    assert len(_read(lines)) == 4


def test_a_count_under_such_a_name_is_kept(lines: io.StringIO) -> None:
    structlog.get_logger().info("embedded", inputs=32)

    assert _read(lines)[0]["inputs"] == 32


def test_an_exception_is_its_frames_and_type_without_what_it_quotes(lines: io.StringIO) -> None:
    def fails() -> None:
        try:
            TypeAdapter(int).validate_python(CANARY)
        except ValidationError as error:
            raise EngineFailed("the engine gave no vector") from error

    try:
        fails()
    except EngineFailed:
        structlog.get_logger().exception("failed")
        logging.getLogger("uvicorn.error").exception("failed too")

    ours, theirs = _read(lines)
    for line in (ours, theirs):
        told = str(line["exception"])
        assert "in fails" in told
        assert told.index("ValidationError") < told.index("EngineFailed: the engine gave no vector")
    assert "canary" not in lines.getvalue()


def test_an_exception_of_the_disk_says_what_but_not_where(lines: io.StringIO) -> None:
    path = Path("/nowhere") / CANARY
    try:
        path.read_bytes()
    except OSError:
        structlog.get_logger().exception("failed")

    assert "FileNotFoundError: No such file or directory" in str(_read(lines)[0]["exception"])
    assert "canary" not in lines.getvalue()


def test_an_exception_in_a_circle_of_causes_is_written_once(lines: io.StringIO) -> None:
    one, other = RuntimeError(), ValueError()
    one.__cause__, other.__cause__ = other, one
    structlog.get_logger().error("failed", exc_info=one)

    assert str(_read(lines)[0]["exception"]).split() == ["ValueError", "RuntimeError"]


def test_a_task_nobody_waited_for_does_not_tell_its_words(lines: io.StringIO) -> None:
    async def lost() -> None:
        async def fails() -> None:
            raise ValueError(CANARY)

        task = asyncio.create_task(fails())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task

    asyncio.run(lost())

    assert "Task exception was never retrieved" in lines.getvalue()
    assert "canary" not in lines.getvalue().replace("raise ValueError(CANARY)", "")


@pytest.mark.parametrize("level", ["debug", "info"])
def test_libraries_that_print_requests_are_quiet(level: Literal["debug", "info"], lines: io.StringIO) -> None:
    configure(form="json", level=level, stream=lines)

    logging.getLogger("uvicorn.access").critical("GET /search?q=%s", CANARY)
    logging.getLogger("httpx").info("HTTP Request: GET %s", CANARY)
    logging.getLogger("httpcore").debug("send_request_body %s", CANARY)
    logging.getLogger("sqlalchemy.engine").info("[raw sql] (%r)", CANARY)

    assert lines.getvalue() == ""


def test_what_is_below_the_level_is_not_written(lines: io.StringIO) -> None:
    structlog.get_logger().debug("small talk")
    logging.getLogger("anything").debug("small talk")
    assert lines.getvalue() == ""

    configure(form="json", level="debug", stream=lines)
    structlog.get_logger().debug("small talk")
    assert _read(lines)[0]["level"] == "debug"


def test_warnings_become_lines(lines: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old habits", DeprecationWarning, stacklevel=1)

    assert "old habits" in lines.getvalue()


def test_for_a_person_a_line_is_readable() -> None:
    stream = io.StringIO()
    configure(form="console", level="info", stream=stream)
    structlog.get_logger().warning("model missing", model="hash", text=CANARY)

    assert "model missing" in stream.getvalue()
    assert "model=hash" in stream.getvalue()
    assert "canary" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
