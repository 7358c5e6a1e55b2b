"""What a sweep says: which of its jobs is running, and in the end what came of them."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from ltexp.errors import LtexpError
from ltexp.evaluation.record import read_record

DRY_RUN_VARIABLE = "LTEXP_DRY_RUN"  # environment variable: configs are shown and nothing is run


class SweepError(LtexpError):
    """Some jobs of a sweep failed, which have been named."""


def job_name(number: int, total: int) -> str:
    """What a sweep calls the job in its folder `number`: counted from 1, as people do."""
    return f"job {number + 1} of {total}"


def say(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


@dataclass(frozen=True)
class Outcome:
    """What came of a sweep's jobs.

    Attributes:
        first: the number of the first job.
        total: the number of jobs.
        common: overrides that all jobs have.
        started: the sweep, in seconds since 1970.
    """

    first: int
    total: int
    common: frozenset[str]
    started: float

    def tell(self, results: Sequence[JobReturn], summed_up: bool) -> int:
        """Names every job that failed with its one line, and counts the others; how many failed.

        Args:
            results: of the jobs, in order.
            summed_up: whether to say the counts; a failed job is always named.
        """
        failed = [is_failed(result) for result in results]
        if summed_up:
            say(self._summary(results, sum(failed)))
        for number, result in enumerate(results):
            if failed[number]:
                own = [text for text in result.overrides or () if text not in self.common]
                reason = str(result._return_value).strip().split("\n")[0]
                name = job_name(self.first + number, self.total)
                print(f"ltexp: {name} ({' '.join(own)}) failed: {reason}", file=sys.stderr, flush=True)
        return sum(failed)

    def _summary(self, results: Sequence[JobReturn], failed: int) -> str:
        # a job that was refused a folder leaves another's record there
        ended = [result for result in results if not is_failed(result)]
        records = [record for result in ended if (record := _record(result)) is not None]
        before = sum(datetime.fromisoformat(record["finished"]).timestamp() < int(self.started) for record in records)
        now = [
            record for record in records if datetime.fromisoformat(record["finished"]).timestamp() >= int(self.started)
        ]
        shared = sum(bool(stage.get("cached")) for record in now for stage in record["stages"])
        trained = sum(not stage.get("cached") for record in now for stage in record["stages"])
        counts = {"finished": len(now), "finished before": before, "failed": failed}
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        minutes, seconds = divmod(int(time.time() - self.started), 60)
        jobs = "1 job" if len(results) == 1 else f"{len(results)} jobs"
        return f"{jobs} in {minutes}:{seconds:02d}: {said}; {trained} stages trained, {shared} shared"


def is_failed(result: JobReturn) -> bool:
    """Whether a job ended with an error."""
    return bool(result.status == JobStatus.FAILED)


def _record(result: JobReturn) -> dict[str, Any] | None:
    """The record of a job's finished run; None where there is none."""
    try:
        record = read_record(Path(str(result.hydra_cfg.hydra.runtime.output_dir)))  # type: ignore[union-attr]
    except LtexpError:
        return None
    return record if record["status"] == "finished" else None
