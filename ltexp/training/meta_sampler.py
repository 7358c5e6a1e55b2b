"""A step whose outer variables are the rates that a batch's images are drawn by (BALMS, Ren et al., NeurIPS 2020)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config import StageConfig, TrainerConfig
from ltexp.config.require import require
from ltexp.counts import checked_class_counts, count_labels
from ltexp.distributed import gather_batch, own_rows
from ltexp.randomness import generator
from ltexp.training.bilevel import Adam, LookAhead, MetaStep, refuse_reweighting
from ltexp.training.steps import Closure


class MetaSampler(MetaStep, nn.Module):
    """As many draws as the batch has rows, with replacement among them, by rates of the classes that learn.

    An image of class c is drawn in proportion to σ(g_c); the batch's rows of a class stand for all its n_c training
    images, so a row weighs σ(g_c) n_c over the batch's rows of c, however it was loaded. Draws are by Gumbel-max: the
    step's objective is the mean over the drawn rows, and g takes a step of Adam against the gradient of the stream's
    cross-entropy after a virtual step on the same draws, which passes straight through them to the softmax of the
    perturbed weights. The virtual step has the optimizer's momentum and weight decay. The authors draw among all
    training images; a batch in which every class has rows comes near to that.

    Args:
        class_counts: n (C,) int64.
        stream, inner_lr: see `MetaStep`.
        outer_lr: of Adam. Default 0.01 (the authors' code).
        power: k of the start σ(g_c) ~ (n_c / N)^-k, where smallest and largest rate add up to 1. Default 0 (the
            authors' CIFAR): all 1/2, every image as likely as any other. 1: every class.

    Raises:
        ConfigError: a setting out of range.
    """

    rates: Tensor
    class_counts: Tensor
    as_optimizer = True

    def __init__(
        self,
        class_counts: Tensor,
        stream: str = "meta",
        inner_lr: float | None = None,
        outer_lr: float = 0.01,
        power: float = 0.0,
    ) -> None:
        super().__init__(stream, inner_lr=inner_lr)
        require(outer_lr >= 0, "outer_lr", outer_lr, "a number of 0 or more")
        require(0 <= power <= 1, "power", power, "a number from 0 to 1")
        counts = checked_class_counts(class_counts)
        self.register_buffer("class_counts", counts, persistent=False)
        self.register_buffer("rates", start_of(counts, power))
        self.descent = Adam(self.rates, outer_lr)

    def check(self, name: str, stage: StageConfig, trainer: TrainerConfig) -> None:
        """Refuses a second weighting by class as well."""
        super().check(name, stage, trainer)
        refuse_reweighting(name, stage)

    def look_and_step(self, ahead: LookAhead, closure: Closure) -> Tensor:
        """See `MetaStep`."""
        batch = ahead.batch
        labels, mine = gather_batch(batch.labels, batch.size), own_rows(batch.size, batch.labels.device)
        rates = self.rates.clone().requires_grad_()
        draws = generator("meta_sampler", ahead.stage.seed, batch.epoch, batch.step)
        rows, chosen = self.draw(labels, rates, draws)
        times = count_labels(rows, batch.size).float()[mine]  # a row drawn twice counts twice
        weights = times.clone().requires_grad_()
        slope = gather_batch(ahead.slope(ahead.objective(ahead.output(), weights), weights), batch.size)
        (gradient,) = torch.autograd.grad((chosen * slope[rows]).sum(), rates)
        self.descent.step(self.rates, gradient)
        return closure(sample_weights=times)

    def draw(self, labels: Tensor, rates: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """(rows (B,) that B draws choose of a batch, what the softmax of the perturbed weights gives each (B,)).

        Args:
            labels: (B,) of the whole batch.
            rates: g (C,).
            draws: on the CPU.
        """
        there = count_labels(labels, len(rates)).clamp_min(1)
        weights = (F.logsigmoid(rates) + (self.class_counts / there).log())[labels]
        uniform = torch.rand(len(labels), len(labels), generator=draws, dtype=torch.float64)
        gumbel = -(-uniform.log()).log()
        perturbed = weights + gumbel.to(weights, non_blocking=True)
        rows = perturbed.detach().argmax(1)
        return rows, perturbed.softmax(1).gather(1, rows[:, None]).squeeze(1)


def start_of(class_counts: Tensor, power: float) -> Tensor:
    """g (C,) whose σ(g_c) is in proportion to n_c^-power, smallest and largest adding up to 1."""
    shares = (class_counts / class_counts.sum()).double().pow(-power)
    return torch.logit(shares / (shares.min() + shares.max())).float()
