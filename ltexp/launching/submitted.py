"""Jobs that submitit runs, on a SLURM cluster or here: queued again after a time limit, they continue."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from hydra_plugins.hydra_submitit_launcher.submitit_launcher import (
    BaseSubmititLauncher,
    LocalLauncher,
    SlurmLauncher,
)

from ltexp.launching.nodes import REQUEUED


class _Continuing(BaseSubmititLauncher):  # type: ignore[misc]  # the plugin has no types
    """A job that knows, when it is started, whether it was before."""

    requeued = False

    def checkpoint(self, *arguments: Any, **keywords: Any) -> Any:
        """Submitit calls this when the time is over, and starts what it returns when there is time again."""
        self.requeued = True
        return super().checkpoint(*arguments, **keywords)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """The job itself, in a process of its own."""
        if self.requeued:
            os.environ[REQUEUED] = "1"
        return super().__call__(*arguments, **keywords)


class Slurm(_Continuing, SlurmLauncher):  # type: ignore[misc]
    """On SLURM."""


class Local(_Continuing, LocalLauncher):  # type: ignore[misc]
    """On this machine, where the jobs end with the command."""

    command: int | None = None

    def launch(self, *arguments: Any, **keywords: Any) -> Any:
        """Starts all jobs and waits for them."""
        self.command = os.getpid()
        return super().launch(*arguments, **keywords)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """The job itself, in a process of its own."""
        if self.command is not None:
            threading.Thread(target=_end_with, args=(self.command,), daemon=True).start()
        return super().__call__(*arguments, **keywords)


def _end_with(command: int) -> None:
    """Stops this process when another has ended; submitit lets a job alone that has not started its run."""
    while True:
        time.sleep(1)
        if _is_gone(command):
            os.kill(os.getpid(), signal.SIGTERM)


def _is_gone(process: int) -> bool:
    """Whether a process has ended, also if the one that started it has not asked how."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:  # no Linux
        return False
