"""β: how far each rare class trusts what it learns from frequent ones (GLAG, arXiv 2203.00452, Sec. 4.2)."""

import torch
from torch import Tensor

from ltexp.config.require import require


class Confidence:
    """β of each rare class, epoch by epoch; it grows where a class does better than an epoch ago, and shrinks.

    The paper says no more than that; the rule is ours: after epoch g >= 1, with q the class's mean probability of the
    true class on data that is not trained on, β moves by `step` up if q has risen by more than `threshold` since epoch
    g - 1, down if it has fallen by more, and stays in [0, most].

    Args:
        is_tail: (C,) bool, the classes that have a β.
        epochs: of the stage.
        start: β in the first two epochs.
        adaptive: whether β moves.
        step, threshold, most: see above.

    Attributes:
        beta: (epochs + 1, C) float32, what each epoch uses; 0 for the other classes.
        score: (epochs, C) float32, q after each epoch; NaN where none was measured.

    Raises:
        ConfigError: for a setting out of range.
    """

    def __init__(
        self,
        is_tail: Tensor,
        epochs: int,
        start: float = 0.6,
        adaptive: bool = True,
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
        self.is_tail, self.adaptive = is_tail.cpu(), adaptive
        self.step, self.threshold, self.most = step, threshold, most
        self.beta = torch.full((epochs + 1, len(is_tail)), float(start)) * self.is_tail
        self.score = torch.full((epochs, len(is_tail)), torch.nan)

    def update(self, epoch: int, score: Tensor) -> None:
        """Sets the β of the next epoch from q (C,) as measured after `epoch` (from 0); NaN for a class without data."""
        self.score[epoch] = score.cpu()
        beta = self.beta[epoch].clone()
        if self.adaptive and epoch >= 1:
            change = self.score[epoch] - self.score[epoch - 1]
            beta += self.step * ((change > self.threshold).float() - (change < -self.threshold).float())
            beta.clamp_(0, self.most)
        self.beta[epoch + 1] = torch.where(self.is_tail, beta, 0.0)

    def state(self) -> dict[str, Tensor]:
        """What a resumed stage needs."""
        return {"beta": self.beta, "score": self.score}

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state`."""
        self.beta.copy_(state["beta"])
        self.score.copy_(state["score"])
