"""What a stage's batches hold beside one version of each sample, and whether somebody reads it."""

from collections.abc import Mapping

import torch

from ltexp.config import StageConfig, TrainerConfig
from ltexp.config.build import build
from ltexp.config.require import require, require_names, within
from ltexp.data.augmentation import Augmentation, Curriculum
from ltexp.data.loader import IndexSampler
from ltexp.errors import ConfigError
from ltexp.models.module import VIEWS, Wiring, present
from ltexp.names import unknown_name
from ltexp.training.inside import check_inside
from ltexp.training.mixing import Mixing
from ltexp.training.objective import Objective
from ltexp.training.replayable import check_replayable
from ltexp.training.steps import Step, build_step


def check_batches(name: str, stage: StageConfig, objective: Objective, trainer: TrainerConfig) -> None:
    """Refuses streams and views that nothing reads, or that cannot be made.

    Args:
        name: of the stage.
        stage: its config.
        objective: of the stage, on made-up class counts.
        trainer: of the run.

    Raises:
        ConfigError: saying what to change.
    """
    counts = objective.loss.class_counts
    mixing: Mixing = build(stage.mixing, class_counts=counts, path=f"{name}.mixing")
    step = build_step(stage.step, counts, path=f"{name}.step")
    require_names(mixing, "streams", "layers")
    require_names(step, "streams")
    with within(f"{name}.step"):
        step.check(name, stage, trainer)
    if trainer.precision == "16-mixed":
        _check_scaling(name, stage, step, trainer)
    if trainer.step_graph and stage.epochs > 0:
        check_replayable(name, stage, step)
    check_inside(name, stage, mixing.layers, trainer)
    built = _augmentations(name, stage)
    _check_curriculum(name, stage, mixing, built)
    _check_views(name, stage, objective, mixing, built, trainer.accumulate)
    for stream in sorted({*mixing.streams} & {*stage.streams}):
        size = stage.streams[stream].batch_size
        equal = size in (None, stage.batch_size)
        require(equal, f"{name}.streams.{stream}.batch_size", size, "null: its mixing pairs rows with the stage's own")
    readers = {"its objective": objective.streams, "its mixing": mixing.streams, "its step": step.streams}
    for reader, streams in readers.items():
        for stream in streams:
            if stream not in stage.streams:
                known = [f"{name}.streams.{own}" for own in stage.streams]
                missing = unknown_name(f"stream that {reader} reads", f"{name}.streams.{stream}", known)
                raise ConfigError(missing if known else f"{missing}: add +stream@{name}.streams.{stream}=CHOICE")
    for stream, node in stage.streams.items():
        if not any(stream in streams for streams in readers.values()):
            raise ConfigError(
                f"{name}: nothing reads its stream {stream}: set {name}.terms.TERM.stream={stream}, or leave it out"
            )
        labels = torch.arange(len(counts)).repeat_interleave(counts.cpu())
        path = f"{name}.streams.{stream}.sampler"
        sampler: IndexSampler = build(node.sampler, labels=labels, class_counts=labels.bincount(), path=path)
        with within(path):
            sampler.indices(0, 0, max(stage.epochs, 1))
        if stage.features.get("_target_"):
            raise ConfigError(f"{name}: it trains on features, and its stream {stream} is of images: leave one out")


def _check_scaling(name: str, stage: StageConfig, step: Step, trainer: TrainerConfig) -> None:
    """Steps, and the clipping of gradients, know that fp16 scales them."""
    if not step.scales:
        raise ConfigError(f"{name}: its step does not work with trainer.precision=16-mixed: use bf16-mixed or 32-true")
    if trainer.gradient_clip_val is not None and stage.optimizer.get("fused"):
        raise ConfigError(
            f"{name}: a fused optimizer undoes fp16's scaling itself, when gradients are clipped already: use "
            f"trainer.precision=bf16-mixed, trainer.gradient_clip_val=null, or {name}.optimizer.fused=false"
        )


def _augmentations(name: str, stage: StageConfig) -> dict[str, Augmentation]:
    """Those of the stage and of its streams, by key; a stream without one has the stage's."""
    nodes = {f"{name}.augmentation": stage.augmentation}
    nodes |= {f"{name}.streams.{own}.augmentation": stream.augmentation for own, stream in stage.streams.items()}
    return {path: build(node, path=path) for path, node in nodes.items() if node.get("_target_")}


def _check_losses(
    name: str, stage: StageConfig, objective: Objective, built: Mapping[str, Augmentation], accumulate: int
) -> None:
    """Losses have the views that they need, and those that compare images with each other a whole batch of them."""
    streams = {f"terms.{term}.loss": node.stream for term, node in stage.terms.items()}
    for path, part in objective.by_key.items():
        key = f"{name}.streams.{streams.get(path)}.augmentation"
        key = key if key in built else f"{name}.augmentation"
        if (there := len(built[key].views)) < part.fewest_views:
            raise ConfigError(
                f"{name}: its {path} needs {part.fewest_views} views of each image and has {there}: choose "
                f"another augmentation@{key}, such as two_views"
            )
        if part.compares_rows and accumulate > 1:
            raise ConfigError(f"{name}: its {path} needs the whole batch at once: set trainer.accumulate=1")


def _check_curriculum(name: str, stage: StageConfig, mixing: Mixing, built: Mapping[str, Augmentation]) -> None:
    """Levels by class are of the stage's first view, and of labels and images that the model is trained on."""
    own = built[f"{name}.augmentation"]
    others = [*own.views[1:], *(view for path, other in built.items() if other is not own for view in other.views)]
    if any(isinstance(view, Curriculum) for view in others):
        raise ConfigError(f"{name}: a curriculum by class is for its first, classified view: choose another elsewhere")
    if not isinstance(own.views[0], Curriculum):
        return
    key = f"augmentation@{name}.augmentation"
    if stage.features.get("_target_"):
        raise ConfigError(
            f"{name}: it trains on features, and a curriculum by class tries images: choose another {key}"
        )
    if mixing.num_classes is not None:
        raise ConfigError(f"{name}: its labels are no classes, of which a curriculum has levels: choose another {key}")


def _check_views(
    name: str,
    stage: StageConfig,
    objective: Objective,
    mixing: Mixing,
    built: Mapping[str, Augmentation],
    accumulate: int,
) -> None:
    """Several views are read, mixed by a mixing that is made for them alone, and not cut into parts."""
    own_views = len(built[f"{name}.augmentation"].views)
    key = f"augmentation@{name}.augmentation"
    if mixing.views is not None:
        for stream in mixing.streams:
            other = built.get(f"{name}.streams.{stream}.augmentation")
            if other is not None and len(other.views) != mixing.views:
                own_views, key = len(other.views), f"augmentation@{name}.streams.{stream}.augmentation"
        if own_views != mixing.views:
            raise ConfigError(f"{name}: its mixing takes {mixing.views} versions of each image: set {key}=two_views")
    _check_losses(name, stage, objective, built, accumulate)
    if all(len(augmentation.views) == 1 for augmentation in built.values()):
        return
    read = objective.needs.union(*(Wiring.of(node).reads for node in present(stage.modules).values()))
    if VIEWS.isdisjoint(read):
        raise ConfigError(f"{name}: nothing reads the further views of its images: choose another {key}")
    if mixing.views is None and (mixing.blends or mixing.num_classes is not None) and own_views > 1:
        raise ConfigError(f"{name}: its mixing mixes one view of each image: set mixing@{name}.mixing=none")
    if accumulate > 1:
        raise ConfigError(f"{name}: losses over several views need the whole batch: set trainer.accumulate=1")
    if stage.features.get("_target_"):
        raise ConfigError(f"{name}: it trains on features, which have one view: choose another {key}")
