"""Experts as grouped convolutions against one after the other, and two views in one pass against a pass for each.

The last stages of RIDE's ResNet-32 (3 experts) and the whole ResNet-32, batches of 128, forward and backward: the least
of ROUNDS rounds of this process's time on the processor, in fp32 and in bf16. The grouped network has the same weights,
and its features are compared with those of the loop.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.models.cifar_resnet import BasicBlock, CifarResNet
from ltexp.models.experts import run_branches

EXPERTS, BATCH, ROUNDS = 3, 128, 3


class GroupedBlock(nn.Module):
    """The blocks of all experts at the same place as one; maps (B, E c, h, w) lie one expert after the other."""

    def __init__(self, blocks: list[BasicBlock]) -> None:
        super().__init__()
        self.stride, self.padding = blocks[0].stride, blocks[0].padding
        self.conv1, self.bn1 = joined_conv([b.conv1 for b in blocks]), joined_norm([b.bn1 for b in blocks])
        self.conv2, self.bn2 = joined_conv([b.conv2 for b in blocks]), joined_norm([b.bn2 for b in blocks])

    def forward(self, x: Tensor) -> Tensor:
        """As `BasicBlock`, of all experts."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            apart = shortcut.unflatten(1, (EXPERTS, -1))
            shortcut = F.pad(apart, (0, 0, 0, 0, self.padding, self.padding)).flatten(1, 2)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return F.relu(cast(Tensor, out + shortcut), inplace=True)


def joined_conv(convolutions: list[nn.Conv2d]) -> nn.Conv2d:
    """One convolution in groups, with the weights of all."""
    one = convolutions[0]
    inputs, outputs = (EXPERTS * width for width in (one.in_channels, one.out_channels))
    joined = nn.Conv2d(inputs, outputs, 3, one.stride, 1, groups=EXPERTS, bias=False)  # type: ignore[arg-type]
    with torch.no_grad():
        joined.weight.copy_(torch.cat([conv.weight for conv in convolutions]))
    return joined


def joined_norm(norms: list[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    """One batch norm over the channels of all."""
    return nn.BatchNorm2d(EXPERTS * norms[0].num_features)


def grouped_stages(branches: nn.ModuleList) -> nn.Sequential:
    """The stages of all experts' branches, block by block."""
    every = [[block for stage in cast(nn.ModuleList, b) for block in cast(nn.Sequential, stage)] for b in branches]
    return nn.Sequential(*(GroupedBlock(cast(list[BasicBlock], list(place))) for place in zip(*every, strict=True)))


def seconds(step: Callable[[], Tensor]) -> float:
    """Of the processor, for a pass forward and backward."""
    start = time.process_time()
    step().square().mean().backward()
    return time.process_time() - start


def main() -> None:
    """Prints the ratios."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = CifarResNet(32, experts=EXPERTS).to(memory_format=torch.channels_last)
    branches = cast(nn.ModuleList, network.branches)
    plain = CifarResNet(32).to(memory_format=torch.channels_last)
    stages = grouped_stages(branches).to(memory_format=torch.channels_last)
    layout = {"memory_format": torch.channels_last}
    shared = torch.rand(BATCH, 16, 32, 32).contiguous(**layout).requires_grad_()
    images = torch.rand(2 * BATCH, 3, 32, 32).contiguous(**layout)

    def loop() -> Tensor:
        return run_branches(shared, branches, maps=False)[0]

    def grouped() -> Tensor:
        return cast(Tensor, stages(shared.repeat(1, EXPERTS, 1, 1))).mean((2, 3)).unflatten(1, (EXPERTS, -1))

    kinds: dict[str, Callable[[], Tensor]] = {
        "loop": loop,
        "grouped": grouped,
        "two passes": lambda: torch.cat([plain(half) for half in images.chunk(2)]),
        "one pass": lambda: plain(images),
    }
    with torch.no_grad():
        apart = float((loop() - grouped()).abs().max())
    print(f"grouped and loop, largest difference of a feature   {apart:.1e}")
    for name in ("fp32", "bf16"):
        least = dict.fromkeys(kinds, float("inf"))
        for _ in range(ROUNDS):
            for kind, run in kinds.items():
                cast_to: AbstractContextManager[object] = nullcontext()
                if name == "bf16":
                    cast_to = torch.autocast("cpu", dtype=torch.bfloat16)
                with cast_to:
                    least[kind] = min(least[kind], seconds(run))
        print(f"{name}: {EXPERTS} experts, grouped / loop                     {least['grouped'] / least['loop']:.2f}")
        print(f"{name}: two views, one pass / two                   {least['one pass'] / least['two passes']:.2f}")


if __name__ == "__main__":
    main()
