"""The sweeps over the methods since 2021 compare what they say: equal epochs, or equal images through the network."""

import pytest
from choices import CONF, load
from hydra.utils import instantiate
from omegaconf import OmegaConf
from runs import composed

from ltexp.data.augmentation import Augmentation

EPOCHS = 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modern_epochs", "modern_images"])
def test_what_is_equal_in_each_sweep(name: str) -> None:
    jobs = OmegaConf.load(CONF / "sweep" / f"{name}.yaml").hydra.sweeper.jobs
    seen = set()
    for job in jobs:
        plain = composed(f"sweep={name}", *job, small=False)
        stage, choices = plain["stage1"], plain["choices"]
        augmentation: Augmentation = instantiate(stage["augmentation"])
        views = len(augmentation.views)
        assert stage["epochs"] == (EPOCHS if name == "modern_epochs" else round(EPOCHS / views))
        assert (choices["dataset"], plain["dataset"]["imbalance_ratio"]) == ("cifar100_lt", 100)
        assert choices["backbone"] == ("resnet32_independent" if choices["method"] == "ncl" else "resnet32")
        assert (plain["stage2"] is None) == (choices["method"] != "los")
        seen.add(choices["method"])
    assert len(seen) == len(jobs) == 11


def test_the_views_of_methods_are_counted() -> None:
    """The control: that three versions of an image are told from one."""
    assert [len(instantiate(load("augmentation", name)).views) for name in ("crop_flip", "two_views")] == [1, 2]
