"""The model of a stage: a backbone and a classifier, and which parts of them learn."""

from collections.abc import Collection
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltexp.config import BATCH_NORMS
from ltexp.errors import ConfigError
from ltexp.models.backbone import Backbone
from ltexp.models.classifier import Classifier
from ltexp.models.experts import ExpertCosine
from ltexp.names import unknown_name
from ltexp.outputs import ModelOutput

AUXILIARY = frozenset({"auxiliary_logits", "auxiliary_maps"})


class Model(nn.Module):
    """Images to `ModelOutput`. Parameters are named `backbone.*`, `classifier.*` and `auxiliary.*`; all learn at first.

    Args:
        backbone: images (B, 3, H, W), or what else it reads, to features (B, D).
        classifier: features (B, D) to logits (B, C).
        auxiliary: a network that only training uses: the backbone's maps to (logits (B, C), a map for each of them).
        feature_power: what the backbone's features are raised to before anything reads them (Tukey's ladder of powers);
            other than 1 it wants features of 0 or more, as after a ReLU.
    """

    def __init__(
        self,
        backbone: Backbone,
        classifier: Classifier,
        auxiliary: nn.Module | None = None,
        feature_power: float = 1.0,
    ) -> None:
        super().__init__()
        self.feature_power = feature_power
        self.backbone = backbone
        self.classifier = classifier
        self.auxiliary = auxiliary
        self._backbone_trains = self._auxiliary_trains = self._backbone_from_auxiliary = True
        self._backbone_learns = any(parameter.requires_grad for parameter in backbone.parameters())
        self._batch_norm = "train"

    def forward(self, inputs: Tensor, needs: Collection[str] = ()) -> ModelOutput:
        """Logits and features of what the backbone reads, images (B, 3, H, W), and the further fields in `needs`.

        `feature_maps` are the maps of the backbone's blocks; the auxiliary network runs only where `needs` names one of
        its fields. A backbone without anything to learn runs without a graph.
        """
        feature_maps = None
        auxiliary = self.auxiliary if not AUXILIARY.isdisjoint(needs) else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._backbone_learns):
            if auxiliary is not None or "feature_maps" in needs:
                features, feature_maps = self.backbone.forward_maps(inputs)
            else:
                features = cast(Tensor, self.backbone(inputs))
        output = self.classify(self.transform(features))
        output.feature_maps = feature_maps
        if auxiliary is not None:
            read = feature_maps if self._backbone_from_auxiliary else [m.detach() for m in feature_maps or ()]
            output.auxiliary_logits, output.auxiliary_maps = auxiliary(read)
        return output

    def compile_backbone(self, backend: str) -> None:
        """Runs the backbone through torch.compile from its next call on; its state keeps its names.

        Args:
            backend: of torch.compile.
        """
        self.backbone.compile(backend=backend)
        # not a call of the module, so it is compiled apart
        self.backbone.forward_maps = torch.compile(self.backbone.forward_maps, backend=backend)  # type: ignore[method-assign]

    def transform(self, features: Tensor) -> Tensor:
        """The backbone's features (B, D) raised to `feature_power`, in float32 unless that is 1."""
        return features if self.feature_power == 1 else features.float() ** self.feature_power

    def features(self, inputs: Tensor) -> Tensor:
        """Features (B, D) as the classifier reads them."""
        return self.transform(cast(Tensor, self.backbone(inputs)))

    def classify(self, features: Tensor) -> ModelOutput:
        """Logits of features (B, D), transformed already, or of (B, E, D) of E experts, with those of each expert."""
        # In bf16 the logits of two classes are often equal, and the argmax would always take the more frequent one.
        with torch.autocast(features.device.type, enabled=False):
            if isinstance(self.classifier, ExpertCosine):
                experts = self.classifier.expert_logits(features.float())
                return ModelOutput(logits=experts.mean(0), features=features, expert_logits=experts)
            return ModelOutput(logits=self.classifier(features.float()), features=features)

    def set_trainable(
        self,
        backbone: bool = True,
        classifier: bool = True,
        batch_norm: str = "train",
        auxiliary: bool = True,
        backbone_from_auxiliary: bool = True,
    ) -> None:
        """Says what learns, at once and after every later `train()`.

        Args:
            backbone: whether the backbone's parameters learn, its batch norms aside; one that does not is in eval mode.
            classifier: whether the classifier's parameters learn.
            batch_norm: what the backbone's batch norms do while training, whatever `backbone` says; those of its
                `frozen_parts` stay frozen. "train": they normalise by the batch, their running statistics move and
                their affine parameters learn. "statistics": the same with the affine parameters fixed (MiSLAS, Sec.
                3.3). "frozen": they normalise by their running statistics, and nothing moves.
            auxiliary: whether the auxiliary network's parameters learn.
            backbone_from_auxiliary: whether the backbone learns from losses of the auxiliary network; False: that reads
                detached maps.

        Raises:
            ConfigError: for another `batch_norm`.
        """
        if batch_norm not in BATCH_NORMS:
            raise ConfigError(unknown_name("batch_norm", batch_norm, BATCH_NORMS))
        self.backbone.requires_grad_(backbone)
        self.classifier.requires_grad_(classifier)
        if self.auxiliary is not None:
            self.auxiliary.requires_grad_(auxiliary)
        self._auxiliary_trains, self._backbone_from_auxiliary = auxiliary, backbone_from_auxiliary
        for module in self._batch_norms():
            module.requires_grad_(batch_norm == "train")
        for part in self.backbone.frozen_parts():
            part.requires_grad_(False)
        self._backbone_trains = backbone
        self._backbone_learns = any(parameter.requires_grad for parameter in self.backbone.parameters())
        self._batch_norm = batch_norm
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode (or eval mode) for all parts but those that `set_trainable` keeps in eval mode."""
        super().train(mode)
        self.backbone.train(mode and self._backbone_trains)
        if self.auxiliary is not None:
            self.auxiliary.train(mode and self._auxiliary_trains)
        for module in self._batch_norms():
            module.train(mode and self._batch_norm != "frozen")
        for part in self.backbone.frozen_parts():
            part.eval()
        return self

    def _batch_norms(self) -> list[_BatchNorm]:
        # Looked up each time: converting to SyncBatchNorm replaces the modules.
        return [module for module in self.backbone.modules() if isinstance(module, _BatchNorm)]
