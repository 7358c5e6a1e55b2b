"""The loggers of a run: any of Lightning's, several at a time."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from ltexp.config import Config
from ltexp.config.build import build
from ltexp.config.lightning import loggers
from ltexp.distributed import rank
from ltexp.errors import ConfigError

EXTRAS = ("wandb", "tensorboard")  # of our package, which bring what a logger needs


def make_loggers(config: Config, folder: Path, identifier: str) -> list[Logger]:
    """The chosen loggers, on the first process, told the whole config; stages follow each other in them.

    Raises:
        ConfigError: for a logger that cannot be built, naming it, and what to install where a package is missing.
    """
    if rank() != 0:
        return []
    made = [_logger(key, dict(node), config, folder, identifier) for key, node in loggers(config.logger).items()]
    for logger in made:
        logger.log_hyperparams(asdict(config))
    return made


def _logger(key: str, settings: dict[str, Any], config: Config, folder: Path, identifier: str) -> Logger:
    target = str(settings["_target_"])
    if target.endswith("WandbLogger"):
        # jobs of a sweep never share a wandb run, and a resumed run continues its own
        settings = {
            "id": identifier,
            "name": f"{config.choices.get('method')}-{identifier}",
            "resume": "allow",
        } | settings
    elif target.endswith("CSVLogger") and settings.get("version") is not None:
        # it empties a folder that it finds, and a resumed run's first half lies there
        while (folder / str(settings.get("name", "")) / settings["version"]).exists():
            settings["version"] += "-resumed"
    if target.startswith("pytorch_lightning.loggers.") and target.endswith(("WandbLogger", "CSVLogger", "BoardLogger")):
        settings = {"save_dir": str(folder)} | settings
    try:
        logger = build(settings, path=f"logger.{key}")
    except Exception as error:
        raise _explained(key, error) from error
    if not isinstance(logger, Logger):
        raise ConfigError(f"logger.{key}: {target} is no logger of Lightning's")
    return logger


def _explained(key: str, error: BaseException) -> BaseException:
    """A ConfigError for what the user can mend; anything else as it is."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for found in causes:
        if isinstance(found, ModuleNotFoundError):
            package = (found.name or "").partition(".")[0] or _named(str(found))
            what = f'"ltexp[{package}]"' if package in EXTRAS else package
            return ConfigError(f"logger.{key} needs a package that is not installed: pip install {what}")
        if type(found).__module__.startswith("wandb"):
            return ConfigError(f"wandb: {found}; logger.{key}.offline=true needs no account")
    return error


def _named(message: str) -> str:
    """The package in Lightning's own words, such as `... Please install wandb` or a requirement's name."""
    known = [name for name in (*EXTRAS, "comet_ml", "mlflow", "neptune") if name in message.lower()]
    return known[0] if known else message


def close_loggers(made: list[Logger], status: str) -> None:
    """Ends the loggers' runs: the next job starts its own."""
    for logger in made:
        logger.finalize(status)
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if finish is not None:
            finish()
