"""What a stage asks of the machine: memory that runs out, and half precision that does not pay."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ltexp.config import StageConfig
from ltexp.errors import TrainingError
from ltexp.models.backbone import Backbone
from ltexp.training.predict import autocast

WORTH_MEASURING = 2000  # steps of a stage: from then on two seconds are less than a hundredth of it
_SECONDS = 0.5  # each precision is timed for


@contextmanager
def within_memory(name: str, stage: StageConfig) -> Iterator[None]:
    """Within the block, memory that runs out is an error that says what helps.

    Raises:
        TrainingError: in place of PyTorch's own errors.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _of_memory(error):
            raise
        where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "machine"
        raise TrainingError(
            f"{name}: the {where}'s memory is not enough for {name}.batch_size={stage.batch_size}: take each batch in "
            "parts with trainer.accumulate=2 (or more), keep half as much with trainer=bf16, or set a smaller "
            f"{name}.batch_size, which changes the recipe; resume=true goes on from the last epoch"
        ) from error


def _of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def half_against_single(backbone: Backbone, sample: Tensor, batch_size: int) -> float:
    """How many times as long a step of the backbone takes under bf16 autocast as in float32, on this CPU.

    Args:
        backbone: left as it is.
        sample: (1, ...), what it reads.
        batch_size: of this process.
    """
    batch = sample.expand(batch_size, *sample.shape[1:]).contiguous()
    trained = copy.deepcopy(backbone).requires_grad_(True).train()
    with torch.random.fork_rng(devices=[]):
        half, single = (_seconds(trained, batch, precision) for precision in ("bf16-mixed", "32-true"))
    return half / single


def _seconds(backbone: Backbone, batch: Tensor, precision: str) -> float:
    """Seconds of the fastest forward and backward pass after the first."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < _SECONDS:
        start = time.perf_counter()
        with autocast(precision, batch.device):
            features = backbone(batch)
        features.float().sum().backward()
        times.append(time.perf_counter() - start)
    return min(times[1:])
