"""Whether a value of a config suits an annotation, read as text: numbers, texts, lists, mappings and nodes."""

import ast
from collections.abc import Mapping, Sequence

NODE = "node"  # in an annotation: what a node with a `_target_` is built to
_KINDS = {"int": int, "float": (int, float), "bool": bool, "str": str}
_LISTS = ("list", "tuple", "Sequence")
_MAPPINGS = ("dict", "Mapping")
_SAID = {"int": "whole numbers", "float": "numbers", "bool": "true or false", "str": "texts", NODE: "nodes"}


def fits(value: object, annotation: str) -> bool:
    """Whether a config's `value` suits an annotation; what it does not know, it does not judge."""
    return not annotation or _fits(value, _parsed(annotation))


def expected(annotation: str) -> str:
    """What to write for an annotation: `list[float] | None` is `a list of numbers, or null`."""
    alternatives = _alternatives(_parsed(annotation))
    if all(isinstance(one, ast.Constant) or _name(one) in _KINDS for one in alternatives):
        return annotation
    return ", or ".join(map(_said, alternatives))


def _parsed(annotation: str) -> ast.expr:
    return ast.parse(annotation, mode="eval").body


def _alternatives(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp):
        return [*_alternatives(node.left), *_alternatives(node.right)]
    return [node]


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _fits(value: object, node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return any(_fits(value, one) for one in _alternatives(node))
    if isinstance(node, ast.Constant):
        return value is None if node.value is None else True
    if isinstance(node, ast.Subscript):
        return _fits_parts(value, _name(node.value), node.slice)
    name = _name(node)
    if name in _KINDS:
        return isinstance(value, _KINDS[name]) and (name == "bool" or not isinstance(value, bool))  # type: ignore[arg-type]
    return _is_node(value) if name == NODE else True


def _fits_parts(value: object, name: str, parts: ast.expr) -> bool:
    if name in _MAPPINGS:
        return isinstance(value, Mapping)
    if name not in _LISTS:
        return True
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    each = parts.elts if isinstance(parts, ast.Tuple) else [parts]
    if name == "tuple" and not _is_endless(each):
        return len(value) == len(each) and all(map(_fits, value, each))
    return all(_fits(one, each[0]) for one in value)


def _is_endless(each: list[ast.expr]) -> bool:
    """Whether a tuple's parts are those of `tuple[float, ...]`."""
    return isinstance(each[-1], ast.Constant) and each[-1].value is Ellipsis


def _is_node(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("_target_"), str)


def _said(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return "null" if node.value is None else str(node.value)
    if not isinstance(node, ast.Subscript):
        return {"float": "a number", "int": "a whole number", "str": "a text", NODE: "a node with a _target_"}.get(
            _name(node), ast.unparse(node)
        )
    name, parts = _name(node.value), node.slice
    if name in _MAPPINGS:
        return "a node of keys"
    if name not in _LISTS:
        return ast.unparse(node)
    each = parts.elts if isinstance(parts, ast.Tuple) else [parts]
    number = "" if name != "tuple" or _is_endless(each) else f"{len(each)} "
    return f"a list of {number}{_SAID.get(_name(each[0]), 'values')}"
