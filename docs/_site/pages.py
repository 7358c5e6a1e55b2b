"""Pages of the site that are made when it is built: from README.md, conf/, the published numbers and the docstrings.

A hook of mkdocs (`hooks` in mkdocs.yml). Nothing that it makes is committed.
"""

import csv
import os
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from rich.console import Console

from ltexp.config.path import VARIABLE, group_files
from ltexp.methods import comment_of, first_sentence, groups, show_method
from ltexp.papers import all_cells
from ltexp.reproduce.__main__ import main as reproduce

os.environ.pop(VARIABLE, None)  # the site shows ltexp's own choices
ROOT = Path(__file__).parents[2]
DOCS, CONF, PACKAGE = ROOT / "docs", ROOT / "conf", ROOT / "ltexp"
RUNS = [DOCS / "records", *map(Path, filter(None, os.environ.get("LTEXP_MEASURED", "").split(",")))]
API = ("", "data", "evaluation", "features", "inference", "losses", "models", "report", "training")  # of ltexp
WIDE = ["---", "hide: [toc]", "---", ""]  # a page of wide tables
LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages that are made into the navigation, in the place of their @NAME, and new ones at its end."""
    made = {
        "@methods": {"Every method": ["methods/all/index.md", *(f"methods/all/{name}.md" for name in methods())]},
        "@api": {"API": [f"api/{name or 'ltexp'}.md" for name in API]},
        "@config": ["config/index.md", *(f"config/{group}.md" for group in config_groups())],
    }
    config.nav = list(_filled(config.nav or [], made))
    pages = sorted(path.relative_to(DOCS) for path in DOCS.rglob("*.md"))
    written = [str(path) for path in pages if path.parts[0] != "records"]
    listed = set(_paths(config.nav))
    if new := [path for path in written if path not in listed]:
        config.nav.append({"More": new})
    return config


def _paths(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for part in entry.values() if isinstance(entry, dict) else [entry]:
            yield from _paths(part) if isinstance(part, list) else [part]


def _filled(entries: list[Any], made: dict[str, Any]) -> Iterator[Any]:
    for entry in entries:
        if isinstance(entry, str) and entry in made:
            yield from made[entry] if isinstance(made[entry], list) else [made[entry]]
        elif isinstance(entry, dict):
            yield {key: list(_filled(part, made)) if isinstance(part, list) else part for key, part in entry.items()}
        else:
            yield entry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    pages: dict[str, Callable[[], str]] = {
        "index.md": first_page,
        "methods/all/index.md": methods_page,
        "config/index.md": config_page,
        **{f"methods/all/{name}.md": lambda name=name: method_page(name) for name in methods()},  # type: ignore[misc]
        **{f"config/{group}.md": lambda group=group: group_page(group) for group in config_groups()},  # type: ignore[misc]
        **{f"api/{name or 'ltexp'}.md": lambda name=name: api_page(name) for name in API},  # type: ignore[misc]
    }
    for path, make in pages.items():
        files.append(File.generated(config, path, content=make()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Names a file of the repository that is no page where a link to it would lead out of the site."""
    folder = (DOCS / page.file.src_uri).parent

    def mended(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        path = Path(os.path.normpath(folder / target))
        if "://" in target or path.is_relative_to(DOCS):
            return link[0]
        where = path.relative_to(ROOT)
        if where == Path("README.md"):  # the site's first page
            return f"[{text}]({os.path.relpath(DOCS / 'index.md', folder)})"
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_uri}: no {where}")
        return f"{text} (`{where}`)"

    return LINK.sub(mended, markdown)


def methods() -> list[str]:
    """Their names."""
    return list(group_files("method"))


def config_groups() -> list[str]:
    """The groups that a command line chooses from."""
    return groups()


def first_page() -> str:
    """README.md with links as they are from within docs/."""
    return LINK.sub(lambda link: f"[{link[1]}]({_from_docs(link[2])}{link[3] or ''})", (ROOT / "README.md").read_text())


def _from_docs(target: str) -> str:
    return target.removeprefix("docs/") if target.startswith("docs/") or "://" in target else f"../{target}"


def methods_page() -> str:
    """A line for each method."""
    rows = [f"| [`{name}`]({name}.md) | {_sentence('method', name)} |" for name in methods()]
    return "\n".join(["# Every method", "", "| `method=` | what it is |", "| --- | --- |", *rows, ""])


def _sentence(group: str, name: str) -> str:
    return first_sentence(comment_of(group_files(group)[name])).replace("|", "\\|")


def method_page(name: str) -> str:
    """What a method is made of, where its numbers are printed, and what of them has been measured."""
    shown = StringIO()
    with redirect_stdout(shown):
        show_method(Console(file=shown, width=116), name, [])
    parts = [*WIDE, f"# {name}", "", *_block("text", shown.getvalue())]
    written = DOCS / "methods" / f"{name.partition('_')[0]}.md"
    if written.exists():
        parts += [f"Idea, equations, and where it differs: [{written.stem}](../{written.name}).", ""]
    parts += ["## Its file", "", f"`conf/method/{name}.yaml`", ""]
    parts += _block("yaml", (CONF / "method" / f"{name}.yaml").read_text())
    if any(cell.method == name for cell in all_cells()):
        parts += ["## Published and measured", "", compared(name), ""]
    if tables := list(measured(name)):
        parts += ["## Measured in these pages", "", *tables]
    return "\n".join(parts)


def compared(name: str) -> str:
    """Every published number of a method, and what the committed records measure of it."""
    text, said = StringIO(), StringIO()
    runs = ",".join(map(str, RUNS))
    with redirect_stdout(text), redirect_stderr(said):
        status = reproduce(["compare", f"method={name}", f"runs={runs}", "missing=true", "format=csv"])
    if status != 0:
        raise RuntimeError(f"ltexp reproduce compare method={name}: {said.getvalue()}")
    rows = ["| table | row | dataset | ratio | backbone | split | published | measured | n | how |"]
    rows += ["| --- | --- | --- | --: | --- | --- | --: | --: | --: | --- |"]
    for row in csv.DictReader(StringIO(text.getvalue())):
        ratio = f"{row['ratio']} step" if row["imbalance"] == "step" else row["ratio"]
        numbers = [f"{float(value):.2f}" for key in ("measured", "measured_std") if (value := row.get(key))]
        how = "" if row["protocol"] == "not measured" else row["protocol"]
        facts = [row["cell"], row["method"], row["dataset"], ratio, row["backbone"], row["split"]]
        cells = [*facts, row["published"], " ± ".join(numbers), row["n"], how]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    metric = "As printed: accuracy in percent, or error where the paper prints that; `mislas/3` is Table 3 of MiSLAS."
    again = f"`ltexp reproduce plan method={name}` says what it takes to measure the rest."
    return "\n".join([f"{metric} {again}", "", *rows])


def measured(name: str) -> Iterator[str]:
    """The rows about a method in the tables of these pages, with the heading that they stand under."""
    for path, heading, table in _tables():
        rows = [row for row in table[2:] if re.match(rf"\| *`{re.escape(name)}`", row)]
        if rows and not set(table[0]) <= set("| -"):
            link = "../../index.md" if path == ROOT / "README.md" else f"../../{path.relative_to(DOCS)}"
            yield "\n".join([f"{heading} ([there]({link})):", "", *table[:2], *rows, ""])


@cache
def _tables() -> list[tuple[Path, str, list[str]]]:
    """(page, heading, lines) of every table with numbers in the written pages."""
    found = []
    for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md"))):
        if "records" in path.parts:
            continue
        heading, lines = "", path.read_text().splitlines()
        for number, line in enumerate(lines):
            if line.startswith("#"):
                heading = line.lstrip("# ")
            if re.fullmatch(r"\|[ :|-]+\|", line) and "--:" in line:  # numbers are set flush right
                rows = [lines[number - 1], line]
                for row in lines[number + 1 :]:
                    if not row.startswith("|"):
                        break
                    rows.append(row)
                found.append((path, heading, rows))
    return found


def config_page() -> str:
    """The primary config, and the groups."""
    rows = [f"| [`{group}`]({group}.md) | {', '.join(f'`{n}`' for n in _names(group))} |" for group in config_groups()]
    head = [
        "# Config reference",
        "",
        "Every key with its default and what it means, as the files of `conf/` say it.",
        "",
    ]
    table = ["| group | choices |", "| --- | --- |", *rows, ""]
    return "\n".join([*head, *table, "## config.yaml", "", *_block("yaml", (CONF / "config.yaml").read_text())])


def _names(group: str) -> list[str]:
    return list(group_files(group))


def group_page(group: str) -> str:
    """Every file of a group."""
    parts = [*WIDE, f"# {group}", ""]
    for name, path in group_files(group).items():
        parts += [f"## {name}", "", f"{_sentence(group, name)}.", "", *_block("yaml", path.read_text())]
    return "\n".join(parts)


def api_page(name: str) -> str:
    """The modules of a package from their docstrings."""
    if not name:
        return "# ltexp\n\n" + "\n\n".join(f"::: {module}" for module in ("ltexp", "ltexp.samplers", "ltexp.outputs"))
    modules = sorted(path for path in (PACKAGE / name).rglob("*.py") if not path.name.startswith("_"))
    dotted = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
    return f"# ltexp.{name}\n\n" + "\n\n".join(f"::: {module}" for module in dotted) + "\n"


def _block(language: str, text: str) -> list[str]:
    return [f"```{language}", text.rstrip("\n"), "```", ""]
