"""What the data shows to be wrong with a run, told before anything is trained."""

from functools import partial

import torch
from hydra.utils import get_class
from torch import Tensor

from ltexp.config import FILES_OF_A_BACKBONE, Config, StageConfig, names_stage
from ltexp.config.build import build
from ltexp.config.monitored import check_monitored
from ltexp.config.require import within
from ltexp.data.types import LongTailedData
from ltexp.errors import ConfigError
from ltexp.models.backbone import Backbone
from ltexp.models.foreign import read_tensors
from ltexp.models.module import present
from ltexp.models.self_supervised import is_foreign, read_backbone
from ltexp.training import checkpoint
from ltexp.training.class_names import check_class_names
from ltexp.training.data_checks import check_data
from ltexp.training.feature_stage import check_features
from ltexp.training.groups import check_names
from ltexp.training.inside import check_layers
from ltexp.training.mixing import Mixing
from ltexp.training.objective import Objective
from ltexp.training.own_parts import check_own_parts
from ltexp.training.session import Session
from ltexp.training.small_batches import check_batch_norm
from ltexp.training.teacher_checks import check_taught


def check_against_data(session: Session) -> None:
    """Refuses, before anything is trained, what the data shows to be wrong.

    Raises:
        LtexpError: a file to start from that is something else, a backbone, mixing or augmentation for another kind of
            data, a cache of other images, a teacher of other classes, or a module that finds nothing it can read.
    """
    config, data = session.config, session.data
    _check_backbone(session)
    _check_files(session)
    for split in (data.validation, data.test):
        if split is not None:
            session.evaluation_loader(split)  # refuses a cache of other images
    trained = {name: stage.epochs for name, stage in config.stages.items() if stage.epochs and not stage.checkpoint}
    schedules = {name: config.stages[name].schedule for name in trained}
    check_monitored(config.callbacks, schedules, data.validation is not None, config.evaluation.every, trained)
    counts: dict[str, Tensor] = {}
    for name, stage in config.stages.items():
        own = session.for_stage(stage)
        _check_modules(own, name, stage)
        if not stage.features.get("_target_"):  # else the backbone is not trained
            check_batch_norm(own, name, stage)
        _check_mixing(own, name, stage)
        check_names(name, stage, partial(own.fresh_model, name, stage, loads=True))
        _check_augmentation(config, name, stage, own.data)
        check_features(own, stage)
        check_class_names(own, name, stage)
        check_data(own, name, stage)
        check_own_parts(own, name, stage)
        counts[name] = own.class_counts
        check_taught(own, name, stage, counts)


def _check_backbone(session: Session) -> None:
    """The backbone is for this kind of data, and can read a sample of it."""
    config, data = session.config, session.data
    chosen = get_class(config.backbone["_target_"])
    reads = getattr(chosen, "reads", "images")
    if reads != data.kind:
        name = config.choices.get("backbone")
        raise ConfigError(f"backbone {name} reads {reads} and dataset {data.name} holds {data.kind}: choose another")
    if getattr(chosen, "check", Backbone.check) is not Backbone.check:  # building a backbone takes time
        name, stage = next(iter(config.stages.items()))
        backbone = session.fresh_model(name, stage, loads=True).backbone
        with within("backbone"):
            backbone.check(session.sample_inputs())


def _check_files(session: Session) -> None:
    """The files that the run starts from are what they have to be."""
    config = session.config
    fresh = [name for name, stage in config.stages.items() if stage.init.backbone == "fresh" and not stage.checkpoint]
    if fresh and any(config.backbone.get(key) for key in FILES_OF_A_BACKBONE):
        session.fresh_model(fresh[0], config.stages[fresh[0]])  # reads them
    for name, stage in config.stages.items():
        for part, where, of in (("", stage.checkpoint, name), *((p, w, "stage1") for p, w in stage.starts.items())):
            if where is None or where == "fresh" or names_stage(where):
                continue
            path = checkpoint.locate(where, of)
            content = read_tensors(path)
            if part == "backbone" and is_foreign(content):
                keys = session.fresh_model(name, stage, loads=True).backbone.state_dict().keys()
                read_backbone(path, keys, f"{name}.init.backbone")
            else:
                checkpoint.of_content(content, path)


def _check_modules(session: Session, name: str, stage: StageConfig) -> None:
    """What the stage's modules read is there, and is such that they can work with it."""
    if not present(stage.modules):
        return
    data = session.data
    model = session.fresh_model(name, stage, loads=True).to(session.device).eval()
    inputs = session.sample_inputs()
    batch = {"inputs": inputs, "labels": torch.zeros(1, dtype=torch.int64, device=inputs.device)}
    for module, wired in model.wiring.items():
        without = f"leave the module out with ~module@{name}.modules.{module}"
        if "feature_maps" in wired.reads and data.kind != "images":
            raise ConfigError(
                f"{name}: module {module} reads feature maps of images, and dataset {data.name} holds {data.kind}: "
                f"{without}"
            )
        if "feature_maps" in wired.reads and not getattr(model.backbone, "map_channels", None):
            backbone = session.config.choices.get("backbone")
            raise ConfigError(
                f"{name}: backbone {backbone} offers no feature maps, which module {module} reads: choose another, or "
                f"{without}"
            )
    with torch.no_grad(), within(name):
        output = model(inputs, {field for wired in model.wiring.values() for field in wired.reads})
        for module, part in model.attached.items():
            if check := getattr(part, "check", None):
                check(*model.read_by(module, output, batch))


def _check_mixing(session: Session, name: str, stage: StageConfig) -> None:
    key, kind = f"mixing@{name}.mixing", session.data.kind
    mixing: Mixing = build(stage.mixing, class_counts=session.class_counts, path=f"{name}.mixing")
    if kind != "images" and mixing.blends and mixing.changes_inputs:
        chosen = session.config.choices.get(key, stage.mixing["_target_"])
        raise ConfigError(f"{name}: mixing {chosen} is for images and the dataset holds {kind}: set {key}=none")
    with within(name):
        if type(mixing).check is not Mixing.check:  # reading a sample takes time
            mixing.check(session.sample_inputs())
    if mixing.layers:
        _check_layers(session, name, stage, mixing)


def _check_layers(session: Session, name: str, stage: StageConfig, mixing: Mixing) -> None:
    """The backbone has the parts that the mixing works on, and runs them in a step."""
    model = session.place(session.fresh_model(name, stage, loads=True)).eval()
    sample = session.sample_inputs()
    inputs = sample.repeat(2, *[1] * (sample.ndim - 1))
    branch = Objective(stage, session.class_counts).branch_of(None)
    with within(f"{name}.mixing"):
        check_layers(model.backbone, partial(model, inputs, branch=branch), len(inputs), mixing.layers)


def _check_augmentation(config: Config, name: str, stage: StageConfig, data: LongTailedData) -> None:
    wanted: str = build(stage.augmentation, path=f"{name}.augmentation").samples
    holds: str = get_class(data.train.loader).samples  # type: ignore[attr-defined]
    if wanted not in ("", holds):
        key = f"augmentation@{name}.augmentation"
        chosen = config.choices.get(key, stage.augmentation["_target_"])
        raise ConfigError(
            f"{name}: augmentation {chosen} is for {wanted}, and dataset {data.name} holds {holds}: "
            f"choose another, or set {key}=none"
        )
