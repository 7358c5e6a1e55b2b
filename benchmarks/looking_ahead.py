"""What a step of the optimizer costs, in processor time of this process, beside one of plain cross-entropy.

ResNet-8, batch 100, CIFAR-100-LT or random images of its shape, float32. The methods run in turn; a step is what an
epoch of LONG steps takes beyond one of SHORT, and of each method the quickest of ROUNDS counts. Steps that look ahead
do so from the first one on.
"""

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.training import data_for
from ltexp.config import to_config
from ltexp.config.composer import compose
from ltexp.data.types import LongTailedData
from ltexp.launching.freeze import freeze
from ltexp.processes.worker import quieten
from ltexp.training.run_stage import train
from ltexp.training.session import Session

SHORT, LONG, ROUNDS, BATCH = 2, 8, 2, 100
METHODS: dict[str, tuple[str, ...]] = {
    "ce": (),
    "ldam_drw": (),
    "meta_learning_ce": ("stage1.step.start=0",),
    "meta_learning_ldam": ("stage1.step.start=0",),
    "mw_net": (),
    "metasaug_ldam": ("stage1.step.start=0", "stage1.loss.start=0", "stage1.reweighting.start=0"),
    "hybrid_sc": (),
}


def seconds(method: str, further: tuple[str, ...], steps: int, data: LongTailedData) -> float:
    """Processor time of an epoch of so many steps, of training and of making its batches."""
    overrides = [
        *(f"method={method}", "dataset=cifar100_lt", "backbone=resnet8", "logger=none", "evaluation.every=0"),
        *("trainer.progress=false", "trainer.accelerator=cpu", "stage1.epochs=1", f"stage1.batch_size={BATCH}"),
        *(f"stage1.sampler.epoch_length={steps * BATCH}", *further),
    ]
    if "mw" in method or "meta" in method:
        overrides.append("stage1.streams.meta.held_out.of=train")  # random images have no others
    config = to_config(freeze(compose(overrides)))
    with tempfile.TemporaryDirectory() as folder:
        whole = Session(config, Path(folder), data, torch.device("cpu"))
        session = whole.for_stage(config.stage1)
        model = session.place(session.fresh_model("stage1", config.stage1))
        (Path(folder) / "stage1").mkdir()
        start = time.process_time()
        train(session, "stage1", config.stage1, model, Path(folder) / "stage1")
        return time.process_time() - start


def main() -> None:
    """Prints seconds a step and the ratio to cross-entropy."""
    quieten()
    config = to_config(freeze(compose(["method=ce", "dataset=cifar100_lt"])))
    data = data_for(config)
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for method, further in METHODS.items():
            short, long = (seconds(method, further, steps, data) for steps in (SHORT, LONG))
            times.setdefault(method, []).append((long - short) / (LONG - SHORT))
    for method, found in times.items():
        print(f"{method:20} {1000 * min(found):8.0f} ms a step  {min(found) / min(times['ce']):5.2f} of ce")
