"""Hashes that say whether two runs, or two stages, are the same experiment."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from ltexp.config import Config, StageConfig
from ltexp.config.lightning import IMMATERIAL as OF_LIGHTNING
from ltexp.config.lightning import material_callbacks, material_lightning
from ltexp.config.moved import with_first_targets
from ltexp.config.places import is_moved
from ltexp.config.schema import USUAL_RATIO

# what changes where or how a run is shown or kept, but not what it computes; the last two are of Hydra's alone
IMMATERIAL = (
    "resume",
    "paths",
    "stage_cache",
    "logger",
    "overrides",
    "choices",
    "dataset.workers",
    "dataset.source.max_pixels",
    "evaluation.every",
    "evaluation.figures",
    *(f"trainer.{key}" for key in ("progress", "log_every", "checkpoint_every", "rendezvous", *OF_LIGHTNING)),
    "launcher",
    "hydra",
)
# keys younger than the first records: at their usual value they leave the hashes of those alone
_LATER = {
    "num_nodes": 1,
    "accumulate": 1,
    "compile": False,
    "compile_backend": "inductor",
    "compile_mode": None,
    "step_graph": False,
}


def digest(value: Any) -> str:
    """A short stable hash of any JSON-like value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def stage_identity(stage: StageConfig) -> dict[str, Any]:
    """A stage's config for a hash, in the form of the first records wherever it says what those could say."""
    plain = asdict(stage)
    usual: dict[str, Any] = {"step": {"_target_": "ltexp.training.steps.Standard"}}
    usual |= {key: {} for key in ("modules", "streams", "teachers", "weight_decay_factors")}
    for key, value in usual.items():
        if plain[key] == value:
            del plain[key]
    for stream in plain.get("streams", {}).values():
        if stream["held_out"] and stream["held_out"]["of"] == "train":
            del stream["held_out"]["of"]
    for term in plain["terms"].values():
        if term["stream"] is None:
            del term["stream"]
    later = (
        ("schedule", "interval", "epoch"),
        ("schedule", "warmup_start", 0.0),
        ("reweighting", "divide_by", "weights"),
    )
    for part, key, value in later:
        if plain[part].get(key) == value:
            del plain[part][key]
    plain["auxiliary"] = {"_target_": None}  # now one of the modules
    plain["init"]["auxiliary"] = "fresh"
    plain["trainable"] |= {"auxiliary": True, "backbone_from_auxiliary": True}
    return plain


def watches_evaluations(stage: StageConfig) -> bool:
    """Whether the schedule goes by what is measured on the validation or the test split while the stage trains."""
    return stage.schedule.get("monitor") not in (None, "train_loss")


# keys that came after the first records, with the value that changes nothing
_LATER_OF_A_BACKBONE = {"branches": 1, "width": 16, "shared_blocks": 1, "small_images": False}


def backbone_identity(backbone: dict[str, Any]) -> dict[str, Any]:
    """A backbone's config for a hash, likewise; of one's own every key counts."""
    if not str(backbone.get("_target_")).startswith("ltexp."):
        return dict(backbone)
    return {key: value for key, value in backbone.items() if _LATER_OF_A_BACKBONE.get(key, ...) != value}


def material(config: Config) -> dict[str, Any]:
    """The parts of a config that change what it computes."""
    plain = asdict(config) | {name: stage_identity(stage) for name, stage in config.stages.items()}
    for key in IMMATERIAL:
        *sections, name = key.split(".")
        node = plain
        for section in sections:
            node = node.get(section) or {}
        node.pop(name, None)
    plain["backbone"] = backbone_identity(config.backbone)
    source = plain["dataset"].get("source") or {}
    if source.get("exif_orientation") is False:  # as in records of before this key
        del source["exif_orientation"]
    if plain["dataset"].get("imbalance_ratio", ...) is None:  # as in records of before it could be
        plain["dataset"]["imbalance_ratio"] = USUAL_RATIO
    del plain["callbacks"]
    for key, usual in _LATER.items():
        if plain["trainer"][key] == usual:
            del plain["trainer"][key]
    del plain["trainer"]["lightning"]
    plain["trainer"] |= material_lightning(config.trainer)
    callbacks = material_callbacks(config.callbacks)
    if callbacks:
        plain["callbacks"] = callbacks
    if callbacks or any(map(watches_evaluations, config.stages.values())):  # by the measurements they are shown, too
        plain["evaluation"]["every"] = config.evaluation.every
    return with_first_targets(plain)


def is_material(key: str) -> bool:
    """Whether a key, dotted or a group's as a user types it, may change what a run computes."""
    return not any(key == own or key.startswith((f"{own}.", f"{own}/", f"{own}@")) for own in IMMATERIAL)


def run_identity(config: Config) -> str:
    """Equal for two configs that compute the same, seed included."""
    return digest(material(config))


def config_hash(config: Config) -> str:
    """Equal for two runs of the same experiment under any seeds."""
    return digest(material(config) | {"seed": None})


def differing_keys(one: Config, other: Config) -> list[str]:
    """The dotted keys whose values change what the two configs compute."""
    return sorted(_differences(material(one), material(other), ""))


def other_keys(one: Config, other: Config) -> list[str]:
    """Those of `differing_keys` that say more than where something lies."""
    values = material(one), material(other)
    return [key for key in differing_keys(one, other) if not is_moved(key, *(_value(plain, key) for plain in values))]


def value_of(config: Config, key: str) -> Any:
    """The value of one of `differing_keys`; None where the config has no such key."""
    return _value(material(config), key)


def values_of(keys: list[str], there: Config, here: Config) -> str:
    """`keys` for a message: with both values where it is one key that has plain ones."""
    values = [value_of(config, keys[0]) for config in (there, here)]
    if len(keys) > 1 or any(isinstance(value, dict) for value in values):
        return ", ".join(keys)
    was, now = ("null" if value is None else str(value) for value in values)
    return f"{keys[0]} is {was} there and {now} here"


def _value(plain: Any, key: str) -> Any:
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain


def _differences(one: Any, other: Any, path: str) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return [
            line for key in keys for line in _differences(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if one == other else [path]
