"""What a text tower says of class names, and the prompts that they are put into."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ltexp.config.require import require

TEMPLATES = ("a photo of a {}.",)  # CLIP's (Radford et al., ICML 2021) and LIFT's


@dataclass(frozen=True)
class ClassText:
    """The text features of C classes, and how features of images compare with them.

    Attributes:
        directions: (C, E) float32, of norm 1, where image and text meet.
        projection: (D, E) float32, brings a feature of the backbone there.
        scale: what cosines there are multiplied by to be logits.
    """

    directions: Tensor
    projection: Tensor
    scale: float


@dataclass(frozen=True)
class Prompts:
    """How class names become text.

    Args:
        templates: one or more, with `{}` where the name stands; a class's text features are averaged over them.
        names: of the classes in the order of their labels. None: the dataset's.

    Raises:
        ConfigError: for no template, one without `{}`, or names that are no words.
    """

    templates: Sequence[str] = TEMPLATES
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        words = not isinstance(self.templates, str) and len(self.templates) > 0
        fine = words and all(isinstance(text, str) and text.count("{}") == 1 for text in self.templates)
        require(fine, "templates", self.templates, "a list of texts with {} where the class's name stands")
        named = self.names is None or (
            not isinstance(self.names, str) and all(isinstance(name, str) and name.strip() for name in self.names)
        )
        require(named, "names", self.names, "a list of words, one a class, or null for the dataset's")

    def of(self, names: Sequence[str]) -> list[list[str]]:
        """The prompts of each class; underscores of its name are spaces, as in LIFT's code."""
        return [[text.replace("{}", name.replace("_", " ")) for text in self.templates] for name in names]
