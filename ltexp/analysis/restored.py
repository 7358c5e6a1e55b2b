"""A stage of a finished run, taken up again from its checkpoint: to be measured anew, or for its features."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.config import Config, StageConfig
from ltexp.config.build import build
from ltexp.data.types import LongTailedData
from ltexp.errors import ConfigError
from ltexp.evaluation.command_line import TRAINED
from ltexp.evaluation.further import further_metrics
from ltexp.evaluation.temperature import fit_temperature
from ltexp.files import atomic_write
from ltexp.models.checkpoint import load_backbone, load_part
from ltexp.models.classifier import Classifier
from ltexp.models.cost import Cost, cost_of
from ltexp.models.model import Model
from ltexp.models.module import present
from ltexp.run_folder import CHECKPOINT, FEATURES
from ltexp.training import checkpoint
from ltexp.training.feature_stage import generated_examples
from ltexp.training.mixing import pretext_of
from ltexp.training.predict import Predictions, extract_features, predict
from ltexp.training.session import Session, pick_device
from ltexp.training.start import load_module
from ltexp.training.teacher import wiring_of_evaluation


@dataclass
class LoadedStage:
    """A stage's model.

    Attributes:
        session: its run's session.
        stage: its name.
        model: on the device, in eval mode.
        source: the checkpoint that it is from.
        run_data: the dataset of the run, as it is now; the stage may have trained on another or on a part of it.
        taken_over: whether its classifier is one that took over from the stage's own without training.
    """

    session: Session
    stage: str
    model: Model
    source: checkpoint.Checkpoint
    run_data: LongTailedData
    taken_over: bool = False

    def take_over(self, node: dict[str, Any]) -> None:
        """Gives the model the classifier of a config `node`, which needs no training, in the place of its own.

        Raises:
            ConfigError: for one that is trained, or that cannot start from what the stage has learned.
        """
        stage = self.session.config.stages[self.stage]
        labels_of_its_own = pretext_of(stage, self.session.class_counts) is not None
        classifier: Classifier = build(
            node, feature_dim=self.source.feature_dim, num_classes=self.session.num_classes, path="classifier"
        )
        classifier.set_class_counts(self.session.class_counts)
        if any(True for _ in classifier.parameters()):
            raise ConfigError(TRAINED)
        if classifier.needs_source and (modules := answering(stage)):
            raise ConfigError(
                f"{self.stage} answers by its module {modules[0]}, not by its classifier, which a "
                f"{type(classifier).__name__} one starts from: evaluate nearest_class_mean, over its backbone"
            )
        if not labels_of_its_own:
            classifier.start_from(self.source.build_classifier())
        elif not classifier.needs_features:
            raise ConfigError(f"{self.stage} learned labels of its own: over its backbone evaluate nearest_class_mean")
        self.model.classifier = classifier
        self.model.logit_scale = self.source.scale_for(classifier)
        self.model = self.session.place(self.model).eval()
        self.session.fit_classifier(self.model)

    def predictions(self) -> Predictions:
        """Those for the test split."""
        loader = self.session.evaluation_loader(self.session.data.test)
        return predict(self.model, loader, self.session.config.trainer.precision, examined=self.session.examined)

    def measure(self, predictions: Predictions | None = None) -> dict[str, Any]:
        """Metrics of these predictions, by default of the test split: a record's and `ltexp.evaluation.further`'s."""
        predictions = self.predictions() if predictions is None else predictions
        metrics, _ = self.session.metrics(predictions.logits, predictions.labels, self.model.logit_scale)
        bins = self.session.config.evaluation.calibration_bins
        return metrics | further_metrics(predictions.logits * self.model.logit_scale, predictions.labels, bins)

    def scale_by_temperature(self) -> tuple[float, int]:
        """Divides the model's logits by the temperature that suits the held-out images best.

        Returns:
            The temperature, and how many images it is from.

        Raises:
            ConfigError: if the run holds none out.
        """
        held_out = self.session.data.validation
        if held_out is None:
            raise ConfigError("temperature=true needs held-out images: train with dataset.validation.fraction=0.1")
        predictions = predict(
            self.model, self.session.evaluation_loader(held_out), self.session.config.trainer.precision
        )
        temperature = fit_temperature(predictions.logits * self.model.logit_scale, predictions.labels)
        self.model.logit_scale /= temperature
        return temperature, len(predictions.labels)

    def cost(self) -> Cost:
        """Parameters and operations of the model's parts."""
        return cost_of(self.model, self.session.sample_inputs())


def restore(config: Config, folder: Path, stage: str, classifier: dict[str, Any] | None) -> LoadedStage:
    """The model of the run's `stage`, with its own classifier or with one that needs no training.

    Args:
        config: the run's.
        folder: the run's.
        stage: its name.
        classifier: config node of a classifier that takes over from the stage's own; None: its own.

    Raises:
        CheckpointError: if the checkpoint is missing, damaged or from a different model.
        DataError: if the run's data is not there.
    """
    data: LongTailedData = build(config.dataset, root=config.paths.data, path="dataset")
    settings = config.stages[stage]
    session = Session(config, folder, data, pick_device(config.trainer.accelerator, 0)).for_stage(settings)
    source = checkpoint.read(folder / stage / CHECKPOINT)
    kept = kept_modules(settings)
    if classifier is not None:  # which answers itself
        kept = {name: node for name, node in kept.items() if name not in answering(settings)}
    model = session.fresh_model(stage, replace(settings, modules=kept), loads=True)
    load_backbone(model.backbone, source.backbone, f"the backbone in {folder / stage}")
    for name in model.attached:
        load_module(model, name, source, str(folder / stage))
    if classifier is not None:
        # which tells the dataset's classes
        restored = LoadedStage(replace(session, pretext=None), stage, model, source, data, taken_over=True)
        restored.take_over(classifier)
        return restored
    load_part(model.classifier, source.classifier, f"the classifier in {folder / stage}")
    if source.logit_scale is not None:
        model.logit_scale = source.logit_scale
    model = session.place(model).eval()
    if model.classifier.reads_text is None:  # else the checkpoint holds what it has read
        session.fit_classifier(model)
    return LoadedStage(session, stage, model, source, data)


def kept_modules(stage: StageConfig) -> dict[str, Any]:
    """The nodes of those modules that evaluation runs; the others are for training alone."""
    nodes = present(stage.modules)
    return {name: nodes[name] for name in wiring_of_evaluation(nodes)}


def answering(stage: StageConfig) -> list[str]:
    """The modules whose logits are the trained model's, in the place of the classifier's."""
    return [name for name, wired in wiring_of_evaluation(present(stage.modules)).items() if "logits" in wired.gives]


def write_features(restored: LoadedStage) -> Path:
    """Writes features.npz to the run's folder, and returns its path.

    It holds, of the training images as the run used them (not augmented) and of the test images, `train_features` and
    `test_features` (N, D) float32 and `train_labels` and `test_labels` (N,), and `stage`, whose backbone it was; the
    `classifier_weight` (C, D) where the classifier has one; of a stage that generates features also some
    `generated_features` with `generated_labels`.
    """
    session, arrays = restored.session, {"stage": np.asarray(restored.stage)}
    for name, split in (("train", session.data.train), ("test", session.data.test)):
        loader = session.evaluation_loader(split)
        _, features, labels = extract_features(restored.model, loader, session.config.trainer.precision)
        # of experts: one after the other
        arrays |= {f"{name}_features": features.reshape(len(features), -1), f"{name}_labels": labels}
    with suppress(NotImplementedError):  # such as experts', who have no one weight a class
        if session.pretext is None:
            arrays["classifier_weight"] = restored.model.classifier.linear_form()[0].float().cpu().numpy()
    stage = session.config.stages[restored.stage]
    arrays |= generated_examples(session, restored.stage, stage, restored.model)
    path = session.folder / FEATURES
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return path
