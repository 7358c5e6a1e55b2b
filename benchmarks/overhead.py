"""What a step costs the host beside the network: milliseconds per step with a model of one parameter.

Digits in batches of 64, and of CIFAR's images the making of batches of 128 alone, on one thread; times are this
process's own on a core, not the clock's, so that other work on the machine counts less. Batches are made alone, then
trained on, with and without mixup, in turn in this process; a bare loop of plain PyTorch over ready-made batches and
Lightning's loop with a module that does nothing else show what those two take of it. Medians are printed, of epochs of
STEPS steps.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training import configured as cifar_configured
from benchmarks.training import data_for
from ltexp.config import Config, to_config
from ltexp.config.build import build
from ltexp.config.composer import compose
from ltexp.data.loader import Batch
from ltexp.data.types import LongTailedData
from ltexp.launching.freeze import freeze
from ltexp.models.backbone import Backbone
from ltexp.models.classifier import Linear
from ltexp.models.model import Model
from ltexp.processes.worker import quieten
from ltexp.training.batches import train_loader
from ltexp.training.callbacks.quiet import Quiet
from ltexp.training.run_stage import train
from ltexp.training.session import Session, pick_device

STEPS, EPOCHS, BATCH = 200, 3, 64
ROUNDS = int(os.environ.get("LTEXP_BENCH_ROUNDS", "7"))
BEYOND, MIXED, CIFAR = 0.3, 0.2, 0.6  # ms wanted on an idle core: a step beyond its batch, mixup's part of it, a batch
HIDDEN = ("checkpointing", "progress_bar", "model_summary")


class Clock(Quiet):
    """Notes the milliseconds per step of each epoch but the first, which warms up."""

    noted: ClassVar[list[float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.process_time()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch:
            self.noted.append(1000 * (time.process_time() - self.started) / STEPS)


class OnePixel(Backbone):
    """Stands for a backbone: its features are one pixel, and it learns nothing."""

    feature_dim = 1

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 4, 4:5]


class OneParameter(Linear):
    """Logits that are a bias, and for all classes the pixel times the one parameter."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(1, num_classes)
        self.weight, self.bias = nn.Parameter(torch.zeros(1, 1)), None

    def forward(self, features: Tensor) -> Tensor:
        return (features * self.weight).expand(-1, self.num_classes)


def configured(mixing: str) -> Config:
    """The run whose stage 1 is timed."""
    overrides = [
        *("method=ce", "dataset=digits_lt", f"mixing@stage1.mixing={mixing}", "trainer.accelerator=cpu"),
        *("trainer.progress=false", "logger=none", "evaluation.every=0", f"stage1.epochs={EPOCHS}"),
        f"+callbacks.clock._target_={__name__}.Clock",
        *(f"stage1.batch_size={BATCH}", f"stage1.sampler.epoch_length={STEPS * BATCH}"),
    ]
    return to_config(freeze(compose(overrides)))


def model_for(data: LongTailedData) -> Model:
    """Of one parameter."""
    return Model(OnePixel(), OneParameter(data.num_classes))


def training(config: Config, data: LongTailedData) -> list[float]:
    """Milliseconds per step of each epoch of the framework's own training."""
    with tempfile.TemporaryDirectory() as folder:
        session = Session(config, Path(folder), data, pick_device("cpu", 0))
        (Path(folder) / "stage1").mkdir()
        train(session, "stage1", config.stage1, model_for(data), Path(folder) / "stage1")
    return noted()


def making(config: Config, data: LongTailedData) -> list[float]:
    """Milliseconds for each batch, of an epoch that nothing is done with."""
    session = Session(config, Path(), data, pick_device("cpu", 0))
    loader, found = train_loader(session, "stage1", config.stage1, model_for(data)), []
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        start = time.process_time()
        for _ in loader:
            pass
        found.append(1000 * (time.process_time() - start) / len(loader))
    return found[1:]


def bare(config: Config, data: LongTailedData) -> list[float]:
    """Milliseconds per step of plain PyTorch over batches that are there already."""
    session = Session(config, Path(), data, pick_device("cpu", 0))
    model, found = model_for(data), []
    batches = [(b.inputs, b.labels) for b in train_loader(session, "stage1", config.stage1, model)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(EPOCHS):
        start = time.process_time()
        for inputs, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model.classifier(model.backbone(inputs)), labels).backward()
            optimizer.step()
        found.append(1000 * (time.process_time() - start) / STEPS)
    return found[1:]


class Plain(pl.LightningModule):
    """The same steps as a module of Lightning's that does nothing else."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def training_step(self, batch: Batch, _: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.model.classifier(self.model.backbone(batch.inputs)), batch.labels))
        optimizer.step()


def lightning(config: Config, data: LongTailedData) -> list[float]:
    """Milliseconds per step of Lightning's loop without anything of ours, the making of batches included."""
    session, model = Session(config, Path(), data, pick_device("cpu", 0)), model_for(data)
    shown: dict[str, Any] = dict.fromkeys(["logger", *(f"enable_{part}" for part in HIDDEN)], False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=EPOCHS, callbacks=[Clock()], **shown)
    trainer.fit(Plain(model), train_loader(session, "stage1", config.stage1, model))
    return noted()


def noted() -> list[float]:
    """What `Clock` has noted since it was last asked."""
    found = list(Clock.noted)
    Clock.noted.clear()
    return found


def main() -> None:
    """Prints the medians and what training costs beyond making the batches."""
    quieten()
    torch.set_num_threads(1)
    plain, mixed = configured("none"), configured("mixup")
    data: LongTailedData = build(plain.dataset, root=plain.paths.data)
    large = cifar_configured("ce")
    images = data_for(large)
    kinds: dict[str, Callable[[], list[float]]] = {
        "making a batch": lambda: making(plain, data),
        "making a batch to mix": lambda: making(mixed, data),
        "making a batch of CIFAR": lambda: making(large, images),
        "bare PyTorch, batches ready": lambda: bare(plain, data),
        "Lightning's loop alone": lambda: lightning(plain, data),
        "training": lambda: training(plain, data),
        "training with mixup": lambda: training(mixed, data),
    }
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, run in kinds.items():
            times.setdefault(name, []).extend(run())
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"digits, batch {BATCH}, a model of one parameter, ms per step, medians of {ROUNDS} rounds (least)")
    for name, value in medians.items():
        print(f"  {name:<30}{value:>7.3f}  ({min(times[name]):.3f})")
    made = "making a batch"
    for name, beyond, limit in (
        (made + " of CIFAR", None, CIFAR),
        ("training", made, BEYOND),
        ("training with mixup", "training", MIXED),
    ):
        took, least = (
            of[name] - (of[beyond] if beyond else 0) for of in (medians, {k: min(v) for k, v in times.items()})
        )
        what = name + (f" beyond {beyond}" if beyond else "")
        print(f"{what:<42}{took:.3f} ms ({least:.3f}; wanted on an idle core: {limit})")
    ratio = (medians["training"] - medians[made]) / medians["bare PyTorch, batches ready"]
    print(f"{'training beyond its batch / bare PyTorch':<42}{ratio:.1f}")
    ours = medians["training"] - medians["Lightning's loop alone"]
    print("training beyond Lightning's loop".ljust(42) + f"{ours:.3f} ms")


if __name__ == "__main__":
    main()
