"""ltexp: long-tailed recognition, every method a composition of config choices.

In Python: `ltexp.train` trains a run, `ltexp.load` takes a finished one up to predict with it, `ltexp.results` reads
what a folder of runs measured, and `ltexp.losses`, `ltexp.samplers`, `ltexp.backbones` and `ltexp.classifiers` are
ordinary PyTorch, for code that is not ltexp's. What needs torch is imported when it is first used.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from ltexp.inference.predictor import Predictor
    from ltexp.outputs import ModelOutput

__version__ = "0.1.0"
__all__ = [
    "ModelOutput",
    "backbones",
    "classifiers",
    "load",
    "losses",
    "records",
    "results",
    "samplers",
    "train",
]
_MODULES = ("backbones", "classifiers", "losses", "samplers")


def train(
    overrides: Sequence[str] = (), folder: str | Path | None = None, config_dirs: Sequence[str | Path] = ()
) -> Path:
    """Trains a run as `ltexp train` does, in processes of its own, and returns its folder.

    Args:
        overrides: the words of the command line, such as `["method=mislas", "dataset=cifar100_lt", "seed=1"]`.
        folder: the run's folder. Default: as on the command line, `outputs/DATASET/METHOD/TIME`.
        config_dirs: folders of config groups of your own, as `--config-dir` names one.

    Raises:
        ltexp.errors.LtexpError: in one line, for what `ltexp train` would end with.
    """
    from ltexp.launching.single import train_one

    return train_one(overrides, folder, config_dirs)


def load(
    run: str | Path, stage: str | None = None, accelerator: str = "auto", max_pixels: int | None = None
) -> "Predictor":
    """The trained model of a finished run with its transforms; the run's data need not be there.

    Args:
        run: the run's folder.
        stage: stage1 or stage2. Default: the last one that was trained.
        accelerator: auto, cpu or gpu.
        max_pixels: larger image files are refused. Default: the run's `dataset.source.max_pixels`, or 178,956,970.

    Raises:
        ltexp.errors.LtexpError: if the folder is no run's, its checkpoint is damaged, or the run reads no images.
    """
    from ltexp.inference.predictor import load_predictor

    return load_predictor(Path(run), stage, accelerator, max_pixels)


def records(*folders: str | Path) -> list[dict[str, Any]]:
    """A dictionary for each finished run at or below some folders: what was run and what was measured, in percent.

    The keys are those of `ltexp report`'s tables, before any mean over seeds, and `folder`. Of two runs of the same
    experiment and seed the one that finished last counts; what is left out is said in a warning.

    Raises:
        ltexp.errors.DataError: if a folder does not exist.
    """
    from ltexp.report.flat import flat_records

    return flat_records([Path(folder) for folder in folders or ("outputs",)])


def results(*folders: str | Path) -> "pandas.DataFrame":
    """`records` as a data frame of pandas, a row a run.

    Raises:
        ltexp.errors.LtexpError: without pandas, which ltexp itself does not need.
        ltexp.errors.DataError: if a folder does not exist.
    """
    found = records(*folders)
    try:
        import pandas
    except ImportError:
        from ltexp.errors import LtexpError

        raise LtexpError(
            "ltexp.results needs pandas: pip install pandas, or use ltexp.records, which gives a list of dictionaries"
        ) from None
    return pandas.DataFrame(found)


def __getattr__(name: str) -> Any:
    """The modules of parts, imported when first asked for: `import ltexp` alone imports no torch."""
    if name in _MODULES:
        return importlib.import_module(f"ltexp.{name}")
    if name == "ModelOutput":
        from ltexp.outputs import ModelOutput

        return ModelOutput
    raise AttributeError(f"module 'ltexp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
