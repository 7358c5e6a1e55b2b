"""Keeps whole numbers out of averages of weights: a mean of counts, positions or labels is none of them."""

from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_swa_multi_avg_fn


def keep_whole_numbers(averaging: WeightAveraging) -> None:
    """Lets an average take buffers of integers and bools as they are.

    Lightning averages every buffer of a stage, those of its losses included: integers are rounded down, so that class
    counts would end below what they are, and bools cannot be subtracted.
    """
    settings = averaging._kwargs
    single, several = settings.get("avg_fn"), settings.get("multi_avg_fn")
    several = several or get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]

    def of_one(averaged: Tensor, own: Tensor, number: Tensor) -> Tensor:
        assert single is not None
        average: Tensor = single(averaged, own, number) if averaged.is_floating_point() else own
        return average

    def of_several(averaged: list[Tensor], own: list[Tensor], number: Tensor) -> None:  # all of one type
        if averaged[0].is_floating_point():
            several(averaged, own, number)
        else:
            for each, value in zip(averaged, own, strict=True):
                each.copy_(value)

    settings |= {"avg_fn": of_one} if single is not None else {"multi_avg_fn": of_several}
