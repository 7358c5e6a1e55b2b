"""A small text dataset in the form of AG's News: each class has words of its own among words that all share."""

import csv
from pathlib import Path

import numpy as np

NAMES = ("World", "Sports", "Business", "Sci/Tech")


def write_articles(root: Path, train: int = 40, test: int = 10) -> Path:
    """Writes `<root>/ag_news/{train,test}.csv` with `train` and `test` articles of each of the four classes."""
    folder = root / "ag_news"
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    for name, number in (("train", train), ("test", test)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            for position in range(4 * number):
                label = position % 4
                own = [f"w{label}x{draws.integers(20)}" for _ in range(8)]
                shared = [f"common{draws.integers(30)}" for _ in range(8)]
                writer.writerow([label + 1, " ".join(own[:3]), " ".join(draws.permutation(own[3:] + shared))])
    return root
