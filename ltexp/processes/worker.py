"""One process of a run: `python -m ltexp.processes.worker FOLDER`, started by `ltexp train`.

It knows nothing of Hydra's command line: it works on the frozen config in the folder.
"""

import datetime
import errno
import logging
import os
import re
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.distributed import DistError

from ltexp.config import load_plain, to_config
from ltexp.config.locate import check_targets
from ltexp.config.own_code import place_of
from ltexp.errors import LtexpError
from ltexp.evaluation import record as records
from ltexp.processes.failure import REFUSED, STOPPED, first_to_fail
from ltexp.processes.memory import keep_memory
from ltexp.processes.parent import die_with_parent
from ltexp.run_folder import CONFIG, RECORD, RUN_LOG
from ltexp.run_log import keep_log, note
from ltexp.terminal import print_anywhere
from ltexp.training.run import run
from ltexp.training.session import check_numerics, pick_device

# longer than any stage: while one process waits for the stage cache, the others wait for it
COLLECTIVE_TIMEOUT = datetime.timedelta(days=7)
LOST_PEER = re.compile("gloo|NCCL|[Cc]onnection")  # in errors of an exchange whose other side is gone
PATIENCE = 15.0  # seconds in which the launcher has seen that a process is gone


def main() -> None:
    """Runs the folder given on the command line; a user's mistake ends it with one line and status 1."""
    folder = Path(sys.argv[1])
    die_with_parent()
    print_anywhere()
    keep_memory()  # of a call from Python too
    quieten()
    keep_log(folder)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, lambda heard, _: sys.exit(128 + heard))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM's warning before the end of a job, for submitit alone
    try:
        plain = load_plain(folder / CONFIG)
        check_targets(plain)
        config = to_config(plain)
        device = pick_device(config.trainer.accelerator, int(os.environ.get("LOCAL_RANK", 0)))
        check_numerics(config.trainer, device)
        join_processes(device)
        run(config, folder, device)
    except BaseException as error:
        if several():
            fail_among_others(folder, error)
        else:
            fail(folder, error)
    if dist.is_initialized():
        dist.destroy_process_group()


def several() -> bool:
    """Whether torch's launcher has started this process with others."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def fail(folder: Path, error: BaseException) -> None:
    """Notes the error where the record and the command find it, prints it and ends with status 1, or `REFUSED`."""
    message = explain(error, folder)
    first_to_fail(folder, message or f"{type(error).__name__}: {error}")
    if refused(folder, error):
        print(f"ltexp: {message}", file=sys.stderr)
        sys.exit(REFUSED)
    status = "stopped" if stopped(error) else "failed"
    records.mark_failed(folder, message or f"{type(error).__name__}: {error}", status)
    if message is None:
        raise error
    sys.exit(f"ltexp: {message}")


def fail_among_others(folder: Path, error: BaseException) -> None:
    """The same for one of several processes: the first to fail is heard, and the others end in silence.

    Its end makes torch's launcher end them; so it leaves no exchange in order, which could wait for the others.
    """
    if stopped(error):
        os._exit(128 + signal.SIGTERM)  # the launcher knows by whom
    if isinstance(error, DistError) or LOST_PEER.search(str(error)):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE)  # another process has gone, and the launcher ends this one
    told = explain(error, folder)
    message = told or f"{type(error).__name__}: {error}"
    status = REFUSED if refused(folder, error) else 1
    if first_to_fail(folder, message):
        records.mark_failed(folder, message)
        rank = os.environ["RANK"]
        if told is None:
            traceback.print_exception(error)
        print(f"ltexp: rank {rank}: {message}" if rank != "0" else f"ltexp: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def refused(folder: Path, error: BaseException) -> bool:
    """Whether a mistake of the user's was found before the run has written its record, the first thing it writes."""
    return isinstance(error, LtexpError) and not (folder / RECORD).exists()


def explain(error: BaseException, folder: Path) -> str | None:
    """One line for what a user can fix; None for anything else.

    Args:
        error: that ended the run.
        folder: the run's, whose log gets the traceback of an error in the user's own code.
    """
    if isinstance(error, LtexpError):
        return str(error)
    if stopped(error):
        return STOPPED
    if isinstance(error, OSError) and error.filename:
        full = error.errno == errno.ENOSPC
        advice = ": the disk is full; free some space and run the same command with resume=true" if full else ""
        return f"{error.filename}: {error.strerror or error}{advice}"
    if place := place_of(error):
        note(folder, "".join(traceback.format_exception(error)))
        return f"{place}: {type(error).__name__}: {error} (traceback: {folder / RUN_LOG})"
    return None


def stopped(error: BaseException) -> bool:
    """Whether a signal ended the run; Lightning turns Ctrl-C into an exit."""
    return isinstance(error, SIGTERMException | KeyboardInterrupt | SystemExit)


def join_processes(device: torch.device) -> None:
    """Meets the other processes of this run, if torch's launcher has started any."""
    if several():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)


def quieten() -> None:
    """Hides Lightning's notices that do not concern a user of ltexp."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for text in (
        ".*`broadcast_buffers` is deprecated.*",  # torch from 2.12 on; what takes its place is not in 2.11
        ".*does not have many workers.*",
        ".*LeafSpec.*is deprecated.*",
        r".*module\(s\) in eval mode at the start of training.*",
    ):
        warnings.filterwarnings("ignore", message=text)


if __name__ == "__main__":
    main()
