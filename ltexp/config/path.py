"""Where the Hydra config groups are: ltexp's own, and those of the user's folders."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import yaml

from ltexp.errors import ConfigError
from ltexp.names import nearest

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
    """The folders that `$LTEXP_CONFIG_DIR` names, absolute; of two files of a name that of the first counts.

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


def choices_with(group: str, key: str) -> list[str]:
    """The choices of a config group whose file lists `key`."""
    listed = re.compile(rf"^{re.escape(key)}:", re.MULTILINE)
    return [name for name, file in group_files(group).items() if listed.search(file.read_text(encoding="utf-8"))]


def group_names() -> list[str]:
    """The folders of choices, ltexp's own and the user's."""
    folders = [folder for folder in (conf_dir(), *user_config_dirs()) if folder.is_dir()]
    return sorted({path.name for folder in folders for path in folder.iterdir() if path.is_dir()})


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Within the block a config file that is not YAML is answered in one line.

    Raises:
        ConfigError: with the line of the file.
    """
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}" if mark else f"{file}"
        raise ConfigError(f"{place}: this is not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: this is not YAML in UTF-8: {str(error).splitlines()[0]}") from None


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
    _put_first(folders, others)
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


def _put_first(folders: Sequence[Path], words: Sequence[str] = ()) -> None:
    """Names `folders` before those that the environment has, and says what of all these is not read.

    Args:
        folders: in the order in which they count.
        words: of the command line.
    """
    if folders:
        before = [text for text in os.environ.get(VARIABLE, "").split(os.pathsep) if text]
        os.environ[VARIABLE] = os.pathsep.join([*(str(folder.absolute()) for folder in folders), *before])
    read: list[Path] = [conf_dir()]
    for folder in user_config_dirs():
        if folder.resolve() not in (other.resolve() for other in read):
            _note_hidden(folder, read)
            _note_misnamed(folder, words)
            read.append(folder)


def _note_hidden(folder: Path, read: Sequence[Path]) -> None:
    """Says which files have the place and name of one in a folder of `read`, the first of them ltexp's own."""
    files = [path.relative_to(folder) for path in sorted(folder.glob("*/**/*.yaml"))]
    for number, other in enumerate(read):
        if hidden := [path for path in files if (other / path).is_file()]:
            more = f" (and {len(hidden) - 1} more)" if len(hidden) > 1 else ""
            whose = f"{other} is named first and has" if number else "ltexp has"
            _note(
                f"{folder / hidden[0]}{more} is not read: {whose} a file of that name, which counts; "
                "choose another name"
            )
            files = [path for path in files if path not in hidden]


def _note_misnamed(folder: Path, words: Sequence[str]) -> None:
    """Says which files and folders have names that nothing reads."""
    known = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    for path in sorted(path for group in known for path in (folder / group).rglob("*.yml")):
        _note(f"{path} is not read: call it {path.stem}.yaml")
    others = sorted({path.parent for path in folder.glob("*/*.yaml")} - {folder / group for group in known})
    if not others:
        return
    # a group of the user's own is named by a file of theirs, or on the command line
    files = [path for group in known for path in (folder / group).rglob("*.yaml")]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    for other in others:
        name = re.compile(rf"\b{re.escape(other.name)}[@/=:]")
        if not any(map(name.search, [*words, *texts])):
            near = nearest(other.name, known)
            _note(f"{other} is not read: ltexp has no such group" + (f"; did you mean '{near}'?" if near else ""))


@cache
def _note(text: str) -> None:
    """Prints a note, once in a process."""
    print(f"note: {text}", file=sys.stderr)
