"""Losses: one family a file, each a pure function beside a thin `torch.nn.Module`.

Every loss is built as `Loss(class_counts=n, **settings)` and called as `loss(logits, target)`, or as `loss(output,
target)` with a `ModelOutput` where it reads more than logits; see `ltexp.losses.base`. `ltexp.losses.LDAM` and all
other classes that `conf/loss/` names can be had from here; `dir(ltexp.losses)` lists them.
"""

from typing import Any

from ltexp.parts import classes, find


def __getattr__(name: str) -> Any:
    return find(__name__, "loss", name)


def __dir__() -> list[str]:
    return list(classes("loss"))
