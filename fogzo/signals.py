"""Stop signals at moments that suit: a trainer finishes its step and saves, an estimate first puts the weights back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

# SLURM sends SIGTERM before it kills, and ahead of the time limit what it is asked for: SIGUSR1 (--signal=USR1@120), or
# SIGUSR2, which submitit asks for
SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    *(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)),
)


class Interrupted(Exception):  # not an error: the run goes on when it is started again
    """A run was asked to stop, and has saved its state; ``code`` is the process's exit code: 128 + signal number."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}; the same command goes on from there"
        )
        self.code = 128 + number


class StopRequest:
    """Context in which a stop signal sets ``number`` instead of striking; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on(self, number: int) -> bool:
        """Once the state is saved: hand the signal to the handler that was there before, if a program had set one.

        Under submitit that is how a job gets back into the queue at SIGUSR2: its handler ends the process.  If the
        handler comes back (submitit's does at SIGTERM, after which SLURM requeues or kills), the run is to go on.

        Returns ``False`` if there is no such handler, and the run is to stop.
        """
        handler = self._before.get(signal.Signals(number))
        if number == signal.SIGINT or not callable(handler):
            return False
        self.number = None
        handler(number, None)
        return True

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Within: Ctrl-C waits until the end, where it is delivered as it would have been; a second one strikes at once.

    Without this a KeyboardInterrupt could fall between the lines that put weights back.
    """
    before = signal.getsignal(signal.SIGINT)
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
