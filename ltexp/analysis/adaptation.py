"""SADE's test-time weighting of experts (Zhang et al., NeurIPS 2022): weights learned on the unlabelled test images."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.analysis.restored import LoadedStage
from ltexp.config.build import build
from ltexp.data.augmentation import Augmentation, NoAugmentation, Views
from ltexp.data.images.contrastive import WithColours
from ltexp.data.types import Split
from ltexp.errors import ConfigError
from ltexp.evaluation.shifted import Shift
from ltexp.randomness import generator, key_to_seed
from ltexp.training.predict import autocast, evaluating

PASSES, BATCH, LEAST = 5, 128, 0.05  # the authors' code, as all settings here
SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


@dataclass(frozen=True)
class Adapted:
    """Experts weighed for a test set.

    Attributes:
        weights: of each expert; they sum to 1.
        images: how many test images they are from.
        recalls: (C,) the accuracy on each class in percent, None for one without test images.
    """

    weights: list[float]
    images: int
    recalls: list[float | None]


def adapt(restored: LoadedStage, shift: Shift) -> Adapted:
    """The experts of a stage weighed for test images drawn with the class shares of `shift`, without their labels.

    The weights w are those under which two random views of an image get the most similar predictions: the mean cosine
    between softmax(Σ_e w_e z_e) of both rises by SGD on the logits of w, from equal weights, over up to 5 passes. They
    end as soon as a weight, rounded to two digits, falls below 0.05. The images are those that are then scored.

    Raises:
        ConfigError: for a network without experts, or a stage whose augmentation is not random.
    """
    session, model = restored.session, restored.model
    split, views = drawn(restored, shift), views_of(restored)
    seed = key_to_seed("adapt", session.config.seed, shift.name)
    order = _Shuffled(len(split))
    loader = session.loader(split, batch_size=BATCH, augmentation=views, sampler=order, seed=seed, max_epochs=PASSES)
    scores = torch.zeros(model.classifier.experts or 0, device=session.device, requires_grad=True)
    optimizer = torch.optim.SGD([scores], **SGD)  # type: ignore[arg-type]
    for epoch in range(PASSES):
        for batch in loader.at(epoch):
            assert batch.views is not None
            first, second = (expert_logits(restored, view) for view in batch.views)
            optimizer.zero_grad()
            loss = -agreement(scores.softmax(0), first, second)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if float(scores.detach().softmax(0).min().round(decimals=2)) < LEAST:
            break
    weights = scores.detach().softmax(0)
    return Adapted([round(w, 4) for w in weights.tolist()], len(split), recalls_with(restored, weights))


def agreement(weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The mean cosine between the predictions for two views of images.

    Args:
        weights: (E,) of the experts.
        first, second: (E, B, C) their logits.
    """
    one, other = (torch.einsum("e,ebc->bc", weights, logits).softmax(1) for logits in (first, second))
    return F.cosine_similarity(one, other, dim=1).mean()


def expert_logits(restored: LoadedStage, inputs: Tensor) -> Tensor:
    """(E, B, C) the experts' logits of a batch, scaled, without a graph."""
    model, session = restored.model, restored.session
    with evaluating(model), autocast(session.config.trainer.precision, session.device):
        found: Tensor | None = model(inputs).expert_logits
    assert found is not None
    scaled: Tensor = found.float().clone() * model.logit_scale  # a clone may stand in a graph
    return scaled


def recalls_with(restored: LoadedStage, weights: Tensor) -> list[float | None]:
    """(C,) the accuracy on each class in percent of all test images, with these weights (E,) of the experts."""
    session = restored.session
    hits, counts = (np.zeros(session.num_classes) for _ in range(2))
    for batch in session.evaluation_loader(session.data.test):
        logits = torch.einsum("e,ebc->bc", weights, expert_logits(restored, batch.inputs))
        labels, right = batch.labels.cpu().numpy(), (logits.argmax(1) == batch.labels).cpu().numpy()
        counts += np.bincount(labels, minlength=len(counts))
        hits += np.bincount(labels[right], minlength=len(hits))
    return [float(100 * hit / n) if n else None for hit, n in zip(hits, counts, strict=True)]


def drawn(restored: LoadedStage, shift: Shift) -> Split:
    """The test samples of a shifted test set, drawn without replacement by the run's seed."""
    session = restored.session
    labels = session.data.test.labels
    found = shift.counts(session.metrics.class_counts, np.bincount(labels, minlength=session.num_classes))
    order = torch.randperm(len(labels), generator=generator("shifted", session.config.seed)).numpy()
    rows = [order[labels[order] == label][: int(np.ceil(count))] for label, count in enumerate(found)]
    return session.data.test.take(np.sort(np.concatenate(rows)))


def views_of(restored: LoadedStage) -> Augmentation:
    """Two views of an image: the stage's own crop and mirroring, and the changes of colour of the authors' code.

    Image files keep the stage's own augmentation, colours included.

    Raises:
        ConfigError: without experts to compare them by, or if the stage's augmentation leaves samples as they are.
    """
    session = restored.session
    if restored.model.classifier.experts is None:
        raise ConfigError("adapt=true weighs the experts of a network, and this run has no experts")
    own: Augmentation = build(session.config.stages[restored.stage].augmentation, path="augmentation")
    view = own.views[0]
    if isinstance(view, NoAugmentation):
        raise ConfigError(f"adapt=true compares random views of a sample, and {restored.stage} has no augmentation")
    if view.samples == "images in memory":
        view = WithColours(view)
    return Views([view, view])


class _Shuffled:
    """Every row once in each pass, in an order of its own."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        """int64 (rows,)."""
        return torch.randperm(self.rows, generator=generator("order", seed, epoch))
