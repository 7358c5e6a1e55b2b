"""What the record of a finished run says where it is less than a full one."""

from typing import Any

from ltexp.training.session import Session

TIME = "trainer.max_time"


def cut_short(session: Session, base: dict[str, Any], stages: list[dict[str, Any]], tested: int) -> dict[str, Any]:
    """Entries for a run that was out of time, or was tested on a part; none for any other.

    Args:
        session: of the run.
        base: the record before training, which knows of the batches that were left out.
        stages: the records of the stages.
        tested: test samples that were looked at.
    """
    found: dict[str, Any] = {}
    if any(TIME in stage.get("stopped_by", "").split(" or ") for stage in stages):
        limit = session.config.trainer.lightning["max_time"]
        found["partial"] = base.get("partial", {}) | {TIME: limit}
    if tested < (there := len(session.data.test)):
        found["tested"] = {session.data.kind: tested, "of": there}
    return found
