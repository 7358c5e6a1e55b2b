"""Classifiers that need no training: they re-read the previous stage's classifier or its features."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.config.require import is_number, require
from ltexp.counts import class_shares
from ltexp.errors import DataError
from ltexp.models.classifier import Affine, Classifier, ContinuedMap, Cosine

CHUNK = 8192  # rows turned to float64 at a time, so that a large set's features are never held twice


class TauNormalized(ContinuedMap):
    """Logits f . w_c / ||w_c||^tau: the previous stage's weights with their norms evened out.

    Kang et al., "Decoupling Representation and Classifier", ICLR 2020, Sec. 4. tau = 0 leaves the weights alone,
    tau = 1 gives all of them norm 1. The authors choose tau on validation data from 0, 0.1, ..., 2.

    A cosine does not depend on the norm of the weight that training left, so tau = 1 gives a cosine stage 1 back as it
    is. Any other tau brings those norms in: the logits are cos_c (||w_c|| / g)^(1 - tau), with g the geometric mean of
    the norms, which keeps them cosines on average and changes no prediction. Neither the thesis (Table 5.6) nor the
    authors' code says what tau-normalisation of a cosine classifier is; this is the same formula read for it.

    Args:
        tau: 0 or more, default 1.0.
        bias: whether the previous stage's bias is kept, unscaled. Default False: the authors' code drops it.

    Raises:
        ConfigError: for a tau below 0.
    """

    def __init__(self, feature_dim: int, num_classes: int, tau: float = 1.0, bias: bool = False) -> None:
        super().__init__(feature_dim, num_classes, bias)
        require(is_number(tau, 0), "tau", tau, "a number of 0 or more")
        self.tau = tau

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Equal shares, for which tau is meant; see `Classifier`."""
        return torch.full_like(shares, 1 / len(shares))

    @torch.no_grad()
    def start_from(self, source: Classifier) -> None:
        """Normalises the weights of a linear or cosine `source`; see `Classifier.start_from`."""
        keeps_bias, kinds = self.bias is not None, ("linear", "cosine")
        weight, bias = self._linear_source(source, bias=keeps_bias, drop_bias=True, kinds=kinds)
        if isinstance(source, Cosine):  # its own form has them evened out already
            weight = source.weight.detach().clone()
        norms = weight.norm(dim=1, keepdim=True)
        norms[norms == 0] = 1  # a weight of zero stays zero
        if source.kind == "cosine":
            weight, norms = weight / norms.log().mean().exp(), norms / norms.log().mean().exp()
        self._take(weight / norms**self.tau, bias, source)


class NearestClassMean(Classifier):
    """Logits are negative squared distances to the class means of centred, L2-normalised training features.

    Kang et al., "Decoupling Representation and Classifier", ICLR 2020, Sec. 4, with the authors' preprocessing: the
    mean of all training features is subtracted, then each feature is scaled to norm 1; the class means are those of
    such features and are not scaled again. Until `fit` has run the logits are NaN.
    """

    kind = "distance"
    needs_features = True
    center: Tensor
    means: Tensor

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__(feature_dim, num_classes)
        self.register_buffer("center", torch.full((feature_dim,), torch.nan))
        self.register_buffer("means", torch.full((num_classes, feature_dim), torch.nan))

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Equal shares: a mean knows nothing of its class's size."""
        return torch.full_like(shares, 1 / len(shares))

    def forward(self, features: Tensor) -> Tensor:
        """Negative squared distances (B, C), float32, of features (B, D)."""
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(features.float() - self.center)
            weight, bias = self.linear_form()
            return F.linear(unit, weight, bias) - unit.square().sum(1, keepdim=True)

    @torch.no_grad()
    def linear_form(self) -> tuple[Tensor, Tensor | None]:
        """2 m (C, D) and -||m||^2 (C,): the squared distance without its term ||f||^2, of the normalised feature."""
        return 2 * self.means, -self.means.square().sum(1)

    def start_from(self, source: Classifier) -> None:
        """Nothing of `source` is kept, of whatever kind it is, but its shape must fit."""
        self._check_source(source, ["linear", "cosine", "distance"])

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Sets the centre and the class means from all training features (N, D) and labels (N,).

        Sums are taken in float64, so that neither order nor batches of the features can be seen in the float32 result.

        Raises:
            DataError: if a class has no features.
        """
        counts = torch.bincount(labels, minlength=self.num_classes)
        if empty := [label for label, count in enumerate(counts.tolist()) if count == 0]:
            raise DataError(
                f"nearest class mean: {len(empty)} of {self.num_classes} classes have no training features, first "
                f"class {empty[0]}; it needs at least one image of each class"
            )
        chunks = [slice(start, start + CHUNK) for start in range(0, len(features), CHUNK)]
        center = torch.stack([features[chunk].double().sum(0) for chunk in chunks]).sum(0) / len(features)
        sums = torch.zeros(self.num_classes, self.feature_dim, dtype=torch.float64, device=features.device)
        for chunk in chunks:
            sums.index_add_(0, labels[chunk], F.normalize(features[chunk].double() - center))
        self.center.copy_(center)
        self.means.copy_(sums / counts[:, None])


class LogitAdjusted(Affine):
    """Logits W f + b - tau log pi, with W and b of the previous stage and pi the share of each class in training.

    Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, post-hoc form. W and b are those of the softmax
    that the previous stage was trained by: times the scale of its loss. Until `set_class_counts` has run the logits are
    NaN.

    Args:
        tau: how strongly the prior is taken off. Default 1.0, the Bayes-optimal choice for the balanced error; 0 gives
            back the previous stage.
        bias: whether there is a b.

    Raises:
        ConfigError: for a tau below 0.
    """

    takes_scale = True
    weight: Tensor
    bias: Tensor | None
    adjustment: Tensor

    def __init__(self, feature_dim: int, num_classes: int, tau: float = 1.0, bias: bool = True) -> None:
        super().__init__(feature_dim, num_classes)
        require(is_number(tau, 0), "tau", tau, "a number of 0 or more")
        self.tau = tau
        self.register_buffer("weight", torch.zeros(num_classes, feature_dim))
        self.register_buffer("bias", torch.zeros(num_classes) if bias else None)
        self.register_buffer("adjustment", torch.full((num_classes,), torch.nan))

    @property
    def needs_source(self) -> bool:
        """True: the weights are the previous stage's."""
        return True

    @torch.no_grad()
    def start_from(self, source: Classifier) -> None:
        """Takes the map of a linear `source`, times its scale; see `Classifier.start_from`."""
        super().start_from(source)
        if source.trained_scale != 1.0:
            self.weight.mul_(source.trained_scale)
            if self.bias is not None:
                self.bias.mul_(source.trained_scale)

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Without tau times the prior; see `Classifier`."""
        left = shares * (-self.adjustment.to(shares)).exp()
        return left / left.sum()

    def forward(self, features: Tensor) -> Tensor:
        """Adjusted logits (B, C) of features (B, D)."""
        return F.linear(features, self.weight, self.bias) - self.adjustment

    @torch.no_grad()
    def linear_form(self) -> tuple[Tensor, Tensor | None]:
        """W (C, D), and b - tau log pi (C,)."""
        return self.weight.clone(), -self.adjustment if self.bias is None else self.bias - self.adjustment

    @torch.no_grad()
    def set_class_counts(self, class_counts: Tensor) -> None:
        """Takes the prior from class counts (C,).

        Raises:
            DataError: if a class has no images, since its log prior would be infinite.
        """
        assert class_counts.shape == (self.num_classes,)
        if (class_counts < 1).any():
            empty = int((class_counts < 1).nonzero()[0])
            raise DataError(f"logit_adjusted: class {empty} has no training images, so it has no log prior")
        self.adjustment.copy_(self.tau * class_shares(class_counts).log())
