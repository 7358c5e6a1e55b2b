"""What the campaigns share: small runs as commands, and what of them has to be equal."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

_CAPBSET_DROP = 24  # of prctl
HOOKS = Path(__file__).parent / "hooks"
PATIENCE = float(os.environ.get("PATIENCE", 900))  # seconds for a command that should take a few
SMALL = (
    *("dataset.num_classes=4", "dataset.max_per_class=24", "dataset.imbalance_ratio=6"),  # 24, 13, 7 and 4 images
    *("evaluation.many_shot_above=15", "evaluation.few_shot_below=8", "evaluation.every=0", "evaluation.figures=false"),
    *("trainer.accelerator=cpu", "trainer.progress=false", "logger=none"),
)


def small(method: str, stages: Sequence[str], epochs: int = 3) -> list[str]:
    """The command line of a run of `method` on 48 digits, `epochs` for each of the stages that it trains."""
    words = [f"method={method}", *SMALL]
    return words + [f"{name}.{key}" for name in stages for key in (f"epochs={epochs}", "batch_size=16")]


def start(folder: Path, words: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """`ltexp train` of a run in `folder`, whose outputs lie beside it."""
    places = (f"paths.outputs={folder.parent}", f"hydra.run.dir={folder}")
    return ltexp(["train", *words, *places], **environment)


def ltexp(words: Sequence[str], minds_modes: bool = False, **environment: str) -> subprocess.Popen[str]:
    """A command, its output captured; on one thread.

    Args:
        minds_modes: it cannot write where a file's mode forbids it, even if it is root's (Linux).
    """
    return subprocess.Popen(
        [sys.executable, "-m", "ltexp", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_drop_root_rights if minds_modes and os.geteuid() == 0 else None,
    )


def _drop_root_rights() -> None:
    """What is executed next has root's files but not its right to pass over their modes."""
    for capability in (1, 2, 3):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
        if ctypes.CDLL(None).prctl(_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            os._exit(125)


def answer(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(status, output, errors) of a command at its end; one that does not end is killed, which its status says."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    return process.returncode, out, err


def hooked(**environment: str) -> dict[str, str]:
    """An environment in which `hooks/sitecustomize.py` is at work in every process of the command."""
    return {"PYTHONPATH": os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")])} | environment


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the stages' checkpoints by name."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("stage*/checkpoint.pt")):
        content = torch.load(path, weights_only=True)
        parts = {part: content[part] for part in ("backbone", "classifier")}
        parts |= {name: module["state"] for name, module in content["modules"].items()}
        for part, state in parts.items():
            found |= {f"{path.parent.name}.{part}.{name}": value for name, value in state.items()}
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all bits are."""
    return one.keys() == other.keys() and bool(one) and all(torch.equal(one[name], other[name]) for name in one)


def one_line(err: str) -> bool:
    """Whether a command ended in words for a user: a line, and no traceback."""
    lines = [line for line in err.strip().splitlines() if line.startswith("ltexp")]
    return len(lines) >= 1 and "Traceback" not in err
