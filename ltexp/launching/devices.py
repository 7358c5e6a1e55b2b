"""The GPUs of this machine, found without torch."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from ltexp.config import TrainerConfig
from ltexp.errors import ConfigError


def visible_gpus() -> list[str] | None:
    """The GPUs that a process started here may use, as CUDA_VISIBLE_DEVICES names them; None where that is unknown."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = takewhile(lambda name: name != "-1", map(str.strip, chosen.split(",")))  # CUDA reads no further
        return [name for name in names if name not in ("", "NoDevFiles")]
    if shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.SubprocessError):
            return None
        return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and Windows's below WSL
    if sys.platform == "linux" and not any(Path(path).exists() for path in drivers):
        return []
    return None


@contextmanager
def free_gpus(count: int, jobs_per_gpu: int) -> Iterator[list[str]]:
    """`count` GPUs that no other sweep job of this user on this machine holds, as soon as there are so many.

    Args:
        count: the number of GPUs that the job needs.
        jobs_per_gpu: the number of jobs that may hold one GPU at a time.

    Raises:
        ConfigError: if the machine has fewer.
    """
    gpus = visible_gpus() or []
    if count > len(gpus):
        raise ConfigError(f"trainer.devices={count}, but the sweep has {len(gpus)} GPUs: lower trainer.devices")
    folder = Path(tempfile.gettempdir()) / f"ltexp-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    while len(held := _take(folder, gpus, count, jobs_per_gpu)) < count:
        _release(held)
        time.sleep(random.uniform(0.5, 1.5))  # not in step with the other jobs that wait
    try:
        yield list(held)
    finally:
        _release(held)


def _take(folder: Path, gpus: list[str], count: int, jobs_per_gpu: int) -> dict[str, FileLock]:
    held: dict[str, FileLock] = {}
    for slot in range(jobs_per_gpu):  # an empty GPU before a second job on another
        for gpu in gpus:
            if len(held) < count and gpu not in held:
                lock = FileLock(folder / f"{gpu.replace('/', '-')}.{slot}.lock")
                with suppress(Timeout):
                    lock.acquire(timeout=0)
                    held[gpu] = lock
    return held


def _release(held: dict[str, FileLock]) -> None:
    for lock in held.values():
        lock.release()


def device_count(trainer: TrainerConfig | Mapping[str, Any] | DictConfig) -> int:
    """The devices of a node that a config's `trainer` asks for; `auto`: all GPUs of this machine, or its CPU."""
    node = vars(trainer) if isinstance(trainer, TrainerConfig) else trainer
    if node["devices"] != "auto":
        return int(node["devices"])
    return 1 if node["accelerator"] == "cpu" else max(1, len(visible_gpus() or []))


def check_devices(trainer: TrainerConfig) -> None:
    """Refuses devices that this machine does not have.

    Raises:
        ConfigError: with what there is instead.
    """
    asked = trainer.devices if trainer.devices > 1 or trainer.accelerator == "gpu" else 0
    if trainer.accelerator == "cpu" or not asked or (gpus := visible_gpus()) is None:
        return
    if not gpus and trainer.accelerator == "gpu":
        raise ConfigError("trainer.accelerator=gpu, but there is no GPU here: set trainer.accelerator=cpu")
    if not gpus:
        raise ConfigError(
            f"trainer.devices={asked}, but there is no GPU here: set trainer.devices=1, or trainer.accelerator=cpu for "
            f"{asked} processes that share its cores"
        )
    if asked > len(gpus):
        among = "" if "CUDA_VISIBLE_DEVICES" not in os.environ else " in CUDA_VISIBLE_DEVICES"
        raise ConfigError(
            f"trainer.devices={asked}, but there {'is 1 GPU' if len(gpus) == 1 else f'are {len(gpus)} GPUs'}{among}: "
            "lower trainer.devices"
        )
