"""The running mean and variance of each batch norm after every stage of a run (MiSLAS, Fig. 6)."""

from pathlib import Path

import numpy as np

from ltexp.analysis.restored import LoadedStage
from ltexp.errors import ConfigError
from ltexp.files import atomic_write
from ltexp.run_folder import BATCH_NORM, CHECKPOINT
from ltexp.training import checkpoint

MEAN, VARIANCE = ".running_mean", ".running_var"


def write_batch_norm(restored: LoadedStage) -> Path:
    """Writes the run's batch_norm.npz, and returns its path.

    Arrays `STAGE/LAYER/mean` and `STAGE/LAYER/variance`, each (channels,), in the order of the backbone's layers.

    Raises:
        ConfigError: for a backbone without batch norm.
    """
    folder = restored.session.folder
    arrays = {}
    for stage in restored.session.config.stages:
        if not (folder / stage / CHECKPOINT).is_file():
            continue
        state = checkpoint.read(folder / stage / CHECKPOINT).backbone
        for layer in (name.removesuffix(MEAN) for name in state if name.endswith(MEAN)):
            arrays[f"{stage}/{layer}/mean"] = state[layer + MEAN].numpy()
            arrays[f"{stage}/{layer}/variance"] = state[layer + VARIANCE].numpy()
    if not arrays:
        raise ConfigError(f"the backbone in {folder} has no batch norm with running statistics")
    with atomic_write(folder / BATCH_NORM) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return folder / BATCH_NORM
