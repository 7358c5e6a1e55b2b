"""What the processes of a run send each other in a step, against what its gradients take.

Runs of `method=mixup` on the digits over gloo, on 2 and 4 processes, of two lengths: the difference of the bytes that
the loopback device counts, by step, is what a step sends. A ring sends 2 (n - 1) times the gradients' bytes in all. The
device counts other programs too: run it on a quiet machine, or in a network namespace of its own (`unshare -rn`, then
`ip link set lo up`). Linux only.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SHORT, LONG, BATCH, STEPS = 2, 22, 32, 10  # epochs; images of a batch; batches of an epoch
WANTED = 1.1  # times the gradients' bytes; headers of packets are a few hundredths


def loopback() -> int:
    """Bytes that the loopback device has received so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[0])
    raise OSError("no loopback device")


def run(folder: Path, processes: int, epochs: int) -> tuple[int, int]:
    """(bytes over the loopback device during a run, parameters of its model)."""
    words = [f"trainer.devices={processes}", f"stage1.epochs={epochs}", f"stage1.batch_size={BATCH}", "trainer=ddp"]
    words += ["method=mixup", "trainer.accelerator=cpu", "trainer.progress=false", "stage_cache.enabled=false"]
    words += [
        "evaluation.every=0",
        "evaluation.figures=false",
        f"paths.outputs={folder}",
        f"hydra.run.dir={folder}/run",
    ]
    before = loopback()
    subprocess.run([sys.executable, "-m", "ltexp", "train", *words], check=True, stdout=subprocess.DEVNULL)
    networks = json.loads((folder / "run" / "record.json").read_text())["stages"][0]["networks"]
    return loopback() - before, networks["backbone"]["parameters"] + networks["classifier"]["parameters"]


def main() -> None:
    """Prints bytes by step beside the gradients', for each number of processes."""
    with tempfile.TemporaryDirectory() as name:
        for processes in (2, 4):
            sent = {}
            for epochs in (SHORT, LONG):
                folder = Path(name) / f"{processes}_{epochs}"
                folder.mkdir()
                sent[epochs], parameters = run(folder, processes, epochs)
            step, gradients = (
                (sent[LONG] - sent[SHORT]) / (STEPS * (LONG - SHORT)),
                2 * (processes - 1) * 4 * parameters,
            )
            print(
                f"{processes} processes: {step / 1024:,.0f} KiB a step, gradients {gradients / 1024:,.0f} KiB, ", end=""
            )
            print(f"ratio {step / gradients:.2f} (wanted: at most {WANTED})", flush=True)


if __name__ == "__main__":
    main()
