"""Images per second of real training against a bare PyTorch loop, of stage 2 against stage 1, and beside a teacher.

ResNet-32, batch 128, CIFAR-100-LT at ratio 100 (or random images of its shape where it is not prepared). The bare loop
is forward, loss, backward and step over ready-made batches: it neither augments nor reports. Both run in turn, in this
process, at the same precision; the medians are compared.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ltexp.config import Config, names_stage, to_config
from ltexp.config.build import build
from ltexp.config.composer import compose
from ltexp.data.types import ImageSplit, LongTailedData
from ltexp.errors import DataError
from ltexp.launching.freeze import freeze
from ltexp.processes.memory import keep_memory
from ltexp.processes.worker import quieten
from ltexp.run_folder import CHECKPOINT, read_metrics
from ltexp.training import checkpoint
from ltexp.training.batches import train_loader
from ltexp.training.mixing import pretext_of
from ltexp.training.predict import autocast, predict
from ltexp.training.run_stage import train
from ltexp.training.session import Session, pick_device

STEPS, ROUNDS, BATCH = 16, 5, 128
PRECISION = os.environ.get("LTEXP_BENCH_PRECISION", "bf16-mixed")


def configured(method: str, *further: str) -> Config:
    """The run whose stages are timed: short epochs of STEPS steps; `further` overrides come last."""
    length = STEPS * BATCH
    overrides = [
        f"method={method}",
        "dataset=cifar100_lt",
        f"trainer.precision={PRECISION}",
        "trainer.progress=false",
        "logger=none",
        "evaluation.every=0",
        "stage1.epochs=2",
        f"stage1.sampler.epoch_length={length}",
    ]
    if method == "ssp":
        overrides.append(f"pretext.sampler.epoch_length={length}")
    elif method != "ce":
        overrides += ["stage2.epochs=2", f"stage2.sampler.epoch_length={length}"]
    overrides += further
    return to_config(freeze(compose(overrides)))


def prepared(config: Config) -> LongTailedData | None:
    """The config's dataset, or None where it is not prepared."""
    try:
        data: LongTailedData = build(config.dataset, root=config.paths.data)
        return data
    except DataError:
        return None


def data_for(config: Config) -> LongTailedData:
    """CIFAR-100-LT, or random images in its place."""
    if (data := prepared(config)) is not None:
        return data
    print("CIFAR-100 is not prepared (ltexp data prepare cifar100): random images of its shape instead")
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 109).astype(np.int64)
    images = random.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    split = ImageSplit(images=images, labels=labels, index=np.arange(len(labels)))
    names = tuple(map(str, range(100)))
    channels = {"channel_mean": (0.5, 0.5, 0.5), "channel_std": (0.25, 0.25, 0.25)}
    return LongTailedData("random", "longtail", 1.0, split, None, split, names, "", "", channels)


def real(config: Config, data: LongTailedData, stage_name: str) -> list[float]:
    """Images per second of each epoch of the framework's own training of a stage."""
    with tempfile.TemporaryDirectory() as folder:
        session = Session(config, Path(folder), data, pick_device("auto", 0))
        stage = config.stages[stage_name]
        session.pretext = pretext_of(stage, session.class_counts)
        # a classifier that continues stage 1's stands for it; modules are the stage's own
        built = stage_name if stage.modules else next(iter(config.stages))
        model = session.place(session.fresh_model(built, config.stages[built]))
        model.set_trainable(stage.trainable.backbone, stage.trainable.classifier, stage.batch_norm)
        (Path(folder) / stage_name).mkdir()
        for teacher in filter(names_stage, set(stage.taught_by.values())):
            # of the student's size; what it has learned does not matter
            counts = data.class_counts.tolist()
            (Path(folder) / teacher).mkdir()
            checkpoint.save(Path(folder) / teacher / CHECKPOINT, model, config.backbone, config.stages[teacher], counts)
        train(session, stage_name, stage, model, Path(folder) / stage_name)
        return [float(row["images_per_second"]) for row in read_metrics(Path(folder) / stage_name / "metrics.csv")]


def bare(config: Config, data: LongTailedData) -> list[float]:
    """Images per second of a loop of plain PyTorch over the same model and images, one figure for STEPS steps."""
    session = Session(config, Path(), data, pick_device("auto", 0))
    model = session.place(session.fresh_model("stage1", config.stage1)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    batches = [(batch.inputs, batch.labels) for batch in train_loader(session, "stage1", config.stage1, model)]
    speeds = []
    for _ in range(2):
        start = time.perf_counter()
        for images, labels in batches:
            with autocast(PRECISION, session.device):
                logits = model.classifier(model.backbone(images))
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # the device has finished
        speeds.append(STEPS * BATCH / (time.perf_counter() - start))
    return speeds


def evaluations(config: Config, data: LongTailedData, size: int | None = None) -> list[float]:
    """Images per second of two evaluations of the test images in batches of `size`, or of as many as a run takes."""
    session = Session(config, Path(), data, pick_device("auto", 0))
    model = session.place(session.fresh_model("stage1", config.stage1))
    loader, speeds = session.loader(data.test, batch_size=size or session.evaluation_batch), []
    for _ in range(2):
        start = time.perf_counter()
        predict(model, loader, PRECISION)
        speeds.append(len(data.test) / (time.perf_counter() - start))
    return speeds


EXTRACTED = ("features@stage2.features=extracted", "augmentation@stage2.augmentation=none")


def whole_stage(data: LongTailedData) -> tuple[float, float]:
    """Seconds of the clock and of the processor of ten epochs of stage 2 over features that are extracted once."""
    config = configured("crt", *EXTRACTED, "stage2.epochs=10", "stage2.sampler.epoch_length=null")
    start, busy = time.perf_counter(), time.process_time()
    real(config, data, "stage2")
    return time.perf_counter() - start, time.process_time() - busy


def main() -> None:
    """Prints the medians and the ratios."""
    quieten()
    keep_memory()
    extracted = configured("crt", *EXTRACTED)
    ce, crt, mislas, ssp = configured("ce"), configured("crt"), configured("mislas"), configured("ssp")
    student, alone = configured("kd"), configured("kd", "stage2.teacher=null", "~stage2.terms.distillation")
    data = data_for(ce)
    speeds: dict[str, list[float]] = {}
    kinds: dict[str, Any] = {
        "bare PyTorch": lambda: bare(ce, data),
        "stage 1 (ce)": lambda: real(ce, data, "stage1"),
        "stage 1 (mislas, with mixup)": lambda: real(mislas, data, "stage1"),
        "pretext (ssp, rotation)": lambda: real(ssp, data, "pretext"),
        "stage 2 (crt, frozen)": lambda: real(crt, data, "stage2"),
        "stage 2 (crt, extracted once)": lambda: real(extracted, data, "stage2"),
        "stage 2 (mislas, statistics)": lambda: real(mislas, data, "stage2"),
        "evaluation": lambda: evaluations(ce, data),
        "evaluation in batches of 512": lambda: evaluations(ce, data, 512),
        "student without teacher": lambda: real(alone, data, "stage2"),
        "student with teacher (kd)": lambda: real(student, data, "stage2"),
    }
    for _ in range(ROUNDS):
        for name, run in kinds.items():
            speeds.setdefault(name, []).extend(run()[1:])  # the first epoch warms up
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"ResNet-32, batch {BATCH}, {PRECISION}, {torch.get_num_threads()} threads, median of {ROUNDS} rounds")
    for name, value in medians.items():
        print(f"  {name:<30}{value:>9.0f} images/s")
    first = medians["stage 1 (ce)"]
    print(f"stage 1 / bare PyTorch              {first / medians['bare PyTorch']:.2f}  (wanted: at least 0.90)")
    print(f"stage 2 frozen / stage 1            {medians['stage 2 (crt, frozen)'] / first:.2f}  (wanted: at least 2.5)")
    print(f"evaluation / in batches of 512      {medians['evaluation'] / medians['evaluation in batches of 512']:.2f}")
    once = medians["stage 2 (crt, extracted once)"] / first
    print(f"stage 2 extracted once / stage 1    {once:.2f}  (wanted: at least 5)")
    seconds, busy = map(min, zip(*(whole_stage(data) for _ in range(2)), strict=True))
    print(f"  10 epochs, extraction included    {seconds:.1f} s, {busy:.1f} s of processor", end="")
    print("  (wanted on two idle cores: 3 s)")
    print(f"stage 2 statistics / stage 1        {medians['stage 2 (mislas, statistics)'] / first:.2f}")
    teacher = medians["student without teacher"] / medians["student with teacher (kd)"]
    print(f"step with a teacher / without       {teacher:.2f}  (wanted: at most 1.45)")


if __name__ == "__main__":
    main()
