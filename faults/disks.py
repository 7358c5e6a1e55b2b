"""A disk that is full at each write of a run in turn, and folders that cannot be written.

WRITES=0 is how many of the writes are tried, evenly spread; 0: each.
"""

import os
import shutil
from pathlib import Path

from faults.commands import answer, equal, hooked, ltexp, one_line, small, start, weights


def main(folder: Path) -> list[str]:
    """Prints what was tried, and returns what ended in anything but a line, or could not be continued."""
    return [*full(folder / "full"), *read_only(folder / "read_only")]


def full(folder: Path) -> list[str]:
    """The disk is full at one write, and has space again for the same command with resume=true."""
    words = small("crt_mixup", ("stage1", "stage2"), epochs=2)
    count = folder / "whole.count"
    folder.mkdir()
    status, _, err = answer(start(folder / "whole" / "run", words, **hooked(FAULTS_COUNT=str(count))))
    if status != 0:
        return [f"without a fault: {err.strip()[-200:]}"]
    writes, wanted = count.stat().st_size, int(os.environ.get("WRITES", 0))
    tried = (
        range(1, writes + 1)
        if not wanted
        else sorted({1 + (writes - 1) * n // max(1, wanted - 1) for n in range(wanted)})
    )
    faults, ended = [], 0
    for number in tried:
        place = folder / str(number)
        hooks = hooked(FAULTS_COUNT=str(folder / f"{number}.count"), FAULTS_FULL_AT=str(number))
        status, _, err = answer(start(place / "run", words, **hooks))
        ended += status != 0
        if status != 0 and not one_line(err):
            faults.append(f"full at write {number}: {err.strip()[-300:]}")
        if status != 0:
            status, _, err = answer(start(place / "run", [*words, "resume=true"]))
        if status != 0 or not equal(weights(folder / "whole" / "run"), weights(place / "run")):
            faults.append(f"after a full disk at write {number}: status {status}, {err.strip()[-200:]}")
        shutil.rmtree(place, ignore_errors=True)
    print(
        f"full at {len(tried)} of {writes} writes: {ended} ended the run in a line, the rest went on; "
        f"{len(faults)} faults"
    )
    return faults


def read_only(folder: Path) -> list[str]:
    """Folders that cannot be written."""
    folder.mkdir()
    mine, theirs = folder / "mine", folder / "theirs"
    mine.mkdir()
    theirs.mkdir(mode=0o555)
    environment = {"HOME": str(mine), "XDG_CACHE_HOME": str(mine / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["train", *small("ce", ("stage1",), epochs=1)]
    out, run = f"paths.outputs={mine}", f"hydra.run.dir={mine / 'run'}"
    cases = {
        "outputs": ([*words, f"paths.outputs={theirs}", f"hydra.run.dir={theirs / 'run'}"], {}, 1),
        "stage cache": ([*words, out, run, f"stage_cache.dir={theirs / 'cache'}"], {}, None),
        "user's cache": ([*words, out, f"hydra.run.dir={mine / 'other'}"], {"XDG_CACHE_HOME": str(theirs)}, 0),
        "figure": (["data", "show", "digits_lt", f"out={theirs / 'x.png'}"], {}, 1),
    }
    faults = []
    for name, (typed, changed, wanted) in cases.items():
        status, _, err = answer(ltexp(typed, minds_modes=True, **(environment | changed)))
        said = "went on" if status == 0 else err.strip().splitlines()[-1] if err.strip() else "said nothing"
        print(f"read-only {name}: status {status}, {said}")
        if (wanted is not None and status != wanted) or "Traceback" in err or (status != 0 and not one_line(err)):
            faults.append(f"read-only {name}: status {status}: {err.strip()[-300:]}")
        if any(theirs.iterdir()):
            faults.append(f"read-only {name}: something was written")
    return faults
