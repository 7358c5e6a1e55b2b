"""What every backbone offers: features for the classifier, and on request the maps of its blocks."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ltexp.config import FILES_OF_A_BACKBONE
from ltexp.config.locate import locate
from ltexp.config.require import within
from ltexp.models.class_text import ClassText

BESIDE_A_CALL = ("forward_maps", "forward_branch")  # ways into a network that `nn.Module.compile` leaves out


class Backbone(nn.Module):
    """Images to features. A subclass writes `forward_maps` and sets `feature_dim` and `map_channels`.

    Attributes:
        reads: the kind of data the backbone is for (`LongTailedData.kind`).
        feature_dim: D, the width of a feature; with experts, of each expert's.
        map_channels: the number of channels of each block's map, in the order of `forward_maps`.
        experts: E where its features are (B, E, D), of a network whose number of experts is fixed. Where a keyword of
            the constructor says it, that is called `experts`, and its value in the config counts.
        num_branches: how many last blocks the network has side by side; features and last maps are those of all, one
            after the other. Default 1.
        builds_without_data: whether its config node alone is enough to build it, so that it is tried before data is
            read, on torch's meta device.
        reads_text: whether it comes with a text tower, for classifiers that read class names (`class_text`).
        notes: what a run says of it before it uses it, one line each.
    """

    reads: ClassVar[str] = "images"
    builds_without_data: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    notes: Sequence[str] = ()
    feature_dim: int
    map_channels: list[int]
    experts: int | None = None
    num_branches: int = 1

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W)."""
        return self.forward_maps(images)[0]

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, D) and the map of each block, (B, map_channels[i], h_i, w_i), after its last ReLU."""
        raise NotImplementedError

    def forward_branch(self, images: Tensor, branch: int) -> tuple[Tensor, list[Tensor]]:
        """`forward_maps` through one of several branches alone, whose features count for all (`ltexp.models.branches`).

        Args:
            images: (B, 3, H, W).
            branch: its number, from 0.
        """
        raise NotImplementedError

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As `nn.Module.compile`, for a call and for the methods beside it; the state keeps its names."""
        super().compile(*args, **kwargs)
        for name in BESIDE_A_CALL:
            setattr(self, name, torch.compile(getattr(self, name), *args, **kwargs))

    def __getstate__(self) -> dict[str, Any]:
        # a copy is not compiled, as with any module: the compiled methods would run on the weights of the original
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name not in BESIDE_A_CALL}

    def check(self, inputs: Tensor) -> None:
        """Refuses, before training, samples that the backbone cannot read, such as images of another size.

        Args:
            inputs: (1, ...), one sample as batches hold it.

        Raises:
            ConfigError: saying what to choose instead.
        """

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses text that its text tower cannot read.

        Raises:
            ConfigError: naming the first such prompt.
        """
        raise NotImplementedError

    def class_text(self, prompts: Sequence[Sequence[str]]) -> ClassText:
        """What its text tower says of each class.

        Args:
            prompts: of each of C classes one or more.
        """
        raise NotImplementedError

    def frozen_parts(self) -> list[nn.Module]:
        """Parts that never learn as a whole: no stage takes them out of eval mode."""
        return []

    def frozen_parameters(self) -> list[nn.Parameter]:
        """What no stage lets learn. Default: all of the frozen parts."""
        return [parameter for part in self.frozen_parts() for parameter in part.parameters()]

    def in_file(self) -> set[str]:
        """Names of its state that a checkpoint leaves out: the file that it starts from holds them. Default: none."""
        return set()

    @classmethod
    def reads_file_again(cls, config: Mapping[str, Any]) -> bool:
        """Whether a backbone of this config node needs its files even where its state is loaded; see `in_file`."""
        return False


def without_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's config node without the files that it starts from, for one whose state is loaded anyway."""
    with within("backbone"):
        chosen = locate(config["_target_"])
    if (again := getattr(chosen, "reads_file_again", None)) and again(config):
        return dict(config)
    return {key: None if key in FILES_OF_A_BACKBONE else value for key, value in config.items()}
