"""The keywords that a `_target_` takes, read from its source without importing it.

Importing a loss would import torch, which takes seconds; a misspelt key should be answered at once.
"""

import ast
from functools import cache
from pathlib import Path

from ltexp.config.annotations import NODE
from ltexp.config.sources import is_ours, module_file, own_file

GIVEN = ("class_counts", "labels", "feature_dim", "num_classes", "map_channels", "root")  # to parts, by ltexp


def accepted_keywords(target: str) -> dict[str, str] | None:
    """The keywords that the class or function `target` takes, with their annotations as written.

    Args:
        target: a dotted path, e.g. `ltexp.losses.cross_entropy.CrossEntropy`.

    Returns:
        Annotation by name, or None when the source does not tell: a target of an installed package, one with
        `**kwargs`, or a user's class that extends what is not found. A class of ltexp's stands there as `node`: in a
        config it is a node with a `_target_`.
    """
    module, _, name = target.rpartition(".")
    definition = _definition(module, name)
    if definition is None:
        return None
    if isinstance(definition, ast.FunctionDef):
        return _arguments(module, definition)
    return _class_keywords(module, definition)


def _class_keywords(module: str, definition: ast.ClassDef) -> dict[str, str] | None:
    if not is_ours(module) and definition.decorator_list:
        return None  # a dataclass, say
    for statement in definition.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _arguments(module, statement)
    for base in definition.bases:
        if isinstance(base, ast.Name) and (found := _resolve(module, base.id)):
            home, parent = found
            if isinstance(parent, ast.ClassDef):
                return _class_keywords(home, parent)
        if not is_ours(module):
            return None
    return {}


def _arguments(module: str, function: ast.FunctionDef) -> dict[str, str] | None:
    arguments = function.args
    if arguments.kwarg is not None:
        return None
    named = [argument for argument in arguments.args + arguments.kwonlyargs if argument.arg != "self"]
    return {argument.arg: _annotation(module, argument.annotation) for argument in named}


def _annotation(module: str, annotation: ast.expr | None) -> str:
    """An annotation of `module` as written, with `node` for each class of ltexp's."""
    if annotation is None:
        return ""
    written = ast.parse(ast.unparse(annotation), mode="eval")
    for name in [part for part in ast.walk(written) if isinstance(part, ast.Name)]:
        found = _resolve(module, name.id)
        if found is not None and isinstance(found[1], ast.ClassDef):
            name.id = NODE
    return ast.unparse(written)


def _definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    for statement in _tree(module).body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == name:
            return statement
    return None


def _resolve(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """Where `name`, as used in `module`, is defined: there, or where `module` imports it from."""
    if here := _definition(module, name):
        return module, here
    for statement in _tree(module).body:
        if isinstance(statement, ast.ImportFrom) and any(alias.name == name for alias in statement.names):
            home = statement.module or ""
            if there := _definition(home, name):
                return home, there
    return None


@cache
def _tree(module: str) -> ast.Module:
    try:
        return ast.parse("" if (source := _source(module)) is None else source.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # of a user's file: whoever imports it says so
        return ast.Module(body=[], type_ignores=[])


def _source(module: str) -> Path | None:
    """The file of a module of ltexp's or of the user's; None: there is none, or it is of an installed package."""
    return module_file(module) if is_ours(module) else own_file(module)
