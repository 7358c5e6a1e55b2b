"""What a model's parts cost: parameters, and floating-point operations of one sample."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ltexp.models.model import Model

T = TypeVar("T")
Cost = dict[str, dict[str, int]]


def cost_of(model: Model, inputs: Tensor) -> Cost:
    """`parameters` and `flops` of each part that the model has: backbone, classifier, and its modules by name.

    Operations are those of a forward pass of convolutions and matrix products as torch counts them, two for each
    multiply-add; norms and activations are not counted.

    Args:
        model: on the device of `inputs`; left in the mode that it was in.
        inputs: (1, ...), what the backbone reads.
    """
    training = model.training
    model.eval()
    costs: Cost = {}

    def count(name: str, part: nn.Module, run: Callable[[], T]) -> T:
        # a compiled part would hide its operations
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            result = run()
        parameters = sum(parameter.numel() for parameter in part.parameters())
        costs[name] = {"parameters": parameters, "flops": counter.get_total_flops()}
        return result

    features: Tensor = count("backbone", model.backbone, lambda: model.backbone(inputs))
    count("classifier", model.classifier, lambda: model.classifier.output(features))
    if model.attached:
        given = {field for wired in model.wiring.values() for field in wired.gives}
        batch = {"inputs": inputs, "labels": torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)}
        with torch.no_grad():
            output = model(inputs, given, labels=batch["labels"])
        for name, module in model.attached.items():
            count(name, module, partial(model.run, name, output, batch))
    model.train(training)
    return costs
