"""Ctrl-C at a moment that suits: an estimate first puts the weights back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Within: Ctrl-C waits until the end, where it is delivered as it would have been; a second one strikes at once.

    Without this a KeyboardInterrupt could fall between the lines that put weights back.  A handler whose ``only_notes``
    is true is left in place: it does not raise at the first Ctrl-C.
    """
    before = signal.getsignal(signal.SIGINT)
    if getattr(before, "only_notes", False):
        yield
        return
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield  # only the main thread gets Ctrl-C; a handler that was not set from Python could not be set again
        return
    pending: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if pending:
            raise KeyboardInterrupt
        pending.append(number)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pending:
            signal.raise_signal(signal.SIGINT)
