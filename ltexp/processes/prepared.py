"""A process with the libraries loaded, which forks: `python -m ltexp.processes.prepared LISTENER PARENT SWEEP`.

Importing torch, Lightning and ltexp takes seconds. A sweep does it once, here, and a single run while the command
composes and checks. Each job is a fork of this process: one of its own as ever, with a module, arguments, environment,
folder and standard streams of its own.
Nothing is computed here, so that no thread of a library and no GPU is in use when it forks.
"""

import gc
import json
import multiprocessing
import os
import selectors
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.process import BaseProcess
from typing import Any

from ltexp.processes.parent import die_with_parent

LOADED = ("ltexp.processes.worker", "ltexp.training.callbacks", "ltexp.data.images.dataset", "torch._dynamo")
OF_SWEEPS = (
    "ltexp.processes.preflight",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)  # not worth one run's wait
GRACE = 5.0  # seconds from a job's SIGTERM to its SIGKILL, a little less than the command's patience
LENGTH = struct.Struct("!Q")  # of a request, before it

Target = Callable[[dict[str, Any], list[int]], None]


def main() -> None:
    """Serves until SIGTERM, which ends the jobs first, or until the command that started it ends."""
    descriptor, parent, sweep = map(int, sys.argv[1:])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the jobs themselves
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    gc.disable()  # nothing of what is loaded goes: looking for it took a fifth of the time
    for module in (*LOADED, *(OF_SWEEPS if sweep else ())):
        import_module(module)
    gc.freeze()  # a job's collector need not touch, and so copy, this memory
    gc.enable()
    Server(socket.socket(fileno=descriptor), become).serve()
    os._exit(0)


class Server:
    """Starts a process for each connection's request, and answers it with the exit status.

    A connection that ends before its job takes the job with it.

    Args:
        listener: a listening Unix socket.
        target: what a job's process does, see `become`.
    """

    def __init__(self, listener: socket.socket, target: Target) -> None:
        self.listener, self.target = listener, target
        self.jobs: dict[socket.socket, BaseProcess] = {}
        self.deadlines: dict[int, float] = {}  # by process: when it is killed
        self.abandoned: set[socket.socket] = set()  # whoever asked for the job has gone
        self.closing, self.process = False, os.getpid()
        self.selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Returns after SIGTERM, when the last job has ended."""
        woken, waker = socket.socketpair()
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        signal.signal(signal.SIGTERM, self._close)
        self.selector.register(woken, selectors.EVENT_READ, lambda: woken.recv(64))
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        while not self.closing or self.jobs:
            for key, _ in self.selector.select(1.0 if self.deadlines else None):
                if key.fd in self.selector.get_map():  # else an event before this one has ended it
                    key.data()
            self._kill_late()

    def _close(self, *_: Any) -> None:
        self.closing = True
        for job in self.jobs.values():
            self._end(job)

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        if owner_of(connection) != os.getuid() or self.closing:
            connection.close()
            return
        connection.settimeout(10)
        try:
            request, streams = receive(connection)
        except (OSError, ValueError, EOFError):
            connection.close()
            return
        job = multiprocessing.get_context("fork").Process(target=self._in_fork, args=(connection, request, streams))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which BLAS libraries take care of
            job.start()
        for stream in streams:
            os.close(stream)
        self.jobs[connection] = job
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._hear(connection))
        self.selector.register(job.sentinel, selectors.EVENT_READ, lambda: self._answer(connection))

    def _in_fork(self, own: socket.socket, request: dict[str, Any], streams: list[int]) -> None:
        signal.set_wakeup_fd(-1)
        die_with_parent(self.process)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.selector.close()
        for connection in (self.listener, own, *self.jobs):
            connection.close()
        self.target(request, streams)

    def _hear(self, connection: socket.socket) -> None:
        """A signal for the job, or the end of who asked for it."""
        job = self.jobs[connection]
        try:
            heard = connection.recv(1)
        except OSError:
            heard = b""
        if not heard:
            self.selector.unregister(connection)
            self.abandoned.add(connection)
            time.sleep(0.2)  # where the command itself was killed, this process is killed here, and the job with it
            self._end(job)
        elif job.pid is not None and job.is_alive():
            os.kill(job.pid, heard[0])

    def _answer(self, connection: socket.socket) -> None:
        job = self.jobs.pop(connection)
        self.selector.unregister(job.sentinel)
        job.join()
        self.deadlines.pop(job.pid or 0, None)
        if connection not in self.abandoned:
            self.selector.unregister(connection)
            with suppress(OSError):  # gone just now
                connection.sendall(f"{job.exitcode}\n".encode())
        self.abandoned.discard(connection)
        connection.close()

    def _end(self, job: BaseProcess) -> None:
        job.terminate()
        self.deadlines[job.pid or 0] = time.monotonic() + GRACE

    def _kill_late(self) -> None:
        for job in list(self.jobs.values()):
            if time.monotonic() > self.deadlines.get(job.pid or 0, float("inf")):
                job.kill()


def become(request: dict[str, Any], streams: list[int]) -> None:
    """Makes of this process `python -m MODULE ARGUMENTS`, in the request's folder and environment.

    Args:
        request: `module`, `arguments`, `environment` and `directory`.
        streams: descriptors of standard input, output and error.
    """
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # they stay open as long as this process
    out, err = sys.stdout, sys.stderr
    sys.stdout = open(1, "w", encoding=out.encoding, errors=out.errors, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, encoding=err.encoding, errors=err.errors, closefd=False)  # noqa: SIM115
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    if os.environ.get("OMP_NUM_THREADS") != threads:  # the libraries have read the other one
        _use_threads(os.environ.get("OMP_NUM_THREADS"))
    sys.argv = [request["module"], *request["arguments"]]
    import_module(request["module"]).main()


def _use_threads(number: str | None) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    from ltexp.processes.cores import usable_cores

    count = int(number) if number and number.isdecimal() else usable_cores()
    threadpool_limits(count)
    torch.set_num_threads(count)


def owner_of(connection: socket.socket) -> int:
    """The user whose process is at the other end."""
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(user)


def send(connection: socket.socket, request: dict[str, Any], streams: list[int]) -> None:
    """Sends what `receive` gives at the other end."""
    content = json.dumps(request).encode()
    socket.send_fds(connection, [LENGTH.pack(len(content))], streams)
    connection.sendall(content)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request and the descriptors that came with it.

    Raises:
        EOFError: if the other end has closed.
    """
    head, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    if len(head) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(head)
    content = bytearray()
    while len(content) < length:
        part = connection.recv(min(length - len(content), 1 << 20))
        if not part:
            raise EOFError
        content += part
    return json.loads(content), streams


if __name__ == "__main__":
    main()
