"""AFG at iNaturalist's width: class statistics and one generation epoch, their memory, and cost against features.

8,142 classes as long-tailed as iNaturalist 2018, 2,048 dimensions, 100,000 real features and the first 100,352 rows of
the balanced epoch; once more with half the features. Each size runs in a process of its own, on one thread, whose peak
memory is its own. The real features are made up; all behind the backbone is the framework's own code.
"""

import resource
import subprocess
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn

from ltexp.data.loader import Loader
from ltexp.data.samplers import InstanceBalanced
from ltexp.data.types import Split
from ltexp.features.generator import AdaptiveFeatureGenerator
from ltexp.features.loader import FeatureLoader
from ltexp.features.statistics import ClassStatistics
from ltexp.models.classifier import Linear
from ltexp.models.model import Model

CLASSES, FEATURES, WIDTH, BATCH = 8142, 100_000, 2048, 512
LIMIT = 6.0  # GiB
EPOCH = 100_352  # rows that are shown, 196 batches, of all that would balance the classes


class Given(nn.Module):
    """Stands for a backbone: its images are features already."""

    feature_dim, map_channels = WIDTH, [WIDTH]

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


class MadeUp(Loader[Split]):
    """Features around a centre of each class, drawn anew for each batch and never held together."""

    def _inputs(self, index: Tensor, draws: dict[str, Tensor]) -> Tensor:
        labels = self._labels[index]
        noise = torch.rand(len(index), WIDTH, generator=torch.Generator().manual_seed(int(index[0])))
        return noise + (labels[:, None] * torch.arange(1, WIDTH + 1) % 97) / 97


def class_counts(classes: int, features: int) -> Tensor:
    """(C,), `features` together: the largest class some 15 times the mean (iNaturalist 2018: 19)."""
    weight = 1 / (torch.arange(classes, dtype=torch.float64) + classes / 81)
    counts = (2 + (features - 2 * classes) * weight / weight.sum()).long()
    counts[: features - int(counts.sum())] += 1  # what was cut off
    return counts


def measure(classes: int, features: int) -> None:
    """Prints the seconds of statistics, of an epoch's plan and of its batches up to the half and the end, and GiB."""
    torch.set_num_threads(1)
    counts = class_counts(classes, features)
    names = [str(label) for label in range(classes)]
    labels = torch.repeat_interleave(counts)
    settings = {"batch_size": BATCH, "device": "cpu"}
    images = MadeUp(Split(labels=labels.numpy(), index=np.arange(len(labels))), **settings)
    seconds = [0.0, 0.0, 0.0, 0.0]
    statistics = ClassStatistics(classes, WIDTH)
    for batch in images:
        start = time.perf_counter()
        statistics.update(batch.inputs, batch.labels)
        seconds[0] += time.perf_counter() - start
    source = AdaptiveFeatureGenerator(tail_at_most=int(counts.max()) // 2, adaptive=False)
    source.check(counts, names, False)
    everything = torch.cat([labels, source.start(counts, counts, 1)])
    loader = FeatureLoader(
        Split(labels=everything.numpy(), index=np.arange(len(everything))),
        images=images,
        scored=None,
        model=Model(Given(), Linear(WIDTH, classes)),  # type: ignore[arg-type]
        source=source,
        precision="32-true",
        class_names=names,
        sampler=InstanceBalanced(everything, torch.bincount(everything), epoch_length=EPOCH),
        **settings,
    )
    start = time.perf_counter()
    loader._prepare(0)
    seconds[1] = time.perf_counter() - start
    loader._prepare = lambda epoch: None  # type: ignore[method-assign]
    start, shown = time.perf_counter(), 0
    for batch in loader:
        shown += len(batch.labels)
        if shown - len(batch.labels) < EPOCH / 2 <= shown:
            seconds[2] = time.perf_counter() - start
    seconds[3] = time.perf_counter() - start
    assert shown == EPOCH
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(*(f"{value:.3f}" for value in seconds), f"{memory:.3f}", len(everything))


def main() -> None:
    """Prints the times and the memory of two sizes, and the ratios that say whether cost is linear."""
    found = []
    for features in (FEATURES // 2, FEATURES):
        command = [sys.executable, "-c", f"from benchmarks.generation import measure; measure({CLASSES}, {features})"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        statistics, plan, half, whole, memory, balanced = map(float, answer.stdout.split())
        found.append((statistics, plan))
        print(f"{CLASSES} classes x {WIDTH} dimensions x {features} features; balanced, they would be {balanced:,.0f}")
        print(f"  class statistics                         {statistics:>7.1f} s")
        print(f"  plan: features, statistics, neighbours   {plan:>7.1f} s")
        print(f"  generating {EPOCH} rows                 {whole:>7.1f} s, the first half {half:.1f} s")
        print(f"  peak memory                              {memory:>7.2f} GiB")
    once, twice = found
    print(f"peak memory / {LIMIT:g} GiB                         {memory / LIMIT:.2f}  (wanted: at most 1)")
    print(f"statistics, twice the features / once       {twice[0] / once[0]:.2f}  (linear: 2)")
    print(f"plan, twice the features / once             {twice[1] / once[1]:.2f}  (linear: 2)")
    print(f"generating, twice the rows / once           {whole / half:.2f}  (linear: 2)")


if __name__ == "__main__":
    main()
