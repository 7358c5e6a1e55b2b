"""Parts such as a user might write, most of them with a fault; tests/test_own_parts.py says which."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.data.loader import Batch
from ltexp.data.samplers import Sampler
from ltexp.losses.base import Loss
from ltexp.models.backbone import Backbone
from ltexp.models.classifier import Classifier, Linear
from ltexp.models.module import StageModule
from ltexp.outputs import ModelOutput
from ltexp.training.mixing import Mixed, Mixing


class Good(Loss):
    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(output), target, reduction="none")


class Mean(Good):
    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        return super().per_sample(output, target).mean()


class Nameless(Loss):
    def per_samples(self, output: ModelOutput, target: Tensor) -> Tensor:
        return output.logits.sum(1)


class ReturnsFloat(Good):
    def forward(self, output: ModelOutput, target: Tensor, context: Any = None) -> Any:
        return 1.0


class Learns(Good):
    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)
        self.temperature = nn.Parameter(torch.ones(()))


class NoSuper(Good):
    def __init__(self, class_counts: Tensor) -> None:
        pass


class Raises(Good):
    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        raise KeyError("nothing")


class NotANumber(Good):
    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        return super().per_sample(output, target) * torch.nan


class NeedsText(Good):
    needs = "feature_maps"  # type: ignore[assignment]


class Unasked(Good):
    def before_epoch(self, epoch: int, max_epochs: int, survey: Any) -> None:
        raise AssertionError("nobody calls it")


class Misspelt(Good):
    def befor_epoch(self, epoch: int, max_epochs: int, survey: Any) -> None:
        raise AssertionError("nobody calls it")


class PerClass(Good):
    """Right, for the ten classes of the digits alone."""

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)
        if len(class_counts) != 10:
            raise ValueError("10 weights")


class Plain(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()


class Negative(Sampler):
    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        return torch.linspace(-1, 1, len(self.class_counts), dtype=torch.float64)


class Few(Sampler):
    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        return torch.ones(3, dtype=torch.float64)


class Short(Sampler):
    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        return torch.ones(len(self.class_counts), dtype=torch.float64)

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        return super().indices(seed, epoch, max_epochs)[:5]


class Abstract(Sampler):
    def class_probability(self, epoch: int, max_epochs: int) -> Tensor:
        return torch.ones(len(self.class_counts), dtype=torch.float64)


class Wide(Linear):
    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__(feature_dim, num_classes + 1)


class Groups(Linear):
    """Right, for the features of ResNet-8 alone, 64 wide."""

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__(feature_dim, num_classes)
        if feature_dim % 8:
            raise ValueError("feature_dim is no multiple of 8")


class Unfitted(Classifier):
    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__(feature_dim, num_classes)
        self.weight = nn.Parameter(torch.zeros(num_classes, feature_dim))

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight.T

    def fit(self, features: Tensor, labels: Tensor) -> None:
        raise AssertionError("nobody calls it")


class Forgetful(Linear):
    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__(feature_dim, num_classes)
        self.memory = torch.zeros(num_classes)


class Narrow(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.feature_dim, self.map_channels = 12, [8]
        self.conv = nn.Conv2d(3, 8, 3)

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = self.conv(images).relu()
        return maps.mean((2, 3)), [maps]


class Halves(Mixing):
    def __call__(self, batch: Batch, seed: int) -> Any:
        return batch.inputs, batch.labels


class Rows(Mixing):
    def __call__(self, batch: Batch, seed: int) -> Mixed:
        from ltexp.training.mixing import Mixture

        return Mixed(batch.inputs[::2], Mixture(batch.labels, batch.labels, 1.0))


class Two(StageModule):
    gives = ("one", "other")

    def forward(self, features: Tensor) -> Tensor:
        return features


class ReadsTwo(Good):
    needs = frozenset({"one"})
