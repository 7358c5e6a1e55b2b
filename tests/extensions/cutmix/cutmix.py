"""CutMix (Yun et al., ICCV 2019): a rectangle of each image is another image's, and so is its share of the label."""

import math

import numpy as np

from ltexp.data.loader import Batch
from ltexp.randomness import key_to_seed
from ltexp.training.mixing import Mixed, Mixture, Mixup, partners_of


class CutMix(Mixup):
    """One rectangle a batch, about 1 - λ of an image, λ ~ Beta(α, α); the label weighs what is left of its image."""

    def __call__(self, batch: Batch, seed: int) -> Mixed:
        """The batch with the rectangle of its partners in it."""
        partners, partner_labels = partners_of(batch)
        height, width = batch.inputs.shape[2:]
        rows, columns = self.rectangle(height, width, seed, batch.epoch, batch.step)
        images = batch.inputs.clone()
        images[:, :, rows, columns] = partners[:, :, rows, columns]
        cut = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return Mixed(images, Mixture(batch.labels, partner_labels, 1.0 - cut))

    def rectangle(self, height: int, width: int, seed: int, epoch: int, step: int) -> tuple[slice, slice]:
        """The rows and columns of a batch's rectangle, around any point of the image and cut off at its edges."""
        side = math.sqrt(1.0 - self.draw_weight(seed, epoch, step))
        draws = np.random.Generator(np.random.PCG64(key_to_seed("cutmix", seed, epoch, step)))

        def extent(size: int) -> slice:
            middle, half = int(draws.integers(size)), int(side * size) // 2
            return slice(max(middle - half, 0), min(middle + half, size))

        return extent(height), extent(width)
