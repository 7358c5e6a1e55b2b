"""A sweep of 20 ways to train stage 2, 3 seeds each, on the digits: what a job costs beside its training.

Five losses times four samplers on a frozen backbone (cRT): 60 jobs over three stages 1. Seconds are the clock's, from a
job's line to the next one's, less what its stages trained; those of the processor are the whole sweep's, training too.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

LOSSES = ("cross_entropy", "balanced_softmax", "logit_adjustment", "label_smoothing", "focal")
SAMPLERS = ("instance_balanced", "square_root", "class_balanced", "class_aware")
SEEDS = "0,1,2"
JOBS = len(LOSSES) * len(SAMPLERS) * 3
WANTED = 0.7  # seconds of a job beside its training, on idle cores


def run(folder: Path, figures: bool) -> tuple[float, float, list[float]]:
    """(seconds to the first job's line, seconds after the last job, seconds of each job) of the sweep in `folder`."""
    command = [sys.executable, "-m", "ltexp", "train", "-m", "method=crt", f"loss@stage2.loss={','.join(LOSSES)}"]
    command += [f"sampler@stage2.sampler={','.join(SAMPLERS)}", f"seed={SEEDS}", f"paths.outputs={folder}"]
    command += [
        f"hydra.sweep.dir={folder / 'grid'}",
        "trainer.accelerator=cpu",
        f"evaluation.figures={figures}".lower(),
    ]
    start = time.perf_counter()
    marks: list[float] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith((f"job {len(marks) + 1} of {JOBS}: ", f"{JOBS} jobs in ")):
            marks.append(time.perf_counter())
    assert process.wait() == 0
    end = time.perf_counter()
    return marks[0] - start, end - marks[-1], [later - earlier for earlier, later in pairwise(marks)]


def main() -> None:
    """Prints the sweep's times; with FIGURES=1 in the environment each job draws its figures as well."""
    figures = os.environ.get("FIGURES") == "1"
    with tempfile.TemporaryDirectory() as name:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        first, after, jobs = run(Path(name), figures)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        records = [json.loads((Path(name) / "grid" / str(n) / "record.json").read_text()) for n in range(JOBS)]
    trained = [[s for s in record["stages"] if not s["cached"]] for record in records]
    beside = [job - sum(s["seconds"] for s in stages) for job, stages in zip(jobs, trained, strict=True)]
    processor = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(f"{JOBS} jobs, {sum(s['name'] == 'stage1' for stages in trained for s in stages)} trainings of stage 1")
    print(f"  a job beside its training         {statistics.median(beside):.2f} s, at most {max(beside):.2f} s")
    print(f"    wanted on idle cores            {WANTED:.2f} s")
    print(f"  to the first job, after the last  {first:.2f} s, {after:.2f} s")
    print(f"  in all                            {first + sum(jobs) + after:.0f} s; {processor:.0f} s of processor")
    training = sum(s["seconds"] for stages in trained for s in stages)
    print(f"    of which training               {training:.0f} s")


if __name__ == "__main__":
    main()
