"""Which parts of a run cannot work together, found out before any data is read."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict
from typing import Any, cast

import torch
from hydra.utils import get_class
from torch import Tensor, nn

from ltexp.config import Config, StageConfig
from ltexp.config.build import build
from ltexp.config.numbers import MOST_EPOCHS
from ltexp.config.own_code import blamed, own_targets
from ltexp.config.require import require, require_names, within
from ltexp.data.samplers import Sampler
from ltexp.distributed import rank
from ltexp.errors import ConfigError
from ltexp.losses.base import Loss
from ltexp.models.backbone import Backbone
from ltexp.models.classifier import Classifier
from ltexp.models.module import OF_THE_MODEL, Wiring, present
from ltexp.randomness import default_generator
from ltexp.training.batch_checks import check_batches
from ltexp.training.class_names import fits_text, require_text
from ltexp.training.groups import check_factors
from ltexp.training.learning import MADE_UP, Sizes, check_start, continue_earlier, tried_classifier
from ltexp.training.objective import Objective
from ltexp.training.own_parts import check_classes
from ltexp.training.pretext import check_pretexts
from ltexp.training.replayable import check_hooks
from ltexp.training.schedules import build_schedule
from ltexp.training.session import Session
from ltexp.training.survey import check_surveys
from ltexp.training.teacher import OF_A_TEACHER, OF_TEACHERS, check_teachers


def check_composition(config: Config, session: Session | None = None) -> None:
    """Refuses what cannot work together, before any data is read.

    Args:
        config: of the run.
        session: of the run, for parts of a user's own that cannot be tried with the numbers that are made up here.

    Raises:
        ConfigError: if a loss needs another classifier, a setting of a loss, re-weighting or sampler is out of range,
            or a stage's classifier cannot start as `init` says. `of_own_part` says that made-up numbers may be why.
    """
    check_pretexts(config.stages)
    if config.trainer.step_graph:
        check_hooks(config.callbacks)
    with blamed("backbone", own_targets({"backbone": config.backbone})):
        _try_backbone(config.backbone)
    earlier: dict[str, Classifier] = {}
    for name, stage in config.stages.items():
        own = own_targets({name: asdict(stage), "backbone": config.backbone})
        with blamed(name, own):
            check_classes(own)
            earlier[name] = _check_stage(config, name, earlier, session)


def _check_stage(config: Config, name: str, earlier: Mapping[str, Classifier], session: Session | None) -> Classifier:
    """`check_composition` of one stage; its classifier, on which later ones may build."""
    stage = config.stages[name]
    sizes = MADE_UP if session is None else Sizes.of(session, name, stage)
    classifier = tried_classifier(stage.classifier, name, sizes)
    _check_modules(name, stage, config.stages)
    with within(name):
        objective = _check_settings(stage, sizes.counts)
    _check_needs(name, stage, objective, classifier)
    check_teachers(name, stage, objective)
    check_batches(name, stage, objective, config.trainer)
    check_surveys(name, stage, objective)
    of_class = getattr(get_class(config.backbone["_target_"]), "experts", None)
    _check_experts(name, config.backbone.get("experts", of_class), classifier, objective.needs)
    _check_branches(name, config.backbone.get("branches", 1), stage, objective)
    _check_features(name, stage, classifier, objective, config.backbone.get("weights"))
    check_factors(name, stage, classifier)
    _check_text(name, stage, classifier, config.backbone)
    check_start(name, stage, classifier)
    continue_earlier(stage, classifier, earlier, sizes)
    for node in [stage.loss, *(term.loss for term in stage.terms.values())]:
        needed = get_class(node["_target_"]).classifier  # type: ignore[attr-defined]
        if needed not in ("any", classifier.kind):
            loss = node["_target_"].rpartition(".")[2]
            raise ConfigError(
                f"{name}: {loss} needs a {needed} classifier and this one is {classifier.kind}: "
                f"add classifier@{name}.classifier={needed}"
            )
    return classifier


def _try_backbone(node: Mapping[str, Any]) -> None:
    """Builds a backbone that needs nothing of the data, without memory: names and files that do not fit raise here."""
    if not getattr(get_class(node["_target_"]), "builds_without_data", False):
        return
    with torch.device("meta"), default_generator("check"):
        backbone: Backbone = build(node, path="backbone")
    for line in backbone.notes if rank() == 0 else ():
        print(f"note: {line}", flush=True)


def _check_settings(stage: StageConfig, counts: Tensor) -> Objective:
    """Builds the stage's losses and sampler over images of these classes: settings out of range raise here."""
    objective = Objective(stage, counts)
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    sampler: Sampler = build(stage.sampler, labels=labels, class_counts=counts, path="sampler")
    if stage.features.get("_target_"):
        build(stage.features, path="features")
    parameters = [nn.Parameter(torch.zeros(1))]
    optimizer: torch.optim.Optimizer = build(stage.optimizer, parameters, path="optimizer")
    # a stage without epochs has no end that a point of its schedule could lie behind
    build_schedule(stage.schedule, optimizer, stage.epochs or MOST_EPOCHS, steps_per_epoch=1)
    if stage.epochs > 0:  # a start may lie behind the stage's end
        with within("reweighting"):
            objective.reweighting.weights_in(0, stage.epochs)
        with within("sampler"):
            sampler.class_probabilities(0, stage.epochs)
        objective.check_epochs(stage.epochs)
    return objective


def _check_needs(name: str, stage: StageConfig, objective: Objective, classifier: Classifier) -> None:
    """What the losses and modules read is there, and what is there is read."""
    readers = {"its loss": objective.loss.needs}
    readers |= {f"term {term}": cast(Loss, part).needs for term, part in objective.terms.items()}
    wirings = {module: Wiring.of(node) for module, node in present(stage.modules).items()}
    require_names(classifier, "gives")
    own = OF_THE_MODEL | set(classifier.gives)
    if "class_vectors" in frozenset[str]().union(*readers.values()) and classifier.class_vectors is None:
        raise ConfigError(
            f"{name}: a loss reads class_vectors, which a {type(classifier).__name__} classifier has not: set "
            f"classifier@{name}.classifier=linear, or let the loss read `classify`"
        )
    given = own | (OF_A_TEACHER if stage.teacher is not None else set()) | OF_TEACHERS
    for module, wired in wirings.items():
        _check_given(name, f"module {module}", wired.reads, given - OF_A_TEACHER - OF_TEACHERS)
        if wired.keep and "labels" in wired.reads:
            raise ConfigError(f"{name}: module {module} reads labels, which evaluation has not: set its keep=false")
        given |= set(wired.gives)
    for reader, needs in readers.items():
        _check_given(name, reader, needs, given)
    if stage.epochs == 0:
        return
    read = frozenset[str]().union(*readers.values())
    step_reads = getattr(get_class(stage.step["_target_"]), "reads_teacher", False)
    if stage.teacher is not None and read.isdisjoint(OF_A_TEACHER) and not step_reads:
        raise ConfigError(f"{name}: no loss or term reads its teacher: add one that does, or set {name}.teacher=null")
    for module, wired in reversed(wirings.items()):
        if not wired.keep and read.isdisjoint(wired.gives):
            raise ConfigError(
                f"{name}: nothing reads what its module {module} gives ({', '.join(wired.gives) or 'nothing'}): add a "
                f"loss or term that does, or leave it out with ~module@{name}.modules.{module}"
            )
        read |= set(wired.reads)


def _check_given(name: str, reader: str, needs: Iterable[str], given: Set[str]) -> None:
    missing = sorted(set(needs) - given)
    if not missing:
        return
    if missing[0] in OF_A_TEACHER:
        raise ConfigError(f"{name}: {reader} needs a teacher: set {name}.teacher")
    raise ConfigError(
        f"{name}: {reader} needs {missing[0]}, and no module gives it: add one that does with "
        f"+module@{name}.modules.NAME=CHOICE, before what reads it"
    )


def _check_experts(name: str, experts: int | None, classifier: Classifier, needs: frozenset[str]) -> None:
    """Backbone and classifier have the same experts, and the losses read what there is."""
    if experts is not None and experts != classifier.experts:
        raise ConfigError(
            f"{name}: a backbone of {experts} experts needs heads for as many: "
            f"classifier@{name}.classifier=expert_cosine {name}.classifier.experts={experts}"
        )
    if experts is None and classifier.experts is not None:
        raise ConfigError(
            f"{name}: its classifier is for {classifier.experts} experts: set backbone.experts to as many"
        )
    if experts is None and "expert_logits" in needs - set(classifier.gives):
        raise ConfigError(f"{name}: its loss is for a network of experts: set backbone.experts, or see method ride_3")
    if experts is not None and "features" in needs:
        raise ConfigError(f"{name}: its loss reads one feature a sample, and experts have several: choose another loss")


def _check_branches(name: str, branches: int, stage: StageConfig, objective: Objective) -> None:
    """A loss over branches has as many, with batches of one size; it is the stage's own, which says where they go."""
    wanted = len(set(objective.loss.branches.values()))
    if wanted and wanted != branches:
        raise ConfigError(f"{name}: its loss is for a network of {wanted} branches: set backbone.branches={wanted}")
    for stream in filter(None, objective.loss.branches):
        size = stage.streams[stream].batch_size
        equal = size in (None, stage.batch_size)
        require(equal, f"{name}.streams.{stream}.batch_size", size, "null: its loss pairs rows with the stage's own")
    for term, part in objective.terms.items():
        if cast(Loss, part).branches:
            raise ConfigError(
                f"{name}: term {term} is of branches, as the stage's own loss alone can be: choose it for {name}.loss"
            )


def _check_features(
    name: str, stage: StageConfig, classifier: Classifier, objective: Objective, weights: str | None
) -> None:
    """A stage on features trains nothing that makes them, and nothing looks into how they are made."""
    if not stage.features.get("_target_"):
        return
    if stage.trainable.backbone or stage.batch_norm != "frozen":
        raise ConfigError(
            f"{name}: it trains on features, so its backbone cannot change: set {name}.trainable.backbone=false and "
            f"{name}.batch_norm=frozen, or features@{name}.features=none"
        )
    if stage.init.backbone == "fresh" and stage.checkpoint is None and weights is None:
        raise ConfigError(
            f"{name}: it trains on features of an untrained backbone: set {name}.init.backbone, or backbone.weights"
        )
    if classifier.experts is not None:
        raise ConfigError(
            f"{name}: features are extracted of a network of one expert: set features@{name}.features=none"
        )
    if getattr(get_class(stage.mixing["_target_"]), "needs_images", False):
        raise ConfigError(f"{name}: it trains on features, and its mixing is of images: set mixing@{name}.mixing=none")
    wirings = [Wiring.of(node) for node in present(stage.modules).values()]
    read = objective.needs.union(*(wired.reads for wired in wirings))
    if "teacher_features" in read:
        raise ConfigError(
            f"{name}: a loss reads teacher_features, and where a stage trains on features its teacher has the same "
            f"ones: choose another loss, or set features@{name}.features=none"
        )
    made = {"labels", "logits", "features", "teacher_logits", "classify", *OF_TEACHERS, *classifier.gives}
    made = made.union(*(wired.gives for wired in wirings))
    if missing := read - made:
        raise ConfigError(f"{name}: a loss reads {min(missing)}, and the stage trains on features, which have none")


def _check_text(name: str, stage: StageConfig, classifier: Classifier, backbone: Mapping[str, Any]) -> None:
    """A classifier that reads class names has a text tower to read them, with weights."""
    if classifier.reads_text is None or not fits_text(stage):
        return
    with within(name):
        require_text(get_class(backbone["_target_"]), backbone)


def _check_modules(name: str, stage: StageConfig, stages: Mapping[str, StageConfig]) -> None:
    """A module that continues that of an earlier stage finds it there."""
    for module, node in present(stage.modules).items():
        before = str(node.get("start"))
        if before in stages and module not in present(stages[before].modules):
            raise ConfigError(
                f"{name}: its module {module} continues that of {before}, which has none: add "
                f"+module@{before}.modules.{module}=CHOICE, or set {name}.modules.{module}.start=fresh"
            )
