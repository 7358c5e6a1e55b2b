"""Many-, medium- and few-shot classes, by how many training images a class has."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ltexp.config.require import require
from ltexp.evaluation.arrays import to_numpy

GROUPS = ("many", "medium", "few")


@dataclass(frozen=True)
class ShotRule:
    """The bounds of the three groups; the defaults are those of Liu et al. (CVPR 2019) and Kang et al. (ICLR 2020).

    Args:
        many_above: many-shot classes have more training images than this.
        few_below: few-shot classes have fewer; the others are medium-shot.
    """

    many_above: int = 100
    few_below: int = 20

    @classmethod
    def checked(cls, many_above: int, few_below: int) -> "ShotRule":
        """The rule with bounds that are settings.

        Raises:
            ConfigError: for bounds by which a class would be of two groups.
        """
        require(few_below <= many_above + 1, "few_below", few_below, f"at most many_above + 1 = {many_above + 1}")
        return cls(many_above, few_below)

    def empty(self, group: str) -> str:
        """What is wrong where no class is of a group, and what to do."""
        return (
            f"no class has {self.of_group(group)} training images: set evaluation.many_shot_above and few_shot_below "
            f"so that some are {group}-shot"
        )

    def of_group(self, group: str) -> str:
        """How many training images a class of a group has, in words."""
        medium = f"{self.few_below} to {self.many_above}"
        return {"many": f"more than {self.many_above}", "medium": medium, "few": f"fewer than {self.few_below}"}[group]

    @property
    def text(self) -> str:
        """The rule in words, for records and tables."""
        return f"many > {self.many_above} >= medium >= {self.few_below} > few"

    @classmethod
    def from_text(cls, text: str) -> "ShotRule | None":
        """The rule that a record names; None if it is not one of bounds."""
        found = re.fullmatch(r"many > (\d+) >= medium >= (\d+) > few", text)
        return cls(int(found[1]), int(found[2])) if found else None

    def groups(self, class_counts: Any) -> dict[str, npt.NDArray[np.bool_]]:
        """For each group which of the C classes belong to it, (C,) bool, by count and never by class index."""
        counts = to_numpy(class_counts)
        many, few = counts > self.many_above, counts < self.few_below
        return dict(zip(GROUPS, (many, ~many & ~few, few), strict=True))
