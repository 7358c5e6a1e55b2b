"""What the stages of one run share: data, device, loaders, seeds."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

from ltexp.config import Config, StageConfig, TrainerConfig
from ltexp.config.build import build
from ltexp.data.held_out import held_out_of, spare_validation
from ltexp.data.loader import Batch, Loader
from ltexp.data.types import LongTailedData, Split
from ltexp.distributed import broadcast_state, rank, world_size
from ltexp.errors import ConfigError
from ltexp.evaluation.arrays import Ints
from ltexp.evaluation.metrics import Metrics
from ltexp.evaluation.shots import ShotRule
from ltexp.features.kept import FeatureStore, KeptFeatures
from ltexp.losses.base import Loss
from ltexp.models.backbone import Backbone, without_files
from ltexp.models.classifier import Classifier
from ltexp.models.model import Model
from ltexp.models.module import Wiring, build_module, present
from ltexp.randomness import default_generator, key_to_seed
from ltexp.training.class_names import kept_text, prompts_of, require_text
from ltexp.training.mixing import Mixing, pretext_of
from ltexp.training.predict import extract_features

EVALUATION_BATCH = 512
CPU_EVALUATION_BATCH = 64  # as many as a CPU's cache has room for the maps of


@dataclass
class Session:
    """One process's view of a run.

    Attributes:
        config: the run's.
        folder: the run's.
        data: the long-tailed data of this run.
        device: where this process computes.
        loggers: of the run, on the first process.
        shot_counts: (C,) the class counts that tell many, medium and few shot; None: those of `data`.
        held_out: training images that only the stream of that name shows.
        pretext: the mixing of a stage whose labels it makes; None: they are the dataset's.
        store: of the features that a stage of this session shares with other runs; None: it shares none.
        features: those of its training and its test samples, `train` and `test`, once it asks for them.
    """

    config: Config
    folder: Path
    data: LongTailedData
    device: torch.device
    loggers: list[Logger] = field(default_factory=list)
    shot_counts: Ints | None = None
    held_out: dict[str, Split] = field(default_factory=dict)
    pretext: Mixing | None = None
    store: FeatureStore | None = None
    features: dict[str, KeptFeatures] = field(default_factory=dict)
    _evaluation_loaders: dict[int, tuple[Split, Loader[Any]]] = field(default_factory=dict)

    def for_stage(self, stage: StageConfig) -> "Session":
        """This session on the stage's own training set and labels, with the shots of the run's.

        Raises:
            LtexpError: if the dataset cannot give that training set.
        """
        own = self._on_training_set(stage)._without_held_out(stage)
        return replace(own, pretext=pretext_of(stage, own.class_counts))

    def _on_training_set(self, stage: StageConfig) -> "Session":
        if not stage.training_set:
            return self
        data = build({**self.config.dataset, **stage.training_set}, root=self.config.paths.data, path="training_set")
        if data.num_classes != self.data.num_classes:
            raise ConfigError(f"training_set has {data.num_classes} classes, the dataset {self.data.num_classes}")
        if stage.training_set.keys().isdisjoint(("_target_", "source")):
            data = spare_validation(data, self.data)
        return replace(self, data=data, shot_counts=self.data.class_counts)

    def _without_held_out(self, stage: StageConfig) -> "Session":
        """Gives streams the images that they hold out, and takes those away from the stage's own training set."""
        session = self
        for name, stream in stage.streams.items():
            if stream.held_out is not None:
                data, held = held_out_of(session.data, name, stream.held_out)
                shots = session.data.class_counts if session.shot_counts is None else session.shot_counts
                session = replace(session, data=data, shot_counts=shots, held_out={**session.held_out, name: held})
        return session

    @property
    def num_classes(self) -> int:
        """C: the dataset's classes, or the labels that a pretext makes."""
        return self.data.num_classes if self.pretext is None else int(self.pretext.num_classes or 0)

    @property
    def class_counts(self) -> Tensor:
        """int64 (C,), the training images of each class; the labels of a pretext share them equally."""
        if self.pretext is None:
            return torch.tensor(self.data.class_counts)  # a copy: losses keep it as a buffer of theirs
        labels = torch.arange(len(self.data.train.labels)) % self.num_classes
        return torch.bincount(labels, minlength=self.num_classes)

    def examined(self, batch: Batch) -> Batch:
        """What a model of this session is to answer of an evaluation's batch."""
        return batch if self.pretext is None else self.pretext.examined(batch)

    @property
    def shot_rule(self) -> ShotRule:
        """The bounds of many-, medium- and few-shot."""
        return ShotRule(self.config.evaluation.many_shot_above, self.config.evaluation.few_shot_below)

    def stage_seed(self, stage: str) -> int:
        """The seed of a stage's draws; stages of one run draw apart."""
        return key_to_seed("stage", self.config.seed, stage)

    @property
    def evaluation_batch(self) -> int:
        """The samples, of all processes together, that a step takes where nothing is learned."""
        each = CPU_EVALUATION_BATCH if self.device.type == "cpu" else EVALUATION_BATCH
        return each * world_size()

    def evaluation_loader(self, split: Split) -> Loader[Any]:
        """Every sample of `split` once, not augmented; kept, since its images lie on the device."""
        if id(split) not in self._evaluation_loaders:
            loader = self.loader(split, batch_size=self.evaluation_batch)
            self._evaluation_loaders[id(split)] = split, loader  # the split, so that no other gets its id
        return self._evaluation_loaders[id(split)][1]

    def read_features(self, split: Split, make: Callable[..., Loader[Any]]) -> None:
        """Takes features for the evaluations of `split` from now on, from a loader that is made with the settings."""
        placed = {"device": self.device, "rank": rank(), "world_size": world_size()}
        made = make(batch_size=self.evaluation_batch, **placed)
        self._evaluation_loaders = {**self._evaluation_loaders, id(split): (split, made)}

    def evaluated(self) -> dict[str, Loader[Any]]:
        """The splits that are evaluated while a stage trains; made when first asked for."""
        splits = {"validation": self.data.validation, "test": self.data.test}
        return {name: self.evaluation_loader(split) for name, split in splits.items() if split is not None}

    def sample_inputs(self) -> Tensor:
        """(1, ...), one sample of what the backbone reads."""
        return next(iter(self.loader(self.data.test.take(np.arange(1)), batch_size=1))).inputs

    def loader(self, split: Split, **settings: Any) -> Loader[Any]:
        """Batches of `split` for this process; see `Loader` for `settings`."""
        settings |= {"device": self.device, "rank": rank(), "world_size": world_size()}
        loader: Loader[Any] = get_class(split.loader)(split, **settings, **self.data.preprocessing, **self.data.loading)
        return loader

    def fresh_model(self, name: str, stage: StageConfig, loads: bool = False) -> Model:
        """A model with the stage's classifier, initialised by the run's seed.

        Args:
            name: of the stage.
            stage: its config.
            loads: whether its backbone's state is loaded afterwards, so that no pretrained weights are needed.
        """
        settings = without_files(self.config.backbone) if loads else self.config.backbone
        with default_generator("init", self.config.seed, name, "backbone"):
            backbone: Backbone = build(settings, **self.data.backbone_settings, path="backbone")
        with default_generator("init", self.config.seed, name, "classifier"):
            classifier: Classifier = build(
                stage.classifier,
                feature_dim=backbone.feature_dim,
                num_classes=self.num_classes,
                path=f"{name}.classifier",
            )
        classifier.set_class_counts(self.class_counts)
        model = Model(backbone, classifier, *self._modules(name, stage, backbone), stage.feature_power)
        loss: Loss = build(stage.loss, class_counts=self.class_counts, path=f"{name}.loss")
        model.logit_scale = float(loss.logit_scale)
        return model

    def _modules(
        self, name: str, stage: StageConfig, backbone: Backbone
    ) -> tuple[dict[str, nn.Module], dict[str, Wiring]]:
        """The stage's modules, fresh, and how they are wired."""
        nodes = present(stage.modules)
        facts = {
            "backbone": backbone,
            "feature_dim": backbone.feature_dim,
            "map_channels": getattr(backbone, "map_channels", []),
            "num_classes": self.num_classes,
            "class_counts": self.class_counts,
        }
        modules = {}
        for module, node in nodes.items():
            with default_generator("init", self.config.seed, name, module):
                modules[module] = build_module(node, path=f"{name}.modules.{module}", **facts)
        return modules, {module: Wiring.of(node) for module, node in nodes.items()}

    def place(self, model: Model) -> Model:
        """The model on this process's device, in the memory format that convolutions like best."""
        if self.config.trainer.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return model.to(self.device)

    def fit_classifier(self, model: Model, before_training: bool = False) -> None:
        """Shows a classifier what it is fitted to, or starts its training from: training features, class names."""
        classifier = model.classifier
        if classifier.reads_text is not None:
            require_text(model.backbone, self.config.backbone)
            given = prompts_of(classifier.reads_text, self.data.class_names)
            classifier.fit_text(kept_text(self.folder, model.backbone, self.config.backbone, given))
        if classifier.starts_from_features if before_training else classifier.needs_features:
            loader = self.evaluation_loader(self.data.train)
            _, features, labels = extract_features(model, loader, self.config.trainer.precision)
            if rank() == 0:  # which alone has them
                classifier.fit(torch.from_numpy(features).to(self.device), torch.from_numpy(labels).to(self.device))
            broadcast_state(classifier)

    @property
    def metrics(self) -> Metrics:
        """The rules by which this run measures predictions; the labels of a pretext are no shots."""
        if self.pretext is not None:
            return Metrics(self.class_counts.numpy(), None, self.config.evaluation.calibration_bins)
        counts = self.data.class_counts if self.shot_counts is None else self.shot_counts
        return Metrics(counts, self.shot_rule, self.config.evaluation.calibration_bins)


def check_numerics(trainer: TrainerConfig, device: torch.device) -> None:
    """Refuses what the device cannot compute with.

    Raises:
        ConfigError: for fp16 on a CPU, which has no scaling of its gradients in Lightning, bf16 on a GPU that only
            emulates it, a graph of steps without a GPU, or torch.compile's inductor without what it compiles with.
    """
    if (
        trainer.precision == "bf16-mixed"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        card = torch.cuda.get_device_name(device)
        raise ConfigError(f"trainer.precision=bf16-mixed: {card} has no bf16 arithmetic: use 16-mixed or 32-true")
    if trainer.precision == "16-mixed" and device.type == "cpu":
        raise ConfigError("trainer.precision=16-mixed needs a GPU and torch sees none here: use bf16-mixed or 32-true")
    if trainer.step_graph and device.type != "cuda":
        raise ConfigError("trainer.step_graph=true needs a GPU and torch sees none here: set trainer.step_graph=false")
    if not trainer.compile or trainer.compile_backend != "inductor":
        return
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise ConfigError(f"trainer.compile=true needs a C++ compiler on a CPU ({' or '.join(compilers)}): install one")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("trainer.compile=true needs Triton on a GPU: pip install triton")


def pick_device(accelerator: str, local_rank: int) -> torch.device:
    """The device of this process: its own GPU, or the CPU.

    Raises:
        ConfigError: if a GPU is asked for and there is none for this process.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if torch.cuda.device_count() == 0:
        raise ConfigError("torch sees no GPU here: set trainer.accelerator=cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"trainer.devices asks for GPU number {local_rank}, but torch sees {torch.cuda.device_count()}: "
            "lower trainer.devices"
        )
    return torch.device("cuda", local_rank)
