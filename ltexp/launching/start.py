"""Prepares a run's folder and starts its processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from ltexp.config import Config, load, to_config
from ltexp.config.identity import other_keys, run_identity, values_of
from ltexp.config.own_code import changed_since
from ltexp.config.words import key_of
from ltexp.errors import ConfigError, LtexpError
from ltexp.evaluation.record import mark_failed, read_record
from ltexp.files import write_text
from ltexp.launching.devices import check_devices
from ltexp.launching.header import header
from ltexp.launching.nodes import join_run, meeting_point
from ltexp.launching.prepared import QUIET_EXCHANGES, PreparedProcess, start_here
from ltexp.launching.signals import Stopped, end_process, number_of, raised_signals
from ltexp.processes.cores import usable_cores
from ltexp.processes.failure import REFUSED, STOPPED, first_failure, forget_failure
from ltexp.processes.parent import die_with_parent
from ltexp.run_folder import CONFIG, FAILED, FROZEN, LOCK, RUN_LOG, TRIAL, read_status
from ltexp.run_log import note

WORKER = "ltexp.processes.worker"  # of a run on one device; the sweep's prepared process can become it
IGNORED = (
    LOCK,
    FAILED,
    RUN_LOG,
    TRIAL,
    ".hydra",
    "train.log",
)  # of a run that has not begun; the last two are Hydra's own
CACHED = ", which takes the stages that stay the same from the stage cache"
ELSEWHERE = "choose another hydra.run.dir, or of a sweep hydra.sweep.dir"
LOOK = 0.3  # seconds to wait for a folder's lock: `ltexp report` takes it for a moment to see who holds it


class JobError(LtexpError):
    """A run's processes ended with an error, which they have printed themselves; the message repeats it."""


def run_in_folder(plain: dict[str, Any], folder: Path, chosen: bool = False) -> Path:
    """Runs the frozen config `plain` in `folder`, in processes of its own, and waits for them; the folder in the end.

    Args:
        plain: the frozen config, see `freeze`.
        folder: the run's folder.
        chosen: whether the user chose the folder; else `resume` looks for the latest unfinished run of this config.

    Raises:
        ConfigError: if the folder holds another run, a finished one, an unfinished one and `resume` is off, or files
            that are not ltexp's.
        JobError: if the run failed, or was refused; then it leaves nothing behind.
    """
    require_own(folder)
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
            return folder
        else:
            forget_failure(folder)
            said = header(plain, config, folder)
            write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(without_resume(plain))))
            print(said, flush=True)
            note(
                folder, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: ltexp train {' '.join(plain['overrides'])}\n{said}"
            )
        status = _run(_command(config, folder, rendezvous), _environment(config), folder)
        failure = first_failure(folder)
        if status == REFUSED and new:
            _leave_nothing(folder)
    if status < 0:
        note(folder, killed := f"the run in {folder} was killed (signal {-status}); resume=true continues it")
        raise LtexpError(killed)
    if status != 0:
        raise JobError(failure.message if failure else f"the run in {folder} failed (exit status {status})")
    return folder


def require_own(folder: Path) -> None:
    """Refuses a run's folder that holds something else: a home, a project, a folder of runs.

    Raises:
        ConfigError: naming some of what lies there.
    """
    if "~" in folder.parts:
        raise ConfigError(f"{folder}: Hydra takes '~' as it stands: write {folder.expanduser()}")
    try:
        found = [path.name for path in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise ConfigError(f"hydra.run.dir={folder}: {error.strerror or error}") from None
    if CONFIG in found:
        load(folder / CONFIG)  # refuses the config of something else
        return
    others = sorted(name for name in found if name not in IGNORED and not name.startswith(f".{CONFIG}."))
    if others:
        shown = ", ".join(others[:3]) + (" ..." if others[3:] else "")
        raise ConfigError(f"{folder} holds other files ({shown}): choose a new or an empty folder for the run")


def require_own_sweep(folder: Path) -> None:
    """Refuses a sweep's folder among files that are not ltexp's: a home or a project, say.

    Raises:
        ConfigError: naming some of them.
    """
    if "~" in folder.parts:
        raise ConfigError(f"{folder}: Hydra takes '~' as it stands: write {folder.expanduser()}")
    if not folder.exists() or (folder / FROZEN).is_dir() or any(folder.glob("search.*")):
        return
    try:
        others = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise ConfigError(f"hydra.sweep.dir={folder}: {error.strerror or error}") from None
    if others or folder.absolute() == folder.absolute().parent:
        shown = ", ".join(others[:3]) + (" ..." if others[3:] else "")
        raise ConfigError(f"{folder} holds other files ({shown}): choose a folder of its own for the sweep")


def _leave_nothing(folder: Path) -> None:
    """Takes back what this command has put into a run's folder, and the folder if nothing else lies in it."""
    for name in (CONFIG, FAILED, RUN_LOG, LOCK):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def without_resume(plain: dict[str, Any]) -> dict[str, Any]:
    """What the folder keeps: `resume` is about this command, and a run continues from whatever lies in its folder."""
    typed = [text for text in plain["overrides"] if key_of(text) != "resume"]
    return plain | {"resume": False, "overrides": typed}


@contextmanager
def _only_here(folder: Path, shared: bool) -> Iterator[bool]:
    """Within the block no other command runs in the folder; its lock ends with this process.

    Args:
        folder: the run's folder.
        shared: whether another node may hold it for the same run. Then False says that one does.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOOK)
    except Timeout:
        if shared:
            yield False
            return
        raise ConfigError(
            f"{folder} is being run by another process: wait for it, or choose another hydra.run.dir, of a sweep "
            "hydra.sweep.dir"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write in {folder}: {error.strerror or error}") from None
    try:
        yield True
    finally:
        lock.release()


def _already_finished(config: Config, folder: Path) -> bool:
    status = read_status(folder)
    there = load(folder / CONFIG)
    if keys := other_keys(there, config):
        raise ConfigError(
            f"{folder} holds a run with another config ({values_of(keys, there, config)}): "
            f"{ELSEWHERE}{CACHED if config.stage_cache.enabled else ''}"
        )
    if status == "finished" and config.resume:
        new = [text for text in config.overrides if text not in there.overrides and key_of(text) != "resume"]
        ignored = f" ({' '.join(new)} has no effect on it)" if new else ""
        print(f"{folder} is finished already: nothing to do{ignored}")
        if changed := _changed_code(config, folder):
            print(f"note: {changed} changed since: another hydra.run.dir, or none, trains with the code of now")
        return True
    if status == "finished":
        raise ConfigError(f"{folder} holds a finished run: {ELSEWHERE}, or see it with ltexp report")
    if not config.resume:
        raise ConfigError(f"{folder} holds an unfinished run: add resume=true to continue it")
    return False


def _changed_code(config: Config, folder: Path) -> str:
    """What of the user's own code is not as the finished run in `folder` had it."""
    try:
        return changed_since(read_record(folder), asdict(config))
    except LtexpError:  # of a record that cannot be read
        return ""


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
    """The module that runs the folder, and its arguments."""
    trainer = config.trainer
    if trainer.world_size == 1:
        return [WORKER, str(folder)]
    several = [] if rendezvous is None else [str(trainer.num_nodes), rendezvous]
    return ["ltexp.processes.ranks", str(folder), str(trainer.devices), *several]


def _environment(config: Config) -> dict[str, str]:
    environment = dict(os.environ)
    if config.trainer.world_size > 1:
        # torch's launcher gives each process one thread where nothing is said; a CPU run wants its share of the cores
        share = max(1, usable_cores() // config.trainer.devices)
        environment.setdefault("OMP_NUM_THREADS", str(share))
        environment.setdefault(*QUIET_EXCHANGES)
    return environment


def _run(command: list[str], environment: dict[str, str], folder: Path) -> int:
    """Runs the command to its end, by the sweep's prepared process if there is one; a signal to this one ends both.

    Raises:
        JobError: in the place of the signal, for a job that submitit runs: it is the cluster that ends that.
    """
    with raised_signals():
        process: PreparedProcess | subprocess.Popen[bytes] | None = start_here(command[0], command[1:], environment)
        if process is None:
            words, bound = [sys.executable, "-m", *command], partial(die_with_parent, os.getpid())
            process = subprocess.Popen(words, env=environment, preexec_fn=bound)
        try:
            return process.wait()
        except (KeyboardInterrupt, Stopped) as signalled:
            end_process(process, number_of(signalled))
            if process.wait() < 0:  # without a word
                mark_failed(folder, STOPPED, "stopped")
                note(folder, f"ltexp: {STOPPED}")
            if "SUBMITIT_EXECUTOR" in os.environ:
                raise JobError(STOPPED) from None
            raise  # the other jobs of a sweep are not started
