"""One process of a run: `python -m ltexp.training.worker FOLDER`, started by `ltexp train`.

It knows nothing of Hydra's command line: it works on the frozen config in the folder.
"""

import datetime
import errno
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from pytorch_lightning.utilities.exceptions import SIGTERMException

from ltexp.config import load
from ltexp.errors import LtexpError
from ltexp.evaluation import record as records
from ltexp.launching.processes import die_with_parent
from ltexp.run_folder import CONFIG
from ltexp.training.run import run
from ltexp.training.session import check_numerics, pick_device

# longer than any stage: while one process waits for the stage cache, the others wait for it
COLLECTIVE_TIMEOUT = datetime.timedelta(days=7)


def main() -> None:
    """Runs the folder given on the command line; a user's mistake ends it with one line and status 1."""
    folder = Path(sys.argv[1])
    die_with_parent()
    quieten()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        config = load(folder / CONFIG)
        device = pick_device(config.trainer.accelerator, int(os.environ.get("LOCAL_RANK", 0)))
        check_numerics(config.trainer, device)
        join_processes(device)
        run(config, folder, device)
    except LtexpError as error:
        fail(folder, str(error))
    except OSError as error:
        full = error.errno == errno.ENOSPC
        advice = ": the disk is full; free some space and run the same command with resume=true" if full else ""
        fail(folder, f"{error.filename}: {error.strerror or error}{advice}")
    except (SIGTERMException, KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C into an exit
        records.mark_failed(folder, "stopped by a signal")
        sys.exit("ltexp: stopped; the same command with resume=true continues the run")
    except BaseException as error:
        records.mark_failed(folder, f"{type(error).__name__}: {error}")
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def fail(folder: Path, message: str) -> None:
    """Notes the error in the record, prints it and ends this process with status 1."""
    if int(os.environ.get("RANK", 0)) != 0:
        time.sleep(10)  # where every process meets the error, the first one's end ends this one: one line is enough
    records.mark_failed(folder, message)
    print(f"ltexp: {message}", file=sys.stderr, flush=True)
    sys.exit(1)


def join_processes(device: torch.device) -> None:
    """Meets the other processes of this run, if torch's launcher has started any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)


def quieten() -> None:
    """Hides Lightning's notices that do not concern a user of ltexp."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*LeafSpec.*is deprecated.*",
        r".*module\(s\) in eval mode at the start of training.*",
    ):
        warnings.filterwarnings("ignore", message=text)


if __name__ == "__main__":
    main()
