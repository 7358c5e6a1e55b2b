"""Jobs that race for one stage 1, of which some are killed; damaged entries of the stage cache; clocks that jump.

JOBS=8 is how many race, a quarter of them killed.
"""

import json
import os
import signal
import time
from pathlib import Path

from faults.commands import answer, equal, hooked, small, start, weights

DAMAGES = ("cut", "noise", "no checkpoint", "no entry", "other sums", "empty")


def main(folder: Path) -> list[str]:
    """Prints what was tried, and returns what went wrong."""
    return [*races(folder / "races"), *damaged(folder / "damaged"), *clocks(folder / "clocks")]


def races(folder: Path) -> list[str]:
    """All jobs ask for the same stage 1 at once; the killed ones leave its lock to the others."""
    folder.mkdir()
    jobs = int(os.environ.get("JOBS", 8))
    words = small("crt", ("stage1", "stage2"), epochs=8)
    processes = [start(folder / str(job), [*words, f"stage2.lr=0.0{job + 1}"]) for job in range(jobs)]
    deadline = time.monotonic() + 120
    while not any(folder.glob("*/stage1/resume.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    trains = [int(path.parts[-3]) for path in folder.glob("*/stage1/resume.ckpt")][:1]
    killed = [*trains, *(job for job in range(jobs) if job not in trains)][: max(1, jobs // 4)]
    for job in killed:  # the one that trains among them
        processes[job].send_signal(signal.SIGKILL)
    answers = [answer(process) for process in processes]
    faults = [
        f"job {job} of the race: status {status}, {err.strip()[-200:]}"
        for job, (status, _, err) in enumerate(answers)
        if job not in killed and status != 0
    ]
    if faults:
        return faults
    left = [job for job in range(jobs) if job not in killed]
    trained = [job for job in left if not _cached(folder / str(job))]
    stages = [
        {name: value for name, value in weights(folder / str(job)).items() if name.startswith("stage1")} for job in left
    ]
    if len(trained) != 1 or not all(equal(stages[0], other) for other in stages[1:]):
        faults.append(f"stage 1 was trained by {len(trained)} of the jobs, or is not the same in all")
    print(f"{jobs} jobs, {len(killed)} killed (the one that trained among them): trained by {len(trained)} of the rest")
    return faults


def _cached(folder: Path) -> bool:
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return bool(record["stages"][0]["cached"]) if record.get("stages") else False


def damaged(folder: Path) -> list[str]:
    """Each damage of an entry is noticed, the stage trained again and stored."""
    folder.mkdir()
    words = small("ce", ("stage1",), epochs=2)
    status, _, err = answer(start(folder / "whole", words))
    faults = [] if status == 0 else [f"without damage: {err.strip()[-200:]}"]
    for number, damage in enumerate(DAMAGES if not faults else ()):
        (entry,) = (path for path in (folder / "stage_cache").iterdir() if path.is_dir())
        _damage(entry, damage)
        status, out, err = answer(start(folder / str(number), words))
        if status != 0 or "is damaged; it is removed" not in out or _cached(folder / str(number)):
            faults.append(f"an entry with {damage}: status {status}, {err.strip()[-200:]}")
        elif not equal(weights(folder / "whole"), weights(folder / str(number))):
            faults.append(f"an entry with {damage}: other weights")
    print(f"{len(DAMAGES)} damages of a cached stage: {len(faults)} faults")
    return faults


def _damage(entry: Path, damage: str) -> None:
    checkpoint, about = entry / "checkpoint.pt", entry / "entry.json"
    content = checkpoint.read_bytes()
    if damage == "cut":
        checkpoint.write_bytes(content[: len(content) // 2])
    elif damage == "noise":
        checkpoint.write_bytes(content[:-2000] + bytes(1000) + content[-1000:])
    elif damage == "no checkpoint":
        checkpoint.unlink()
    elif damage == "no entry":
        about.unlink()
    elif damage == "other sums":
        about.write_text("{}")
    else:
        about.write_bytes(b"")


def clocks(folder: Path) -> list[str]:
    """A clock that jumps by up to a day between any two readings changes no weight and ends no run."""
    folder.mkdir()
    words = [*small("crt_mixup", ("stage1", "stage2"), epochs=3), "stage_cache.enabled=false"]
    status, _, err = answer(start(folder / "whole", words))
    faults = [] if status == 0 else [f"without a jump: {err.strip()[-200:]}"]
    for seed in range(2):
        status, _, err = answer(start(folder / str(seed), words, **hooked(FAULTS_CLOCK=str(seed))))
        if status != 0 or not equal(weights(folder / "whole"), weights(folder / str(seed))):
            faults.append(f"with clock {seed}: status {status}, {err.strip()[-300:]}")
    print(f"2 runs under a clock that jumps by up to a day: {len(faults)} faults")
    return faults
