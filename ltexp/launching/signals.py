"""Signals that end a command: it ends what it has started, and then itself."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, Protocol

ENDING = (signal.SIGTERM, signal.SIGHUP)  # beside Ctrl-C, which Python raises as KeyboardInterrupt
GRACE = 6.0  # seconds that a run has to note that it was stopped, before it is killed


class Stopped(BaseException):
    """A signal has asked this command to end; no `Exception`, so that no job of a sweep is started after it.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def raised_signals() -> Iterator[None]:
    """Within the block a signal of `ENDING` is raised as `Stopped`; one that is ignored, as nohup does, stays so."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in ENDING}
    heard = [number for number in ENDING if before[number] != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def number_of(signalled: BaseException) -> int:
    """The signal behind a `Stopped` or a KeyboardInterrupt."""
    return signalled.number if isinstance(signalled, Stopped) else int(signal.SIGINT)


class Process(Protocol):
    """A started process."""

    def send_signal(self, number: int, /) -> None:
        """Sends it a signal."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; raises subprocess.TimeoutExpired."""

    def kill(self) -> None:
        """Kills it."""


def end_process(process: Process, number: int) -> None:
    """Hands the signal on, and kills the process if it is still there after `GRACE`, or at a second signal."""
    process.send_signal(number)  # after Ctrl-C the terminal has sent it as well; a second one does no harm
    try:
        process.wait(GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt, Stopped):
        process.kill()
        process.wait()
