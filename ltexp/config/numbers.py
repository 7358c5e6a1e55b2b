"""Numbers that no key of ours takes: those that are none, infinite or too large for a computer's whole number."""

import math
from collections.abc import Mapping
from typing import Any

from ltexp.config.require import require

MOST_EPOCHS = 10**6  # of a stage
MOST_DRAWN = 10**9  # samples of an epoch
MOST_LR = 1e30  # float32 holds it
MOST_BINS = 10**4  # of the calibration error
_LARGEST = 2**63 - 1
_MAY_BE_INFINITE = ("kappa",)  # of the mixing remix
_OURS = ("ltexp", "torch")  # other packages' classes judge their own numbers


def check_numbers(node: Any, path: str = "") -> None:
    """Refuses such numbers anywhere in a plain config.

    Raises:
        ConfigError: for the first, with its key.
    """
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str) and target.partition(".")[0] not in _OURS:
            return
        for key, child in node.items():
            check_numbers(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for child in node:
            check_numbers(child, path)
    elif isinstance(node, float):
        finite = math.isfinite(node) or (node > 0 and path.rpartition(".")[2] in _MAY_BE_INFINITE)
        require(finite, path, node, "a finite number")
    elif isinstance(node, int):
        require(abs(node) <= _LARGEST, path, node, "a whole number below 2**63")
