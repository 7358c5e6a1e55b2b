"""β: how far each rare class trusts what it learns from frequent ones (GLAG, arXiv 2203.00452, Sec. 4.2)."""

import torch
from torch import Tensor

from ltexp.config.require import require, require_choice

REFERENCES = ("stage1", "last_epoch")


class Confidence:
    """β of each rare class, epoch by epoch; it grows where generated features do a class good, and shrinks.

    The paper says no more than that; the rule is ours: after each epoch, with q the class's mean probability of the
    true class on data that this stage does not train on, β moves by `step` up if q is above its reference by more than
    `threshold`, down if it is below by more, and stays in [0, most]. The reference is q of stage 1's own classifier
    on the same data, so that β grows where the class is better off than without generated features.

    Args:
        is_tail: (C,) bool, the classes that have a β.
        epochs: of the stage.
        start: β in the first epoch.
        adaptive: whether β moves.
        reference: `stage1` (default), or `last_epoch`: q an epoch ago, so that β first moves after the second epoch.
            Changes from epoch to epoch are mostly noise, and so is β then.
        step, threshold, most: see above.

    Attributes:
        beta: (epochs + 1, C) float32, what each epoch uses; 0 for the other classes.
        score: (epochs, C) float32, q after each epoch; NaN where none was measured.
        stage1_score: (C,) float32, q of stage 1's classifier; NaN until `set_reference`.

    Raises:
        ConfigError: for a setting out of range, or an unknown reference.
    """

    def __init__(
        self,
        is_tail: Tensor,
        epochs: int,
        start: float = 0.6,
        adaptive: bool = True,
        reference: str = "stage1",
        step: float = 0.05,
        threshold: float = 0.005,
        most: float = 0.9,
    ) -> None:
        require(0 <= most <= 1, "most_beta", most, "a number from 0 to 1")
        bound = f"most_beta={most}" if adaptive else "1"
        fits = 0 <= start <= (most if adaptive else 1)
        require(fits, "beta", start, f"a number from 0 to {bound}, for every class")
        require(step >= 0, "beta_step", step, "a number of 0 or more")
        require(threshold >= 0, "beta_threshold", threshold, "a number of 0 or more")
        require_choice("beta_reference", reference, REFERENCES)
        self.is_tail, self.adaptive, self.reference = is_tail.cpu(), adaptive, reference
        self.step, self.threshold, self.most = step, threshold, most
        self.beta = torch.full((epochs + 1, len(is_tail)), float(start)) * self.is_tail
        self.score = torch.full((epochs, len(is_tail)), torch.nan)
        self.stage1_score = torch.full((len(is_tail),), torch.nan)

    def set_reference(self, score: Tensor) -> None:
        """Takes q (C,) of stage 1's own classifier, before the first `update`; NaN for a class without data."""
        self.stage1_score.copy_(score)

    def update(self, epoch: int, score: Tensor) -> None:
        """Sets the β of the next epoch from q (C,) as measured after `epoch` (from 0); NaN for a class without data."""
        self.score[epoch] = score.cpu()
        beta = self.beta[epoch].clone()
        if self.adaptive and (self.reference == "stage1" or epoch >= 1):
            reference = self.stage1_score if self.reference == "stage1" else self.score[epoch - 1]
            change = self.score[epoch] - reference
            beta += self.step * ((change > self.threshold).float() - (change < -self.threshold).float())
            beta.clamp_(0, self.most)
        self.beta[epoch + 1] = torch.where(self.is_tail, beta, 0.0)

    def state(self) -> dict[str, Tensor]:
        """What a resumed stage needs."""
        return {"beta": self.beta, "score": self.score, "stage1_score": self.stage1_score}

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state`."""
        self.beta.copy_(state["beta"])
        self.score.copy_(state["score"])
        self.stage1_score.copy_(state["stage1_score"])
