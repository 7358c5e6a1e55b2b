"""Manifold mixup: mixup of the inputs or of what one of the network's layers gives."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ltexp.config.require import require
from ltexp.data.loader import Batch
from ltexp.randomness import key_to_seed
from ltexp.training.inside import Inside
from ltexp.training.mixing import Mixed, Mixture, Mixup, partner_rows

INPUTS = "inputs"
PLACES = (INPUTS, "layer1", "layer2")


class ManifoldMixup(Mixup):
    """Manifold mixup (Verma et al., ICML 2019): in each batch one of several places is drawn, and mixed at.

    Args:
        class_counts: without effect.
        alpha: α of λ ~ Beta(α, α), one a batch. Default 2.0 (the paper's CIFAR).
        places: `inputs`, or dotted names of the backbone's parts, whose outputs are mixed; each is as likely.
            Default: the paper's for a ResNet, the inputs and what its first two stages give.

    Raises:
        ConfigError: α not positive, or no places.
    """

    replayable = False  # another place is another step

    def __init__(self, class_counts: Tensor, alpha: float = 2.0, places: Sequence[str] = PLACES) -> None:
        super().__init__(class_counts, alpha)
        named = not isinstance(places, str) and len(places) > 0 and all(isinstance(place, str) for place in places)
        require(named, "places", places, "a list of one or more of inputs and the backbone's parts, [inputs,layer1]")
        self.places = list(places)
        self.layers = [place for place in self.places if place != INPUTS]
        self.changes_inputs = INPUTS in self.places

    def __call__(self, batch: Batch, seed: int) -> Mixed:
        """The batch, mixed already or to be mixed inside the network."""
        weight, place = self.draw(seed, batch.epoch, batch.step)
        other = 1.0 - weight
        targets = Mixture(batch.labels, partner_rows(batch.labels, batch.size), weight, other)

        def mixed(rows: Tensor) -> Tensor:
            return rows.lerp(partner_rows(rows, batch.size), other)

        if place == INPUTS:
            return Mixed(mixed(batch.inputs), targets)
        return Mixed(batch.inputs, targets, Inside(place, mixed))

    def draw(self, seed: int, epoch: int, step: int) -> tuple[float, str]:
        """λ of one batch, the one that mixup draws, and the place."""
        draws = np.random.Generator(np.random.PCG64(key_to_seed("place", seed, epoch, step)))
        return self.draw_weight(seed, epoch, step), self.places[draws.integers(len(self.places))]
