"""Labels made of the images themselves: by how many quarter turns each was rotated (RotNet; SSP)."""

from typing import ClassVar

import torch
from torch import Tensor

from ltexp.data.loader import Batch
from ltexp.distributed import own_rows
from ltexp.errors import ConfigError
from ltexp.randomness import generator
from ltexp.training.mixing import Mixed, Mixing, Mixture

TURNS = 4  # quarter turns: none, one, two, three


class Rotation(Mixing):
    """Each image of a batch is turned by 0, 90, 180 or 270 degrees, and that is its label.

    The pretext task of Gidaris et al. (ICLR 2018) as SSP (Yang and Xu, NeurIPS 2020) trains on it: one rotation of each
    image, not all four, and equally many of each in a global batch, to within one. The labels of the dataset are not
    read. In an evaluation sample i of the split is turned i mod 4 times.

    Args:
        class_counts: without effect.

    Attributes:
        num_classes: 4.
    """

    blends = False
    needs_images: ClassVar[bool] = True
    num_classes: ClassVar[int | None] = TURNS

    def __call__(self, batch: Batch, seed: int) -> Mixed:
        """The turned images, labelled by their quarter turns."""
        turns = draw_turns(batch.size, seed, batch.epoch, batch.step)[own_rows(batch.size)]
        labels = turns.to(batch.labels.device, non_blocking=True)
        return Mixed(rotated(batch.inputs, turns), Mixture(labels, labels, 1.0))

    def examined(self, batch: Batch) -> Batch:
        """An evaluation's batch as this task sees it."""
        labels = batch.index % TURNS
        return batch._replace(inputs=rotated(batch.inputs, labels), labels=labels)

    def check(self, inputs: Tensor) -> None:
        """Refuses samples (1, ...) that are no images, or such that a quarter turn would give another shape."""
        if inputs.ndim != 4:
            raise ConfigError("rotation turns images, and the dataset holds none: choose another pretext")
        height, width = inputs.shape[-2:]
        if height != width:
            raise ConfigError(f"rotation turns square images, and these are {height} x {width}: make them square")


def draw_turns(size: int, seed: int, epoch: int, step: int) -> Tensor:
    """int64 (size,): the quarter turns of a global batch's rows, equal on every process."""
    order = torch.randperm(size, generator=generator("rotation", seed, epoch, step))
    return (torch.arange(size) % TURNS)[order]


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Images (n, C, H, H), each turned counter-clockwise by `turns` (n,) quarters; strides stay as they are."""
    result = torch.empty_like(images)
    for quarter in range(TURNS):
        rows = (turns == quarter).nonzero().squeeze(1).to(images.device, non_blocking=True)
        result[rows] = torch.rot90(images[rows], quarter, (2, 3))
    return result
