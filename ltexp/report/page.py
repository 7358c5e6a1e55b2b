"""One HTML page of a table: it works offline, sorts, filters, and shows the runs behind each number."""

import base64
import html
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ltexp.errors import ConfigError
from ltexp.files import is_file_to_be, write_text
from ltexp.report.copies import copy_with_figures, portable
from ltexp.report.records import Run
from ltexp.report.table import percent
from ltexp.report.text import one_line
from ltexp.run_folder import CONFIG, RECORD

_TEMPLATE = Path(__file__).with_suffix(".html")
_SHOWN = ("all", "many", "medium", "few", "ece")
MOST_COPIED = 300  # runs that a page takes along; of more, it links to where they lie


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
        better: 1 if more is better, -1 if less is: the first click sorts the best first. 0: by name or from the least.
        mirror: in rows of errors a value counts as `mirror` less it; None: as it is.
    """

    title: str
    numeric: bool = False
    digits: int | None = None
    signed: bool = False
    filter: bool = False
    opens: bool = False
    better: int = 0
    mirror: float | None = None


@dataclass
class PageRow:
    """A row.

    Attributes:
        cells: text, numbers, [mean, deviation], or None.
        kind: for its colour.
        runs: those behind its numbers.
        detail: what stands small under its first cell where the window is narrow.
        best: positions of the cells that are the best of their kind.
        error: whether its figures are errors.
    """

    cells: list[Any]
    kind: str = ""
    runs: Sequence[Run] = ()
    detail: str = ""
    best: Sequence[int] = ()
    error: bool = False


@dataclass
class Page:
    """What is on a page."""

    title: str
    notes: list[str]
    columns: list[PageColumn]
    rows: list[PageRow]
    figures: list[tuple[str, Path]] = field(default_factory=list)  # caption, PNG

    @property
    def runs(self) -> list[Run]:
        """Those behind any number, each once."""
        return list({id(run): run for row in self.rows for run in row.runs}.values())

    def write(self, out: Path) -> None:
        """Writes the page to `out`, and what it links to beside it into a folder, so that both can be passed on.

        The folder is called as the page with `_files`; of more than `MOST_COPIED` runs nothing is copied.

        Raises:
            ConfigError: if `out` is a pipe or a device, or would write over its runs.
            LtexpError: if one of them cannot be written.
        """
        if not is_file_to_be(out):
            raise ConfigError(f"out={out} is no file: a page's runs and figures lie beside it, so name one")
        if os.path.islink(out):
            out = Path(os.path.realpath(out))  # where the page itself will lie
        runs = self.runs
        copied = [] if len(runs) > MOST_COPIED else copy_with_figures(runs, out.with_name(f"{out.stem}_files"))
        write_text(out, self.to_html(out.parent, copied))

    def to_html(self, place: Path, copied: Sequence[Path] = ()) -> str:
        """The page as text.

        Args:
            place: the folder that it will lie in; links to runs start from there.
            copied: folders that the links lead to, in the order of `runs`; none: the runs' own.
        """
        runs = self.runs
        number = {id(run): position for position, run in enumerate(runs)}
        folders = list(copied) or [run.folder for run in runs]
        content = {
            "columns": [vars(column) for column in self.columns],
            "rows": [
                {
                    "cells": row.cells,
                    "kind": row.kind,
                    "runs": [number[id(run)] for run in row.runs],
                    "detail": row.detail,
                    "best": list(row.best),
                    "error": row.error,
                }
                for row in self.rows
            ],
            "runs": [_run(run, folder, place) for run, folder in zip(runs, folders, strict=True)],
            "figures": [{"caption": caption, "source": _embedded(path)} for caption, path in self.figures],
        }
        text = json.dumps(_on_one_line(content), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        parts = {
            "TITLE": html.escape(one_line(self.title)),
            "NOTES": "\n".join(f'<p class="note">{html.escape(one_line(note))}</p>' for note in self.notes),
            "DATA": text.replace("<", r"\u003c"),  # neither a tag nor a comment can begin inside the script element
        }
        return re.sub("{{(TITLE|NOTES|DATA)}}", lambda found: parts[found[1]], _TEMPLATE.read_text(encoding="utf-8"))


def _on_one_line(content: Any) -> Any:
    """`content` with each text in it on one line, see `one_line`."""
    if isinstance(content, str):
        return one_line(content)
    if isinstance(content, dict):
        return {key: _on_one_line(value) for key, value in content.items()}
    return [_on_one_line(value) for value in content] if isinstance(content, list | tuple) else content


def _run(run: Run, folder: Path, place: Path) -> dict[str, Any]:
    record = run.record
    values = " ".join(f"{name} {percent(record['metrics'].get(name))}" for name in _SHOWN)
    files = [RECORD, CONFIG, *_figures(folder)]
    # text, not Path: three thousand runs make ten thousand links
    relative = os.path.relpath(os.path.abspath(folder), os.path.abspath(place))
    links = [[name, quote(f"{relative}/{name}")] for name in files]
    return {"text": f"seed {record['seed']}, {values}", "links": links, "command": train_command(run)}


def train_command(run: Run) -> str:
    """The command line that the run was started with, its seed included and places on a machine left out."""
    words = portable(run.record.get("overrides") or ())
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
