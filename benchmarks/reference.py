"""Images per second of stage 1 against the loop that the field's training scripts share.

That loop, written from its description: PIL images through torchvision's crop, flip, tensor and normalisation in the
workers of a DataLoader, float32 in NCHW, forward, loss, backward and step, loss and top-1 accuracy read with `.item()`
at each step. Same network, images and batches of 128 as ltexp's stage 1; both run in turn, in a process each, with the
same number of threads; the loop's WORKERS loading processes come on top.
"""

import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from benchmarks.training import BATCH, STEPS, configured, data_for, real
from ltexp.config import Config
from ltexp.data.types import ImageSplit
from ltexp.processes.memory import keep_memory
from ltexp.processes.worker import quieten
from ltexp.training.session import Session, pick_device

WORKERS = int(os.environ.get("LTEXP_BENCH_WORKERS", "2"))
ROUNDS = 3
WANTED = {"bf16-mixed": 2.0, "32-true": 1.2}


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """A split's images as PIL images, each transformed when it is asked for."""

    def __init__(self, split: ImageSplit, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.split = split
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.split.images[index])), int(self.split.labels[index])


def reference(config: Config) -> float:
    """Images per second of the field's loop over STEPS steps, after as many that warm up."""
    data = data_for(config)
    session = Session(config, Path(), data, pick_device("auto", 0))
    model = session.fresh_model("stage1", config.stage1).to(session.device, memory_format=torch.contiguous_format)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    assert isinstance(data.train, ImageSplit)
    pictures = Pictures(data.train, data.preprocessing["channel_mean"], data.preprocessing["channel_std"])
    sampler = RandomSampler(pictures, replacement=True, num_samples=2 * STEPS * BATCH)
    loader = DataLoader(pictures, BATCH, sampler=sampler, num_workers=WORKERS, pin_memory=torch.cuda.is_available())
    start = 0.0
    for step, (images, labels) in enumerate(loader):
        if step == STEPS:
            start = time.perf_counter()
        images, labels = images.to(session.device, non_blocking=True), labels.to(session.device, non_blocking=True)
        logits = model.classifier(model.backbone(images))
        loss = F.cross_entropy(logits, labels)
        loss.item()
        (logits.argmax(1) == labels).float().mean().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if session.device.type == "cuda":
        torch.cuda.synchronize()
    return STEPS * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Prints the medians and the ratios."""
    quieten()
    configs = {precision: configured("ce", f"trainer.precision={precision}") for precision in WANTED}
    data = data_for(configs["32-true"])
    speeds: dict[str, list[float]] = {}
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:
        for _ in range(ROUNDS):
            speeds.setdefault("the field's loop", []).append(apart.submit(reference, configs["32-true"]).result())
            keep_memory()  # as a run does; the field's loop has begun without
            for precision, config in configs.items():
                speeds.setdefault(precision, []).append(real(config, data, "stage1")[1])
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"ResNet-32, batch {BATCH}, {torch.get_num_threads()} threads, {WORKERS} workers of the field's loop")
    for name, value in medians.items():
        print(f"  {name:<30}{value:>9.0f} images/s")
    for precision, wanted in WANTED.items():
        ratio = medians[precision] / medians["the field's loop"]
        print(f"ltexp in {precision} / the field's loop".ljust(40) + f"{ratio:.2f}  (wanted: at least {wanted:.1f})")


if __name__ == "__main__":
    main()
