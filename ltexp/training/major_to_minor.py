"""M2m: a step that turns images of frequent classes into images of rare ones (Kim, Jeong and Shin, CVPR 2020)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from hydra.utils import get_class
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import functional as F

from ltexp.config import StageConfig, TrainerConfig
from ltexp.config.build import build
from ltexp.config.require import require
from ltexp.counts import checked_class_counts
from ltexp.data.augmentation import Augmentation
from ltexp.data.loader import Batch
from ltexp.distributed import gather_batch, own_rows
from ltexp.epochs import A_POINT, has_started, is_point
from ltexp.errors import ConfigError
from ltexp.models.model import Model
from ltexp.randomness import generator
from ltexp.training.mixing import Mixed, Mixture, blends
from ltexp.training.steps import Closure, Step, SteppedStage


class MajorToMinor(Step):
    """From `start` on, rows of rare classes are made of the batch's images of more frequent ones, then a standard step.

    A row of class k, n_k images of n_max in the largest class, is to be made with probability 1 - n_k / n_max. Its seed
    is one of the batch's images, of class c in proportion to p = 1 - β^max(0, n_c - n_k), which then stays with
    probability p. The seed is moved by noise and in `steps` steps down the gradient of
    CE(g(x), k) + λ f_c(x), g the stage's teacher, f_c the model's logit of the seed's class. It takes the row's place
    where g gives class k at least `gamma`; elsewhere the row stays as it is. The model is in eval mode meanwhile.

    Args:
        class_counts: n (C,) int64.
        channel_mean, channel_std: by which images were normalised, three each; the dataset's.
        start: when it begins: a fraction of the stage (below 1) or a whole epoch counted from 0. Default 0.8, epoch 160
            of 200 (the authors' code), as those below.
        beta: β in [0, 1). Default 0.999.
        gamma: γ. Default 0.9, of the command for CIFAR-10.
        weight: λ. Default 0.5.
        steps: of each image. Default 10.
        step_size: their length in the L2 norm, of pixels in [0, 1]. Default 0.1.
        noise: the length of the noise at the start, at most. Default 0.5; the authors' code has it of a channel of the
            whole batch, here it is an image's own.

    Raises:
        ConfigError: a setting out of range, or a dataset without images.
    """

    reads_teacher: ClassVar[bool] = True

    def __init__(
        self,
        class_counts: Tensor,
        channel_mean: Sequence[float] | None,
        channel_std: Sequence[float] | None,
        start: float = 0.8,
        beta: float = 0.999,
        gamma: float = 0.9,
        weight: float = 0.5,
        steps: int = 10,
        step_size: float = 0.1,
        noise: float = 0.5,
    ) -> None:
        if channel_mean is None or channel_std is None:
            raise ConfigError("M2m is for images and the dataset holds none: choose another step")
        require(is_point(start), "start", start, A_POINT)
        require(0 <= beta < 1, "beta", beta, "a number of 0 or more and below 1")
        require(0 <= gamma <= 1, "gamma", gamma, "a number from 0 to 1")
        require(weight >= 0, "weight", weight, "a number of 0 or more")
        require(steps >= 1, "steps", steps, "1 or more")
        require(step_size > 0, "step_size", step_size, "a number above 0")
        require(noise >= 0, "noise", noise, "a number of 0 or more")
        self.class_counts = checked_class_counts(class_counts)
        self.mean, self.std = (torch.tensor([*values]).view(-1, 1, 1) for values in (channel_mean, channel_std))
        self.start, self.beta, self.gamma, self.weight = start, beta, gamma, weight
        self.steps, self.step_size, self.noise = steps, step_size, noise

    def check(self, name: str, stage: StageConfig, trainer: TrainerConfig) -> None:
        """Refuses a stage without a teacher, or with other inputs than one version of each image."""
        has_started("start", self.start, 0, max(stage.epochs, 1))
        augmentation: Augmentation = build(stage.augmentation, path=f"{name}.augmentation")
        relabels = get_class(stage.mixing["_target_"]).num_classes is not None  # type: ignore[attr-defined]
        refused = {
            f"for a teacher: set {name}.teacher, to stage1 for example": stage.teacher is None,
            f"of images as they are: set mixing@{name}.mixing=none": blends(stage) or relabels,
            f"of one view: choose another augmentation@{name}.augmentation": len(augmentation.views) > 1,
            f"and no features: set features@{name}.features=none": bool(stage.features.get("_target_")),
        }
        for what in (what for what, there in refused.items() if there):
            raise ConfigError(f"{name}: its step makes images {what}")

    def __call__(self, stage: SteppedStage, optimizer: LightningOptimizer, batch: Batch, closure: Closure) -> Tensor:
        context = stage.context_of(batch)
        begun = has_started("start", self.start, context.epoch, context.max_epochs)
        mixed = self.translated(stage, batch) if begun else None
        optimizer.zero_grad()
        loss = closure(instead=mixed)
        optimizer.step()
        return loss

    def translated(self, stage: SteppedStage, batch: Batch) -> Mixed | None:
        """This process's rows with those that were made; None: all stay. Draws are of the whole batch."""
        assert stage.teacher is not None
        device = batch.labels.device
        draws = generator("major_to_minor", stage.seed, batch.epoch, batch.step)
        labels, images = gather_batch(batch.labels, batch.size), gather_batch(batch.inputs, batch.size)
        asked, seeds = self.draw(labels.cpu(), draws)
        noise = torch.rand(images.shape, generator=draws) - 0.5
        mine = own_rows(batch.size)
        rows = asked[mine].nonzero().squeeze(1)
        if len(rows) == 0:
            return None
        of_batch, rows = mine[rows], rows.to(device)
        sources, targets = seeds[of_batch].to(device), batch.labels[rows]
        noise = noise[of_batch].to(device)
        length = torch.linalg.vector_norm(noise, dim=(1, 2, 3), keepdim=True)
        noise = noise * (self.noise / length).clamp_max(1.0)
        start = (images[sources] * self.std.to(device) + self.mean.to(device) + noise).clamp(0, 1)
        made, kept = self.make(stage.model, stage.teacher.model, start, labels[sources], targets)
        inputs = batch.inputs.clone()
        inputs[rows[kept]] = made[kept].to(inputs)
        return Mixed(inputs, Mixture(batch.labels, batch.labels, 1.0))

    def draw(self, labels: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """(bool (B,): the rows to make, int64 (B,): each one's seed) of a whole batch with `labels` (B,)."""
        counts = self.class_counts[labels].double()
        wanted, chosen, accepted = torch.rand(3, len(labels), generator=draws, dtype=torch.float64)
        likely = 1 - self.beta ** (counts[None] - counts[:, None]).clamp_min(0)  # (B of a target, B of a seed)
        sums = likely.cumsum(1)
        found = torch.searchsorted(sums, (chosen * sums[:, -1])[:, None], right=True).clamp_max(len(labels) - 1)
        stays = accepted < likely.gather(1, found).squeeze(1)  # never of a row without any seed, whose p are all 0
        return (wanted >= counts / self.class_counts.max()) & stays, found.squeeze(1)

    def make(
        self, model: Model, teacher: Model, pixels: Tensor, sources: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(images (n, C, H, W) normalised, bool (n,): those that the teacher takes for their target).

        Args:
            model: f.
            teacher: g.
            pixels: (n, C, H, W) in [0, 1], where they start.
            sources: int64 (n,), the classes of the seeds.
            targets: int64 (n,), those that they are to be of.
        """
        mean, std = self.mean.to(pixels), self.std.to(pixels)
        training = model.training
        model.eval()
        for _ in range(self.steps):
            pixels = pixels.detach().requires_grad_()
            # clamped outside of what is differentiated: at 0 and 1 a clamp has no gradient
            inputs = (pixels - mean) / std
            theirs, own = teacher(inputs), model(inputs)
            goal = F.cross_entropy(theirs.logit_scale * theirs.logits.float(), targets, reduction="sum")
            goal = goal + self.weight * own.logits.float().gather(1, sources[:, None]).sum()
            (slope,) = torch.autograd.grad(goal, pixels)
            length = torch.linalg.vector_norm(slope, dim=(1, 2, 3), keepdim=True) + 1e-10
            pixels = (pixels.detach() - self.step_size * slope / length).clamp(0, 1)
        model.train(training)
        inputs = (pixels - mean) / std
        with torch.no_grad():
            theirs = teacher(inputs)
        sure = (theirs.logit_scale * theirs.logits.float()).softmax(1).gather(1, targets[:, None]).squeeze(1)
        return inputs, sure >= self.gamma
