"""What there is to choose from: `ltexp methods`, `ltexp methods gcl`, `ltexp methods loss`, `ltexp methods loss/ldam`.

Reads the comments that open the files of `conf/`, so a choice is described where it is made.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ltexp.config import in_order, names_stage
from ltexp.config.composer import compose
from ltexp.config.path import conf_dir, docs_dir, group_files, take_config_dirs, user_config_dirs
from ltexp.config.words import key_of, status_of
from ltexp.errors import ConfigError
from ltexp.launching.explain import explained
from ltexp.names import plain, unknown_name
from ltexp.papers import all_cells
from ltexp.usage import folded

USAGE = """\
ltexp methods: what there is to choose from, as the files of conf/ describe it.

  ltexp methods                          every method, in a line each, and the groups of choices
  ltexp methods gcl                      one method: what each stage is made of, where its numbers are printed
  ltexp methods gcl dataset=cifar100_lt  ... with its paper's settings for a dataset; any KEY=VALUE of ltexp train
  ltexp methods loss                     every choice of a group
  ltexp methods loss/ldam                one choice: its file
  ltexp methods config                   conf/config.yaml: the groups of a run, and the keys that are of no group
  ltexp methods stage/representation     the keys of a stage; of devices and precision: trainer/single

  --config-dir DIR   takes in your own files
"""
_END = re.compile(r"(?<!\bal)(?<!\bCh)(?<!\bSec)(?<!\bSecs)(?<!\bFig)(?<!\bFigs)(?<!\bEq)(?<!\bEqs)(?<!\bvs)\.(?=\s|$)")
_PARTS = ("loss", "classifier", "sampler", "mixing", "reweighting", "features", "schedule", "optimizer", "augmentation")
_HIDDEN = ("hydra", "paper")  # groups that are not chosen from by a plain name


def comment_of(path: Path) -> list[str]:
    """The lines of the comment that opens a config file, without their #."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def first_sentence(comment: Sequence[str]) -> str:
    """The first sentence of a comment, without its full stop."""
    text = " ".join(line.strip() for line in comment)
    end = _END.search(text)
    return text[: end.start()] if end else text


def groups() -> list[str]:
    """The groups that a command line chooses from."""
    folders = (conf_dir(), *user_config_dirs())
    found = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}
    return sorted(found.difference(_HIDDEN))


def show_group(console: Console, group: str) -> None:
    """A line for each choice of a group."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, path in group_files(group).items():
        table.add_row(name, first_sentence(comment_of(path)))
    console.print(table, markup=False)


def _composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """The config of a method.

    Raises:
        ConfigError: in one line, for whatever is wrong with an override.
    """
    if typed := [word for word in overrides if key_of(word) == "method"]:
        raise ConfigError(f"{typed[0]} beside {name}: name one method")
    words = [f"method={name}", *overrides]
    try:
        with explained(words):
            return compose(words)
    except ValueError as error:
        if "Config group override" not in str(error):  # Hydra's word for dataset=5
            raise
        from ltexp.train import no_name

        raise ConfigError(no_name(overrides) or str(error)) from None


def show_method(console: Console, name: str, overrides: Sequence[str]) -> None:
    """A method's comment, the parts of its stages, and the tables that print its numbers."""
    config = _composed(name, overrides)
    print(folded("\n".join(comment_of(group_files("method")[name]))))
    chosen = config.choices
    print(f"\nOn {config.dataset.name}:")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    for stage in in_order(key for key in map(str, config) if names_stage(key)):
        if config[stage] is None:
            continue
        named = [f"{part} {chosen[key]}" for part in _PARTS if (key := f"{part}@{stage}.{part}") in chosen]
        named = [text for text in named if not text.endswith(" none")]
        for kind in ("terms", "modules", "streams"):
            if config[stage][kind]:
                named.append(f"{kind} {', '.join(config[stage][kind])}")
        table.add_row(stage, f"{config[stage].epochs} epochs · {' · '.join(named)}")
    console.print(table, markup=False)
    if "paper" in chosen:
        print(f"  its paper's settings: {conf_dir() / 'paper' / chosen.paper}.yaml")
    cells = [cell for cell in all_cells() if cell.method == name]
    if cells:
        tables = sorted({f"{cell.paper}/{cell.table}" for cell in cells})
        where = f"{' '.join(tables)} (ltexp reproduce show table={tables[0]})"
        print("\n" + folded(f"Printed numbers: {len(cells)}, in {where}"))
    if page := _page_of(name):
        print(f"More: {page}")
    print(f"Train it: ltexp train {' '.join([f'method={name}', *overrides])}")


def _page_of(name: str) -> Path | None:
    """The page of the method's system, or the one that names the method most often."""
    own = docs_dir() / "methods" / f"{name.partition('_')[0]}.md"
    if own.exists():
        return own
    named = {page: page.read_text().count(f"`{name}`") for page in sorted(own.parent.glob("*.md"))}
    return max(named, key=lambda page: named[page]) if any(named.values()) else None


def _written(name: str) -> str:
    """A method's or group's own name for one as papers write it: LDAM-DRW."""
    return {plain(known): known for known in (*groups(), *group_files("method"))}.get(plain(name), name)


def run(arguments: Sequence[str]) -> int:
    """The command; answers its exit status.

    Raises:
        ConfigError: for a name that is none.
    """
    words = take_config_dirs(arguments)
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    console = Console(soft_wrap=False)
    if len(names) > 1:
        raise ConfigError(f"one name at a time: {' '.join(names)}")
    if overrides and (not names or "/" in names[0] or _written(names[0]) in ("config", *groups())):
        raise ConfigError(f"{overrides[0]} has no effect without a method: ltexp methods METHOD {overrides[0]}")
    if not names:
        show_group(console, "method")
        others = ", ".join(group for group in groups() if group != "method")
        print("\n" + folded(f"Other groups (ltexp methods GROUP): {others}"))
        return 0
    if names[0] == "config":
        print((conf_dir() / "config.yaml").read_text(encoding="utf-8"), end="")
        return 0
    name = _written(names[0])
    group, separator, choice = name.rpartition("/")
    if separator and group not in groups():
        raise ConfigError(unknown_name("group", group, groups()))
    if not separator and name in group_files("method"):
        show_method(console, name, overrides)
    elif not separator and name in groups():
        show_group(console, name)
    elif separator and choice in group_files(group):
        print(group_files(group)[choice].read_text(encoding="utf-8"), end="")
    else:
        known = group_files(group) if separator else [*group_files("method"), *groups()]
        raise ConfigError(unknown_name(group or "method", choice, known))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """`ltexp methods`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "-h" in words or "--help" in words:
        print(folded(USAGE))
        return 0
    return status_of("ltexp methods", lambda: run(words))


if __name__ == "__main__":
    sys.exit(main())
