"""Starts one worker a device with torch's own launcher: `python -m ltexp.training.launch_ranks DEVICES FOLDER`.

Between `ltexp train` and the workers only to leave the last word to the worker that failed: the launcher would add a
traceback of its own to a user's mistake.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as launch

from ltexp.launching.processes import die_with_parent


def main() -> None:
    """Runs the folder on so many devices; ends with status 1 if a worker failed."""
    devices, folder = sys.argv[1:]
    die_with_parent()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch(["--standalone", f"--nproc-per-node={devices}", "-m", "ltexp.training.worker", folder])
    except ChildFailedError:
        sys.exit(1)
    except SignalException as error:
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    main()
