"""The base of our own callbacks: the hooks of a step that they do not have cost it nothing."""

from typing import Any, ClassVar

from pytorch_lightning.callbacks import Callback


class Quiet(Callback):
    """A callback without the hooks of single steps, which a subclass defines where it has one.

    Lightning calls each hook of every callback in each step, whether it does anything or not; what is no function it
    leaves out.
    """

    on_train_batch_start: ClassVar[Any] = None
    on_train_batch_end: ClassVar[Any] = None
    on_before_backward: ClassVar[Any] = None
    on_after_backward: ClassVar[Any] = None
    on_before_optimizer_step: ClassVar[Any] = None
