"""Prepares a run's folder and starts its processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from ltexp.config import Config, load, to_config
from ltexp.config.identity import other_keys, run_identity
from ltexp.errors import ConfigError, LtexpError
from ltexp.files import write_text
from ltexp.launching.devices import check_devices
from ltexp.launching.nodes import join_run, meeting_point
from ltexp.processes.cores import usable_cores
from ltexp.processes.failure import REFUSED, forget_failure
from ltexp.run_folder import CONFIG, FAILED, LOCK, read_status


class JobError(LtexpError):
    """A run's processes ended with an error, which they have printed themselves."""


def run_in_folder(plain: dict[str, Any], folder: Path, chosen: bool = False) -> None:
    """Runs the frozen config `plain` in `folder`, in processes of its own, and waits for them.

    Args:
        plain: the frozen config, see `freeze`.
        folder: the run's folder.
        chosen: whether the user chose the folder; else `resume` looks for the latest unfinished run of this config.

    Raises:
        ConfigError: if the folder holds another run, a finished one, or an unfinished one and `resume` is off.
        JobError: if the run failed, or was refused; then it leaves nothing behind.
    """
    config = to_config(plain)
    rendezvous = meeting_point(config, folder_agreed=chosen or "SUBMITIT_EXECUTOR" in os.environ)
    check_devices(config.trainer)
    if plain["resume"] and not chosen:
        folder = _unfinished_twin(config, folder) or folder
    with _only_here(folder, shared=config.trainer.num_nodes > 1) as first:
        new = first and not (folder / CONFIG).exists()
        if not first:
            join_run(folder, config)
        elif (folder / CONFIG).exists() and _already_finished(config, folder):
            return
        else:
            forget_failure(folder)
            write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(_without_resume(plain))))
        status = _wait(subprocess.Popen(_command(config, folder, rendezvous), env=_environment(config)))
        if status == REFUSED and new:
            _leave_nothing(folder)
    if status < 0:
        raise LtexpError(f"the run in {folder} was killed (signal {-status}); resume=true continues it")
    if status == REFUSED:
        raise JobError(f"the run in {folder} was refused")
    if status != 0:
        raise JobError(f"the run in {folder} failed (exit status {status})")


def _leave_nothing(folder: Path) -> None:
    """Takes back what this command has put into a run's folder, and the folder if nothing else lies in it."""
    for name in (CONFIG, FAILED, LOCK):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _without_resume(plain: dict[str, Any]) -> dict[str, Any]:
    """What the folder keeps: `resume` is about this command, and a run continues from whatever lies in its folder."""
    typed = [text for text in plain["overrides"] if not text.startswith("resume=")]
    return plain | {"resume": False, "overrides": typed}


@contextmanager
def _only_here(folder: Path, shared: bool) -> Iterator[bool]:
    """Within the block no other command runs in the folder; its lock ends with this process.

    Args:
        folder: the run's folder.
        shared: whether another node may hold it for the same run. Then False says that one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if shared:
            yield False
            return
        raise ConfigError(
            f"{folder} is being run by another process: wait for it, or choose another hydra.run.dir"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write in {folder}: {error.strerror or error}") from None
    try:
        yield True
    finally:
        lock.release()


def _already_finished(config: Config, folder: Path) -> bool:
    status = read_status(folder)
    if keys := other_keys(load(folder / CONFIG), config):
        raise ConfigError(f"{folder} holds a run with another config ({', '.join(keys)}): choose another hydra.run.dir")
    if status == "finished" and config.resume:
        print(f"{folder} is finished already: nothing to do")
        return True
    if status == "finished":
        raise ConfigError(f"{folder} holds a finished run: choose another hydra.run.dir, or see it with ltexp report")
    if not config.resume:
        raise ConfigError(f"{folder} holds an unfinished run: add resume=true to continue it")
    return False


def _unfinished_twin(config: Config, folder: Path) -> Path | None:
    """The latest unfinished run of the same config below the outputs folder; the empty new folder goes."""
    identity = run_identity(config)
    found = []
    for path in Path(config.paths.outputs).glob(f"**/{CONFIG}"):
        try:
            if read_status(path.parent) != "finished" and run_identity(load(path)) == identity:
                found.append(path)
        except LtexpError:
            continue
    if not found:
        print("resume=true: no unfinished run of this config, so this one starts anew")
        return None
    twin = max(found, key=lambda path: path.stat().st_mtime).parent
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    print(f"resume=true: continuing {twin}")
    return twin


def _command(config: Config, folder: Path, rendezvous: str | None) -> list[str]:
    trainer = config.trainer
    if trainer.world_size == 1:
        return [sys.executable, "-m", "ltexp.processes.worker", str(folder)]
    several = [] if rendezvous is None else [str(trainer.num_nodes), rendezvous]
    return [sys.executable, "-m", "ltexp.processes.ranks", str(folder), str(trainer.devices), *several]


def _environment(config: Config) -> dict[str, str]:
    environment = dict(os.environ)
    if config.trainer.world_size > 1:
        # torch's launcher gives each process one thread where nothing is said; a CPU run wants its share of the cores
        share = max(1, usable_cores() // config.trainer.devices)
        environment.setdefault("OMP_NUM_THREADS", str(share))
        # when a process dies, the others' broken connections are no news: the failure is told in one line
        environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    return environment


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Waits for the run; a signal to this process is the run's to answer."""

    def forward(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    previous = signal.signal(signal.SIGTERM, forward)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # the terminal has sent it as well; a second one does no harm
        process.wait()
        raise  # the other jobs of a sweep are not started
    finally:
        signal.signal(signal.SIGTERM, previous)
