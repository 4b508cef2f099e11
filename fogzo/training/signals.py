"""Stop signals at moments that suit: a trainer finishes its step and saves, an estimate first puts the weights back."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# A closed terminal sends SIGHUP.  SLURM sends SIGTERM before it kills, and ahead of the time limit what it is asked
# for: SIGUSR1 (--signal=USR1@120), or SIGUSR2, which submitit asks for
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # not on Windows
]
PATIENCE = 2.0  # seconds that a step may take to end once a stop is asked for


class Interrupted(Exception):  # not an error: the run goes on when it is started again
    """A run was asked to stop, and has saved its state; ``code`` is the process's exit code: 128 + signal number."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}; the same command goes on from there"
        )
        self.code = 128 + number


class StepAbandoned(Exception):
    """A step is given up between two passes, since a stop was asked for and it takes too long."""


class StopRequest:
    """Context in which a stop signal sets ``number`` instead of striking; a second Ctrl-C stops at once."""

    only_notes = True  # for fogzo.estimators.perturb: it may be called at any moment

    def __init__(self) -> None:
        self.number: int | None = None
        self.asked = 0.0  # when
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            # what is ignored stays so: nohup has a run go on when the terminal closes
            ours = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self) for number in ours}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on(self, number: int) -> bool:
        """Hand the signal, once the state is saved, to the handler that was there before, if a program had set one.

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

    @property
    def overdue(self) -> bool:
        """Return whether a stop was asked for so long ago that the step should not be waited for."""
        return self.number is not None and time.monotonic() - self.asked > PATIENCE

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number, self.asked = number, time.monotonic()
