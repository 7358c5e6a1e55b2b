"""Which folder of a sweep each of its jobs has: of the number of the job, unless another job's run lies there."""

import json
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ltexp.config import Config, load, to_config
from ltexp.config.identity import other_keys, run_identity
from ltexp.errors import LtexpError
from ltexp.files import write_text
from ltexp.launching.start import without_resume
from ltexp.run_folder import CONFIG, FROZEN

_FOLDERS = "folders.json"  # beside the configs of the jobs: {number: folder} of those that have another


def place_jobs(sweep: Path, jobs: Sequence[dict[str, Any]]) -> dict[int, str]:
    """The jobs, by number, that have another folder than that of their number, and which.

    A job has the folder that holds its config already, if there is one; of the others each has that of its number, or
    where it is taken the next free one.

    Args:
        sweep: the sweep's folder.
        jobs: their frozen configs.
    """
    taken = {path.parent.name for path in sweep.glob(f"*/{CONFIG}") if path.parent.name.isdecimal()}
    places = {n: str(n) for n, job in enumerate(jobs) if str(n) in taken and _is_of(sweep / str(n), job)}
    if others := sorted(taken - set(places.values()), key=int):
        places |= _found(sweep, others, {n: to_config(job) for n, job in enumerate(jobs) if n not in places})
    for n in range(len(jobs)):
        if n not in places and str(n) not in taken:
            places[n] = str(n)
    free = (str(n) for n in count() if str(n) not in taken and str(n) not in places.values())
    for n in range(len(jobs)):
        if n not in places:
            places[n] = next(free)
    return {n: place for n, place in sorted(places.items()) if place != str(n)}


def _is_of(folder: Path, job: dict[str, Any]) -> bool:
    """Whether the folder's config is word by word the job's; comparing what they say takes far longer."""
    text = OmegaConf.to_yaml(OmegaConf.create(without_resume(job)))
    try:
        return (folder / CONFIG).read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def _found(sweep: Path, names: Iterable[str], jobs: dict[int, Config]) -> dict[int, str]:
    """The jobs whose run lies in one of the folders, and in which."""
    numbers = {run_identity(job): n for n, job in reversed(jobs.items())}
    found: dict[int, str] = {}
    for name in names:
        try:
            held = load(sweep / name / CONFIG)
        except LtexpError:  # damaged, or of something else: no job's, and no free place either
            continue
        own = jobs.get(int(name))
        if own is not None and int(name) not in found and not other_keys(held, own):
            found[int(name)] = name
        elif (number := numbers.get(run_identity(held))) is not None and number not in found:
            found[number] = name
    return found


def write_places(sweep: Path, places: dict[int, str]) -> None:
    """Keeps what `place_jobs` found for the launcher."""
    path = sweep / FROZEN / _FOLDERS
    if places:
        write_text(path, json.dumps(places))
    else:
        path.unlink(missing_ok=True)


def read_places(sweep: Path) -> dict[int, str]:
    """What `write_places` kept."""
    try:
        found = json.loads((sweep / FROZEN / _FOLDERS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {int(number): str(place) for number, place in found.items()}
