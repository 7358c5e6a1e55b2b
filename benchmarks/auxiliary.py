"""Time and memory of a stage-1 step with DaSL's auxiliary networks against the baseline's, beside their parameters.

ResNet-32, batch 128, mixup, CIFAR-100-LT (or random images of its shape). Steps of all kinds in turn, in this process,
at the same precision; the medians are compared. Memory is what a step holds on a GPU at its peak; on a CPU what
autograd keeps for the backward pass, with weights, gradients and momenta.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.training import BATCH, PRECISION, configured, data_for
from ltexp.config import Config
from ltexp.data.types import LongTailedData
from ltexp.models.cost import Cost, cost_of
from ltexp.processes.worker import quieten
from ltexp.report.table import cost_text
from ltexp.training.batches import train_loader
from ltexp.training.predict import autocast
from ltexp.training.session import Session, pick_device
from ltexp.training.stage import Stage
from ltexp.training.start import make_trainable

ROUNDS, MOST_TIME, MOST_MEMORY = 11, 2.2, 2.5
KINDS = {"baseline": ("crt_mixup",)} | {
    name: ("dasl", f"module@stage1.modules.auxiliary={name}") for name in ("single_way", "two_way", "complex_two_way")
}


def step_of(config: Config, data: LongTailedData) -> tuple[Callable[[], float], int, Cost]:
    """(a function that trains a step and returns its seconds, the bytes of a step, what the networks cost)."""
    session = Session(config, Path(), data, pick_device("auto", 0))
    model = session.place(session.fresh_model("stage1", config.stage1))
    make_trainable(model, config.stage1)
    module = Stage(model, config.stage1, session.class_counts, seed=0).to(session.device).train()
    optimizer = module.configure_optimizers()
    batch = next(iter(train_loader(session, "stage1", config.stage1, model)))
    mixed = module.mixing(batch, seed=0)

    def step() -> float:
        start = time.perf_counter()
        with autocast(PRECISION, session.device):
            loss = module.loss_of(batch, mixed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # the device has finished
        return time.perf_counter() - start

    step()  # makes the momenta
    return step, memory_of(step, module, session.device), cost_of(model, session.sample_inputs())


def memory_of(step: Callable[[], float], module: torch.nn.Module, device: torch.device) -> int:
    """Bytes of a step; see the module's docstring."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    learned = sum(parameter.nbytes for parameter in module.parameters())
    return sum(kept.values()) + 2 * learned  # weights are among what autograd keeps


def main() -> None:
    """Prints the medians, the ratios and the parameters."""
    quieten()
    configs = {name: configured(*arguments) for name, arguments in KINDS.items()}
    data = data_for(configs["baseline"])
    steps = {name: step_of(config, data) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, (step, _, _) in steps.items():
            seconds[name].append(step())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"ResNet-32, batch {BATCH}, {PRECISION}, {torch.get_num_threads()} threads, median of {ROUNDS} steps")
    for name, (_, memory, cost) in steps.items():
        time_ratio, memory_ratio = medians[name] / medians["baseline"], memory / steps["baseline"][1]
        part = "backbone" if name == "baseline" else "auxiliary"
        print(
            f"  {name:<16}{1000 * medians[name]:>7.0f} ms {time_ratio:>5.2f}   {memory / 2**20:>6.0f} MiB "
            f"{memory_ratio:>5.2f}   {part}: {cost_text(cost[part])}"
        )
    print(f"complex_two_way over the baseline: at most {MOST_TIME} (time) and {MOST_MEMORY} (memory) are wanted")


if __name__ == "__main__":
    main()
