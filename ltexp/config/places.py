"""Keys that say where something lies: it may move, since what lies there is known by its contents."""

import re

from ltexp.config.schema import STAGE

# of a dataset; a run's data is known by its content hashes
OF_A_DATASET = (
    *(f"dataset.source.{key}" for key in ("folder", "train", "validation", "test", "classes")),
    *("dataset.cache", "dataset.leave_out"),
)
# files that a run starts from or learns from, where the value is a path; they are known by their checksums
_OF_FILES = re.compile(
    r"backbone\.(weights|vectors)|"
    rf"({STAGE.pattern})\.(checkpoint|teacher|teachers\.\w+|init\.\w+|modules\.\w+\.start)"
)


def is_moved(key: str, one: object, other: object) -> bool:
    """Whether two values of a key name two places of what may be the same thing."""
    if not (isinstance(one, str) and isinstance(other, str)):
        return False
    if key in OF_A_DATASET:
        return True
    # a frozen config has whole paths, and names such as `stage1`, `fresh` or IMAGENET1K_V1
    return _OF_FILES.fullmatch(key) is not None and one.startswith("/") and other.startswith("/")
