"""The loggers of a run: any of Lightning's, several at a time. One that fails is left out; the run goes on."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from pytorch_lightning.loggers import Logger

from ltexp.config.build import build
from ltexp.config.identity import is_material
from ltexp.config.lightning import loggers
from ltexp.distributed import rank
from ltexp.errors import ConfigError
from ltexp.training.session import Session

EXTRAS = ("wandb", "tensorboard")  # of our package, which bring what a logger needs
NAME_LENGTH, TAG_LENGTH = 128, 64  # that Weights & Biases takes
ANSWER_SECONDS = 10  # to wait for its server before a run
FLUSH_SECONDS = "1"  # until its file has what it was told, also where the run is killed; its own default is 15
FINISH_SECONDS = "120"  # that Weights & Biases may take to send the rest when a run ends
_GUARDED = ("log_metrics", "log_hyperparams", "log_graph", "log_image", "log_table", "after_save_checkpoint", "save")


def make_loggers(session: Session, identifier: str) -> list[Logger]:
    """The chosen loggers, on the first process, told the whole config; stages follow each other in them.

    Args:
        session: of the run.
        identifier: of the run, by which a resumed one finds its own.

    Raises:
        ConfigError: for a logger that cannot be built or started, naming it, and what to do about it.
    """
    if rank() != 0:
        return []
    nodes = {key: dict(node) for key, node in loggers(session.config.logger).items()}
    made: dict[str, Logger] = {}
    for key, node in nodes.items():  # all, before the first writes anything
        with _Explaining(key):
            if _is_wandb(node) and not node.get("offline"):
                _check_account(key)
            made[key] = _logger(key, node, session, identifier)
    for key, logger in made.items():
        with _Explaining(key):
            logger.log_hyperparams(asdict(session.config))
            logger.save()  # a run that is killed has its config
        _guard(logger, key)
    return list(made.values())


def _is_wandb(node: Mapping[str, Any]) -> bool:
    return str(node["_target_"]).endswith("WandbLogger")


def _check_account(key: str) -> None:
    """Weights & Biases would ask for a key on the terminal, and wait long for a network that is not there."""
    if os.environ.get("WANDB_MODE", "online") not in ("online", "run"):
        return
    import wandb

    without = f"logger.{key}.offline=true needs neither"
    if not wandb.login(prompt=False, verify=False):
        raise ConfigError(
            f"logger.{key}: there is no key of a Weights & Biases account: type `wandb login` once, or set "
            f"WANDB_API_KEY, and have a network; {without}"
        )
    server = str(wandb.setup().settings.base_url)
    try:
        urlopen(server, timeout=ANSWER_SECONDS).close()
    except HTTPError:  # an answer, at least
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(f"logger.{key} needs an account and a network: {server}: {reason}; {without}") from None


def _logger(key: str, settings: dict[str, Any], session: Session, identifier: str) -> Logger:
    target, folder = str(settings["_target_"]), session.folder
    if _is_wandb(settings):
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", FINISH_SECONDS)
        os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", FLUSH_SECONDS)
        os.environ.setdefault("WANDB_QUIET", "true")  # its summary would push ours off the screen
        own = [text[:TAG_LENGTH] for text in tags(session)]
        # jobs of a sweep never share a wandb run, and a resumed run continues its own
        settings = {"id": identifier, "resume": "allow"} | settings
        settings["name"] = (settings.get("name") or readable_name(session))[:NAME_LENGTH]
        settings["tags"] = [*own, *(tag for tag in settings.get("tags") or () if tag not in own)]
    elif target.endswith("CSVLogger") and settings.get("version") is not None:
        # it empties a folder that it finds, and a resumed run's first half lies there
        while (folder / str(settings.get("name", "")) / settings["version"]).exists():
            settings["version"] += "-resumed"
    if target.startswith("pytorch_lightning.loggers.") and target.endswith(("WandbLogger", "CSVLogger", "BoardLogger")):
        settings = {"save_dir": str(folder)} | settings
    logger = build(settings, path=f"logger.{key}")
    if not isinstance(logger, Logger):
        raise ConfigError(f"logger.{key}: {target} is no logger of Lightning's")
    return logger


def tags(session: Session) -> list[str]:
    """Method, dataset and imbalance ratio, by which runs are found."""
    data = session.data
    return [str(session.config.choices.get("method")), data.name, f"ratio={data.imbalance_ratio:g}"]


def readable_name(session: Session) -> str:
    """What a person calls the run: its tags and seed, and whatever else was typed that it depends on."""
    told = ("method", "dataset", "seed", "dataset.imbalance_ratio")
    typed = [text for text in session.config.overrides if text.partition("=")[0].lstrip("+~") not in told]
    others = [text for text in typed if is_material(text.partition("=")[0].lstrip("+~"))]
    return " ".join([*tags(session), f"seed={session.config.seed}", *others])


class _Explaining:
    """Whatever goes wrong in the block with a logger that is about to start is a user's to mend, in one line.

    Args:
        key: of the logger.
    """

    def __init__(self, key: str) -> None:
        self.key = key

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, ConfigError):
            raise _explained(self.key, error) from error


def _explained(key: str, error: BaseException) -> ConfigError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError):
            package = (cause.name or "").partition(".")[0] or _named(str(cause))
            what = f'"ltexp[{package}]"' if package in EXTRAS else package
            return ConfigError(f"logger.{key} needs a package that is not installed: pip install {what}")
        if type(cause).__module__.startswith("wandb"):
            return ConfigError(f"logger.{key}: {_one_line(cause)}; logger.{key}.offline=true needs no account")
        cause = cause.__cause__ or cause.__context__
    return ConfigError(f"logger.{key} cannot start: {_one_line(error)}")


def _named(message: str) -> str:
    """The package in Lightning's own words, such as `... Please install wandb` or a requirement's name."""
    known = [name for name in (*EXTRAS, "comet_ml", "mlflow", "neptune") if name in message.lower()]
    return known[0] if known else message


def _one_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _guard(logger: Logger, key: str) -> None:
    """From here on the logger's failures are told once, and its end is `close_loggers`'.

    Lightning ends its loggers with each stage; TensorBoard's would begin a new file in the next.
    """
    failed: list[str] = []

    def safely(action: Callable[..., Any]) -> Callable[..., None]:
        def guarded(*args: Any, **keywords: Any) -> None:
            if failed:
                return
            try:
                action(*args, **keywords)
            except Exception as error:  # whatever it is, it is not worth a training
                failed.append(_one_line(error))
                told = f"ltexp: logger.{key} failed and is left out from here on; the run goes on ({failed[0]})"
                print(told, file=sys.stderr, flush=True)

        return guarded

    for name in _GUARDED:
        if action := getattr(logger, name, None):
            setattr(logger, name, safely(action))
    finalize = logger.finalize

    def end(status: str) -> None:
        finalize(status)
        experiment: Any = getattr(logger, "experiment", None)
        if type(experiment).__module__.startswith("wandb"):
            experiment.finish(exit_code=0 if status == "success" else 1)
        elif finish := getattr(experiment, "finish", None):
            finish()

    guarded: Any = logger
    guarded.finalize = lambda status: None
    guarded.end, guarded.log_media = safely(end), safely(partial(_log_media, logger))


def close_loggers(made: list[Logger], status: str) -> None:
    """Ends the loggers' runs: the next job starts its own.

    Args:
        made: those of `make_loggers`.
        status: `success` or `failed`.
    """
    guarded: Any
    for guarded in made:
        guarded.end(status)


def log_epoch(made: list[Logger], stage: str, row: Mapping[str, Any]) -> None:
    """Hands a row of a stage's metrics.csv to the loggers, whether it was trained here or read from a file."""
    known = {key: float(value) for key, value in row.items() if value not in (None, "")}
    step = int(known.pop("step", known["epoch"] + 1))
    for logger in made:
        logger.log_metrics({f"{stage}/{key}": value for key, value in known.items()}, step=step)


def log_media(made: list[Logger], figures: list[Path], columns: list[str], rows: list[list[Any]]) -> None:
    """Figures and the table by class, to loggers that take them: Weights & Biases, TensorBoard.

    Args:
        made: those of `make_loggers`.
        figures: image files.
        columns: of the table.
        rows: of the table.
    """
    guarded: Any
    for guarded in made:
        guarded.log_media(figures, columns, rows)


def _log_media(logger: Any, figures: list[Path], columns: list[str], rows: list[list[Any]]) -> None:
    if hasattr(logger, "log_image") and hasattr(logger, "log_table"):
        for path in figures:
            logger.log_image(f"figures/{path.stem}", [str(path)])
        logger.log_table("final/classes", columns, rows)
        return
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_image"):
        for path in figures:
            experiment.add_image(f"figures/{path.stem}", _pixels(path), dataformats="HWC")
        lines = [columns, ["---"] * len(columns), *rows]
        experiment.add_text("final/classes", "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
