"""For which class shares a run's scores are: what correcting them for a known test distribution starts from."""

import numpy as np
import torch
from torch import Tensor

from ltexp.config import Config, StageConfig, load
from ltexp.config.build import build
from ltexp.data.samplers import Sampler
from ltexp.evaluation.arrays import Floats, to_numpy
from ltexp.features.source import ExtractedFeatures
from ltexp.losses.base import Loss, normalized_shares
from ltexp.losses.reweighting import Reweighted
from ltexp.models.classifier import Classifier
from ltexp.report.records import Run
from ltexp.run_folder import CHECKPOINT, CONFIG
from ltexp.training import checkpoint


def learned_prior(config: Config, stage: str, class_counts: Tensor, classifier: Classifier | None) -> Floats:
    """(C,) the class shares that a softmax over the logits of `stage` is for; they sum to 1.

    They follow from what the last trained stage up to it showed in its last epoch, by the features that it generates,
    its sampler, its loss and its re-weighting; further terms, mixing and whole streams of batches are not looked at.

    Args:
        config: the run's.
        stage: whose model it is.
        class_counts: int64 (C,), the training samples of the trained stage.
        classifier: one that took over without training; None: the trained one.
    """
    names = list(config.stages)
    earlier = [config.stages[name] for name in names[: names.index(stage) + 1]]
    trained = [candidate for candidate in earlier if candidate.epochs > 0]
    shares = normalized_shares(class_counts)
    if trained:
        shares = _after_training(trained[-1], class_counts)
    if classifier is not None:
        shares = classifier.learned_prior(shares)
    values: Floats = to_numpy(shares).astype(np.float64)
    return values


def _after_training(stage: StageConfig, class_counts: Tensor) -> Tensor:
    shown = class_counts + _generated(stage, class_counts)
    labels = torch.repeat_interleave(torch.arange(len(shown)), shown)
    sampler: Sampler = build(stage.sampler, labels=labels, class_counts=shown, path="sampler")
    loss: Loss = build(stage.loss, class_counts=class_counts, path="loss")
    last = stage.epochs - 1
    shares = sampler.class_probabilities(last, stage.epochs)
    weights = Reweighted(loss, build(stage.reweighting, path="reweighting")).weights_in(last, stage.epochs)
    return loss.learned_prior(shares if weights is None else shares * weights.to(shares))


def _generated(stage: StageConfig, class_counts: Tensor) -> Tensor:
    """int64 (C,), how many features of each class the stage makes beside those of its training samples."""
    if not stage.features.get("_target_"):
        return torch.zeros_like(class_counts)
    source: ExtractedFeatures = build(stage.features, path="features")
    return torch.bincount(source.start(class_counts, class_counts, stage.epochs), minlength=len(class_counts))


def learned_prior_of(run: Run) -> Floats:
    """The same of a finished run's result, from its config and record.

    Raises:
        LtexpError: if its config is not there, or names what cannot be built here.
    """
    config = load(run.folder / CONFIG)
    name = list(config.stages)[-1]
    stage = config.stages[name]
    counts = torch.tensor(run.record["class_counts"])
    if any(own.training_set for own in config.stages.values()):  # its counts are not the record's
        counts = torch.tensor(checkpoint.read(run.folder / name / CHECKPOINT).class_counts)
    classifier = None
    if stage.epochs == 0:
        classifier = build(stage.classifier, feature_dim=1, num_classes=len(counts), path=f"{name}.classifier")
        classifier.set_class_counts(counts)
    return learned_prior(config, name, counts, classifier)
