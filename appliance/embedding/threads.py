"""Blocking calls that nothing need wait for, each on a daemon thread of its own."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def on_thread(call: Callable[[], T], *, name: str) -> T:
    """What `call` returns or raises.

    For calls that may take minutes: `asyncio.to_thread` has few threads, and the process does not end before they do.
    Cancelled, this returns at once; the call goes on to its end, and what comes of it is dropped.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Future[T]] = loop.create_future()

    def tell(outcome: Future[T]) -> None:
        if not ended.done():
            ended.set_result(outcome)

    def work() -> None:
        outcome: Future[T] = Future()
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001  # whatever it is, it belongs to the caller
            outcome.set_exception(error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell, outcome)

    threading.Thread(target=work, name=name, daemon=True).start()
    return (await ended).result()
