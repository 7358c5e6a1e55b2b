"""A run keeps the memory that its tensors leave, in large pages, if the user has not chosen otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltexp.processes import memory
from ltexp.processes.memory import LARGE_PAGES, keep_memory

PAGE = 4096  # bytes; what PyTorch asks large pages for begins on one


@pytest.mark.parametrize(
    ("setting", "before", "after"),
    [
        ("always [madvise] never", None, "1"),
        ("[always] madvise never", None, "1"),
        ("always madvise [never]", None, None),
        (None, None, None),
        ("always [madvise] never", "0", "0"),
    ],
)
def test_pages_are_asked_for_where_the_system_gives_them(
    setting: str | None, before: str | None, after: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "SETTING", tmp_path / "enabled")
    if setting is not None:
        (tmp_path / "enabled").write_text(setting + "\n")
    monkeypatch.setenv(LARGE_PAGES, before or "")
    if before is None:
        monkeypatch.delenv(LARGE_PAGES)
    keep_memory()
    assert os.environ.get(LARGE_PAGES) == after


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch asks Linux alone")
@pytest.mark.parametrize("value", ["0", "1"])
def test_pytorch_reads_the_variable(value: str) -> None:
    """Otherwise a tensor begins behind the heap's own words, 64 bytes into a page."""
    text = f"import torch; print(*(torch.empty(n).data_ptr() % {PAGE} for n in range(2**20, 2**22, 2**18)))"
    ended = subprocess.run(
        [sys.executable, "-c", text], env=os.environ | {LARGE_PAGES: value}, capture_output=True, text=True, check=True
    )
    assert (set(ended.stdout.split()) == {"0"}) == (value == "1")


TOUCHED = """
import resource, torch
from ltexp.processes.memory import keep_memory
keep_memory()
faults = []
for _ in range(20):
    maps = [torch.ones(2**21) for _ in range(8)]
    del maps
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[9])  # the heap has found its size
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_that_a_tensor_leaves_is_taken_for_the_next() -> None:
    """Eight of 8 MB, more than glibc keeps by itself: 16,384 page faults each time."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_TUNABLES", "MALLOC_"))}

    def faults(**environment: str) -> int:
        command, chosen = [sys.executable, "-c", TOUCHED], clean | {LARGE_PAGES: "0"} | environment
        return int(subprocess.run(command, env=chosen, capture_output=True, text=True, check=True).stdout)

    assert faults() < 1_000
    assert faults(MALLOC_TRIM_THRESHOLD_="131072") > 100_000  # the user's own


def test_a_run_asks_before_its_first_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that ends for want of a config has set it by then, however it was started."""
    from ltexp.processes import worker

    monkeypatch.setattr(memory, "SETTING", tmp_path / "enabled")
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setenv(LARGE_PAGES, "")
    monkeypatch.delenv(LARGE_PAGES)
    monkeypatch.setattr(worker, "die_with_parent", lambda: None)
    monkeypatch.setattr(worker, "keep_log", lambda folder: sys.exit(3))
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path)])
    with pytest.raises(SystemExit):
        worker.main()
    assert os.environ[LARGE_PAGES] == "1"
