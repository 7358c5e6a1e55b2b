"""The code of a user's own that a config names: where it lies, what it imports, and where in it an error arose."""

import ast
import hashlib
import importlib.util
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ltexp.config.locate import targets
from ltexp.config.schema import names_stage
from ltexp.config.sources import is_own, module_file, own_file
from ltexp.errors import ConfigError, LtexpError


def own_targets(node: Any, path: str = "") -> dict[str, str]:
    """The `_target_`s in a config that lie in a user's own files, by the dotted key of their node."""
    return {place: target for place, target in targets(node, path) if own_file(target.rpartition(".")[0]) is not None}


def own_code(node: Any) -> dict[str, str]:
    """Hashes of what a config's own parts are made of: of their modules and those that these import, and of files.

    Args:
        node: of a config. What ltexp, Python and installed packages have is left out: their versions tell them.

    Returns:
        By module, and by key for a file that a key of such a part names, such as `stage1.loss.matrix`.
    """
    found = {}
    for path, target in own_targets(node).items():
        for module in _reached(target.rpartition(".")[0]):
            found[module] = _hash(module_file(module))
        for key, value in _at(node, path).items():
            if isinstance(value, str) and key != "_target_" and Path(value).expanduser().is_file():
                found[f"{path}.{key}".lstrip(".")] = _hash(Path(value).expanduser())
    return dict(sorted(found.items()))


def code_of_run(plain: Mapping[str, Any]) -> dict[str, str]:
    """`own_code` of what a run's config trains, its stages, backbone and callbacks; its data has a hash of its own."""
    return own_code({key: plain[key] for key in plain if names_stage(key) or key in ("backbone", "callbacks")})


def changed_code(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The modules and keys of `own_code` that are not what they were."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def changed_since(record: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """What of the user's own code is not as a run's record has it, with commas between; empty: nothing."""
    return ", ".join(changed_code(record["code"], code_of_run(plain))) if "code" in record else ""


def place_of(error: BaseException) -> str:
    """Where in a user's own code an error arose, such as `my_loss.py, line 12, in per_sample`; empty: not there."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.suffix == ".py" and path.is_file() and is_own(path):
            return f"{path.name}, line {frame.lineno}, in {frame.name}"
    return ""


@contextmanager
def blamed(key: str, own: Mapping[str, str]) -> Iterator[None]:
    """Turns any other error of the block into one line that names own parts and the place in their code.

    Args:
        key: of what is at work, such as `stage1`.
        own: of `own_targets`; without any, the error is ltexp's and stays as it is.

    Raises:
        ConfigError: instead, `of_own_part`.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, LtexpError) or not own:
            raise
        first = next(iter(str(error).splitlines()), "")
        parts = ", ".join(f"{path} {target}" for path, target in own.items())
        place = place_of(error) or "outside of their code: look at what they give"
        refused = ConfigError(f"{key}: {type(error).__name__}: {first} ({place}; own parts: {parts})")
        refused.of_own_part = True
        raise refused from error


def _reached(module: str) -> list[str]:
    """The own modules that importing `module` runs: itself, its packages, and what all of these import."""
    found = [module]
    for each in found:  # which grows
        parents = [each.rpartition(".")[0]] if "." in each else []
        found += [other for other in (*parents, *_imports(each)) if other not in found and own_file(other)]
    return [each for each in found if own_file(each)]


@cache
def _imports(module: str) -> tuple[str, ...]:
    """The modules that a module's source names in its imports, and the names that may be modules of a package."""
    path = own_file(module)
    if path is None:
        return ()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: dict[str, None] = {}
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            names |= dict.fromkeys(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = statement.module or ""
            if statement.level:
                base = importlib.util.resolve_name("." * statement.level + base, package)
            names |= dict.fromkeys((base, *(f"{base}.{alias.name}" for alias in statement.names)))
    return tuple(names)


@cache
def _hash(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=10).hexdigest()


def _at(node: Any, path: str) -> Mapping[str, Any]:
    for key in path.split(".") if path else ():
        node = node[int(key)] if isinstance(node, list) else node[key]
    found: Mapping[str, Any] = node
    return found
