"""Messages about names that do not exist, with the nearest that do."""

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line such as `unknown method 'mislass': did you mean 'mislas'?`, with all choices when they are few."""
    choices = sorted(set(known))
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f"unknown {kind} '{name}': did you mean '{near[0]}'?"
    if choices and len(choices) <= 30:
        return f"unknown {kind} '{name}': choose one of {', '.join(choices)}"
    return f"unknown {kind} '{name}'"
