"""Runs that share one card (`launcher.jobs_per_gpu`), or this machine's cores, against one that has it alone.

ResNet-32 with batches of 128 of CIFAR-100-LT, or of the digits where that is not prepared. The rate counts the seconds
that the stages took, starts left out; NVIDIA's Multi-Process Service is used if it runs (docs/gpu.md).
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.training import BATCH, prepared
from ltexp.config import to_config
from ltexp.config.composer import compose
from ltexp.launching.freeze import freeze
from ltexp.processes.cores import usable_cores

RUNS, EPOCHS = 4, 40  # on a card; on a CPU as many runs as it has cores
WANTED = 3.0  # times the rate of one run, on a card that small networks do not fill


def seconds(runs: int, epochs: int, *words: str) -> float:
    """The median run's seconds in its stage, `runs` of them at a time.

    Args:
        epochs: of each run.
        words: further overrides, the dataset's and the backbone's among them.
    """
    threads = {} if torch.cuda.is_available() else {"OMP_NUM_THREADS": "1"}  # a core a run
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "ltexp", "train", "-m", "launcher=joblib", f"launcher.n_jobs={runs}"]
        command += [f"launcher.jobs_per_gpu={runs}", "method=ce", f"stage1.epochs={epochs}"]
        command += [f"stage1.batch_size={BATCH}", "evaluation.every=0", "evaluation.figures=false", *words]
        command += [f"seed={','.join(map(str, range(runs)))}", "stage_cache.enabled=false", "trainer.progress=false"]
        command.append(f"hydra.sweep.dir={name}")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | threads)
        records = [json.loads((Path(name) / str(run) / "record.json").read_text()) for run in range(runs)]
    return statistics.median(record["stages"][0]["seconds"] for record in records)


def rate(runs: int, epochs: int, *words: str) -> float:
    """How many times as much `runs` runs at a time train as one does."""
    return runs * seconds(1, epochs, *words) / seconds(runs, epochs, *words)


def dataset() -> str:
    """CIFAR-100-LT if it is prepared, else the digits."""
    config = to_config(freeze(compose(["dataset=cifar100_lt"])))
    return "digits_lt" if prepared(config) is None else "cifar100_lt"


def service() -> str:
    """Whether NVIDIA's Multi-Process Service runs, in words."""
    found = shutil.which("pgrep") and subprocess.run(["pgrep", "nvidia-cuda-mps"], capture_output=True).returncode == 0
    return "with MPS" if found else "without MPS"


def told() -> str:
    """The rate in a sentence; on a GPU with the one wanted."""
    name = dataset()
    if torch.cuda.is_available():
        found = rate(RUNS, EPOCHS, f"dataset={name}", "backbone=resnet32", "trainer=bf16")
        return f"{RUNS} runs on one card, {service()}, {name}: {found:.2f} times the rate of one (wanted {WANTED:g})"
    found = rate(runs := usable_cores(), 2, f"dataset={name}", "backbone=resnet32", "trainer.accelerator=cpu")
    return f"{runs} runs on {runs} cores, {name}: {found:.2f} times the rate of one"


def main() -> None:
    """Prints the rate."""
    print(told())


if __name__ == "__main__":
    main()
