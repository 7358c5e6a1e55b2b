"""Forward and backward of every loss at iNaturalist's size, (B, C) = (256, 8142), against cross-entropy."""

import statistics
import time

import torch
from omegaconf import OmegaConf

from ltexp.build import build
from ltexp.conf_path import conf_dir
from ltexp.outputs import ModelOutput

BATCH, CLASSES, FEATURES, ROUNDS = 256, 8142, 64, 15


def main() -> None:
    """Prints the time of each loss over that of cross-entropy, medians of interleaved rounds."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(2, 1000, (CLASSES,), generator=generator)
    logits = torch.randn(BATCH, CLASSES, generator=generator, requires_grad=True)
    cosines = (2 * torch.rand(BATCH, CLASSES, generator=generator) - 1).requires_grad_()
    features = torch.randn(BATCH, FEATURES, generator=generator, requires_grad=True)
    target = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    experts = torch.stack([cosines.detach(), cosines.detach().roll(1, 0)]).requires_grad_()
    further = {
        "features": features,
        "expert_logits": experts,
        "teacher_logits": torch.randn(BATCH, CLASSES, generator=generator),
        "teacher_features": torch.randn(BATCH, FEATURES, generator=generator),
        "auxiliary_logits": torch.randn(BATCH, CLASSES, generator=generator, requires_grad=True),
        "feature_maps": [torch.randn(BATCH, FEATURES, 8, 8, generator=generator, requires_grad=True)],
        "auxiliary_maps": [torch.randn(BATCH, FEATURES, 8, 8, generator=generator)],
    }
    files = sorted((conf_dir() / "loss").glob("*.yaml"))
    losses = {path.stem: build(OmegaConf.to_container(OmegaConf.load(path)), class_counts=counts) for path in files}
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(ROUNDS):
        for name, loss in losses.items():
            output = ModelOutput(logits=cosines if loss.classifier == "cosine" else logits, **further)
            start = time.perf_counter()
            loss(output, target).backward()
            seconds[name].append(time.perf_counter() - start)
            logits.grad = cosines.grad = features.grad = experts.grad = None
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in sorted(medians.items(), key=lambda item: item[1]):
        print(f"  {name:<28}{1000 * value:>8.2f} ms {value / medians['cross_entropy']:>7.2f} of cross_entropy")


if __name__ == "__main__":
    main()
