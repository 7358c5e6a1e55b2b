"""Starts one worker a device with torch's own launcher: `python -m ltexp.processes.ranks FOLDER DEVICES`.

For a run on several nodes the same is started on each of them, with `NODES HOST:PORT` besides. It stands between
`ltexp train` and the workers to leave the last word to the worker that failed, where torch's launcher would add a
traceback of its own, and to end this node's workers when another node's have failed.
"""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import main as launch

from ltexp.config.identity import digest
from ltexp.evaluation.record import mark_failed
from ltexp.processes.failure import LAUNCHER, REFUSED, STOPPED, first_failure, first_to_fail, this_node
from ltexp.processes.parent import die_with_parent
from ltexp.run_log import note

JOIN_TIMEOUT = 600  # seconds for all nodes to come


def main() -> None:
    """Runs the folder on so many devices; ends with status 1 if a worker failed."""
    folder, devices, *several = sys.argv[1:]
    die_with_parent()
    os.environ[LAUNCHER] = str(os.getpid())
    logging.disable(logging.CRITICAL)  # what torch's launcher logs, ltexp says in a line
    if several:
        threading.Thread(target=end_with_other_nodes, args=(Path(folder),), daemon=True).start()
    try:
        launch([*_meeting(folder, *several), f"--nproc-per-node={devices}", "-m", "ltexp.processes.rank", folder])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = REFUSED if failure.exitcode == REFUSED else 1
        _end(Path(folder), _how_it_ended(rank, failure.exitcode), status, failure.exitcode == 128 + signal.SIGTERM)
    except SignalException as error:
        _end(Path(folder), STOPPED, 128 + error.sigval, stopped=True)
    except (RendezvousError, DistError) as error:
        nodes, place = several
        _end(Path(folder), f"the {nodes} nodes did not meet at {place} ({type(error).__name__}): is it one of them?", 1)


def _meeting(folder: str, nodes: str = "1", place: str = "") -> list[str]:
    if nodes == "1":
        return ["--standalone"]
    print(f"waiting for {nodes} nodes at {place}", flush=True)
    times = f"join_timeout={JOIN_TIMEOUT},read_timeout={JOIN_TIMEOUT}"
    where = ["--rdzv-backend=c10d", f"--rdzv-endpoint={place}", f"--rdzv-id=ltexp-{digest(folder)}"]
    return [f"--nnodes={nodes}", *where, f"--rdzv-conf={times}"]


def end_with_other_nodes(folder: Path) -> None:
    """Waits for a failure anywhere, then ends this node: its workers may wait for ever for those that are gone."""
    while first_failure(folder) is None:
        time.sleep(1)
    time.sleep(2)  # where the failure is this node's own, torch's launcher is at it already
    os.kill(os.getpid(), signal.SIGTERM)


def _how_it_ended(rank: int, status: int) -> str:
    advice = "resume=true continues the run"
    if status < 0:
        reason = ", as when memory runs out" if -status == signal.SIGKILL else ""
        return f"rank {rank} was killed by signal {-status}{reason}; {advice}"
    if status == 128 + signal.SIGTERM:
        return STOPPED
    return f"rank {rank} ended with status {status}"


def _end(folder: Path, message: str, status: int, stopped: bool = False) -> None:
    """Says why, unless a worker of this node has done so, and ends this process."""
    if first_to_fail(folder, message):
        note(folder, f"ltexp: {message}")
        mark_failed(folder, message, "stopped" if stopped else "failed")
        print(f"ltexp: {message}", file=sys.stderr, flush=True)
    elif (failure := first_failure(folder)) and failure.node != this_node():
        host = failure.node.partition(":")[0]
        print(f"ltexp: stopped by a failure on another node, {host}: {failure.message}", file=sys.stderr, flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
