"""A step whose outer variables are the covariances of the classes (MetaSAug, Li et al., CVPR 2021)."""

from typing import cast

from torch import Tensor

from ltexp.config import StageConfig, TrainerConfig
from ltexp.config.require import require
from ltexp.data.loader import Batch
from ltexp.distributed import sum_over_ranks
from ltexp.errors import ConfigError
from ltexp.models.class_covariance import ClassCovariance
from ltexp.names import unknown_name
from ltexp.training.bilevel import LookAhead, MetaStep
from ltexp.training.steps import Closure


class MetaCovariance(MetaStep):
    """The real step's covariances are the estimates less outer_lr times the gradient of the stream's cross-entropy.

    As in the authors' code the next step starts from the estimates again, which move by the batch's own features: what
    is learned holds for one step. Until `start` nothing is estimated.

    Args:
        stream, inner_lr: see `MetaStep`.
        start: default 0.8, epoch 160 of 200 (the authors' code).
        outer_lr: default 0.1 (the same).
        module: the stage's module that holds the estimates, a `ClassCovariance`.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        stream: str = "meta",
        start: float = 0.8,
        inner_lr: float | None = None,
        outer_lr: float = 0.1,
        module: str = "covariance",
    ) -> None:
        super().__init__(stream, start, inner_lr)
        require(outer_lr >= 0, "outer_lr", outer_lr, "a number of 0 or more")
        self.outer_lr, self.module = outer_lr, module

    def check(self, name: str, stage: StageConfig, trainer: TrainerConfig) -> None:
        """Refuses a stage without the module, or with a loss that reads it from another epoch on."""
        super().check(name, stage, trainer)
        if self.module not in stage.modules:
            known = [f"{name}.modules.{module}" for module in stage.modules]
            raise ConfigError(unknown_name("module that its step reads", f"{name}.modules.{self.module}", known))
        require(stage.loss.get("start") == self.start, "start", self.start, f"that of {name}.loss")

    def look_and_step(self, ahead: LookAhead, closure: Closure) -> Tensor:
        """See `MetaStep`."""
        estimates = cast(ClassCovariance, ahead.stage.model.attached[self.module])
        kept = estimates.covariance.clone()
        outer = kept.clone().requires_grad_()
        output = ahead.output({f"attached.{self.module}.covariance": outer})
        slope = sum_over_ranks(ahead.slope(ahead.objective(output), outer))
        estimates.covariance.copy_(kept - self.outer_lr * slope)
        loss = closure()
        estimates.covariance.copy_(kept)
        assert output.features is not None
        estimates.update(*own_features(output.features.detach(), ahead.batch))
        return loss


def own_features(features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Features (n, D) and labels (n,) of this process's rows; none where a row only stands in."""
    rows = len(features) if batch.share > 0 else 0
    return features[:rows].float(), batch.labels[:rows]
