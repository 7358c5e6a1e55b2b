"""Parts of methods that ltexp does not have, such as a user writes them; tests/test_own_methods.py trains them."""

from typing import Any, ClassVar

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.data.loader import Batch
from ltexp.data.samplers import Sampler
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext, Survey
from ltexp.models.backbone import Backbone
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.models.classifier import Classifier, Linear
from ltexp.models.experts import ExpertLinear
from ltexp.models.model import Model
from ltexp.outputs import ModelOutput
from ltexp.training.steps import Closure, Step, SteppedStage


class ResidualHeads(Classifier):
    """Heads for all, for medium- and few-shot and for few-shot classes, whose logits add up (ResLT, TPAMI 2022)."""

    gives = ("group_logits",)

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__(feature_dim, num_classes)
        self.weight = nn.Parameter(0.05 * torch.randn(3, num_classes, feature_dim))

    def forward(self, features: Tensor) -> Tensor:
        return self.groups(features).sum(0)

    def groups(self, features: Tensor) -> Tensor:
        return features @ self.weight.transpose(1, 2)

    def output(self, features: Tensor) -> ModelOutput:
        groups = self.groups(features.float())
        return ModelOutput(groups.sum(0), features, extra={"group_logits": groups})


class Silent(ResidualHeads):
    def output(self, features: Tensor) -> ModelOutput:
        return ModelOutput(self(features.float()), features)


class ResidualBranches(Loss):
    """Cross-entropy of the sum, and the mean of that of the heads that an image's class is of."""

    needs = frozenset({"group_logits"})

    def __init__(self, class_counts: Tensor, weight: float = 0.9, many_above: int = 15, few_below: int = 8) -> None:
        super().__init__(class_counts)
        self.weight, n = weight, self.class_counts
        groups = torch.stack([n > 0, n <= many_above, n < few_below])
        self.register_buffer("groups", groups, persistent=False)

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        heads = [F.cross_entropy(head, target, reduction="none") for head in output.extra["group_logits"]]
        theirs = self.groups[:, target].float()
        branches = (torch.stack(heads) * theirs).sum(0) / theirs.sum(0)
        fused = F.cross_entropy(self.logits(output), target, reduction="none")
        return (1 - self.weight) * fused + self.weight * branches


class Swapped(Loss):
    """Cross-entropy on features with some channels of a stream's images (H2T, AAAI 2024)."""

    needs = frozenset({"classify"})
    streams = frozenset({"rare"})

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        assert output.features is not None
        rare = context.streams["rare"].output.features
        assert rare is not None
        swapped = torch.cat([rare[:, :20], output.features[:, 20:]], 1)
        return F.cross_entropy(self.scale * output.extra["classify"](swapped), target, reduction="none")


class ReadsVectors(Loss):
    needs = frozenset({"class_vectors", "class_biases"})

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        assert output.features is not None
        logits = F.linear(output.features, output.extra["class_vectors"], output.extra["class_biases"])
        return F.cross_entropy(logits, target, reduction="none")


class Tempered(Linear):
    """Logits over a temperature a class, which `linear_form` has not."""

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__(feature_dim, num_classes)
        self.temperature = nn.Parameter(torch.ones(num_classes))

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) / self.temperature


class WellTempered(Tempered):
    def linear_form(self) -> tuple[Tensor, Tensor | None]:
        assert self.bias is not None
        return (self.weight / self.temperature[:, None]).detach(), (self.bias / self.temperature).detach()


class Depths(Backbone):
    """An expert for each of the maps of a ResNet-8, as wide as the last (SHIKE, CVPR 2023)."""

    experts = 3

    def __init__(self) -> None:
        super().__init__()
        self.net = CifarResNet(8)
        self.feature_dim, self.map_channels = self.net.feature_dim, self.net.map_channels
        self.widen = nn.ModuleList(nn.Linear(width, self.feature_dim) for width in self.map_channels)

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        _, maps = self.net.forward_maps(images)
        return torch.stack([widen(each.mean((2, 3))) for widen, each in zip(self.widen, maps, strict=True)], 1), maps


class ThreeHeads(ExpertLinear):
    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__(feature_dim, num_classes, experts=3)


class EachExpert(Loss):
    needs = frozenset({"expert_logits"})

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        return torch.stack([F.cross_entropy(e, target, reduction="none") for e in self.expert_logits(output)]).mean(0)


def difficulty(survey: Survey, classes: int) -> Tensor:
    """float64 (C,): by how much each class's accuracy on validation images falls short (Sinha et al., IJCV 2022)."""
    right, labels = survey("validation", lambda output, labels: (output.logits.argmax(1) == labels).float())
    total = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, right.double())
    return 1.1 - total / labels.bincount(minlength=classes).clamp_min(1)


class Unsurveyed(Sampler):
    """Classes in proportion to their difficulty, if it were asked to survey it."""

    shares: Tensor | None = None
    seen: ClassVar[list[tuple[int, list[float]]]] = []

    def before_epoch(self, epoch: int, max_epochs: int, survey: Survey) -> None:
        self.shares = difficulty(survey, len(self.class_counts))
        self.seen.append((epoch, self.shares.tolist()))

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        return torch.ones(len(self.class_counts)).double() if self.shares is None else self.shares / self.shares.sum()


class Difficult(Unsurveyed):
    surveys: ClassVar[Any] = ("validation",)


class WeightedByDifficulty(Loss):
    """Cross-entropy weighted by difficulty: that of the stage's start is cross-entropy itself."""

    surveys = ("validation",)

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)
        self.register_buffer("difficulty", torch.ones(len(class_counts)), persistent=False)

    def before_epoch(self, epoch: int, max_epochs: int, survey: Survey) -> None:
        self.difficulty.copy_(difficulty(survey, self.num_classes))

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(output), target, reduction="none") * self.difficulty[target]


class NearCentroids(Loss):
    """The squared distance to the centroids of training features as they are before the epoch (DRO-LT, ICCV 2021)."""

    surveys = ("train",)

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)
        self.register_buffer("centroids", torch.zeros(len(class_counts), 64), persistent=False)

    def before_epoch(self, epoch: int, max_epochs: int, survey: Survey) -> None:
        features, labels = survey("train", lambda output, labels: output.features)  # type: ignore[arg-type,return-value]
        sums = torch.zeros(len(self.centroids), features.shape[1]).index_add_(0, labels, features)
        self.centroids.copy_(sums / labels.bincount(minlength=len(sums))[:, None])

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        assert output.features is not None
        return (output.features - self.centroids[target]).square().mean(1)


class Alternating(Step):
    """The classifier learns by an Adam of its own, at every other step (with the stage's lr_factors.classifier 0)."""

    def optimizers(self, model: Model) -> dict[str, torch.optim.Optimizer]:
        return {"classifier": torch.optim.Adam(model.classifier.parameters(), lr=0.01)}

    def __call__(self, stage: SteppedStage, optimizer: LightningOptimizer, batch: Batch, closure: Closure) -> Tensor:
        optimizer.zero_grad()
        loss = closure()
        (stage.own_optimizers["classifier"] if batch.step % 2 else optimizer).step()
        return loss


class Hoarding(Alternating, nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mine = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


class Remembers(Loss):
    """State that is lost, and a hook that is of other parts."""

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)
        self.seen_so_far = torch.zeros(len(class_counts))

    def after_step(self, model: nn.Module) -> None:
        raise AssertionError("nobody calls it")

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        return F.cross_entropy(self.logits(output), target, reduction="none")


class FeaturesAlone(Loss):
    """Reads no logits, as a contrastive loss does: the classifier has no gradient."""

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        assert output.features is not None
        return (output.features.mean(1) - target).square()


class Taught(Remembers):
    needs = frozenset({"teachers_logits"})
