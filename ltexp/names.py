"""Messages about names that do not exist, with the nearest that do."""

import difflib
import math
from collections.abc import Iterable

# words of the field's, of Lightning's and of published codes, as `plain` has them: what ltexp calls the same
ALIASES = {
    "accumulategradbatches": ("trainer.accumulate",),
    "alpha": ("stage1.mixing.alpha",),
    "arch": ("backbone",),
    "batchsize": ("stage1.batch_size",),
    "bs": ("stage1.batch_size",),
    "checkvaleverynepoch": ("evaluation.every",),
    "criterion": ("loss@stage1.loss",),
    "data": ("dataset",),
    "datadir": ("paths.data",),
    "dataroot": ("paths.data",),
    "device": ("trainer.accelerator",),
    "devices": ("trainer.devices",),
    "epoch": ("stage1.epochs",),
    "epochs": ("stage1.epochs",),
    "gpu": ("trainer.devices",),
    "gpus": ("trainer.devices",),
    "gradientclipval": ("trainer.gradient_clip_val",),
    "imbfactor": ("dataset.imbalance_ratio",),
    "imbratio": ("dataset.imbalance_ratio",),
    "imbalancefactor": ("dataset.imbalance_ratio",),
    "imbalanceratio": ("dataset.imbalance_ratio",),
    "imbtype": ("dataset.imbalance",),
    "learningrate": ("stage1.optimizer.lr",),
    "loss": ("loss@stage1.loss",),
    "losstype": ("loss@stage1.loss",),
    "lr": ("stage1.optimizer.lr",),
    "maxepochs": ("stage1.epochs",),
    "mixup": ("mixing@stage1.mixing",),
    "model": ("backbone",),
    "momentum": ("stage1.optimizer.momentum",),
    "network": ("backbone",),
    "numclasses": ("dataset.num_classes",),
    "numepochs": ("stage1.epochs",),
    "numnodes": ("trainer.num_nodes",),
    "numworkers": ("dataset.workers",),
    "optimizer": ("optimizer@stage1.optimizer",),
    "outputdir": ("paths.outputs",),
    "precision": ("trainer.precision",),
    "ratio": ("dataset.imbalance_ratio",),
    "root": ("paths.data",),
    "sampler": ("sampler@stage1.sampler",),
    "savedir": ("paths.outputs",),
    "scheduler": ("schedule@stage1.schedule",),
    "schedule": ("schedule@stage1.schedule",),
    "trainrule": ("reweighting@stage1.reweighting",),
    "wd": ("stage1.optimizer.weight_decay",),
    "weightdecay": ("stage1.optimizer.weight_decay",),
    "workers": ("dataset.workers",),
    # methods and losses
    "balancedsoftmax": ("balanced_softmax", "bsce"),
    "crossentropy": ("cross_entropy", "ce"),
    "erm": ("ce",),
    "crossentropyloss": ("cross_entropy", "ce"),
    "decoupling": ("crt",),
    "drw": ("deferred", "ce_drw"),
    "logitadjust": ("logit_adjustment", "la"),
    "logitadjustment": ("logit_adjustment", "la"),
    "taunormalization": ("tau_norm",),
    "ride": ("ride_3",),
    "inaturalist": ("inat18",),
    "inaturalist2018": ("inat18",),
}


def plain(name: str) -> str:
    """A name as it is compared: without case, hyphens, underscores and spaces."""
    return "".join(sign for sign in name.lower() if sign not in "-_ ")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` was probably meant to be, or None.

    In this order: one that differs by case, hyphens and underscores alone; what the field calls so (`ALIASES`); one
    that is spelt much the same; the only one that begins so.
    """
    choices = sorted(set(known))
    if same := [choice for choice in choices if plain(choice) == plain(name)]:
        return same[0]
    if (meant := alias_of(name, choices)) is not None:
        return meant
    if near := difflib.get_close_matches(name, choices, n=1, cutoff=0.6):
        return near[0]
    begun = [choice for choice in choices if len(name) > 2 and plain(choice).startswith(plain(name))]
    return begun[0] if len(begun) == 1 else None


def near_misses(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` is spelt almost like: a slip of a letter or two, or in another order of words."""
    words = {" ".join(sorted(own.split("_"))): own for own in known}
    near = difflib.get_close_matches(" ".join(sorted(name.split("_"))), words, n=1, cutoff=0.85)
    return words[near[0]] if near else None


def alias_of(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that another word, `lr` or `stage2.max_epochs`, stands for in the field; None: none."""
    place, _, word = name.rpartition(".")
    stage = place.partition(".")[0] if place.startswith(("stage", "pretext")) else "stage1"
    meant = [alias.replace("stage1", stage) for alias in ALIASES.get(plain(word), ())]
    return next((alias for alias in meant if alias in set(known)), None)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line such as `unknown method 'mislass': did you mean 'mislas'?`, with all choices when they are few."""
    choices = sorted(set(known), key=_in_order)
    if near := nearest(name, choices):
        return f"unknown {kind} '{name}': did you mean '{near}'?"
    if choices and len(choices) <= 30:
        return f"unknown {kind} '{name}': choose one of {', '.join(choices)}"
    return f"unknown {kind} '{name}'"


def _in_order(name: str) -> tuple[float, str]:
    """Numbers come first, by their value."""
    try:
        return float(name), name
    except ValueError:
        return math.inf, name
