"""Files of other programs' self-supervised training as the start of a stage's backbone: MoCo's, SSP's and the like."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ltexp.errors import CheckpointError
from ltexp.models.pretrained import read_weights


def is_foreign(content: Any) -> bool:
    """Whether what a file holds are tensors or containers of them by name, and no checkpoint of a stage of ltexp's."""
    return isinstance(content, Mapping) and "schema" not in content


def read_backbone(path: Path, names: Collection[str], what: str) -> dict[str, Any]:
    """The backbone in a file, below whatever prefix it has there (`module.encoder_q.`, see `read_weights`).

    What a pre-training keeps beside it is left out: its projection head or classifier, key encoder, queue.

    Args:
        path: of the file.
        names: of the backbone's own state. That all are there is for who loads it to see.
        what: the key that names the file, for messages.

    Raises:
        CheckpointError: if the file holds none of them.
    """
    try:
        state = read_weights("", str(path), names)
    except CheckpointError as error:
        raise CheckpointError(f"{what}={path}: {error}") from None
    return {name: value for name, value in state.items() if name in names}
