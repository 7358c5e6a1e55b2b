"""Messages about names that do not exist, with the nearest that do."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` was probably meant to be, or None."""
    return next(iter(difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=0.5)), None)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line such as `unknown method 'mislass': did you mean 'mislas'?`, with all choices when they are few."""
    choices = sorted(set(known))
    if near := nearest(name, choices):
        return f"unknown {kind} '{name}': did you mean '{near}'?"
    if choices and len(choices) <= 30:
        return f"unknown {kind} '{name}': choose one of {', '.join(choices)}"
    return f"unknown {kind} '{name}'"
