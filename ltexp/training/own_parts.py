"""Checks a user's own parts on the run's own data before anything is trained: whatever fails is told in a line.

Parts of ltexp have tests; one of a user's own may give another shape than it should, and every later result would be of
something else, or the first step ends in an error far from its cause.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from hydra.utils import get_object
from torch import Tensor, nn

from ltexp.config import StageConfig
from ltexp.config.own_code import blamed, own_targets
from ltexp.config.require import within
from ltexp.data.augmentation import Augmentation
from ltexp.data.loader import Batch
from ltexp.data.samplers import Sampler
from ltexp.distributed import rank
from ltexp.errors import ConfigError
from ltexp.losses.base import Loss
from ltexp.models.backbone import Backbone
from ltexp.models.classifier import Classifier
from ltexp.models.model import Model
from ltexp.models.module import StageModule
from ltexp.names import near_misses
from ltexp.training.batches import sampler_of, train_loader
from ltexp.training.mixing import Mixed, Mixing
from ltexp.training.own_models import called, check_model, shown
from ltexp.training.session import Session
from ltexp.training.stage import Stage
from ltexp.training.start import make_trainable
from ltexp.training.steps import Step

BASES: dict[str, type] = {  # by the last word of a part's key, or the last but one of a module's
    "backbone": Backbone,
    "classifier": Classifier,
    "loss": Loss,
    "sampler": Sampler,
    "mixing": Mixing,
    "step": Step,
    "augmentation": Augmentation,
    "modules": StageModule,
}
# what is called, or read, of some kinds of parts alone
OF_KINDS = {
    "after_step": "modules and classifiers",
    "before_epoch": "losses and samplers",
    "end_epoch": "losses",
    "gives": "classifiers and modules",
    "needs": "losses",
    "optimizers": "steps",
    "reads": "modules and backbones",
    "see": "modules",
    "streams": "losses, mixings and steps",
    "surveys": "losses and samplers",
}
# a hook that is called only where the class also says so, by its base
SWITCHES: tuple[tuple[type, str, tuple[str, ...]], ...] = (
    (Loss, "before_epoch", ("surveys",)),
    (Sampler, "before_epoch", ("surveys",)),
    (StageModule, "see", ("sees",)),
    (Classifier, "fit", ("needs_features", "starts_from_features")),
)


def check_own_parts(session: Session, name: str, stage: StageConfig) -> None:
    """Refuses a stage whose own parts, those that are not ltexp's, cannot do their work on its data.

    Args:
        session: of the stage.
        name: of the stage.
        stage: its config.

    Raises:
        ConfigError: with the key of the part, or its class and the line where it failed.
    """
    own = own_targets({name: asdict(stage), "backbone": session.config.backbone})
    if not own:
        return
    with blamed(name, own), torch.random.fork_rng(devices=[]):
        if f"{name}.sampler" in own and not stage.features.get("_target_"):
            sampler = sampler_of(session, stage.sampler, session.data.train)
            check_switches(f"{name}.sampler", sampler)
            check_sampler(f"{name}.sampler", sampler, stage.epochs)
        loads = stage.init.backbone != "fresh" or stage.checkpoint is not None
        model = session.place(session.fresh_model(name, stage, loads))
        make_trainable(model, stage)
        for path, part in (
            *((f"{name}.{path}", part) for path, part in model.parts().items()),
            ("backbone", model.backbone),
        ):
            if path in own:
                check_switches(path, part)
                _note_lost_state(path, part)
        check_model(model, session, own, name)
        if stage.epochs > 0 and stage.checkpoint is None and not stage.features.get("_target_"):
            _try_step(session, name, stage, model, own)


def check_classes(own: Mapping[str, str]) -> None:
    """Refuses a class of another kind than its key asks for.

    Args:
        own: the classes by key, such as `stage1.loss`; see `own_targets`.

    Raises:
        ConfigError: with the key and the class.
    """
    for path, target in own.items():
        base, chosen = _base(path), get_object(target)
        if base is None or base in (StageModule, Augmentation):  # any module, and whatever behaves as one, will do
            continue
        if not (isinstance(chosen, type) and issubclass(chosen, base)):
            raise ConfigError(f"{path}: {target} is no {base.__name__}: derive it from {called(base)}")


def check_switches(path: str, part: object) -> None:
    """Refuses a hook that its part's switches keep from being called, where its class leaves them as they are.

    Raises:
        ConfigError: with the key and the class.
    """
    for of, hook, switches in SWITCHES:
        if not isinstance(part, of) or any(getattr(part, switch) for switch in switches):
            continue
        chosen = type(part)
        own = {name for each in chosen.__mro__ if not issubclass(of, each) for name in vars(each)} | set(vars(part))
        if hook in own and own.isdisjoint(switches):
            raise ConfigError(f"{path}: {called(chosen)}.{hook} is never called: set {' or '.join(switches)} as well")


def never_called(path: str, chosen: Any) -> Iterator[str]:
    """A line for each public name of an own class that is nearly that of a hook of its base, or a hook of others."""
    base = _base(path)
    if base is None or not (isinstance(chosen, type) and issubclass(chosen, base)):
        return
    hooks = {hook for hook in vars(base) if not hook.startswith("_")} | {"forward"}
    hooks |= {"after_step"} & set(dir(base))
    own = {name for part in chosen.__mro__ if not issubclass(base, part) for name in vars(part)}
    for name in sorted(own - set(dir(base))):
        if name in OF_KINDS and name not in hooks:
            yield f"{path}: nothing asks {chosen.__name__} for {name}, which is of {OF_KINDS[name]}"
        elif not name.startswith("_") and (near := near_misses(name, hooks)):
            yield f"{path}: nothing calls {chosen.__name__}.{name}; if it is meant as {near}, that is the name"


def hooks_never_called(session: Session, name: str, stage: StageConfig) -> Iterator[str]:
    """`never_called` of the own parts of a stage, and of the backbone with the first one."""
    nodes: dict[str, Any] = {name: asdict(stage)}
    if name == next(iter(session.config.stages)):
        nodes["backbone"] = session.config.backbone
    for path, target in own_targets(nodes).items():
        yield from never_called(path, get_object(target))


def check_sampler(path: str, sampler: Sampler, epochs: int) -> None:
    """Refuses probabilities that are none and an order that is not of the labels, of the first epoch.

    Raises:
        ConfigError: with the key and the class.
    """
    who, classes = f"{path}: {type(sampler).__name__}", len(sampler.class_counts)
    shares = sampler.class_probabilities(0, max(epochs, 1))
    right = isinstance(shares, Tensor) and shares.shape == (classes,) and bool(shares.isfinite().all())
    if not right or shares.min() < 0 or shares.sum() <= 0:
        raise ConfigError(f"{who}.class_probabilities gave {shown(shares)}: expected ({classes},) shares of 0 or more")
    order = sampler.indices(0, 0, max(epochs, 1))
    right = isinstance(order, Tensor) and order.dtype == torch.int64 and order.shape == (sampler.epoch_length,)
    if not right or order.min() < 0 or order.max() >= sampler.size:
        raise ConfigError(
            f"{who}.indices gave {shown(order)}: expected int64 ({sampler.epoch_length},), positions from 0 to "
            f"{sampler.size - 1}"
        )


def _note_lost_state(path: str, part: nn.Module) -> None:
    """Says which tensors of a part no checkpoint holds, and nothing moves to the device."""
    lost = [f"{place}.{name}".lstrip(".") for place, each in part.named_modules() for name in _kept(each, Tensor)]
    _note(path, part, lost, "a tensor, which no checkpoint holds: register_buffer makes it a part's state")


def _note(path: str, part: object, names: Sequence[str], kept: str) -> None:
    if names and rank() == 0:
        print(f"note: {path}: {called(type(part))} keeps {', '.join(names)} as {kept}", flush=True)


def _kept(part: object, of: type) -> list[str]:
    return [name for name, value in vars(part).items() if isinstance(value, of)]


def _check_learning(name: str, own: Iterable[str], module: Stage) -> None:
    """Losses' hooks are called, and what losses and the step keep is in the checkpoint to resume from."""
    for key, part in module.objective.by_key.items():
        check_switches(f"{name}.{key}", part)
        if f"{name}.{key}" in own:
            _note_lost_state(f"{name}.{key}", part)
    path, step = f"{name}.step", module.step
    if path not in own:
        return
    if isinstance(step, nn.Module):
        _note_lost_state(path, step)
    kept = _kept(step, torch.optim.Optimizer)
    _note(path, step, kept, "an optimizer, whose state no checkpoint holds: let `optimizers` give it")


def _try_step(session: Session, name: str, stage: StageConfig, model: Model, own: Iterable[str]) -> None:
    """One batch as the stage makes it, through its model and its objective and back."""
    loader = train_loader(session, name, stage, model)
    for each in (loader, *loader.streams.values()):
        each.learners.clear()  # which would look at whole splits
    module = Stage(model.train(), stage, session.class_counts, session.stage_seed(name), loader=loader)
    _check_learning(name, own, module)
    batch = next(iter(loader))
    assert isinstance(batch, Batch)
    _check_inputs(f"{name}.augmentation", batch.inputs, len(batch.labels), "images")
    mixed = module.mixing(batch, module.seed)
    if not isinstance(mixed, Mixed):
        raise ConfigError(f"{name}.mixing: {called(type(module.mixing))} gave {shown(mixed)}: expected a Mixed")
    if stage.taught_by or module.mixing.views is not None:  # teachers are trained later
        return
    _check_inputs(f"{name}.mixing", mixed.inputs, len(mixed.targets.labels), "inputs")
    with within(name):
        value = module.loss_of(batch, mixed)
    if not value.isfinite():
        parts = ", ".join(f"{name}.{key} {called(type(part))}" for key, part in module.objective.by_key.items())
        raise ConfigError(f"{name}: the objective is {value.item()} on the first batch, before any step ({parts})")
    if value.requires_grad:
        value.backward()  # type: ignore[no-untyped-call]


def _check_inputs(path: str, inputs: object, rows: int, what: str) -> None:
    if not isinstance(inputs, Tensor) or len(inputs) != rows:
        raise ConfigError(f"{path} gave {shown(inputs)}: expected as many {what} as labels, {rows}")


def _base(path: str) -> type | None:
    words = path.split(".")
    if "streams" in words:
        return None
    return BASES.get(words[-1]) or (BASES.get(words[-2]) if len(words) == 3 and words[-2] == "modules" else None)
