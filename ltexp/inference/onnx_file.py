"""A trained model as an ONNX file that answers as the model does."""

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript import opset18
from torch import Tensor, nn

from ltexp.errors import ConfigError, LtexpError
from ltexp.files import atomic_write
from ltexp.inference.predictor import Predictor
from ltexp.models.model import Model

TOLERANCE = 1e-4  # of probabilities: other orders of float32 sums differ by about 1e-6
CHECKED = (1, 3)  # images at a time


class Exported(nn.Module):
    """Images in [0, 1] to logits and probabilities: the normalisation, the model, the scale of its logits.

    Args:
        model: in eval mode.
        mean, std: those of R, G and B.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, probabilities), (N, C) each, of images (N, 3, H, W)."""
        logits = self.model.logit_scale * self.model((images - self.mean) / self.std).logits
        return logits, logits.softmax(dim=1)


def write_onnx(predictor: Predictor, path: Path, size: int | None = None) -> tuple[float, int]:
    """Writes the file in one step, once it answers as the model does: (largest difference of probabilities, S).

    Args:
        predictor: on the CPU.
        path: of the file.
        size: S, the side of the images. Default: the run's own.

    Raises:
        ConfigError: if neither `size` nor the run says it.
        LtexpError: if the model cannot be exported, or the file answers otherwise.
    """
    side = size or predictor.transform.size
    if side is None:
        raise ConfigError("this run's record does not say how large its images are: give size=...")
    exported = Exported(predictor.model, predictor.transform.mean, predictor.transform.std).eval()
    draws = torch.Generator().manual_seed(0)
    samples = [torch.rand(count, 3, side, side, generator=draws) for count in CHECKED]
    program = _onnx(exported, samples[-1])
    entry = program.metadata_props.add()
    entry.key, entry.value = "classes", json.dumps(predictor.class_names)
    content = program.SerializeToString()
    difference = _difference(content, exported, samples)
    if not difference <= TOLERANCE:
        raise LtexpError(f"the exported model's probabilities differ by {difference:.2g} from the model's: not written")
    with atomic_write(path) as file:
        file.write(content)
    return difference, side


def _onnx(exported: Exported, sample: Tensor) -> onnx.ModelProto:
    batch = torch.export.Dim("N")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter's own, about its insides
            program = torch.onnx.export(
                exported,
                (sample,),
                input_names=["images"],
                output_names=["logits", "probabilities"],
                dynamic_shapes={"images": {0: batch}},
                custom_translation_table={torch.ops.aten._cdist_forward.default: _distances},
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever it stumbles over
        raise LtexpError(f"torch cannot export this model: {_reason(error)}") from error
    assert program is not None
    return program.model_proto


def _distances(x: Any, y: Any, p: float, compute_mode: int | None) -> Any:
    """`torch.cdist` of rows (N, D) and (C, D) with p = 2, for which the exporter knows no operation."""
    operations: Any = opset18  # whose annotations have tensors alone
    difference = operations.Sub(operations.Unsqueeze(x, [1]), operations.Unsqueeze(y, [0]))
    return operations.Sqrt(operations.ReduceSumSquare(difference, [2], keepdims=0))


def _reason(error: BaseException) -> str:
    """The first line of the error that the others followed from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]


def _difference(content: bytes, exported: Exported, samples: list[Tensor]) -> float:
    """The largest difference between the file's probabilities and the model's."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    largest = 0.0
    for sample in samples:
        try:
            _, probabilities = session.run(None, {"images": sample.numpy()})
        except Exception as error:  # onnxruntime's own kinds, one an error code
            raise LtexpError(
                f"the exported model does not take {len(sample)} images, not written: {_reason(error)}"
            ) from error
        with torch.no_grad():
            own = exported(sample)[1].numpy()
        largest = max(largest, float(np.abs(own - probabilities).max()))
    return largest
