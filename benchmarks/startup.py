"""Start and end of a run on the digits, and start of a dataset as large as iNaturalist 2018: seconds and peak memory.

The run is `ltexp train method=ce` for one epoch, on one process and on four; times are the clock's, of the best of
ROUNDS, since other work on the machine only adds to them, and seconds of the processor are of all its processes.

Lists of 437,513 and 24,426 made-up lines over 8,142 classes are read and checked, classes counted, and the samplers of
both stages built and asked for an epoch, in a process of its own on one thread. The images themselves do not exist and
are not looked for: that is the check's part, which is timed on its own over empty files when asked for with FILES=1.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROUNDS = 5
FIRST_STEP, PROMPT = (
    3.0,
    0.5,
)  # wanted on idle cores: seconds from Enter to the first step, and from the result to the end
FOUR_PROCESSES = 10.0  # seconds from Enter to their first step
TRAIN, TEST, CLASSES, LARGEST, SMALLEST = 437_513, 24_426, 8142, 1000, 2
SECONDS, MEMORY = 5.0, 500.0  # wanted: at most so much; MiB


def class_sizes() -> list[int]:
    """Of the published extremes and sum, falling as iNaturalist's roughly do."""
    weight = 1 / (np.arange(CLASSES) + CLASSES / 60)
    sizes = np.clip(weight / weight.sum() * TRAIN, SMALLEST, LARGEST).astype(int)
    sizes[0], sizes[-1] = LARGEST, SMALLEST
    while (lack := TRAIN - int(sizes.sum())) != 0:
        free = np.flatnonzero((sizes < LARGEST) if lack > 0 else (sizes > SMALLEST))[1:-1]
        sizes[free[: abs(lack)]] += 1 if lack > 0 else -1
    return [int(size) for size in np.random.default_rng(0).permutation(sizes)]


def write_lists(folder: Path, files: bool = False) -> None:
    """The lists, in an order of no order; `files`: and the files, empty."""
    draws = np.random.default_rng(1)
    for name, sizes in (("train", class_sizes()), ("val", [TEST // CLASSES] * CLASSES)):
        labels = np.repeat(np.arange(CLASSES), sizes)
        names = draws.integers(0, 2**63, (len(labels), 2)).tolist()
        lines = [
            f"train_val2018/Plantae/{label}/{one:016x}{other:016x}.jpg {label}\n"
            for label, (one, other) in zip(labels.tolist(), names, strict=True)
        ]
        order = draws.permutation(len(lines)).tolist()
        (folder / f"iNaturalist18_{name}.txt").write_text("".join(lines[number] for number in order))
        for line in lines if files else []:
            file = folder / line.split()[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def measure(folder: str) -> None:
    """Prints seconds, those of them on the processor, MiB of the imports alone and MiB in the end."""
    import torch

    from ltexp.config.build import build
    from ltexp.data.commands.catalog import dataset_config
    from ltexp.data.files.dataset import long_tailed_files
    from ltexp.data.samplers import ClassAware, InstanceBalanced

    assert long_tailed_files  # imported already
    torch.set_num_threads(1)
    bare, start, busy = peak(), time.perf_counter(), time.process_time()
    config = dataset_config("inat18")
    config["source"]["folder"] = folder
    data = build(config, root=folder)
    labels, counts = torch.from_numpy(data.train.labels), torch.from_numpy(data.class_counts)
    drawn = [sampler(labels, counts).indices(0, 0, 1) for sampler in (InstanceBalanced, ClassAware)]
    assert sum(map(len, drawn)) == 2 * TRAIN
    print(time.perf_counter() - start, time.process_time() - busy, bare, peak())


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def run(folder: Path) -> tuple[float, float, float, float]:
    """What `measure` prints, of a process of its own."""
    command = [sys.executable, "-c", f"from benchmarks.startup import measure; measure({str(folder)!r})"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, busy, bare, most = map(float, answer.stdout.split())
    return seconds, busy, bare, most


def check_files(folder: Path) -> tuple[float, float]:
    """Seconds to find that every file of the lists is there, and those of them on the processor."""
    from ltexp.config.build import build
    from ltexp.data.commands.catalog import dataset_config
    from ltexp.data.commands.check import require_present

    config = dataset_config("inat18")
    config["source"]["folder"] = str(folder)
    data = build(config, root=folder)
    start, busy = time.perf_counter(), time.process_time()
    require_present(data)
    return time.perf_counter() - start, time.process_time() - busy


def time_run(folder: Path, *further: str) -> tuple[float, float, float, float]:
    """Seconds of a run to its first line, to its first step and from its result to its end; and of the processor."""
    settings = ("method=ce", "stage1.epochs=1", "trainer.accelerator=cpu", "stage_cache.enabled=false")
    command = [
        sys.executable,
        "-m",
        "ltexp",
        "train",
        *(*settings, *further),
        f"paths.outputs={folder}",
        f"hydra.run.dir={folder / 'run'}",
    ]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    marks: dict[str, float] = {}  # when a line with this first word came first
    for line in process.stdout:
        marks.setdefault(line.partition(" ")[0], time.perf_counter())
    assert process.wait() == 0
    end, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    stage = json.loads((folder / "run" / "record.json").read_text())["stages"][0]
    first_step = marks["stage1"] - stage["seconds"] - start
    processor = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return marks["ce:"] - start, first_step, end - marks[f"{folder / 'run'}:"], processor


def main() -> None:
    """Prints what a start takes, and with FILES=1 in the environment the check that all files exist."""
    rounds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(time_run(Path(folder)))
    line, step, prompt, processor = map(min, zip(*rounds, strict=True))
    print(f"from Enter to the first line, to the first step    {line:.2f} s, {step:.2f} s")
    print(f"  wanted on idle cores, to the first step          {FIRST_STEP:.2f} s")
    print(f"from the result to the prompt                      {prompt:.2f} s")
    print(f"  wanted on idle cores                             {PROMPT:.2f} s")
    print(f"processor, one epoch and the figures               {processor:.2f} s")
    rounds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(time_run(Path(folder), "trainer=ddp", "trainer.devices=4", "evaluation.figures=false"))
    _, step, _, processor = map(min, zip(*rounds, strict=True))
    print(f"four processes, from Enter to the first step       {step:.2f} s")
    print(f"  wanted on two idle cores                         {FOUR_PROCESSES:.2f} s")
    print(f"  processor of all, one epoch                      {processor:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        files = os.environ.get("FILES") == "1"
        write_lists(Path(folder), files)
        seconds, busy, bare, most = run(Path(folder))
        print(
            f"{TRAIN:,} + {TEST:,} lines read, counted, samplers built   {seconds:.2f} s, {busy:.2f} on the processor"
        )
        print(f"  wanted                                           {SECONDS:.2f} s")
        print(f"memory beyond the imports                          {most - bare:.0f} MiB")
        print(f"  wanted                                           {MEMORY:.0f} MiB")
        print(f"  in all, of which torch and other imports         {most:.0f} MiB, {bare:.0f} MiB")
        if files:
            seconds, busy = check_files(Path(folder))
            print(
                f"all {TRAIN + TEST:,} files found                          {seconds:.2f} s ({busy:.2f} of processor)"
            )


if __name__ == "__main__":
    main()
