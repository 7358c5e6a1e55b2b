"""One self-contained HTML page of a table: it works offline, sorts, filters, and shows the runs behind each number."""

import base64
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ltexp.report.records import Run
from ltexp.report.table import percent
from ltexp.run_folder import CONFIG, RECORD

_TEMPLATE = Path(__file__).with_suffix(".html")
_SHOWN = ("all", "many", "medium", "few", "ece")


@dataclass(frozen=True)
class PageColumn:
    """A column of a page.

    Attributes:
        title: its heading.
        numeric: set flush right.
        digits: after the decimal point; None: as it is.
        signed: whether a number has its sign, also if positive.
        filter: whether a menu chooses among its values.
        opens: whether a click on a value shows the runs of the row.
    """

    title: str
    numeric: bool = False
    digits: int | None = None
    signed: bool = False
    filter: bool = False
    opens: bool = False


@dataclass
class PageRow:
    """A row: values (text, numbers, [mean, deviation], None), a kind for its colour, and its runs."""

    cells: list[Any]
    kind: str = ""
    runs: Sequence[Run] = ()


@dataclass
class Page:
    """What is on a page; `to_html` writes it."""

    title: str
    notes: list[str]
    columns: list[PageColumn]
    rows: list[PageRow]
    figures: list[tuple[str, Path]] = field(default_factory=list)  # caption, PNG

    def to_html(self, place: Path) -> str:
        """The page as text.

        Args:
            place: the folder that it will lie in; links to runs start from there.
        """
        runs = list({id(run): run for row in self.rows for run in row.runs}.values())
        number = {id(run): position for position, run in enumerate(runs)}
        content = {
            "title": self.title,
            "notes": self.notes,
            "columns": [vars(column) for column in self.columns],
            "rows": [
                {"cells": row.cells, "kind": row.kind, "runs": [number[id(run)] for run in row.runs]}
                for row in self.rows
            ],
            "runs": [_run(run, place) for run in runs],
            "figures": [{"caption": caption, "source": _embedded(path)} for caption, path in self.figures],
        }
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        # inside a script element `</script` and `<!--` have meanings of their own
        return _TEMPLATE.read_text(encoding="utf-8").replace("DATA", text.replace("<", r"\u003c"), 1)


def _run(run: Run, place: Path) -> dict[str, Any]:
    record = run.record
    values = " ".join(f"{name} {percent(record['metrics'].get(name))}" for name in _SHOWN)
    files = [RECORD, CONFIG, *_figures(run.folder)]
    # text, not Path: three thousand runs make ten thousand links
    folder = os.path.relpath(os.path.abspath(run.folder), os.path.abspath(place))
    links = [[name, quote(f"{folder}/{name}")] for name in files if name in (RECORD, CONFIG) or name.endswith(".png")]
    return {"text": f"seed {record['seed']}, {values}", "links": links, "command": train_command(run)}


def train_command(run: Run) -> str:
    """The command line that the run was started with, its seed included."""
    words = list(run.record.get("overrides") or ())
    if not any(text.startswith("seed=") for text in words):
        words.append(f"seed={run.record['seed']}")
    return " ".join(["ltexp train", *map(shlex.quote, words)])


def _figures(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".png"))
    except OSError:
        return []


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
