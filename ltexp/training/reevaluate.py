"""Evaluates a stage of a finished run again, from its checkpoint."""

from pathlib import Path
from typing import Any

from ltexp.build import build
from ltexp.config import Config
from ltexp.errors import ConfigError
from ltexp.models.checkpoint import load_part
from ltexp.run_folder import CHECKPOINT
from ltexp.training import checkpoint
from ltexp.training.objective import Objective
from ltexp.training.predict import predict
from ltexp.training.session import Session, pick_device


def reevaluate(config: Config, folder: Path, stage: str, classifier: dict[str, Any] | None) -> dict[str, Any]:
    """Metrics in percent of the run's `stage`, with its own classifier or with one that needs no training.

    Args:
        config: the run's.
        folder: the run's.
        stage: stage1 or stage2.
        classifier: config node of a classifier that takes over from the stage's own; None: its own.

    Raises:
        CheckpointError: if the checkpoint is missing, damaged or of another model.
        DataError: if the run's data is not there.
    """
    data = build(config.dataset, root=config.paths.data)
    session = Session(config, folder, data, pick_device(config.trainer.accelerator, 0))
    settings = config.stages[stage]
    source = checkpoint.read(folder / stage / CHECKPOINT)
    model = session.fresh_model(stage, settings)
    load_part(model.backbone, source.backbone, f"the backbone in {folder / stage}")
    if classifier is None:
        load_part(model.classifier, source.classifier, f"the classifier in {folder / stage}")
    else:
        model.classifier = build(classifier, feature_dim=source.feature_dim, num_classes=source.num_classes)
        model.classifier.set_class_counts(session.class_counts)
        if any(True for _ in model.classifier.parameters()):
            raise ConfigError("this classifier is trained: use ltexp train with stage1.checkpoint=RUN")
        model.classifier.start_from(source.build_classifier())
    model = session.place(model).eval()
    session.fit_classifier(model)
    _, logits, labels = predict(model, session.evaluation_loader(data.test), config.trainer.precision)
    # another classifier has logits of its own, which the stage's loss never scaled
    scale = Objective(settings, session.class_counts).logit_scale if classifier is None else 1.0
    metrics, _ = session.measure(logits, labels, scale)
    return metrics
