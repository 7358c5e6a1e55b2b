"""What an auxiliary network adds to a stage's objective (DaSL, Neural Networks 151, 2022, Sec. 3.2.1).

Terms of `stageN.terms`, each beside the stage's own loss: the auxiliary network learns the labels, and its logits and
maps are targets for the classifier and the backbone. What the paper leaves open follows FRSKD (Ji et al., CVPR 2021).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.losses.base import Loss
from ltexp.outputs import ModelOutput


class AuxiliaryCrossEntropy(Loss):
    """Cross-entropy of the auxiliary network's own logits (Eq. 5)."""

    needs = frozenset({"auxiliary_logits"})

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses."""
        assert output.auxiliary_logits is not None
        return F.cross_entropy(output.auxiliary_logits.float(), target, reduction="none")


class AuxiliarySoftLabels(Loss):
    """KL(softmax(z_a / T) || softmax(z / T)) from the auxiliary network's logits z_a to the classifier's z (Eq. 6).

    The labels have no part in it. Eq. 6 tempers "prediction distributions"; as in Hinton et al. (2015), which it cites,
    logits are tempered here.

    Args:
        class_counts: (C,) int64.
        temperature: T > 0. Default 4 (FRSKD; the paper tries 2, 4 and 6 and names none).
        squared_factor: whether to multiply by T^2, which keeps the gradient's size whatever T is. Default True (FRSKD);
            Eq. 6 as printed has no such factor.
        detach_target: whether the auxiliary network is a target only. Default True (FRSKD); False: it also moves
            towards the classifier.
        scale: of the classifier's logits. Default null: that of the model's output.

    Raises:
        ConfigError: a temperature that is not positive.
    """

    needs = frozenset({"auxiliary_logits"})
    reads_labels = False

    def __init__(
        self,
        class_counts: Tensor,
        temperature: float = 4.0,
        squared_factor: bool = True,
        detach_target: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__(class_counts, scale)
        require(temperature > 0, "temperature", temperature, "a number above 0")
        self.temperature, self.detach_target = temperature, detach_target
        self.factor = temperature**2 if squared_factor else 1.0

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) divergences."""
        assert output.auxiliary_logits is not None
        soft = output.auxiliary_logits.detach() if self.detach_target else output.auxiliary_logits
        log_soft = F.log_softmax(soft.float() / self.temperature, dim=1)
        log_p = F.log_softmax(self.logits(output) / self.temperature, dim=1)
        return self.factor * F.kl_div(log_p, log_soft, reduction="none", log_target=True).sum(dim=1)


def attention(maps: Tensor, power: float) -> Tensor:
    """(B, h * w) float32 attention of maps (B, c, h, w): the sum over channels of |F|^p, L2-normalised (Eq. 7)."""
    # one pass over the maps, whatever their precision: a float32 copy would cost as much as a layer
    mass = torch.linalg.vector_norm(maps, power, dim=1, dtype=torch.float32)
    return F.normalize(mass.pow(power).flatten(1))


class AttentionDistillation(Loss):
    """Brings the attention of the backbone's maps to that of the auxiliary network's, level by level (Eq. 7).

    The sum over levels of the mean squared difference of normalised attentions. Eq. 7 prints the difference's norm;
    with the paper's factor of 100 only the mean square is of the order of a cross-entropy. The labels have no part in
    it. The term's weight is the paper's β.

    Args:
        class_counts: (C,) int64.
        power: p >= 1. Default 2 (Zagoruyko and Komodakis, ICLR 2017; the paper does not say).
        squared: True (default, FRSKD): mean squared difference; False: the norm, as Eq. 7 is printed.
        detach_target: whether the auxiliary maps are targets only. Default True (FRSKD).

    Raises:
        ConfigError: a power below 1.
    """

    needs = frozenset({"feature_maps", "auxiliary_maps"})
    reads_labels = False

    def __init__(
        self, class_counts: Tensor, power: float = 2.0, squared: bool = True, detach_target: bool = True
    ) -> None:
        super().__init__(class_counts)
        require(power >= 1, "power", power, "a number of 1 or more")
        self.power, self.squared, self.detach_target = power, squared, detach_target

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses."""
        assert output.feature_maps is not None
        assert output.auxiliary_maps is not None
        levels = []
        for maps, guide in zip(output.feature_maps, output.auxiliary_maps, strict=True):
            wanted = attention(guide.detach() if self.detach_target else guide, self.power)
            difference = attention(maps, self.power) - wanted
            levels.append(difference.square().mean(1) if self.squared else difference.norm(dim=1))
        return torch.stack(levels).sum(0)
