"""Processor time of a training step of the comparators against one of `ce`: ResNet-32, CIFAR-100-LT, batches of 128.

It is processor time of this process, and the least of it over interleaved rounds, so that other work on the machine
counts for little. Of a method of several stages the step is the last one's.
"""

import time
from collections.abc import Mapping

import pytorch_lightning as pl

from benchmarks.training import BATCH, PRECISION, data_for, real
from ltexp.config import Config, to_config
from ltexp.config.composer import compose
from ltexp.launching.freeze import freeze
from ltexp.processes.worker import quieten

STEPS, ROUNDS = 4, 2
METHODS = {
    "ce": "stage1",
    "bbn": "stage1",
    "tde": "stage1",
    "remix_drw": "stage1",
    "disalign": "stage2",
    "balms": "stage2",
}


class Clock(pl.Callback):
    """Notes the processor time of each epoch."""

    seconds: list[float] = []  # noqa: RUF012 - of the process

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Starts the clock."""
        self.start = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
        """Stops it after the epoch's last step."""
        if trainer.is_last_batch:
            self.seconds.append(time.process_time() - self.start)


def configured(method: str, stage: str, *further: str) -> Config:
    """The run whose `stage` is timed: two epochs of STEPS steps, of which the first warms up."""
    words = [f"method={method}", "dataset=cifar100_lt", f"trainer.precision={PRECISION}", "trainer.progress=false"]
    words += ["logger=none", "evaluation.every=0", "+callbacks.clock._target_=benchmarks.steps.Clock", *further]
    words += [f"{stage}.epochs=2", f"{stage}.batch_size={BATCH}", f"{stage}.sampler.epoch_length={STEPS * BATCH}"]
    return to_config(freeze(compose(words)))


def main() -> None:
    """Prints the milliseconds of a step and their ratio to those of `ce`."""
    kinds = {name: (configured(name, stage), stage) for name, stage in METHODS.items()}
    kinds["tde, two branches joined"] = configured("tde", "stage1", "backbone.branches=2"), "stage1"
    # over the features of an untrained network its own rate diverges, which takes no other time
    kinds["oltr"] = configured("oltr", "stage2", "stage2.optimizer.lr=1.0e-4"), "stage2"
    # without its passes over whole splits between epochs
    alike = ("stage4.loss.self_paced=false", "stage4.loss.curriculum=false")
    kinds["lfme, a student of three experts"] = configured("lfme", "stage4", *alike), "stage4"
    kinds["m2m, from its start on"] = configured("m2m", "stage2", "stage2.step.start=0"), "stage2"
    compare(kinds)


def compare(kinds: Mapping[str, tuple[Config, str]]) -> None:
    """Times a step of each stage that is named beside its run, `ce` among them, and prints them."""
    quieten()
    data = data_for(kinds["ce"][0])
    fastest = dict.fromkeys(kinds, float("inf"))
    for _ in range(ROUNDS):
        for name, (config, stage) in kinds.items():
            Clock.seconds.clear()
            real(config, data, stage)
            fastest[name] = min(fastest[name], Clock.seconds[-1])
    print(f"ResNet-32, batch {BATCH}, {PRECISION}, the fastest of {ROUNDS} epochs of {STEPS} steps")
    for name, seconds in fastest.items():
        what = f"{name}, {kinds[name][1]}"
        print(f"  {what:<36}{1000 * seconds / STEPS:>8.1f} ms {seconds / fastest['ce']:>6.2f} of ce")


if __name__ == "__main__":
    main()
