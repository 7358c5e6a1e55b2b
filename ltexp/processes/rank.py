"""One worker of torch's launcher: `python -m ltexp.processes.rank FOLDER`.

Where the command has a prepared process, that forks the worker, libraries loaded, and this process stands for it: it
hands the launcher's signal on, and ends as the worker does. Where there is none, it becomes the worker.
"""

import os
import signal
import sys

from ltexp.launching.prepared import start_here
from ltexp.processes.failure import LAUNCHER
from ltexp.processes.parent import die_with_parent

WORKER = "ltexp.processes.worker"
AGAIN = 2  # seconds from one SIGTERM to the next


def main() -> None:
    """Ends with the worker's status, or by the signal that ended it."""
    die_with_parent(int(os.environ[LAUNCHER]))
    job = start_here(WORKER, sys.argv[1:], os.environ)
    if job is None:
        from ltexp.processes.worker import main as work

        work()
        sys.stdout.flush()
        os._exit(0)  # as a fork ends: taking the libraries down would take a second of each process
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they go to all processes, the worker included

    def hand_on(*_: object) -> None:
        job.send_signal(signal.SIGTERM)
        signal.alarm(AGAIN)  # Lightning hears the first one, and goes no further where its next exchange fails

    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, hand_on)
    status = job.wait()
    if status < 0:
        if -status != signal.SIGKILL:  # which nothing but the system handles
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
