"""`ltexp data prepare | unpack | check | show | cache`; `--help` after each says more."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltexp.config.checks import check_keywords
from ltexp.config.path import take_config_dirs
from ltexp.config.require import is_whole, require
from ltexp.config.words import parse_value, read_flag, split_words, status_of
from ltexp.data.commands.catalog import as_path, build_source, dataset_config, datasets, resolve
from ltexp.data.commands.texts import CACHE, CHECK, PREPARE, SHOW, UNPACK, USAGE
from ltexp.data.images.arrays import default_root
from ltexp.errors import ConfigError
from ltexp.names import unknown_name
from ltexp.processes.cores import usable_cores
from ltexp.usage import folded

# The functions import what they need themselves, so that each command starts at once; none imports torch except to
# download.


def preparable() -> list[str]:
    """The datasets that `ltexp data prepare` makes."""
    from ltexp.data.images.official import OFFICIAL
    from ltexp.data.images.packed import PACKED
    from ltexp.data.text.articles import PREPARED_BY_COMMAND

    return [*OFFICIAL, *PACKED, *PREPARED_BY_COMMAND]


def run_prepare(words: Sequence[str]) -> int:
    """Prepares one dataset."""
    from ltexp.data.commands.prepare import prepare, prepare_articles, prepare_packed
    from ltexp.data.images.official import OFFICIAL
    from ltexp.data.images.packed import PACKED

    names, options = split_words(words, ("source", "root", "download"))
    known = preparable()
    if len(names) != 1:
        raise ConfigError(f"name one dataset: ltexp data prepare {' | '.join(known)}")
    if names[0] not in known:
        raise ConfigError(unknown_name("dataset", names[0], known))
    source = as_path(options["source"]) if "source" in options else None
    download = read_flag(options, "download")
    if source is not None and download:
        raise ConfigError("source=PATH and download=true exclude each other")
    if names[0] in OFFICIAL:
        folder, origin = prepare(names[0], _root(options), source, download)
    elif download and names[0] != "svhn":
        raise ConfigError(f"{names[0]} has no download: give source=PATH of its files or their archive")
    elif names[0] in PACKED:
        folder, origin = prepare_packed(names[0], _root(options), source, download)
    else:
        folder, origin = prepare_articles(names[0], build_source(names[0]), _root(options), source)
    print(f"{folder}: {origin}")
    return _report_check(names[0], dataset_config(resolve(names)[names[0]]), folder.parent)


def run_unpack(words: Sequence[str]) -> int:
    """Unpacks one folder of Hugging Face datasets."""
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn, Progress

    from ltexp.data.commands.unpack import COLUMNS, SPLITS, unpack

    names, options = split_words(words, ("source", "root", *COLUMNS, *SPLITS))
    if len(names) != 1 or "source" not in options:
        raise ConfigError("name the dataset that is made and its source: ltexp data unpack NAME source=FOLDER")
    folder = _root(options) / names[0]
    columns, splits = ({key: options[key] for key in keys if key in options} for keys in (COLUMNS, SPLITS))
    bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn())
    task = bar.add_task(escape(names[0]))

    def show(done: int, of: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=of)

    try:
        unpacked = unpack(as_path(options["source"]), folder, columns, splits, show)
    finally:
        if bar.live.is_started:
            bar.stop()
    left = f"; not taken: {', '.join(unpacked.left)}" if unpacked.left else ""
    print(f"{folder}: {', '.join(f'{count:,} {split}' for split, count in unpacked.images.items())} images{left}")
    keys = [f"source.folder={names[0]}", "source.classes=classes.txt"]
    keys += [f"source.{split}={split}.txt" for split in unpacked.images if split != "train"]
    print(
        f"for a run: ltexp train dataset=image_list dataset.name={names[0]} " + " ".join(f"dataset.{k}" for k in keys)
    )
    config, _ = _with_keys(dataset_config("image_list"), keys, ())
    return _report_check("image_list", config, folder.parent)


def run_check(words: Sequence[str]) -> int:
    """Checks some or all datasets; 1 if there are problems."""
    names = [word for word in words if "=" not in word]
    one = dataset_config(resolve(names)[names[0]]) if len(names) == 1 else {}
    config, options = _with_keys(one, words, ("root", "decode", "unreadable"))
    decode = read_flag(options, "decode") or False
    listed = as_path(options["unreadable"]) if "unreadable" in options else None
    if listed is not None and not one:
        raise ConfigError("unreadable=FILE is of one dataset: name it")
    if listed is not None and "leave_out" not in one:
        raise ConfigError(f"unreadable=FILE is a file for dataset.leave_out, a key that {names[0]} does not have")
    root = _root(options)
    if one:
        of_a_run = any(key in options and not key.startswith("source.") for key in _settable(config))
        return _report_check(names[0], config, root, decode, listed, of_a_run)
    return max(_report_check(name, dataset_config(file), root, decode) for name, file in resolve(names).items())


def run_show(words: Sequence[str]) -> int:
    """Shows one dataset."""
    from rich.console import Console

    from ltexp.config.build import build
    from ltexp.data.commands.show import draw, print_summary

    config, options = _configured("show", words, ("root", "out"))
    data = build(config, root=_root(options), path="dataset")
    print_summary(data, Console())
    default = f"outputs/data/{data.name}_{data.imbalance}_{data.imbalance_ratio:g}.png"
    path = as_path(options.get("out", default))
    draw(data, path)
    print(path)
    return 0


def run_cache(words: Sequence[str]) -> int:
    """Makes the cache of one dataset."""
    from rich.markup import escape
    from rich.progress import MofNCompleteColumn, Progress

    from ltexp.config.build import build
    from ltexp.data.files.cache import make_cache
    from ltexp.data.files.split import FileSplit

    config, options = _configured("cache", words, ("root", "out", "workers"))
    workers = parse_value("workers", options.get("workers", str(usable_cores())))
    require(is_whole(workers, 1), "workers", workers, "a whole number of 1 or more")
    data = build(config, root=_root(options), path="dataset")
    splits = [split for split in (data.train, data.validation, data.test) if isinstance(split, FileSplit)]
    if not splits:
        raise ConfigError(f"{data.name} lies in memory: there is nothing to cache")
    resize = data.preprocessing["resize"]
    folder = as_path(options["out"]) if "out" in options else _root(options) / "cache" / f"{data.name}_{resize}"
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as bar:
        task = bar.add_task(escape(data.name))
        images = make_cache(
            folder, splits, resize, workers, lambda done, of: bar.update(task, completed=done, total=of)
        )
    print(f"{folder}: {images:,} images, {resize} pixels on the short side; for a run: dataset.cache={folder}")
    return 0


def _configured(command: str, words: Sequence[str], own: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """(the config of the one dataset that is named, with its keys set; the command's own keys as text)."""
    names = [word for word in words if "=" not in word]
    if len(names) != 1:
        raise ConfigError(f"name one dataset: ltexp data {command} {' | '.join(datasets())}")
    return _with_keys(dataset_config(names[0]), words, own)


def _with_keys(
    config: dict[str, Any], words: Sequence[str], own: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """(the config of a dataset with its keys set, the command's own keys as text) as typed."""
    _, options = split_words([word.removeprefix("dataset.") for word in words], [*own, *_settable(config)])
    for key in options.keys() - set(own):
        _set(config, key, parse_value(key, options[key]))
    check_keywords({"dataset": _plain(config)})
    if config.get("imbalance") == "balanced" and "imbalance_ratio" in options:
        print("note: imbalance_ratio has no effect with imbalance=balanced")
    return config, options


def _settable(config: dict[str, Any]) -> list[str]:
    """The keys of a dataset that a command takes."""
    return [key for key in _leaves(config) if key != "name" and "_target_" not in key]


def _report_check(
    name: str,
    config: dict[str, Any],
    root: Path,
    decode: bool = False,
    listed: Path | None = None,
    of_a_run: bool = False,
) -> int:
    """Prints what there is to say of a dataset.

    Args:
        listed: where to write the paths that cannot be read.
        of_a_run: whether all keys are tried, as a run would.
    """
    from ltexp.data.commands.check import check, write_list

    found = check(config, root, decode, of_a_run)
    problems = found.problems
    for number, line in enumerate(problems or found.facts):
        print(f"{name}: {'' if problems else 'ok: '}{line}" if number == 0 else f"  {line}")
    for line in found.facts if problems else []:
        print(f"  else: {line}")
    if listed is not None:
        print(f"  {write_list(listed, found, decode)}")
    return 1 if problems else 0


def _root(options: dict[str, str]) -> Path:
    return as_path(options["root"]) if "root" in options else default_root()


def _leaves(node: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of a nested mapping."""
    found = []
    for key, value in node.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


def _plain(node: dict[str, Any]) -> dict[str, Any]:
    """A nested mapping without the values that OmegaConf interpolates when the node is built."""
    return {
        key: _plain(value) if isinstance(value, dict) else value
        for key, value in node.items()
        if not (isinstance(value, str) and "${" in value)
    }


def _set(node: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value


COMMANDS = {
    "prepare": (run_prepare, PREPARE, "make the files of CIFAR, SVHN, CINIC-10, Tiny ImageNet or AG's News"),
    "unpack": (run_unpack, UNPACK, "make image files and lists of a folder of Hugging Face datasets"),
    "check": (run_check, CHECK, "say what is missing or wrong"),
    "show": (run_show, SHOW, "print and draw a dataset's long tail"),
    "cache": (run_cache, CACHE, "make a copy of image files that decodes quickly"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(message)

    def format_help(self) -> str:
        return f"{folded((self.description or '').rstrip())}\n"


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {command:<10}{summary}" for command, (_, _, summary) in COMMANDS.items())
    parser = _Parser(prog="ltexp data", description=USAGE.replace("{commands}", listed), allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, (_, text, _) in COMMANDS.items():
        text = text.replace("{datasets}", ", ".join(datasets()))
        part = commands.add_parser(command, description=text, allow_abbrev=False)
        part.add_argument("words", nargs="*", metavar="DATASET | key=value")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status: 0; 1 for data that is missing or wrong; 2 for a wrong command line."""
    typed = list(sys.argv[1:] if arguments is None else arguments)

    def action() -> int:
        words = take_config_dirs(typed)
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            raise ConfigError(unknown_name("command", words[0], COMMANDS))
        parsed = _parser().parse_args(words)
        return COMMANDS[parsed.command][0](parsed.words)

    return status_of("ltexp data", action)


if __name__ == "__main__":
    sys.exit(main())
