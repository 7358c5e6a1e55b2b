"""The one check of class counts, and the effective number, shared by what is built from them."""

import torch
from torch import Tensor

from ltexp.errors import ConfigError


def checked_class_counts(class_counts: Tensor) -> Tensor:
    """`class_counts` as given, once it is sure to be usable.

    Args:
        class_counts: (C,) int64, training images of each class, in label order. Nothing needs them sorted.

    Raises:
        ConfigError: not an int64 tensor of shape (C,) with at least two classes, or a class without images.
    """
    if not isinstance(class_counts, Tensor) or class_counts.dtype != torch.int64 or class_counts.ndim != 1:
        got = (
            f"{class_counts.dtype} of shape {tuple(class_counts.shape)}"
            if isinstance(class_counts, Tensor)
            else type(class_counts).__name__
        )
        raise ConfigError(f"class_counts must be an int64 tensor of shape (C,), got {got}")
    if len(class_counts) < 2:
        raise ConfigError(f"class_counts has {len(class_counts)} class(es); recognition needs at least two")
    empty = (class_counts < 1).nonzero().flatten().tolist()
    if empty:
        names = ", ".join(str(c) for c in empty[:10]) + (", ..." if len(empty) > 10 else "")
        raise ConfigError(
            f"class_counts: no training images for class {names}; lower the imbalance ratio or leave the class out"
        )
    return class_counts


def count_labels(labels: Tensor, classes: int) -> Tensor:
    """int64 (C,): how often each of C classes is among int64 labels (n,), in any step of training.

    As `torch.bincount`, which on a GPU makes the host wait for the largest label.
    """
    return labels.new_zeros(classes).scatter_add_(0, labels, torch.ones_like(labels))


def class_shares(class_counts: Tensor) -> Tensor:
    """(C,) float64 π, each class's share of the training images."""
    return class_counts.double() / class_counts.sum()


def inverse_effective_number(class_counts: Tensor, beta: float | Tensor) -> Tensor:
    """(C,) float64 (1 - β) / (1 - β^n), one over the effective number of samples (Cui et al., CVPR 2019)."""
    beta = torch.as_tensor(beta, dtype=torch.float64)
    # expm1 keeps the digits that 1 - β^n loses when β is close to 1.
    return (1 - beta) / -torch.expm1(class_counts * beta.log())
