"""Classifiers: features to logits. Here what all share, the linear one and the cosine one.

What a classifier learns are parameters, what it keeps fixed are buffers: whoever trains a classifier trains all of its
parameters. The names are `weight`, `bias`, `scale` and `shift` throughout, so that a stage can give each its own
learning rate.
"""

import math
from collections.abc import Collection, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import require, require_choice
from ltexp.errors import CheckpointError, ConfigError
from ltexp.models.class_text import ClassText, Prompts
from ltexp.outputs import ModelOutput

INITS = ("kaiming", "default")
Kind = Literal["linear", "cosine", "distance", "normalized", "aligned"]


class Classifier(nn.Module):
    """Features (B, D) to logits (B, C).

    Attributes:
        kind: "linear" where the logits are linear in the features, "cosine" where they are plain cosines, "distance"
            where they are negative distances, "normalized" where they are scaled cosines of parts of the feature,
            "aligned" where a linear map is scaled and shifted by sample.
        needs_features: whether `fit` has to see the training features before the first evaluation.
        starts_from_features: whether `fit` has to see them before a fresh one's first training step.
        reads_text: the names and prompts that it asks of its backbone's text tower: to be fitted (`fit_text`) where
            it needs nothing else, to start from where it is trained. None: it reads no text.
        experts: E where the classifier reads the features (B, E, D) of E experts, else None.
        gives: what its `output` has beside logits and features, for losses and modules to read: fields of `ModelOutput`
            or names in its `extra`.
        trained_scale: what turned its logits into those of the softmax that it was trained by, if it is a checkpoint's.
        takes_scale: whether `start_from` takes its source's `trained_scale` into the logits.

    Args:
        feature_dim: D.
        num_classes: C.
    """

    kind: Kind = "linear"
    needs_features: ClassVar[bool] = False
    starts_from_features: ClassVar[bool] = False
    reads_text: Prompts | None = None
    experts: int | None = None
    gives: ClassVar[Collection[str]] = ()
    trained_scale: float = 1.0
    takes_scale: ClassVar[bool] = False

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.num_classes = num_classes

    @property
    def needs_source(self) -> bool:
        """Whether the classifier means nothing before `start_from`, so that it cannot start fresh."""
        return False

    @property
    def class_vectors(self) -> Tensor | None:
        """(C, D), with their gradient, by whose products with a feature its logits differ; None: there are none."""
        return None

    @property
    def class_biases(self) -> Tensor | None:
        """(C,), with their gradient, what the logits add to these products; None: nothing."""
        return None

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        raise NotImplementedError

    def output(self, features: Tensor) -> ModelOutput:
        """What a model hands on of features (B, D): they and their logits, computed in float32, and what it `gives`."""
        return ModelOutput(logits=self(features.float()), features=features)

    def linear_form(self) -> tuple[Tensor, Tensor | None]:
        """Weight (C, D) and bias (C,) of the linear map that the classifier equals, detached copies.

        Of a classifier that is not of the kind "linear", the map applies to the normalised features.
        """
        raise NotImplementedError

    def start_from(self, source: "Classifier") -> None:
        """Takes over from the classifier of the previous stage.

        Raises:
            CheckpointError: if `source` has another feature width or number of classes.
            ConfigError: if `source` is of a kind, or has a bias, that this classifier cannot continue, or if this
                class does not say how.
        """
        raise ConfigError(
            f"a {type(self).__name__} classifier has no start_from, and can only start fresh: add it to the class, or "
            "set init.classifier=fresh for its stage"
        )

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Reads the training set's features (N, D) with labels (N,), if it needs or starts from them; else nothing."""

    def fit_text(self, text: ClassText) -> None:
        """Takes what the backbone's text tower says of the classes, if it reads text; else nothing."""

    def set_class_counts(self, class_counts: Tensor) -> None:
        """Reads the training set's class counts (C,) where the logits depend on them; else does nothing."""

    def learned_prior(self, shares: Tensor) -> Tensor:
        """(C,) the class shares that a softmax over its logits is for, where it takes over without training.

        Args:
            shares: (C,) float64, those of the classifier before it.
        """
        return shares

    def _check_source(self, source: "Classifier", kinds: Sequence[str]) -> None:
        """Raises unless `source` has this classifier's shape and one of `kinds`."""
        here, there = (self.num_classes, self.feature_dim), (source.num_classes, source.feature_dim)
        if here != there:
            raise CheckpointError(
                f"the previous stage's classifier has {there[0]} classes on features of width {there[1]}, "
                f"this one {here[0]} on {here[1]}: use the same dataset and backbone in both"
            )
        if source.experts != self.experts:
            one, other = (f"for {n} experts" if n else "for no experts" for n in (source.experts, self.experts))
            raise CheckpointError(
                f"the previous stage's classifier is {one} and this one {other}: with ltexp train choose expert_cosine"
            )
        if source.kind not in kinds:
            raise ConfigError(
                f"a {type(self).__name__} classifier cannot continue a {type(source).__name__} one: with ltexp train "
                "start it fresh (stage2.init.classifier=fresh), or give both stages classifiers of one kind"
            )

    def _linear_source(
        self, source: "Classifier", bias: bool, drop_bias: bool = False, kinds: Sequence[str] = ("linear",)
    ) -> tuple[Tensor, Tensor | None]:
        """The map of a `source` of `kinds`: its weight, and its bias (zeros if it has none) where this one has one."""
        self._check_source(source, kinds)
        try:
            weight, source_bias = source.linear_form()
        except NotImplementedError:
            one, other = type(source).__name__, type(self).__name__
            raise ConfigError(
                f"a {one} classifier has no linear_form, which a {other} one starts from: add it to the class, or "
                "set init.classifier=fresh for the later stage"
            ) from None
        if not bias and not drop_bias and source_bias is not None:
            raise ConfigError(
                f"the previous stage's classifier has a bias and this {type(self).__name__} has bias=false: "
                "set bias=false in both stages, or in none"
            )
        if not bias:
            return weight, None
        return weight, weight.new_zeros(self.num_classes) if source_bias is None else source_bias


def fresh_linear(feature_dim: int, num_classes: int, bias: bool, init: str) -> tuple[Tensor, Tensor | None]:
    """Weight (C, D) and bias (C,) of a new linear classifier, drawn from the default generator.

    Args:
        init: "kaiming" (weight Kaiming-normal, fan-in, gain sqrt 2: what the field does on CIFAR since LDAM) or
            "default" (torch's own uniform weight, for the large sets). The bias is torch's own either way.

    Raises:
        ConfigError: for another `init`.
    """
    require_choice("init", init, INITS)
    weight = torch.empty(num_classes, feature_dim)
    if init == "kaiming":
        nn.init.kaiming_normal_(weight)
    else:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    bound = 1 / math.sqrt(feature_dim)
    return weight, torch.empty(num_classes).uniform_(-bound, bound) if bias else None


def copy_map(weight: Tensor, bias: Tensor | None, new_weight: Tensor, new_bias: Tensor | None) -> None:
    """Fills a weight with another of its shape, and the bias where both have one."""
    weight.copy_(new_weight)
    if bias is not None and new_bias is not None:
        bias.copy_(new_bias)


class Affine(Classifier):
    """Base of the classifiers that keep a map W f + b.

    Attributes:
        weight: (C, D), a parameter or a buffer.
        bias: (C,), likewise, or None.
    """

    weight: Tensor
    bias: Tensor | None

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        return F.linear(features, self.weight, self.bias)

    @torch.no_grad()
    def linear_form(self) -> tuple[Tensor, Tensor | None]:
        """W (C, D) and b (C,) or None."""
        return self.weight.clone(), None if self.bias is None else self.bias.clone()

    @torch.no_grad()
    def start_from(self, source: Classifier) -> None:
        """Continues the map of a linear `source`; see `Classifier.start_from`."""
        weight, bias = self._linear_source(source, bias=self.bias is not None)
        copy_map(self.weight, self.bias, weight, bias)


class ContinuedMap(Affine):
    """Base of the classifiers that keep the map of the previous stage's classifier as it is, linear or cosine.

    It is of its source's kind: over a cosine classifier the map applies to the normalised feature, and stays a matter
    of cosines for the loss.

    Args:
        bias: whether there is a b. A cosine source has none, so that b is 0.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, feature_dim: int, num_classes: int, bias: bool) -> None:
        super().__init__(feature_dim, num_classes)
        self.register_buffer("weight", torch.zeros(num_classes, feature_dim))
        self.register_buffer("bias", torch.zeros(num_classes) if bias else None)

    @property
    def needs_source(self) -> bool:
        """True: the map is the previous stage's."""
        return True

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        if self.kind == "cosine":
            with torch.autocast(features.device.type, enabled=False):
                return F.linear(F.normalize(features.float()), self.weight, self.bias)
        return super().forward(features)

    @torch.no_grad()
    def start_from(self, source: Classifier) -> None:
        """Takes the map of a linear or cosine `source`, and its kind; see `Classifier.start_from`."""
        weight, bias = self._linear_source(source, bias=self.bias is not None, kinds=("linear", "cosine"))
        self._take(weight, bias, source)

    def _take(self, weight: Tensor, bias: Tensor | None, source: Classifier) -> None:
        self.kind = source.kind
        copy_map(self.weight, self.bias, weight, bias)

    def get_extra_state(self) -> Tensor:
        """Whether the source was a cosine classifier: a checkpoint has to know."""
        return torch.tensor(self.kind == "cosine")

    def set_extra_state(self, state: Tensor) -> None:
        """Takes what `get_extra_state` gave."""
        self.kind = "cosine" if bool(state) else "linear"


class Linear(Affine):
    """Logits W f + b.

    Args:
        bias: whether there is a b.
        init: the way the weight is drawn, see `fresh_linear`.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, feature_dim: int, num_classes: int, bias: bool = True, init: str = "kaiming") -> None:
        super().__init__(feature_dim, num_classes)
        weight, start = fresh_linear(feature_dim, num_classes, bias, init)
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None if start is None else nn.Parameter(start))

    @property
    def class_vectors(self) -> Tensor:
        """W."""
        return self.weight

    @property
    def class_biases(self) -> Tensor | None:
        """b."""
        return self.bias


class Cosine(Classifier):
    """Plain cosines between the feature and each class's weight; the scale that turns them into logits is the loss's.

    As in LDAM (Cao et al., NeurIPS 2019): the weight starts uniform in (-1, 1), each class's row scaled to norm 1.
    The cosines are computed in float32 whatever the precision, since the loss multiplies them by 15 to 64.

    Args:
        bias: a cosine has none, so only False is accepted; there so that `bias=false` can be swept over classifiers.

    Raises:
        ConfigError: if `bias` is true.
    """

    kind = "cosine"
    weight: nn.Parameter

    def __init__(self, feature_dim: int, num_classes: int, bias: bool = False) -> None:
        super().__init__(feature_dim, num_classes)
        require(not bias, "bias", bias, "false: a cosine classifier has no bias, and classifier linear has")
        self.weight = nn.Parameter(F.normalize(torch.empty(num_classes, feature_dim).uniform_(-1, 1)))

    def forward(self, features: Tensor) -> Tensor:
        """Cosines (B, C) in [-1, 1], float32, of features (B, D)."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(F.normalize(features.float()), F.normalize(self.weight.float()))

    @torch.no_grad()
    def linear_form(self) -> tuple[Tensor, Tensor | None]:
        """The rows of norm 1 (C, D), a map of the normalised feature; no bias."""
        return F.normalize(self.weight), None

    @torch.no_grad()
    def start_from(self, source: Classifier) -> None:
        """Continues the weight of a cosine `source`; see `Classifier.start_from`."""
        self._check_source(source, ["cosine"])
        self.weight.copy_(source.weight if isinstance(source, Cosine) else source.linear_form()[0])
