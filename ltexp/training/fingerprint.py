"""Says whether two stages are the same training: a hash of everything that determines one."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import ltexp
from ltexp.config import FILES_OF_A_BACKBONE, StageConfig
from ltexp.config.build import target_sources
from ltexp.config.identity import digest, stage_identity
from ltexp.config.lightning import material_callbacks, material_lightning
from ltexp.distributed import world_size
from ltexp.training import checkpoint
from ltexp.training.cache import checksum
from ltexp.training.session import Session

FINGERPRINT_SCHEMA = 3  # raise it when a change of the code changes what a stage trains to


def fingerprint_of(session: Session, name: str, stage: StageConfig, previous: str | None) -> str:
    """A hash of everything that determines what the stage trains to.

    Args:
        session: of the run.
        name: of the stage.
        stage: its config.
        previous: the fingerprint of the stage before, if there is one.
    """
    trainer = session.config.trainer
    data = session.data
    lightning, callbacks = material_lightning(trainer), material_callbacks(session.config.callbacks)
    return digest(
        {
            "schema": FINGERPRINT_SCHEMA,
            "version": ltexp.__version__,
            "name": name,
            "stage": stage_identity(stage),
            "backbone": session.config.backbone,
            "sources": target_sources([asdict(stage), session.config.backbone, callbacks, lightning]),
            "seed": session.config.seed,
            "data": [data.content_hash, data.class_counts.tolist(), data.preprocessing, data.backbone_settings],
            "devices": [session.device.type, world_size(), trainer.sync_batch_norm],
            "numerics": [trainer.precision, trainer.channels_last, trainer.gradient_clip_val],
            **({"held_out": held} if (held := _beyond(session, stage)) else {}),
            # only where they are set: fingerprints of before they existed stay valid
            **({"accumulate": trainer.accumulate} if trainer.accumulate > 1 else {}),
            **({"compile": trainer.compile_backend} if trainer.compile else {}),
            **({"lightning": lightning} if lightning else {}),
            **({"callbacks": [callbacks, session.config.evaluation.every]} if callbacks else {}),
            "files": _files_started_from(stage, name, session.config.backbone),
            "previous": previous if "stage1" in _sources(stage) else None,
        }
    )


def _beyond(session: Session, stage: StageConfig) -> dict[str, str]:
    """By stream a hash of the images that it holds out of anything but the training set, which is hashed anyway."""
    streams = {name: stream.held_out for name, stream in stage.streams.items()}
    return {name: session.held_out[name].identity for name, held in streams.items() if held and held.of != "train"}


def _sources(stage: StageConfig) -> list[str | None]:
    """What the stage starts from and learns from: `fresh`, `stage1`, a path, or None."""
    return [*stage.starts.values(), stage.teacher]


def _files_started_from(stage: StageConfig, name: str, backbone: dict[str, Any]) -> list[str]:
    """Hashes of the checkpoint files that the stage starts from; their path says nothing of their content."""
    places = [*((where, "stage1") for where in _sources(stage)), (stage.checkpoint, name)]
    paths = [checkpoint.locate(where, of) for where, of in places if where not in (None, "fresh", "stage1")]
    paths += [Path(file) for key in FILES_OF_A_BACKBONE if (file := backbone.get(key)) and Path(file).is_file()]
    return [checksum(path) for path in paths]
