"""CUDA: the levels of classes follow what a model tells, and an image is changed as its class's level says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from runs import composed, run_here, tiny
from torch import Tensor, nn

from ltexp.config import to_config
from ltexp.data.images.auto_augment import OPERATIONS, apply_operations, level_of
from ltexp.data.images.curriculum import CHOSEN, ClassCurriculum
from ltexp.data.images.loader import ImageLoader
from ltexp.data.types import ImageSplit
from ltexp.errors import ConfigError
from ltexp.randomness import generator
from ltexp.run_folder import LEVELS, read_metrics
from ltexp.training.composition import check_composition
from ltexp.training.curriculum import ClassLevels


def images(count: int = 6) -> Tensor:
    return torch.randint(256, (count, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_level_is_so_many_operations_of_that_strength() -> None:
    """Image by image, one operation after the other; level 0 is the crop alone."""
    augmentation, pixels = ClassCurriculum(padding=0, flip=False, cutout=0), images()
    draws = augmentation.draws(6, generator("test"))
    levels = torch.tensor([0, 1, 3, 10, 10, 2])
    found = augmentation.at(pixels, draws, levels, 10)
    assert torch.equal(found[0], pixels[0])
    for row, level in enumerate(levels.tolist()):
        image = pixels[row : row + 1]
        for step in range(level):
            name = OPERATIONS[int(draws["operation"][row, step])]
            strength = level_of(name, level, 30)
            mirrored = bool(draws["backwards"][row, step]) and name not in ("solarize", "posterize")
            strength = torch.tensor([-strength if mirrored else strength])
            image = apply_operations(image, draws["operation"][row, step : step + 1], strength)
        assert torch.equal(found[row], image[0])
    drawn = augmentation.draws(5000, generator("test"))["operation"]
    shares = torch.bincount(drawn.flatten(), minlength=len(OPERATIONS)) / drawn.numel()
    assert len(CHOSEN) == 14
    assert shares[0] == 0
    torch.testing.assert_close(shares[1:], torch.full((14,), 1 / 14), atol=0.005, rtol=0)


def test_an_image_of_a_batch_has_its_classs_level_or_none() -> None:
    augmentation, pixels = ClassCurriculum(padding=0, flip=False, cutout=0), images(400)
    augmentation.levels = torch.tensor([0, 4])
    labels = torch.arange(400) % 2
    draws = augmentation.draws_of(labels, generator("test"))
    plain = augmentation.at(pixels, draws, torch.zeros(400, dtype=torch.int64), 0)
    strong = augmentation.at(pixels, draws, torch.full((400,), 4), 4)
    changed = draws["changed"] & (labels == 1)
    assert torch.equal(augmentation(pixels, draws), torch.where(changed[:, None, None, None], strong, plain))
    assert float(draws["changed"].float().mean()) == pytest.approx(0.5, abs=0.08)
    assert torch.equal(plain, pixels)


class Telling(nn.Module):
    """Tells classes by a rule of the level that is tried; an image is its label, as `Plain` leaves it.

    Class 0 always, 1 never, 2 up to level 2; of class 3 six in ten, which is not more than the threshold, of class 4
    seven in ten.
    """

    level = 0
    tried: dict[tuple[int, int], int]

    def forward(self, inputs: Tensor) -> Any:
        labels = (inputs[:, 0, 0, 0] * 255).round().long()
        number = torch.stack([(labels[: row + 1] == label).sum() - 1 for row, label in enumerate(labels)]) % 10
        told = (labels == 0) | ((labels == 2) & (self.level <= 2)) | ((labels == 3) & (number < 6))
        told |= (labels == 4) & (number < 7)
        for label in labels.tolist():
            self.tried[self.level, label] = self.tried.get((self.level, label), 0) + 1
        answers = torch.where(told, labels, (labels + 1) % 5)
        return SimpleNamespace(logits=nn.functional.one_hot(answers, 5).float())


def levels_of(model: Telling) -> tuple[ClassLevels, ClassCurriculum]:
    """The levels of five classes of two images each."""
    labels = np.arange(10) % 5
    pixels = np.broadcast_to(labels[:, None, None, None], (10, 4, 4, 3)).astype(np.uint8)
    split = ImageSplit(images=np.ascontiguousarray(pixels), labels=labels.astype(np.int64), index=np.arange(10))

    class Plain(ClassCurriculum):
        def at(self, images: Tensor, draws: dict[str, Tensor], levels: Tensor, most: int) -> Tensor:
            assert set(levels.tolist()) == {most}
            model.level = most
            return images

    def loader(own: ImageSplit, **settings: Any) -> ImageLoader:
        return ImageLoader(own, device="cpu", channel_mean=(0.0, 0.0, 0.0), channel_std=(1.0, 1.0, 1.0), **settings)

    session = SimpleNamespace(
        evaluation_batch=512,
        config=SimpleNamespace(trainer=SimpleNamespace(precision="32-true")),
        num_classes=5,
        data=SimpleNamespace(train=split),
        loader=loader,
    )
    curriculum = Plain(padding=0)
    return ClassLevels(cast(Any, session), cast(Any, model), curriculum, 0), curriculum


def test_a_level_rises_while_every_lower_one_is_told_and_falls_else() -> None:
    model = Telling()
    levels, curriculum = levels_of(model)
    course = []
    for epoch in range(12):
        model.tried = {}
        before = curriculum.levels.tolist()
        levels.before_epoch(epoch)
        course.append(curriculum.levels.tolist())
        assert all(count == 10 * (level + 1) for (level, _), count in model.tried.items())
        assert {label for level, label in model.tried if level == 0} == set(range(5))
        assert {level for level, label in model.tried if label == 0} == set(range(before[0] + 1))
    by_class = list(map(list, zip(*course, strict=True)))
    assert by_class[0] == by_class[4] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10]
    assert by_class[1] == by_class[3] == [0] * 12
    assert by_class[2] == [1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2]
    assert model.training  # it is left as it was


def test_levels_are_tried_once_an_epoch_and_go_on_after_a_checkpoint() -> None:
    model = Telling()
    model.tried = {}
    levels, curriculum = levels_of(model)
    for epoch in (0, 1, 1):
        levels.before_epoch(epoch)
    assert curriculum.levels.tolist() == [2, 0, 2, 0, 2]
    again, other = levels_of(model)
    again.load_state(levels.state())
    assert other.levels.tolist() == [2, 0, 2, 0, 2]
    again.before_epoch(2)
    assert other.levels.tolist() == [3, 0, 3, 0, 3]
    assert again.history()[:2] == [{"epoch": 0, "class": 0, "level": 1}, {"epoch": 0, "class": 1, "level": 0}]
    assert len(again.history()) == 15


def test_a_run_leaves_its_levels(tmp_path: Path) -> None:
    """A threshold that anything passes, so that levels do rise."""
    words = ("stage1.augmentation.threshold=0.0", "stage1.augmentation.cutout=2", "evaluation.every=0")
    run_here(tmp_path / "run", *tiny("bsce_cuda", epochs=4), *words)
    rows = read_metrics(tmp_path / "run" / "stage1" / LEVELS)
    assert [(int(row["epoch"]), int(row["class"])) for row in rows] == [(e, c) for e in range(4) for c in range(4)]
    assert max(int(row["level"]) for row in rows) >= 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            (
                "augmentation@stage1.augmentation=two_views",
                "augmentation@stage1.augmentation.augmentations.second=class_curriculum",
            ),
            "is for its first, classified view",
        ),
        (
            ("augmentation@stage1.augmentation=class_curriculum", "stage1.augmentation.threshold=1"),
            "threshold=1: expected",
        ),
        (("augmentation@stage1.augmentation=class_curriculum", "stage1.augmentation.images=0"), "images=0: expected"),
        (
            ("augmentation@stage1.augmentation=class_curriculum", "stage1.augmentation.probability=0"),
            "above 0 and up to 1",
        ),
    ],
)
def test_what_it_cannot_work_with_is_refused(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        check_composition(to_config(composed("method=bsce", *words)))


def test_features_and_labels_that_are_no_classes_are_refused() -> None:
    for words, line in (
        (("method=glag", "augmentation@stage2.augmentation=class_curriculum"), "tries images"),
        (("method=crt", "pretraining=rotation", "augmentation@pretext.augmentation=class_curriculum"), "no classes"),
    ):
        with pytest.raises(ConfigError, match=line):
            check_composition(to_config(composed(*words)))
