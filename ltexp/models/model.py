"""The model of a stage: a backbone, a classifier and the stage's modules, and which parts of them learn."""

from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltexp.config import BATCH_NORMS
from ltexp.config.require import within
from ltexp.errors import ConfigError
from ltexp.models.backbone import Backbone
from ltexp.models.classifier import Classifier
from ltexp.models.module import OF_VIEWS, Wiring, detach
from ltexp.names import unknown_name
from ltexp.outputs import ModelOutput


class Model(nn.Module):
    """Images to `ModelOutput`: a backbone, a classifier, and the modules that a stage has beside them.

    Args:
        backbone: images (B, 3, H, W), or what else it reads, to features (B, D).
        classifier: features (B, D) to logits (B, C).
        modules: by name, in the order in which they may read what others give.
        wiring: of each module.
        feature_power: what the backbone's features are raised to before anything reads them (Tukey's ladder of powers);
            other than 1 it wants features of 0 or more, as after a ReLU.

    Attributes:
        attached: the modules. All parts learn at first.
        logit_scale: what turns the classifier's logits into those of its softmax; the stage's loss says it.
    """

    def __init__(
        self,
        backbone: Backbone,
        classifier: Classifier,
        modules: Mapping[str, nn.Module] | None = None,
        wiring: Mapping[str, Wiring] | None = None,
        feature_power: float = 1.0,
    ) -> None:
        super().__init__()
        self.feature_power, self.logit_scale = feature_power, 1.0
        self.backbone = backbone
        self.classifier = classifier
        self.attached = nn.ModuleDict(modules or {})
        self.wiring = dict(wiring or {})
        self._kept = frozenset(field for wired in self.wiring.values() if wired.keep for field in wired.gives)
        self._backbone_trains = True
        self._backbone_learns = any(parameter.requires_grad for parameter in backbone.parameters())
        self._batch_norm = "train"
        self._plans: dict[frozenset[str], tuple[list[str], frozenset[str]]] = {}

    def forward(
        self,
        inputs: Tensor,
        needs: Collection[str] = (),
        views: int = 1,
        labels: Tensor | None = None,
        branch: int | None = None,
    ) -> ModelOutput:
        """Logits and features of what the backbone reads, images (B, 3, H, W), and the further fields in `needs`.

        A module runs only where `needs` names what it gives, or it is kept. A backbone without anything to learn runs
        without a graph, unless the gradient of its inputs is asked for.

        Args:
            inputs: (B, ...); of several views (V * B, ...), view by view, of which the first is classified.
            needs: fields of the output, or names in its `extra`.
            views: V.
            labels: int64 (B,), for modules that read them.
            branch: the one of the backbone's branches that the inputs take; None: all.
        """
        running, read = self.plan(needs)
        whole, rows = inputs, inputs.shape[0] // views  # not len(): an export leaves the number of samples open
        if views > 1 and not self.sees_all_views(needs):
            inputs = inputs[:rows]
        graph = self._backbone_learns or inputs.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and graph):
            if branch is not None:
                features, maps = self.backbone.forward_branch(inputs, branch)
                feature_maps = maps if "feature_maps" in read else None
            elif "feature_maps" in read:
                features, feature_maps = self.backbone.forward_maps(inputs)
            else:
                features, feature_maps = cast(Tensor, self.backbone(inputs)), None
        features = self.transform(features)
        output = self._classified(features[:rows] if views > 1 else features, read)
        if feature_maps is not None:
            output.feature_maps = [m[:rows] for m in feature_maps] if views > 1 else feature_maps
        if "view_features" in read:
            output.extra["view_features"] = features.view(views, rows, *features.shape[1:])
        if "view_logits" in read:
            logits = self._classified(features, ()).logits
            output.extra["view_logits"] = logits.view(views, rows, *logits.shape[1:])
        if "view_inputs" in read:
            output.extra["view_inputs"] = whole.view(views, rows, *whole.shape[1:])
        self._attach(output, running, {"inputs": whole[:rows] if views > 1 else whole, "labels": labels})
        return output

    def sees_all_views(self, needs: Collection[str]) -> bool:
        """Whether the backbone runs on every view of a batch, or on the first alone."""
        return not OF_VIEWS.isdisjoint(self.plan(needs)[1])

    def classify(self, features: Tensor, needs: Collection[str] = (), labels: Tensor | None = None) -> ModelOutput:
        """The output of features (B, D), transformed already, or of (B, E, D) of E experts; see `forward`."""
        running, read = self.plan(needs)
        output = self._classified(features, read)
        self._attach(output, running, {"labels": labels})
        return output

    def plan(self, needs: Collection[str]) -> tuple[list[str], frozenset[str]]:
        """(the modules that run, in order, every field that they or `needs` read): kept modules always run."""
        key = frozenset(needs)
        if key not in self._plans:
            read, running = set(key | self._kept), []
            for name in reversed(list(self.attached)):
                if not read.isdisjoint(self.wiring[name].gives):
                    running.append(name)
                    read |= set(self.wiring[name].reads)
            self._plans[key] = running[::-1], frozenset(read)
        return self._plans[key]

    def _classified(self, features: Tensor, read: Collection[str]) -> ModelOutput:
        # In bf16 the logits of two classes are often equal, and the argmax would always take the more frequent one.
        with without_autocast(features.device.type):
            output = self.classifier.output(features)
        output.logit_scale = self.logit_scale
        if "class_vectors" in read:
            output.extra["class_vectors"] = self.classifier.class_vectors
        if "class_biases" in read:
            output.extra["class_biases"] = self.classifier.class_biases
        if "classify" in read:
            output.extra["classify"] = self._logits_of
        return output

    def _logits_of(self, features: Tensor) -> Tensor:
        with without_autocast(features.device.type):
            return cast(Tensor, self.classifier(features.float()))

    def _attach(self, output: ModelOutput, running: Iterable[str], batch: Mapping[str, Any]) -> None:
        for name in running:
            with within(f"modules.{name}"):
                given, wired = self.run(name, output, batch), self.wiring[name]
                if len(wired.gives) > 1 and not (isinstance(given, tuple | list) and len(given) == len(wired.gives)):
                    what = (
                        f"a tuple of {len(given)}" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
                    )
                    raise ConfigError(f"forward gave {what}: expected a tuple of {', '.join(wired.gives)}")
            for field, value in zip(wired.gives, given if len(wired.gives) > 1 else (given,), strict=True):
                output.give(field, value)

    def run(self, name: str, output: ModelOutput, batch: Mapping[str, Any]) -> Any:
        """What the module `name` gives for an output that holds what it reads, and for `inputs` and `labels`."""
        return self.attached[name](*self.read_by(name, output, batch))

    def read_by(self, name: str, output: ModelOutput, batch: Mapping[str, Any]) -> list[Any]:
        """What the module `name` reads; see `run`."""
        wired = self.wiring[name]
        read = [batch[field] if field in batch else output.read(field) for field in wired.reads]
        return [detach(value) for value in read] if wired.detached else read

    def parts(self) -> dict[str, nn.Module]:
        """Every part by the name that the config has for it: backbone, classifier, modules.NAME."""
        modules = {f"modules.{name}": module for name, module in self.attached.items()}
        return {"backbone": self.backbone, "classifier": self.classifier, **modules}

    def transform(self, features: Tensor) -> Tensor:
        """The backbone's features (B, D) raised to `feature_power`, in float32 unless that is 1."""
        return features if self.feature_power == 1 else features.float() ** self.feature_power

    def features(self, inputs: Tensor) -> Tensor:
        """Features (B, D) as the classifier reads them."""
        return self.transform(cast(Tensor, self.backbone(inputs)))

    def set_trainable(self, backbone: bool = True, classifier: bool = True, batch_norm: str = "train") -> None:
        """Says what learns, at once and after every later `train()`; of the modules, those that are `trainable` do.

        Args:
            backbone: whether the backbone's parameters learn, its batch norms aside; one that does not is in eval mode.
            classifier: whether the classifier's parameters learn.
            batch_norm: what the backbone's batch norms do while training, whatever `backbone` says; those of its
                `frozen_parts` stay frozen. "train": they normalise by the batch, their running statistics move and
                their affine parameters learn. "statistics": the same with the affine parameters fixed (MiSLAS, Sec.
                3.3). "frozen": they normalise by their running statistics, and nothing moves.

        Raises:
            ConfigError: for another `batch_norm`.
        """
        if batch_norm not in BATCH_NORMS:
            raise ConfigError(unknown_name("batch_norm", batch_norm, BATCH_NORMS))
        self.backbone.requires_grad_(backbone)
        self.classifier.requires_grad_(classifier)
        for name, module in self.attached.items():
            if not self.wiring[name].trainable:
                module.requires_grad_(False)
        for norm in self._batch_norms():
            norm.requires_grad_(batch_norm == "train")
        for parameter in self.backbone.frozen_parameters():
            parameter.requires_grad_(False)
        self._backbone_trains = backbone
        self._backbone_learns = any(parameter.requires_grad for parameter in self.backbone.parameters())
        self._batch_norm = batch_norm
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training mode (or eval mode) for all parts but those that `set_trainable` keeps in eval mode."""
        super().train(mode)
        self.backbone.train(mode and self._backbone_trains)
        for name, module in self.attached.items():
            module.train(mode and self.wiring[name].trainable)
        for norm in self._batch_norms():
            norm.train(mode and self._batch_norm != "frozen")
        for part in self.backbone.frozen_parts():
            part.eval()
        return self

    def _batch_norms(self) -> list[_BatchNorm]:
        # Looked up each time: converting to SyncBatchNorm replaces the modules.
        return [module for module in self.backbone.modules() if isinstance(module, _BatchNorm)]


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Within the block nothing is cast; where nothing is anyway, it costs a step no time."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()
