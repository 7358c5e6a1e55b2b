"""Says whether two stages are the same training: a hash of everything that determines one."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from pytorch_lightning.callbacks import WeightAveraging

import ltexp
from ltexp.config import FILES_OF_A_BACKBONE, StageConfig, names_stage
from ltexp.config.build import build, target_sources
from ltexp.config.identity import backbone_identity, digest, stage_identity, watches_evaluations
from ltexp.config.lightning import material_callbacks, material_lightning
from ltexp.config.own_code import own_code
from ltexp.distributed import world_size
from ltexp.training import checkpoint
from ltexp.training.cache import checksum
from ltexp.training.objective import Objective
from ltexp.training.session import Session
from ltexp.training.survey import surveyed_by

FINGERPRINT_SCHEMA = 3  # raise it when a change of the code changes what a stage trains to


def fingerprint_of(session: Session, name: str, stage: StageConfig, earlier: Mapping[str, str]) -> str:
    """A hash of everything that determines what the stage trains to.

    Args:
        session: of the run.
        name: of the stage.
        stage: its config.
        earlier: the fingerprints of the run's stages before it, by name.
    """
    started_from = [earlier[source] for source in stage.sources]
    trainer = session.config.trainer
    data = session.data
    lightning, callbacks = material_lightning(trainer), material_callbacks(session.config.callbacks)
    lightning.pop("max_time", None)  # a stage that has the time is as one without a limit; another has `of_content`
    return digest(
        {
            "schema": FINGERPRINT_SCHEMA,
            "version": ltexp.__version__,
            "name": name,
            "stage": stage_identity(stage),
            "backbone": backbone_identity(session.config.backbone),
            "sources": target_sources([asdict(stage), session.config.backbone, callbacks, lightning]),
            **({"own_code": code} if (code := own_code([asdict(stage), session.config.backbone, callbacks])) else {}),
            "seed": session.config.seed,
            "data": [data.content_hash, data.class_counts.tolist(), data.preprocessing, data.backbone_settings],
            "devices": [session.device.type, world_size(), trainer.sync_batch_norm],
            "numerics": [trainer.precision, trainer.channels_last, trainer.gradient_clip_val],
            **({"held_out": held} if (held := _beyond(session, stage)) else {}),
            # only where they are set: fingerprints of before they existed stay valid
            **({"accumulate": trainer.accumulate} if trainer.accumulate > 1 else {}),
            **({"compile": trainer.compile_backend} if trainer.compile else {}),
            **({"compile_mode": trainer.compile_mode} if trainer.compile and trainer.compile_mode else {}),
            **({"step_graph": True} if trainer.step_graph else {}),  # its optimizer rounds otherwise
            **({"lightning": lightning} if lightning else {}),
            **({"callbacks": [callbacks, session.config.evaluation.every]} if callbacks else {}),
            **({"averages": "floats"} if any(map(_averages, callbacks.values())) else {}),  # they took integers before
            **({"judged_on": judged} if (judged := _judged_on(session, stage)) else {}),
            # such a batch's size may leave one row, which has joined the batch before since
            **({"last_batch": 2} if 1 < stage.batch_size <= 8 and not stage.features.get("_target_") else {}),
            "files": files_started_from(stage, name, session.config.backbone),
            # the data's hash knows no names
            **({"class_names": list(data.class_names)} if "templates" in stage.classifier else {}),
            # of one stage as in the first fingerprints, which so stay valid
            "previous": started_from if len(started_from) > 1 else next(iter(started_from), None),
        }
    )


def of_content(fingerprint: str, path: Path) -> str:
    """The fingerprint of a stage that the clock ended: what it trained to, in the file at `path`, is part of it."""
    return digest([fingerprint, checksum(path)])


def _averages(callback: Mapping[str, Any]) -> bool:
    chosen = get_object(callback["_target_"])
    return isinstance(chosen, type) and issubclass(chosen, WeightAveraging)


def _beyond(session: Session, stage: StageConfig) -> dict[str, str]:
    """By stream a hash of the images that it holds out of anything but the training set, which is hashed anyway."""
    streams = {name: stream.held_out for name, stream in stage.streams.items()}
    return {name: session.held_out[name].identity for name, held in streams.items() if held and held.of != "train"}


def _judged_on(session: Session, stage: StageConfig) -> list[Any]:
    """What a stage's training depends on beside what it learns from, since it is measured on the way."""
    data, evaluation = session.data, session.config.evaluation
    if material_callbacks(session.config.callbacks) or watches_evaluations(stage):
        return [data.validation_hash, data.test_hash, session.shot_rule.text, evaluation.every]
    return [data.validation_hash] if data.validation_hash and _reads_validation(session, stage) else []


def _reads_validation(session: Session, stage: StageConfig) -> bool:
    """Whether a loss or a sampler surveys the validation split, or the source of features keeps its score on it."""
    surveyed = surveyed_by(stage, Objective(stage, session.class_counts))
    if any("validation" in splits for splits in surveyed.values()):
        return True
    return bool(stage.features.get("_target_") and build(stage.features, path="features").keeps_score)


def files_started_from(stage: StageConfig, name: str, backbone: dict[str, Any]) -> list[str]:
    """Hashes of the checkpoint files that the stage starts from; their path says nothing of their content."""
    places = [
        *((where, "stage1") for where in (*stage.starts.values(), *stage.taught_by.values())),
        (stage.checkpoint, name),
    ]
    given = [(where, of) for where, of in places if where not in (None, "fresh") and not names_stage(where)]
    paths = [checkpoint.locate(str(where), of) for where, of in given]
    paths += [Path(file) for key in FILES_OF_A_BACKBONE if (file := backbone.get(key)) and Path(file).is_file()]
    return [checksum(path) for path in paths]
