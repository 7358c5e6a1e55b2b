"""The table that a run prints at its end: a row for each stage."""

from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ltexp.evaluation.arrays import to_numpy
from ltexp.evaluation.further import is_uneven
from ltexp.report.text import one_line

ABSENT = "–"


def run_table(record: dict[str, Any]) -> Table:
    """A rich table of the stages of one finished `record`, captioned with what the numbers mean."""
    caption = protocol(record["selection"], record["shot_rule"])
    if (matrix := record.get("confusion")) and (note := uneven_note(record["dataset"], np.asarray(matrix).sum(axis=1))):
        caption += f"; {note}"
    caption = "; ".join([*cut_short(record), caption])
    table = Table(
        title=_title(record), caption=escape(caption), box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False
    )
    table.add_column("stage", no_wrap=True)
    # in a narrow window the numbers stay whole and this name wraps
    table.add_column("classifier", min_width=10, overflow="fold")
    for name in ("epochs", "all", "many", "medium", "few", "ECE", "time", "img/s", ""):
        table.add_column(name, justify="right", no_wrap=True)
    last = len(record["stages"]) - 1
    for position, stage in enumerate(record["stages"]):
        table.add_row(*_cells(stage), style="bold" if position == last else None)
        if metrics := stage.get("last_weights"):
            table.add_row(*_last_weights(stage["name"], metrics))
    return table


def cut_short(record: dict[str, Any]) -> list[str]:
    """In words: what makes this finished run less than a full one; nothing for a full one."""
    said = [text for stage in record["stages"] if (text := stopped_text(stage))]
    if tested := record.get("tested"):
        (kind, number), total = next(iter(tested.items())), tested["of"]
        said.append(f"{number:,} of {total:,} test {kind}")
    named = " ".join(str(stage.get("stopped_by", "")) for stage in record["stages"]).split()
    partial = {key: value for key, value in (record.get("partial") or {}).items() if key not in named}
    partial = {key: str(value).lower() for key, value in partial.items()}
    return [*said, f"with {' '.join(f'{key}={value}' for key, value in partial.items())}"] if partial else said


def stopped_text(stage: dict[str, Any]) -> str:
    """Such as `stage1 stopped by trainer.max_time after 10 of 30 epochs`; empty where it had all of them."""
    if "stopped_after" not in stage:
        return ""
    by = f" by {stage['stopped_by']}" if stage.get("stopped_by") else ""
    return f"{stage['name']} stopped{by} after {stage['stopped_after']} of {stage['epochs']} epochs"


def epochs_text(stage: dict[str, Any]) -> str:
    """Its epochs, such as `30`, or `10 of 30` where it was stopped."""
    if "stopped_after" in stage:
        return f"{stage['stopped_after']} of {stage['epochs']}"
    return str(stage.get("epochs", ABSENT))


def protocol(selection: str, shot_rule: str) -> str:
    """In words: which epoch is reported, and what the groups of classes are."""
    return f"{selection} epoch; accuracy and ECE on the test split in %; {shot_rule} (training images)"


def uneven_note(dataset: str, counts: Any) -> str:
    """What to say of an imbalanced test set of so many samples a class, (C,); empty for a balanced one."""
    if not is_uneven(counts):
        return ""
    there = to_numpy(counts)
    there = there[there > 0]
    return (
        f"warning: the test set of {dataset} is imbalanced, {there.min():,} to {there.max():,} samples a class: "
        "`all` is over samples and not the mean over classes, which ltexp report has as columns=+balanced"
    )


def percent(value: float | None, digits: int = 2) -> str:
    """`value` with two decimals, one from 100 on; a dash where there is none, as for an empty group of classes."""
    return ABSENT if value is None else f"{value:.{digits - (round(value, digits) >= 100)}f}"


def _title(record: dict[str, Any]) -> str:
    data = f"{record['dataset']}, {ratio_text(record)}"
    parts = (record["method"], data, record["backbone"], f"seed {record['seed']}")
    return escape(" · ".join(one_line(str(part)) for part in parts if part is not None))


def ratio_text(record: dict[str, Any]) -> str:
    """Such as `ratio 100`; the imbalance is named unless it is the usual exponential tail or the dataset's own."""
    kind = "" if record["imbalance"] in ("longtail", "given") else f"{record['imbalance']} "
    return f"{kind}ratio {record['imbalance_ratio']:g}"


def _cells(stage: dict[str, Any]) -> list[str]:
    metrics = stage["metrics"]
    rate = stage.get("images_per_second")
    return [
        # of a pretext: among how many labels of its own it tells
        escape(f"{stage['name']}, {stage['num_classes']} labels" if "num_classes" in stage else str(stage["name"])),
        escape(str(stage.get("classifier") or ABSENT)),
        epochs_text(stage),
        *(percent(metrics.get(key)) for key in ("all", "many", "medium", "few", "ece")),
        duration(stage.get("seconds")),
        f"{rate:,.0f}" if rate else ABSENT,
        "cached" if stage.get("cached") else "",
    ]


def _last_weights(name: str, metrics: dict[str, Any]) -> list[str]:
    """The row of the weights of the last step, of a stage whose result is their average."""
    shown = (percent(metrics.get(key)) for key in ("all", "many", "medium", "few", "ece"))
    return [escape(name), "last weights", "", *shown, "", "", ""]  # in the column that wraps


def networks_text(record: dict[str, Any]) -> str:
    """What backbone and classifier of the last stage cost, and the modules of any stage, which stand beside them."""
    costs = [stage.get("networks") or {} for stage in record["stages"]]
    model = ("backbone", "classifier")
    modules = {name: cost for networks in reversed(costs) for name, cost in networks.items() if name not in model}
    lines = [f"{name}: {cost_text(costs[-1][name])}" for name in model if name in costs[-1]]
    return "\n".join([*lines, *(f"module {name}: {cost_text(cost)}" for name, cost in modules.items())])


def cost_text(cost: dict[str, int]) -> str:
    """Such as `464,154 parameters, 138.9 MFLOPs a sample`."""
    return f"{cost['parameters']:,} parameters, {cost['flops'] / 1e6:,.1f} MFLOPs a sample"


def duration(seconds: float | None) -> str:
    """`4.2 s`, `3 min 20 s`, `1 h 10 min`; a dash for None."""
    if seconds is None:
        return ABSENT
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
