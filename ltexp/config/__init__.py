"""A run's config: its schema, its checks, and how it is read.

A composed config is checked before anything is written or trained, and without torch, so that a mistake is answered in
about a second.
"""

from ltexp.config.checks import check_keywords, check_values
from ltexp.config.reading import load, load_plain, to_config
from ltexp.config.resolvers import nearest_in_proportion
from ltexp.config.schema import (
    BATCH_NORMS,
    FILES_OF_A_BACKBONE,
    FILES_OF_A_DATASET,
    MODULE_KEYS,
    STAGE,
    Config,
    StageConfig,
    Stream,
    Term,
    TrainerConfig,
    in_order,
    names_stage,
)

__all__ = [
    "BATCH_NORMS",
    "FILES_OF_A_BACKBONE",
    "FILES_OF_A_DATASET",
    "MODULE_KEYS",
    "STAGE",
    "Config",
    "StageConfig",
    "Stream",
    "Term",
    "TrainerConfig",
    "check_keywords",
    "check_values",
    "in_order",
    "load",
    "load_plain",
    "names_stage",
    "nearest_in_proportion",
    "to_config",
]
