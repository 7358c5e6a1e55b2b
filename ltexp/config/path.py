"""Where the Hydra config groups are: ltexp's own, and those of the user's folders."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ltexp.errors import ConfigError

VARIABLE = "LTEXP_CONFIG_DIR"  # folders of config groups of the user's, as PATH lists folders
_PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The folder of the config groups: `ltexp/conf` where a wheel put it, else `conf` beside the package (a clone)."""
    return _installed_or_cloned("conf", "config.yaml")


def docs_dir() -> Path:
    """The folder of the docs, likewise."""
    return _installed_or_cloned("docs", "architecture.md")


def _installed_or_cloned(folder: str, file: str) -> Path:
    installed = _PACKAGE / folder
    return installed if (installed / file).is_file() else _PACKAGE.parent / folder


def user_config_dirs() -> list[Path]:
    """The folders that `$LTEXP_CONFIG_DIR` names, absolute.

    Raises:
        ConfigError: for one that is no folder.
    """
    folders = [Path(text).expanduser().absolute() for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"the config folder {folder} is not there (--config-dir, config_dirs or ${VARIABLE})")
    return folders


def group_files(group: str) -> dict[str, Path]:
    """The files of a config group by name, ltexp's own before the user's, as Hydra finds them."""
    found: dict[str, Path] = {}
    for folder in (conf_dir(), *user_config_dirs()):
        found = {path.stem: path for path in sorted((folder / group).glob("*.yaml"))} | found
    return dict(sorted(found.items()))


def split_config_dirs(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """(the other arguments, the folders that `--config-dir`, or `-cd`, names).

    Raises:
        ConfigError: for a flag that names none.
    """
    others: list[str] = []
    folders: list[Path] = []
    waiting = False  # for the folder of a flag
    for text in arguments:
        if waiting or text.startswith("--config-dir="):
            folders.append(Path(text if waiting else text.partition("=")[2]).expanduser())
            waiting = False
        elif text in ("--config-dir", "-cd"):
            waiting = True
        else:
            others.append(text)
    if waiting:
        raise ConfigError("--config-dir names no folder: --config-dir DIR")
    return others, folders


def take_config_dirs(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--config-dir DIR`, whose folders this process and those that it starts read from then on.

    Raises:
        ConfigError: for one that is no folder.
    """
    others, folders = split_config_dirs(arguments)
    _put_first(folders)
    return others


@contextmanager
def reading_config_dirs(folders: Sequence[str | Path]) -> Iterator[None]:
    """Reads config groups from `folders` too, in this process and those that it starts, until the end of the block.

    Raises:
        ConfigError: for one that is no folder.
    """
    before = os.environ.get(VARIABLE)
    try:
        _put_first([Path(folder).expanduser() for folder in folders])
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def _put_first(folders: Sequence[Path]) -> None:
    if folders:
        before = [text for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]
        os.environ[VARIABLE] = os.pathsep.join([*(str(folder.absolute()) for folder in folders), *before])
    if hidden := [path for folder in user_config_dirs() for path in _hidden(folder)]:
        more = f" (and {len(hidden) - 1} more)" if len(hidden) > 1 else ""
        print(
            f"note: {hidden[0]}{more} is not read: ltexp has a file of that name, which counts; choose another name",
            file=sys.stderr,
        )


def _hidden(folder: Path) -> list[Path]:
    """The files of a user's folder that have the place and name of one of ltexp's own."""
    own = conf_dir()
    if folder.resolve() == own.resolve():
        return []
    return [path for path in sorted(folder.glob("*/**/*.yaml")) if (own / path.relative_to(folder)).is_file()]
