"""Reads a paper's YAML file; see `ltexp.papers` for its form."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ltexp.errors import ConfigError
from ltexp.papers.parts import Baselines, Cell, Difference, Paper, Table


def read_paper(path: Path) -> Paper:
    """The paper of one YAML file.

    Raises:
        ConfigError: if it is damaged.
    """
    try:
        # PyYAML's compiled reader takes a tenth of the time, where there is one
        content = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        tables = {number: _table(content, number, node) for number, node in content["tables"].items()}
        facts: dict[str, Any] = {key: content[key] for key in ("title", "year", "venue", "source")}
        facts |= {key: tuple(content[key]) for key in ("notes", "settings")}
        facts["baselines"] = tuple(Baselines(**tuples(node)) for node in content.get("baselines", ()))
        facts["differences"] = tuple(Difference(**tuples(node)) for node in content.get("differences", ()))
        return Paper(id=content["paper"], tables=tables, **facts)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def tuples(node: dict[str, Any]) -> dict[str, Any]:
    """A mapping with its lists as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in node.items()}


def _table(paper: dict[str, Any], number: str, node: dict[str, Any]) -> Table:
    cells = [cell for row in node["rows"] for cell in _row(paper, number, node["columns"], row)]
    backbones: dict[str, set[str]] = {}
    schedules: dict[tuple[str, str | None], set[int | None]] = {}
    for cell in cells:
        backbones.setdefault(cell.dataset, set()).add(cell.backbone)
        schedules.setdefault((cell.method, cell.variant), set()).add(cell.epochs)
    digits = max(len(f"{cell.value:g}".partition(".")[2]) for cell in cells)
    labelled = (
        replace(
            cell,
            digits=digits,
            row=_row_label(cell, several=len(schedules[cell.method, cell.variant]) > 1),
            column=_column_label(cell, several=len(backbones[cell.dataset]) > 1),
        )
        for cell in cells
    )
    variants = node.get("variants", {})
    return Table(paper["paper"], number, node["caption"], node.get("note"), paper["metric"], variants, tuple(labelled))


def _row(paper: dict[str, Any], number: str, columns: list[dict[str, Any]], row: dict[str, Any]) -> list[Cell]:
    values, own, notes, trained_as = row["values"], row["own"], row.get("notes", {}), row.get("as")
    for what, listed in (("values", values), ("own", own), ("as", trained_as)):
        if isinstance(listed, list) and len(listed) != len(columns):
            raise ValueError(f"table {number}, row {row['method']}: {len(listed)} {what} for {len(columns)} columns")
    return [
        Cell(
            paper=paper["paper"],
            table=number,
            method=row["method"],
            variant=row.get("variant"),
            epochs=row.get("epochs"),
            dataset=column["dataset"],
            imbalance=column.get("imbalance", "longtail") if "ratio" in column else None,
            ratio=column.get("ratio"),
            backbone=column["backbone"],
            split=column.get("split", "all"),
            value=float(value),
            metric=paper["metric"],
            own=own[place] if isinstance(own, list) else own,
            note=notes.get(place),
            trained_as=trained_as[place] if isinstance(trained_as, list) else trained_as,
        )
        for place, (column, value) in enumerate(zip(columns, values, strict=True))
        if value is not None
    ]


def _row_label(cell: Cell, several: bool) -> str:
    variant = f":{cell.variant}" if cell.variant else ""
    return f"{cell.method}{variant}" + (f"@{cell.epochs}" if several else "")


def _column_label(cell: Cell, several: bool) -> str:
    parts = [cell.dataset, str(cell.ratio) if cell.ratio else "", "step" if cell.imbalance == "step" else ""]
    parts += [cell.backbone if several else "", cell.split if cell.split != "all" else ""]
    return "/".join(part for part in parts if part)
