"""Change of batch norm's running mean and variance between stages (MiSLAS, Fig. 6)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.errors import ConfigError, DataError
from ltexp.evaluation.arrays import Floats32
from ltexp.names import unknown_name
from ltexp.report.drawing import MARKERS, common, load_arrays, new_figure, titles
from ltexp.report.records import Run
from ltexp.report.saving import save
from ltexp.run_folder import BATCH_NORM

EVALUATED = "batch_norm"
MOST_RUNS = 4
KINDS = (("mean", "running mean"), ("variance", "running variance"))
Layers = dict[str, dict[str, dict[str, Floats32]]]  # by layer, stage, and mean or variance: (channels,)


def draw(runs: Sequence[Run], path: Path, layers: str = "first,last") -> None:
    """Draws to `path` a column for each layer and two rows for each run: a mark for each stage over the channels.

    Args:
        layers: names of batch norms of the backbone with commas, and first and last; default: first,last.

    Raises:
        ConfigError: for an unknown layer, more runs than a page can hold, or a run of one stage.
        DataError: for a run whose statistics were not kept.
    """
    if len(runs) > MOST_RUNS:
        raise ConfigError(f"{len(runs)} runs are too many for one figure: choose at most {MOST_RUNS}")
    asked = layers.split(",")
    figure = new_figure(4.4 * len(asked), 3.8 * len(runs))
    axes = figure.subplots(2 * len(runs), len(asked), squeeze=False)
    for number, (run, title) in enumerate(zip(runs, titles(runs), strict=True)):
        found = by_layer(run)
        for column, name in enumerate(asked):
            layer = _layer(found, name)
            for row, (kind, text) in enumerate(KINDS):
                axis = axes[2 * number + row, column]
                _panel(axis, {stage: of[kind] for stage, of in found[layer].items()})
                axis.set_ylabel(text, fontsize=9)
            above = f"{title}\n" if len(runs) > 1 and column == 0 else ""
            axes[2 * number, column].set_title(f"{above}{name}: {layer}" if name != layer else layer, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("channel", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    heading = ", ".join(part for part in (common(runs), *(titles(runs) if len(runs) == 1 else ())) if part)
    figure.suptitle(heading, fontsize=9)
    save(figure, path)


def read(run: Run) -> dict[str, Floats32]:
    """The arrays of the run's batch_norm.npz.

    Raises:
        DataError: if it is missing or damaged.
    """
    return load_arrays(run.folder / BATCH_NORM, None, f"make it with ltexp evaluate {run.folder} batch_norm=true")


def by_layer(run: Run) -> Layers:
    """What the run's stages left, by layer in the order of the backbone.

    Raises:
        ConfigError: if it has one stage alone, between which nothing changes.
        DataError: if it was not kept.
    """
    found: Layers = {}
    for name, values in read(run).items():
        stage, layer, kind = name.split("/")
        found.setdefault(layer, {}).setdefault(stage, {})[kind] = values
    if not found:
        raise DataError(f"{run.folder / BATCH_NORM} is empty")
    if len(next(iter(found.values()))) < 2:
        raise ConfigError(f"{run.folder} has one stage alone: this figure is of what changes from stage to stage")
    return found


def _layer(found: Layers, name: str) -> str:
    names = list(found)
    if name in ("first", "last"):
        return names[0 if name == "first" else -1]
    if name not in found:
        raise ConfigError(unknown_name("layer", name, ["first", "last", *names]))
    return name


def _panel(axis: Any, stages: dict[str, Floats32]) -> None:
    channels = np.arange(1, len(next(iter(stages.values()))) + 1)
    values = np.stack(list(stages.values()))
    axis.vlines(channels, values.min(0), values.max(0), color="#999999", linewidth=0.8, zorder=1)
    for number, ((stage, of), (color, marker)) in enumerate(zip(stages.items(), MARKERS, strict=False)):
        face = "none" if number else color  # open over filled: equal ones are both seen
        style = {"marker": marker, "markersize": 4.5, "markerfacecolor": face, "color": color, "linestyle": ""}
        axis.plot(channels, of, label=f"after {stage}", zorder=2 + number, **style)
    axis.tick_params(labelsize=8)
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
