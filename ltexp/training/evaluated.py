"""What a Lightning module measures on other splits while it trains."""

import pytorch_lightning as pl

from ltexp.data.loader import Batch
from ltexp.evaluation.further import of_recalls
from ltexp.evaluation.metrics import Metrics, Top1
from ltexp.models.model import Model
from ltexp.training.mixing import Mixing
from ltexp.training.predict import Collector, logits_and_norm


class EvaluatedModule(pl.LightningModule):
    """Measures its model on the data module's evaluated splits, by Lightning's validation loop.

    Args:
        model: whose predictions are measured.
        mixing: which says how a batch is shown to the model that is asked.
        metrics: the rules of evaluations; None where there are none.

    Attributes:
        measured: of the last evaluation if it was in this epoch, in percent: `test_all`, `validation_few`, ..., and
            `validation_balanced`, the mean over classes; a group without classes is None.
        top1: of that evaluation, by split.
    """

    def __init__(self, model: Model, mixing: Mixing, metrics: Metrics | None) -> None:
        super().__init__()
        self.model, self.mixing, self.metrics = model, mixing, metrics
        self._collectors: dict[str, Collector] = {}
        self.forget_evaluation()

    def forget_evaluation(self) -> None:
        """What was measured is of an earlier epoch."""
        self.measured: dict[str, float | None] = {}
        self.top1: dict[str, Top1] = {}

    def on_validation_epoch_start(self) -> None:
        loaders = self.trainer.datamodule.evaluated  # type: ignore[attr-defined]
        limits = self.trainer.num_val_batches
        self._collectors = {
            name: Collector(loader.rows, whole=limit >= len(loader))
            for (name, loader), limit in zip(loaders.items(), limits, strict=True)
        }

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keeps what the model says of a batch of the split number `dataloader_idx`."""
        collector = list(self._collectors.values())[dataloader_idx]
        asked = self.mixing.examined(batch)
        loader = list(self.trainer.datamodule.evaluated.values())[dataloader_idx]  # type: ignore[attr-defined]
        answer = self.model.classify if loader.feeds_classifier else self.model
        collector.add(asked, logits_and_norm(answer(asked.inputs)))

    def on_validation_epoch_end(self) -> None:
        """Measures the predictions on each split; callbacks see them as `test_all`, `validation_few`, ..."""
        assert self.metrics is not None
        for split, collector in self._collectors.items():
            self.top1[split] = collector.top1(self.model.logit_scale)
            metrics, _ = self.metrics.of_top1(self.top1[split])
            self.measured |= {f"{split}_{key}": metrics[key] for key in ("all", "many", "medium", "few", "ece")}
            if split == "validation":  # which may be as long-tailed as the training set
                self.measured |= {f"{split}_balanced": of_recalls(metrics["per_class"])["balanced"]}
        self._collectors = {}
        known = {key: value for key, value in self.measured.items() if value is not None}
        self.log_dict(known, logger=False, sync_dist=True)  # equal on all processes
