"""With a GPU: the tests that need one, then milliseconds a step and images per second on it, as JSON and Markdown.

ResNet-32, batches of 128 of CIFAR-100-LT (or random images of its shape), stage by stage, in fp32, bf16 and fp16, with
steps that run and with steps that are replayed (`trainer.step_graph`). `make gpu` runs this; without a GPU it says so.
"""

import json
import os
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import ltexp
from benchmarks import side_by_side
from benchmarks.training import BATCH, data_for, real
from ltexp.config import to_config
from ltexp.config.composer import compose
from ltexp.data.types import LongTailedData
from ltexp.launching.freeze import freeze
from ltexp.processes.worker import quieten

FOLDER = Path(os.environ.get("LTEXP_GPU_OUTPUTS", "outputs"))  # gpu.json and gpu.md
STEPS, EPOCHS = 85, 4  # of CIFAR-100-LT at ratio 100; the first epoch warms up
STAGES = (("ce", "stage1"), ("mixup", "stage1"), ("mislas", "stage2"), ("gcl", "stage1"), ("paco", "stage1"))
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
MISLAS = {"stage1": 200, "stage2": 10}  # epochs of the paper on CIFAR


@dataclass
class Speed:
    """How fast a stage trains; `ms_per_step` and `images_per_second` are the median epoch's, or None with `error`."""

    method: str
    stage: str
    precision: str
    step_graph: bool
    ms_per_step: float | None = None
    images_per_second: float | None = None
    error: str = ""


@dataclass
class Tests:
    """What pytest said."""

    passed: int
    failed: list[str]
    skipped: int
    seconds: float


def main() -> None:
    """Tests, measures, writes; ends with 1 where a test failed."""
    if not torch.cuda.is_available():
        print("torch sees no GPU here: nothing is tried (docs/gpu.md)")
        return
    quieten()
    tests = run_tests()
    speeds = list(measured(STAGES, PRECISIONS, (False, True), STEPS, EPOCHS))
    write(FOLDER, tests, speeds, several_runs())
    if tests.failed:
        sys.exit(1)


def run_tests(marked: str = "cuda", *arguments: str) -> Tests:
    """Runs the tests that are `marked`, those that are slow too; the output is shown."""
    report, began = Path(FOLDER) / "gpu-tests.xml", time.perf_counter()
    report.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", marked, f"--junitxml={report}", *arguments]
    subprocess.run(command, check=False)
    cases = list(ElementTree.parse(report).iter("testcase"))
    report.unlink()
    failed = [
        f"{case.get('name')}" for case in cases if any(case.find(kind) is not None for kind in ("failure", "error"))
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Tests(len(cases) - len(failed) - skipped, failed, skipped, time.perf_counter() - began)


def measured(
    stages: Sequence[tuple[str, str]],
    precisions: Sequence[str],
    graphs: Sequence[bool],
    steps: int,
    epochs: int,
    *further: str,
) -> Iterable[Speed]:
    """Each stage at each precision, as it is printed."""
    data: LongTailedData | None = None
    for method, stage in stages:
        for precision in precisions:
            for graph in graphs:
                if graph and precision == "16-mixed":
                    continue
                speed = Speed(method, stage, precision, graph)
                words = [f"method={method}", "dataset=cifar100_lt", "logger=none", "evaluation.every=0", *further]
                words += [f"trainer.precision={precision}", f"trainer.step_graph={str(graph).lower()}"]
                words += [f"{stage}.epochs={epochs}", f"{stage}.batch_size={BATCH}", "trainer.progress=false"]
                words += [f"{stage}.sampler.epoch_length={steps * BATCH}"]
                config = to_config(freeze(compose(words)))
                data = data_for(config) if data is None else data
                try:
                    found = sorted(real(config, data, stage)[1:])
                    speed.images_per_second = found[len(found) // 2]
                    speed.ms_per_step = 1000 * BATCH / speed.images_per_second
                except Exception as error:  # the table says so, and the others are measured
                    speed.error = " ".join(f"{type(error).__name__}: {error}".split())
                print(
                    f"{method} {stage} {precision} step_graph={graph}: {speed.ms_per_step or speed.error}", flush=True
                )
                yield speed


def several_runs() -> str:
    """What runs that share the card train, or why that is not known."""
    try:
        found = side_by_side.told()
    except (subprocess.CalledProcessError, OSError) as error:  # the rest of the table is written
        found = f"runs side by side: {error}"
    print(found, flush=True)
    return found


def write(folder: Path, tests: Tests, speeds: Sequence[Speed], several: str) -> None:
    """Writes gpu.json and gpu.md.

    Args:
        several: of runs that share the card, in a sentence.
    """
    facts = {
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "ltexp": ltexp.__version__,
    }
    folder.mkdir(parents=True, exist_ok=True)
    content = {**facts, "tests": asdict(tests), "speeds": [asdict(speed) for speed in speeds], "several_runs": several}
    (folder / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "gpu.md").write_text("\n".join([*table(facts, tests, speeds), "", several]) + "\n")
    print(f"{folder}/gpu.json, {folder}/gpu.md")


def table(facts: dict[str, str | None], tests: Tests, speeds: Sequence[Speed]) -> Iterable[str]:
    """The lines of gpu.md."""
    yield ", ".join(f"{name} {value}" for name, value in facts.items())
    yield ""
    said = f"{tests.passed} tests passed, {len(tests.failed)} failed, {tests.skipped} skipped, {tests.seconds:.0f} s"
    yield said + "".join(f"\n- {name}" for name in tests.failed)
    yield ""
    yield "| method | stage | precision | steps | ms a step | images/s |"
    yield "| --- | --- | --- | --- | --: | --: |"
    for speed in speeds:
        steps = "replayed" if speed.step_graph else "run"
        ms = speed.error or f"{speed.ms_per_step:.2f}"
        rate = "" if speed.images_per_second is None else f"{speed.images_per_second:,.0f}"
        yield f"| {speed.method} | {speed.stage} | {speed.precision} | {steps} | {ms} | {rate} |"
    if (seconds := mislas_seconds(speeds)) is not None:
        yield ""
        epochs = " + ".join(map(str, MISLAS.values()))
        yield f"MiSLAS on CIFAR-100-LT, {epochs} epochs, its steps at the fastest: {seconds:.0f} s"


def mislas_seconds(speeds: Sequence[Speed]) -> float | None:
    """The seconds that the steps of MiSLAS' two stages take at the fastest settings; None where one has no figure."""
    total = 0.0
    for stage, method in (("stage1", "mixup"), ("stage2", "mislas")):
        own = [speed.ms_per_step for speed in speeds if (speed.method, speed.stage) == (method, stage)]
        times = [ms for ms in own if ms is not None]
        if not times:
            return None
        total += MISLAS[stage] * STEPS * min(times) / 1000
    return total


if __name__ == "__main__":
    main()
