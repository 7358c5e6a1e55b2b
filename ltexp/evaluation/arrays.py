"""Arrays from whatever holds numbers, without importing torch."""

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]


def to_numpy(values: Any) -> npt.NDArray[Any]:
    """`values` as an array: an array, a sequence, or a tensor of any device and dtype, with or without gradient."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()  # numpy has no bfloat16
        values = values.numpy()
    return np.asarray(values)
