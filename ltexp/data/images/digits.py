"""scikit-learn's handwritten digits: real images that come with the package, for the quickstart and the tests."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ltexp.data.types import Source, SourceArrays

TEST_PER_CLASS = 50
_TEST_SEED = 1797  # of the fixed choice of test images; any other would do, but it must never change


class Digits(Source):
    """1,797 images of 8x8 pixels in 10 classes of 174 to 183 (Alpaydin and Kaynak's test set, UCI).

    The set has no test part of its own: 50 images of each class are held out as one, always the same; the other 124 to
    133 of a class are the source of the long tail. The grey value fills all three channels.
    """

    def __init__(self) -> None: ...

    def inspect(self, root: Path) -> tuple[SourceArrays | None, list[str]]:
        """The digits, or one line if scikit-learn is not installed; `root` is not looked at."""
        table = _read_table()
        if table is None:
            return None, ["digits_lt needs scikit-learn: pip install scikit-learn"]
        labels = table[:, -1].astype(np.int64)
        grey = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # values 0..16 -> 0..255
        images = np.repeat(grey[..., None], 3, axis=3)
        draws = np.random.RandomState(_TEST_SEED)
        held_out = np.zeros(len(labels), dtype=bool)
        for label in range(10):
            held_out[draws.permutation(np.flatnonzero(labels == label))[:TEST_PER_CLASS]] = True
        names = tuple(str(label) for label in range(10))
        return SourceArrays(images[~held_out], labels[~held_out], images[held_out], labels[held_out], names), []


def _read_table() -> npt.NDArray[np.float64] | None:
    """(1797, 65): 64 pixels of 0..16 and the label; None without scikit-learn."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        return None
    # Reading the file that load_digits reads takes 0.1 s; importing sklearn.datasets for it takes over 1 s.
    file = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
