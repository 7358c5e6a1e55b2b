"""Forward and backward of every loss at iNaturalist's size, (B, C) = (256, 8142), against cross-entropy."""

import time

import torch
from omegaconf import OmegaConf

from ltexp.config.build import build
from ltexp.config.path import conf_dir
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext, StreamBatch
from ltexp.losses.logit_adjustment import AdjustedCrossEntropy
from ltexp.outputs import FIELDS, ModelOutput

BATCH, CLASSES, FEATURES, ROUNDS = 256, 8142, 64, 25
LIMIT = 3.0  # times cross-entropy
LIMIT_OF_A_VECTOR = 1.5  # for a loss that only adds a vector to the logits


def main() -> None:
    """Prints the time of each loss over that of cross-entropy beside its limit; the fastest of interleaved rounds each.

    It is processor time, and the least of it, so that other work on the machine counts for little.
    """
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(2, 1000, (CLASSES,), generator=generator)
    target = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    output = everything(generator)
    leaves = [output.logits, output.features, output.expert_logits, output.auxiliary_logits]
    leaves += output.feature_maps or ()
    losses = timed(counts)
    fastest = dict.fromkeys(losses, float("inf"))
    for _ in range(ROUNDS):
        for name, loss in losses.items():
            streams = {stream: StreamBatch(output, target) for stream in loss.streams}
            context = BatchContext(epoch=150, max_epochs=200, streams=streams)  # curricula and deferred parts are on
            start = time.process_time()
            loss(output, target, context).backward()
            fastest[name] = min(fastest[name], time.process_time() - start)
            for leaf in leaves:
                assert leaf is not None
                leaf.grad = None
    for name, seconds in sorted(fastest.items(), key=lambda item: item[1]):
        ratio, most = seconds / fastest["cross_entropy"], limit(losses[name])
        bound = "" if most is None else f", limit {most:.1f}" + ("" if ratio <= most else ": over it")
        print(f"  {name:<30}{1000 * seconds:>8.2f} ms {ratio:>7.2f} of cross_entropy{bound}")


def timed(class_counts: torch.Tensor) -> dict[str, Loss]:
    """The losses by name, but those that read what a module says: `python -m benchmarks steps` has them."""
    built: dict[str, Loss] = {name: build(node, class_counts=class_counts) for name, node in choices().items()}
    return {name: loss for name, loss in built.items() if loss.needs <= set(FIELDS)}


def choices() -> dict[str, dict[str, object]]:
    """The config node of every loss by its name, and those of sigmoid forms, which cost more than the default one."""
    nodes = {}
    for path in sorted((conf_dir() / "loss").glob("*.yaml")):
        node = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(node, dict)
        nodes[path.stem] = {str(key): value for key, value in node.items()}
        if node.get("form") == "softmax":
            nodes[f"{path.stem}, sigmoid"] = nodes[path.stem] | {"form": "sigmoid"}
    return nodes


def limit(loss: Loss) -> float | None:
    """How many times cross-entropy's time the loss may take; None for one that reads another output too."""
    if loss.needs - {"features"} or loss.streams:
        return None
    return LIMIT_OF_A_VECTOR if isinstance(loss, AdjustedCrossEntropy) else LIMIT


def everything(generator: torch.Generator) -> ModelOutput:
    """An output with all that any loss reads; the logits are cosines, which suit every loss."""

    def draw(*shape: int, learns: bool = True) -> torch.Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1).requires_grad_(learns)

    return ModelOutput(
        logits=draw(BATCH, CLASSES),
        features=draw(BATCH, FEATURES),
        feature_maps=[draw(BATCH, 64, 7, 7)],
        expert_logits=draw(3, BATCH, CLASSES),
        teacher_logits=draw(BATCH, CLASSES, learns=False),
        teacher_features=draw(BATCH, FEATURES, learns=False),
        auxiliary_logits=draw(BATCH, CLASSES),
        auxiliary_maps=[draw(BATCH, 64, 7, 7, learns=False)],
    )


if __name__ == "__main__":
    main()
