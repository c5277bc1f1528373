"""Wakes up when something happens in some folders."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

BLIND: Final = 10.0
"""Seconds between two looks where the system cannot tell: too many folders, or a file system that does not."""

_DEBOUNCE: Final = 400
"""Milliseconds for which what happens is gathered."""

_STEP: Final = 100
"""Milliseconds between two looks at what the system told."""

log = structlog.get_logger(__name__)


class Notice:
    """Watches folders one by one, and none below them: a link that leads elsewhere is never followed. One thread at a
    time.
    """

    def __init__(self) -> None:
        self._folders: frozenset[str] = frozenset()
        self._notify: RustNotify | None = None
        self._blind = False

    def follow(self, folders: Sequence[Path]) -> bool:
        """Watch these from now on; whether they are others than before, so that something may have been missed."""
        named = frozenset(map(str, folders))
        if named == self._folders:
            return False
        self.close()
        self._folders = named
        from watchfiles._rust_notify import RustNotify

        was_blind, self._blind = self._blind, False
        try:
            # debug, force_polling, poll_delay_ms, recursive, ignore_permission_denied
            self._notify = RustNotify(sorted(named), False, False, 300, False, True)  # noqa: FBT003  # theirs
        except (OSError, RuntimeError) as error:
            self._blind = True
            if not was_blind:
                log.warning(
                    "folders are looked at now and then: the system cannot watch them", reason=type(error).__name__
                )
        return not self._blind

    def wait(self, seconds: float, end: threading.Event) -> None:
        """Wait until something happens, the time is over, or the end comes. Blocking."""
        if seconds <= 0:
            return
        if self._notify is None:
            end.wait(min(seconds, BLIND))
            return
        began = time.monotonic()
        try:
            told = self._notify.watch(_DEBOUNCE, _STEP, int(seconds * 1000), end)
        except (OSError, RuntimeError):
            self._forget()
            end.wait(min(seconds, 1.0))
            return
        if told == "signal":
            raise KeyboardInterrupt
        if isinstance(told, set) and time.monotonic() - began < _DEBOUNCE / 1000:
            end.wait(_DEBOUNCE / 1000)  # a folder that changes all the time is not looked at all the time

    def close(self) -> None:
        """Let go of the folders. Safe to call twice."""
        if self._notify is not None:
            with suppress(OSError, RuntimeError):
                self._notify.close()
        self._forget()

    def _forget(self) -> None:
        self._notify = None
        self._folders = frozenset()
