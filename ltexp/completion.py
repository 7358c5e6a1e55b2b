"""Tab completion: `eval "$(ltexp completion bash)"`, or zsh; fish: `ltexp completion fish | source`.

  ltexp completion bash     prints what bash is to run, such as from ~/.bashrc: eval "$(ltexp completion bash)"
  ltexp completion zsh      the same for zsh, from ~/.zshrc
  ltexp completion fish     the same for fish: ltexp completion fish > ~/.config/fish/completions/ltexp.fish

Completes commands, groups and their choices, and keys, of what is typed so far (ltexp train method=gcl stage1.loss.).
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from ltexp.config.path import take_config_dirs
from ltexp.config.words import status_of
from ltexp.errors import ConfigError, LtexpError
from ltexp.names import unknown_name
from ltexp.usage import folded

SCRIPTS = {
    "bash": r"""
_ltexp() {
    local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}" word kept
    word="${line##*[[:space:]]}"
    kept="${word%"${word##*[=:@]}"}"  # readline breaks words there and replaces what follows alone
    COMPREPLY=($(ltexp completion --candidates "$line" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=.@/] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o bashdefault -o default -F _ltexp ltexp
""",
    "zsh": r"""
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_ltexp() {
    local -a found
    found=("${(@f)$(ltexp completion --candidates "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    if [[ -z ${found[1]} ]]; then
        _files
        return
    fi
    compadd -Q -S '' -- ${(M)found:#*[=.@/]}
    compadd -Q -- ${found:#*[=.@/]}
}
compdef _ltexp ltexp
""",
    "fish": r"""
complete -c ltexp -f -a '(ltexp completion --candidates (commandline -cp | string collect) 2>/dev/null)'
complete -c ltexp -n '__fish_seen_subcommand_from report evaluate predict export' -F
""",
}
FLAGS = ("-m", "--help", "--cfg", "--info", "--dry-run", "--config-dir", "--config-path", "--config-name")
HYDRA = ("hydra.run.dir=", "hydra.sweep.dir=", "hydra/sweeper=")


def candidates(line: str) -> list[str]:
    """What the last word of a command line, typed as far as `line`, can be.

    Args:
        line: from `ltexp` to the cursor.

    Returns:
        whole words, or words up to their next `.`, `@` or `=`.
    """
    words = line.split()
    current = "" if line[-1:].isspace() or not words else words.pop()
    _, *typed = words or ["ltexp"]
    if not typed:
        from ltexp.__main__ import COMMANDS

        return _starting([*COMMANDS, "--help", "--version"], current)
    command, *typed = typed
    with suppress(ConfigError):  # a folder that is not there, or not typed yet
        typed = take_config_dirs(typed)
    known: dict[str, Callable[[list[str], str], list[str]]] = {
        "train": _of_train,
        "methods": _of_methods,
        "data": _of_data,
        "evaluate": _of_evaluate,
        "predict": _of_predict,
        "export": _of_export,
        "report": _of_report,
        "reproduce": _of_reproduce,
        "completion": _of_completion,
    }
    return known[command](typed, current) if command in known else []


def _of_completion(typed: Sequence[str], current: str) -> list[str]:
    return [] if typed else _starting(SCRIPTS, current)


def _starting(words: Iterable[str], current: str) -> list[str]:
    return sorted({word for word in words if word.startswith(current)})


def _values(key: str, current: str, values: Iterable[str]) -> list[str]:
    """Words `KEY=VALUE`; of a list with commas the last."""
    before = current.rpartition(",")[0]
    start = f"{key}={before}," if before else f"{key}="
    return _starting([start + value for value in values], f"{key}={current}")


def _keyed(current: str, keys: Iterable[str], values: dict[str, Iterable[str]]) -> list[str]:
    """Words of a command with plain keys, some of which have known values."""
    key, separator, value = current.partition("=")
    if separator:
        return _values(key, value, values.get(key, ()))
    return _starting([f"{name}=" for name in keys], current)


def _of_train(typed: list[str], current: str) -> list[str]:
    from omegaconf import OmegaConf

    from ltexp.config.reading import dotted_keys
    from ltexp.launching.explain import known_keys

    if current.startswith("-") or (typed and typed[-1] in FLAGS[2:]):
        return _starting(FLAGS, current) if current else []
    sign = current[: len(current) - len(current.lstrip("+~"))]
    key, separator, value = current[len(sign) :].partition("=")
    group = key.partition("@")[0]
    if separator and ("@" in key or _choices(group)):
        return _values(f"{sign}{key}", value, _choices(group))
    config, groups = known_keys(typed)
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    if separator:
        node = OmegaConf.select(config, key)
        return _values(f"{sign}{key}", value, ("true", "false") if isinstance(node, bool) else _listed(key))
    keys = list(dotted_keys({name: node for name, node in plain.items() if name not in ("hydra", "choices")}))
    nodes = {name.rpartition(".")[0] for name in keys}
    leaves = [name for name in keys if name not in nodes and not name.endswith("_target_")]
    words = [*(f"{name}=" for name in groups), *(f"{name}=" for name in leaves), *HYDRA]
    return [f"{sign}{word}" for word in _starting({_to_next_sign(word, len(key)) for word in words}, key)]


def _choices(group: str) -> list[str]:
    from ltexp.config.path import conf_dir, group_files

    # of papers a family, whose file depends on the dataset
    families = [path.name for path in (conf_dir() / group).iterdir() if path.is_dir()] if group == "paper" else []
    return [*families, *group_files(group)]


def _listed(key: str) -> tuple[str, ...]:
    from ltexp.config import schema

    lists = {
        "trainer.precision": schema.PRECISIONS,
        "trainer.accelerator": schema.ACCELERATORS,
        "trainer.compile_backend": schema.COMPILE_BACKENDS,
        "trainer.compile_mode": schema.COMPILE_MODES,
        "dataset.imbalance": ("longtail", "step", "balanced"),
    }
    return schema.BATCH_NORMS if key.endswith(".batch_norm") else lists.get(key, ())


def _to_next_sign(word: str, start: int) -> str:
    """`word` up to the next sign that a longer word goes on after."""
    ends = [place for sign in ".@" if (place := word.find(sign, start)) >= 0]
    return word[: min(ends) + 1] if ends else word


def _of_methods(typed: Sequence[str], current: str) -> list[str]:
    from ltexp.config.path import group_files
    from ltexp.methods import groups

    if "=" in current:
        return _of_train([f"method={name}" for name in typed[:1]], current)
    group, separator, _ = current.partition("/")
    if separator:
        return _starting([f"{group}/{name}" for name in group_files(group)], current)
    return _starting([*group_files("method"), *groups(), "config"], current)


def _of_data(typed: Sequence[str], current: str) -> list[str]:
    from ltexp.data.__main__ import COMMANDS, _leaves, preparable
    from ltexp.data.commands.catalog import dataset_config, datasets
    from ltexp.data.commands.unpack import COLUMNS, SPLITS

    if not typed:
        return _starting(COMMANDS, current)
    if typed[0] == "unpack":  # after a name of the user's own
        return _keyed(current, ["source", "root", *COLUMNS, *SPLITS], {}) if typed[1:] else []
    named = [word for word in typed[1:] if word in datasets()]
    if not named:
        return _starting(preparable() if typed[0] == "prepare" else datasets(), current)
    own = {"prepare": ("source", "download"), "check": ("decode", "unreadable"), "cache": ("out", "workers")}
    keys = [key for key in _leaves(dataset_config(named[0])) if "_target_" not in key]
    return _keyed(current, ["root", *own.get(typed[0], ("out",)), *keys], {"decode": ("true", "false")})


def _of_evaluate(typed: Sequence[str], current: str) -> list[str]:
    from ltexp.config.path import group_files
    from ltexp.config.schema import ACCELERATORS, PRECISIONS
    from ltexp.evaluation.command_line import KEPT, KEYS
    from ltexp.evaluation.shifted import SHIFTS

    if not typed and not current:
        return []  # a run's folder
    values: dict[str, Iterable[str]] = {
        "classifier": group_files("classifier"),
        "stage": ("stage1", "stage2"),
        "accelerator": ACCELERATORS,
        "precision": PRECISIONS,
    }
    values |= dict.fromkeys(("dataset", "ood"), group_files("dataset"))
    values |= dict.fromkeys((*KEPT, "temperature", "adapt"), ("true", "false"))
    return _keyed(current, KEYS, values | {"shift": ["all", *(shift.name for shift in SHIFTS)]})


def _of_predict(typed: Sequence[str], current: str) -> list[str]:
    from ltexp.config.schema import ACCELERATORS
    from ltexp.predict import KEYS

    values: dict[str, Iterable[str]] = {"accelerator": ACCELERATORS, "stage": ("stage1", "stage2")}
    values["probabilities"] = ("true", "false")
    return _keyed(current, KEYS, values) if current else []  # a run's folder, and images


def _of_export(typed: Sequence[str], current: str) -> list[str]:
    from ltexp.export import KEYS

    return _keyed(current, KEYS, {"stage": ("stage1", "stage2")}) if typed or current else []


def _of_report(typed: Sequence[str], current: str) -> list[str]:
    from ltexp.report import figures
    from ltexp.report.__main__ import KEYS
    from ltexp.report.columns import COLUMNS
    from ltexp.report.formats import FORMATS

    if not typed and not current:
        return []  # a folder of runs
    kind = next((word.partition("=")[2] for word in typed if word.startswith("figure=")), "")
    own = figures.options(kind) if kind in figures.kinds() else ()
    values: dict[str, Iterable[str]] = {
        "figure": figures.kinds(),
        "format": ["terminal", "html", *FORMATS],
        "columns": COLUMNS,
        **dict.fromkeys(("stages", "posthoc", "test_shift"), ("true", "false")),
    }
    return _keyed(current, [*KEYS, *own], values)


def _of_reproduce(typed: Sequence[str], current: str) -> list[str]:
    from ltexp.config.path import group_files
    from ltexp.papers import all_cells, load_papers
    from ltexp.reproduce.__main__ import COMMANDS, KEYS

    command = typed[0] if typed and typed[0] in COMMANDS else ""
    key, separator, _ = current.partition("=")
    found = _starting(COMMANDS, current) if not typed else []
    values: dict[str, Iterable[str]] = {"paper": load_papers()} if separator else {}
    if separator and key == "table":
        values["table"] = {f"{cell.paper}/{cell.table}" for cell in all_cells()}
    for group in ("method", "dataset", "backbone"):
        values[group] = group_files(group)
    return [*found, *_keyed(current, [*KEYS[command], "figure"], values)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0; 2 for a wrong command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"-h", "--help"} & {*words[:1]}:
        print(folded((__doc__ or "").rstrip()))
        return 0
    if words[0] == "--candidates":
        try:
            print(*candidates(" ".join(words[1:])), sep="\n")
        except LtexpError:  # nobody sees a message while typing
            return 2
        return 0

    def action() -> int:
        if words[0] not in SCRIPTS:
            raise ConfigError(unknown_name("shell", words[0], SCRIPTS))
        print(SCRIPTS[words[0]].strip())
        return 0

    return status_of("ltexp completion", action)


if __name__ == "__main__":
    sys.exit(main())
