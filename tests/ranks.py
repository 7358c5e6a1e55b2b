"""A pool of worker processes joined by gloo, so that a test can run a function on several ranks."""

import datetime
import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any


class RankPool:
    """`world_size` spawned processes in one process group; they serve calls until closed."""

    def __init__(self, world_size: int, folder: Path, timeout: float) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in an unknown state
        self.timeout = timeout
        self.processes, self.pipes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            arguments = (rank, world_size, f"file://{folder / 'rendezvous'}", timeout, theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """`function(*arguments)` on every rank; its results in rank order. The first failure is raised here."""
        call = pickle.dumps((function, arguments))
        for pipe in self.pipes:
            pipe.send_bytes(call)
        results: dict[int, Any] = {}
        deadline = time.monotonic() + self.timeout
        while len(results) < len(self.pipes):
            pending = [pipe for rank, pipe in enumerate(self.pipes) if rank not in results]
            ready = wait(pending, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"ranks {sorted(set(range(len(self.pipes))) - set(results))} did not answer in time")
            for pipe in ready:
                rank = self.pipes.index(pipe)
                try:
                    answer = pipe.recv_bytes()
                except EOFError:
                    raise RuntimeError(f"rank {rank} died without an answer") from None
                succeeded, value, trace = pickle.loads(answer)
                if not succeeded:
                    value.add_note(f"on rank {rank}:\n{trace}")
                    raise value
                results[rank] = value
        return [results[rank] for rank in range(len(self.pipes))]

    def close(self) -> None:
        """End the processes, also those that hang in an exchange."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(timeout=2)
            if process.is_alive():
                process.kill()
                process.join()


def _serve(rank: int, world_size: int, rendezvous: str, timeout: float, pipe: Connection) -> None:
    """A worker: joins the group, then answers calls until the pipe closes."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=timeout)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size, timeout=limit)
    while True:
        try:
            call = pipe.recv_bytes()
        except (EOFError, OSError):
            break
        try:
            function, arguments = pickle.loads(call)
            answer = pickle.dumps((True, function(*arguments), ""))
        except BaseException as error:
            trace = traceback.format_exc()
            try:
                answer = pickle.dumps((False, error, trace))
                pickle.loads(answer)
            except Exception:  # an exception that cannot be pickled
                answer = pickle.dumps((False, RuntimeError(repr(error)), trace))
        pipe.send_bytes(answer)
    dist.destroy_process_group()
