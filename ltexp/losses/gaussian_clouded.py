"""Gaussian clouded logits (GCL): noise that lowers the cosines of rare classes in training."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require, require_choice
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.losses.margin_softmax import require_margin, subtract_at_target_
from ltexp.outputs import ModelOutput
from ltexp.randomness import generator

Cloud = Literal["logarithm", "fourth_root", "cube_root", "cosine"]
CLOUDS = ("logarithm", "fourth_root", "cube_root", "cosine")
CHUNK = 1 << 19  # draws looked up at a time: new memory for the indices of all of them would take as long again


def cloud_sizes(class_counts: Tensor, cloud: Cloud) -> Tensor:
    """(C,) float32 cloud sizes δ_c over their maximum: 0 at the largest class, 1 at the smallest, 0 if all are equal.

    Args:
        class_counts: (C,) int64.
        cloud: "logarithm", log n_max - log n (Eq. 5.9); "fourth_root" or "cube_root", n_max^p - n^p with p = 1/4 or
            1/3; or "cosine", cos(π/2 n / n_max) (Table 5.4).
    """
    n = class_counts.double()
    if cloud == "logarithm":
        sizes = n.max().log() - n.log()
    elif cloud == "cosine":  # as a sine: exactly 0 at the largest class
        sizes = (math.pi / 2 * (1 - n / n.max())).sin()
    else:
        root = 1 / 4 if cloud == "fourth_root" else 1 / 3
        sizes = n.max().pow(root) - n.pow(root)
    return (sizes / sizes.max() if sizes.max() > 0 else torch.zeros_like(n)).float()


def noise_quantiles() -> Tensor:
    """(65536,) float32 equally likely values of |ε|, ε ~ N(0, (1/3)^2) clamped to [-1, 1] (Sec. 5.4.1), ascending."""
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    normal: Tensor = torch.special.ndtri((1 + middles) / 2)
    return (normal / 3).clamp(max=1).float()


def cloud_noise(rows: int, columns: int, quantiles: Tensor, draws: torch.Generator) -> Tensor:
    """(rows, columns) independent draws from `quantiles` (65536,), on its device.

    Random bits that look up a value cost about half of normal draws on a CPU, where those take longer than the softmax.
    """
    count = rows * columns
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=quantiles.device)
    words.random_(-(1 << 63), None, generator=draws)  # any 64 bits: four draws each
    found, index = torch.empty(count, device=quantiles.device), words.view(torch.uint16)[:count]
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        torch.index_select(quantiles, 0, index[part].int(), out=found[part])
    return found.view(rows, columns)


class GaussianClouded(Loss):
    """GCL (Li Mengke's thesis, Ch. 5): cross-entropy of s * (cos_j - k |ε_ij| δ_j - m [j = y]) (Eqs. 5.9-5.12).

    ε is drawn for every sample and every class, as in the authors' code; the thesis writes one ε. So are k, m and
    the focal factor theirs, which the thesis does not mention. Prediction uses the plain cosines times s.

    A draw is keyed by ("gaussian_clouded", the stage's seed, epoch, step, call): a resumed run draws what an
    uninterrupted one would, and the two calls on a mixed batch draw apart. It covers the global batch, of which every
    process takes its rows. It is made on the logits' device, so another kind of device draws other numbers.

    Args:
        class_counts: (C,) int64. With equal counts there is no cloud.
        amplitude: k. Default 0.5 (the authors' code on CIFAR; 1 on the large datasets, and in the thesis).
        cloud: how δ depends on the class sizes (Table 5.4): "logarithm" (default), "fourth_root", "cube_root" or
            "cosine".
        margin: m. Default 0 (the authors' code in stage 1; 0.1 in stage 2).
        focal: exponent g of a factor (1 - p_y)^g on each sample's loss, p_y held constant. Default 0 (the authors'
            code in stage 1; 1 in stage 2).
        scale: s. Default 30 (the authors' code in stage 1; in stage 2, 20 on CIFAR and 15 on Places-LT).

    Raises:
        ConfigError: a negative amplitude or focal exponent, an unknown cloud, a margin out of range.
    """

    classifier = "cosine"
    clouds: Tensor
    quantiles: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        amplitude: float = 0.5,
        cloud: Cloud = "logarithm",
        margin: float = 0.0,
        focal: float = 0.0,
        scale: float = 30.0,
    ) -> None:
        super().__init__(class_counts, scale)
        for key, value in {"amplitude": amplitude, "focal": focal}.items():
            require(value >= 0, key, value, "a number of 0 or more")
        require_choice("cloud", cloud, CLOUDS)
        require_margin("margin", margin)
        self.margin, self.focal = margin, focal
        self.register_buffer("clouds", amplitude * cloud_sizes(class_counts, cloud), persistent=False)
        self.register_buffer("quantiles", noise_quantiles(), persistent=False)

    def noise(self, logits: Tensor, context: BatchContext) -> Tensor:
        """|ε| for these (B, C) logits: this process's rows of the global batch's draw, another one at each call."""
        key = ("gaussian_clouded", context.seed, context.epoch, context.step, context.call)
        size, draws = context.drawn_size(len(logits)), generator(*key, device=logits.device)
        return context.drawn_here(cloud_noise(size, logits.shape[1], self.quantiles, draws))

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        cosines = output.logits.float()
        logits = self.noise(cosines, context).mul_(-self.scale * self.clouds).add_(cosines, alpha=self.scale)
        if self.margin > 0:
            logits = subtract_at_target_(logits, target, logits.new_full(target.shape, self.scale * self.margin))
        losses = F.cross_entropy(logits, target, reduction="none")
        return losses if self.focal == 0 else losses * (1 - torch.exp(-losses.detach())).pow(self.focal)
