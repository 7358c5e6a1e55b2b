"""The prepared process of a sweep (`ltexp/processes/prepared.py`), seen from the command and from its jobs."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ltexp.config.identity import digest
from ltexp.processes.memory import LARGE_PAGES
from ltexp.processes.parent import die_with_parent
from ltexp.processes.prepared import send

PREPARED = "LTEXP_PREPARED"  # environment variable: the address of the prepared process, and what it was started with
WAITING_JOBS = 512  # that may ask it at a time

# of the environment: what a process reads later than at its start, or what says nothing of how it computes
LATER = ("LTEXP_", "HYDRA_", "LOKY", "JOBLIB", "ENABLE_IPC", "KMP_INIT_AT_FORK", "CUDA_VISIBLE_DEVICES", LARGE_PAGES)
OF_RANKS = (  # what torch's launcher and its imports add to it for each process
    *("RANK", "WORLD_SIZE", "ROLE_", "GROUP_", "LOCAL_", "MASTER_", "TORCHELASTIC_", "TORCH_NCCL_ASYNC"),
    "KMP_DUPLICATE_LIB_OK",
)
THREADS = ("OMP_", "OPENBLAS_", "MKL_", "BLIS_", "VECLIB_", "NUMBA_", "NUMEXPR_")  # numbers of them: set in the job

# when a process dies, the others' broken connections are no news: the failure is told in one line
QUIET_EXCHANGES = ("TORCH_CPP_LOG_LEVEL", "ERROR")

_server: list[subprocess.Popen[bytes]] = []


def start_prepared(sweep: bool, several: bool = False) -> None:
    """Starts the prepared process, which loads the libraries while the command goes on; only on Linux.

    Args:
        sweep: whether several jobs will share what is loaded.
        several: whether a run has several processes, all of which are forked from this one.
    """
    if sys.platform != "linux" or _server:
        return
    if several:
        os.environ.setdefault(*QUIET_EXCHANGES)
    name = f"ltexp-{os.getpid()}-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")  # no file, and gone with its last user
        listener.listen(WAITING_JOBS)
        descriptor, parent = listener.fileno(), os.getpid()
        command = [sys.executable, "-m", "ltexp.processes.prepared", str(descriptor), str(parent), str(int(sweep))]
        _server.append(
            subprocess.Popen(
                command, pass_fds=[descriptor], stdin=subprocess.DEVNULL, preexec_fn=partial(die_with_parent, parent)
            )
        )
    os.environ[PREPARED] = f"{name} {_start_of(os.environ)}"


def end_prepared() -> None:
    """Ends the prepared process, if there is one; jobs that still run are stopped first."""
    while _server:
        process = _server.pop()
        os.environ.pop(PREPARED, None)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(7)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class PreparedProcess:
    """A job's process, with what is needed of `subprocess.Popen`.

    Attributes:
        returncode: its exit status, a signal's number negative; None while it runs.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status.

        Raises:
            subprocess.TimeoutExpired: if it did not end in so many seconds.
        """
        if self.returncode is None:
            self.connection.settimeout(timeout)
            try:
                answer = self.connection.recv(16)
            except TimeoutError:
                raise subprocess.TimeoutExpired("a job", timeout or 0) from None
            except OSError:
                answer = b""
            # without an answer, the prepared process has died, and the job with it
            self.returncode = int(answer) if answer.strip() else -signal.SIGKILL
            self.connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends the job a signal, if it is still there."""
        with suppress(OSError):
            self.connection.send(bytes([number]))

    def kill(self) -> None:
        """Kills the job; a prepared process that does not answer is taken for dead."""
        self.send_signal(signal.SIGKILL)
        try:
            self.wait(2)
        except subprocess.TimeoutExpired:
            self.returncode = -signal.SIGKILL
            self.connection.close()


def start_here(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], streams: Sequence[int] = (0, 1, 2)
) -> PreparedProcess | None:
    """`python -m MODULE ARGUMENTS` by the prepared process; None where there is none that could do it.

    Args:
        environment: of the new process.
        streams: descriptors of its standard input, output and error.
    """
    name, _, started_with = os.environ.get(PREPARED, "").partition(" ")
    if not name or started_with != _start_of(environment):
        return None
    connection = socket.socket(socket.AF_UNIX)
    request: dict[str, Any] = {
        "module": module,
        "arguments": list(arguments),
        "environment": dict(environment),
        "directory": str(Path.cwd()),
    }
    try:
        connection.connect(f"\0{name}")
        send(connection, request, list(streams))
    except OSError:
        connection.close()
        return None
    return PreparedProcess(connection)


def ask(module: str, text: str) -> tuple[int, str]:
    """(exit status, standard output) of `python -m MODULE` with `text` on its standard input."""
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer:
        question.write(text.encode())
        question.seek(0)
        streams = (question.fileno(), answer.fileno(), 2)
        command = [sys.executable, "-m", module]
        bound = partial(die_with_parent, os.getpid())
        process = start_here(module, [], os.environ, streams) or subprocess.Popen(
            command, stdin=question, stdout=answer, preexec_fn=bound
        )
        status = process.wait()
        answer.seek(0)
        return status, answer.read().decode()


def _start_of(environment: Mapping[str, str]) -> str:
    """Names what libraries read of an environment when they are loaded: a job with another one starts afresh."""
    threads = {name for name in environment if name.startswith(THREADS) and name.endswith("_THREADS")}
    left_out = (*LATER, *OF_RANKS)
    kept = sorted(item for item in environment.items() if not item[0].startswith(left_out) and item[0] not in threads)
    return digest(kept)[:16]
